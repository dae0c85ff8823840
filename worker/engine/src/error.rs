//! Why a rank cannot go on.

use std::ops::Range;
use std::path::PathBuf;

use coxswain_native::TorchError;
use coxswain_types::params::Place;

/// Why a rank cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// libtorch or the network refused an operation.
    #[error("{doing}: {cause}")]
    Torch {
        /// What was being done.
        doing: String,
        /// What libtorch said.
        cause: TorchError,
    },
    /// The ranks of a generation did not find each other.
    #[error("joining generation {generation} as rank {rank} from {address}: {cause}")]
    Joining {
        /// The generation.
        generation: u64,
        /// This rank.
        rank: u32,
        /// The address that this rank is bound to.
        address: String,
        /// What went wrong.
        cause: TorchError,
    },
    /// The assignment's rows and the model do not fit together.
    #[error("the assignment's parameters do not fit its layers: {0}")]
    Table(String),
    /// The assignment's actions cannot be carried out in this order.
    #[error("action {action}: {reason}")]
    Action {
        /// The action.
        action: String,
        /// Why it cannot be done.
        reason: String,
    },
    /// A parameter that was never reached by a backward pass: its gradient would be whatever its buffer held.
    #[error(
        "no backward pass has written the gradient of {name} at {place:?}, shard {shard}, in micro-batches {run:?}; \
         a parameter without a gradient must be given zeros"
    )]
    Unwritten {
        /// The parameter.
        name: String,
        /// Where it is used.
        place: Place,
        /// By which logical shard.
        shard: u32,
        /// The micro-batches whose gradients are summed.
        run: Range<u32>,
    },
    /// The tokens are not those of the job.
    #[error(transparent)]
    Tokens(#[from] coxswain_files::TokensError),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] coxswain_files::CheckpointError),
    /// The checkpoint to go on from is damaged.
    #[error(transparent)]
    Damaged(coxswain_files::CheckpointError),
    /// The tokenizer is missing or broken.
    #[error(transparent)]
    Tokenizer(#[from] coxswain_files::TokenizerError),
    /// A file of the run's folder could not be used.
    #[error("{path}: {cause}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: std::io::Error,
    },
    /// The run's folder is not the same folder on all ranks.
    #[error(
        "the run's folder {0} is not shared: rank 0 wrote a file there that this rank cannot read; \
         every worker must see the same folder under this path"
    )]
    NotShared(PathBuf),
    /// The checkpoint was made under other conditions, which change the bits.
    #[error("the checkpoint was made under other conditions: {}", .0.join("; "))]
    Fingerprint(Vec<String>),
    /// Loss or gradients are infinite or NaN, once too often; the weights still have their last good
    /// values.
    #[error(
        "step {step}: the gradient norm is {norm} and the loss {loss}; {in_a_row} steps in a row were not \
         finite (train.non_finite_max). First bad: {place}. No weight was changed by these steps. Lower \
         train.learning_rate, or continue from the last checkpoint with other data"
    )]
    NotFinite {
        /// The step that was not taken.
        step: u64,
        /// How many steps in a row were not taken.
        in_a_row: u64,
        /// The global gradient norm.
        norm: f64,
        /// The mean loss.
        loss: f64,
        /// Rank, layer and tensor where the first such value arose.
        place: String,
    },
    /// Something else.
    #[error("{0}")]
    Other(String),
}

/// Says what was being done when libtorch failed.
pub(crate) trait Doing<T> {
    /// Attaches the deed to the error.
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, EngineError>;
}

impl<T> Doing<T> for Result<T, TorchError> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, EngineError> {
        self.map_err(|cause| EngineError::Torch { doing: what(), cause })
    }
}

impl From<TorchError> for EngineError {
    fn from(cause: TorchError) -> EngineError {
        EngineError::Torch { doing: "an operation on tensors".to_owned(), cause }
    }
}

impl From<tch::TchError> for EngineError {
    fn from(error: tch::TchError) -> EngineError {
        TorchError::from(error).into()
    }
}
