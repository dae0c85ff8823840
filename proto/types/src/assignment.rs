//! All that one worker needs to know. An assignment leaves no choices: the worker interprets it
//! and computes no plan facts.
//!
//! It is a document: journaled, hashed and carried in one encoding (JSON), so that its digest is
//! its identity on both sides.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::framing::Framing;
use crate::ids::{Generation, Rank, Step, WorkerId};
use crate::job::{Block, JobSpec};
use crate::params::ParameterRow;
use crate::schedule::Action;
use crate::tree::TreeNode;

/// What one rank of a generation does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assignment {
    /// The job's id.
    pub job: String,
    /// The formation that this belongs to.
    pub generation: Generation,
    /// Whose it is.
    pub worker: WorkerId,
    /// The worker's rank.
    pub rank: Rank,
    /// Number of ranks.
    pub world: u32,
    /// Place along the data axis.
    pub data_index: u32,
    /// Place along the pipeline axis.
    pub pipeline_index: u32,
    /// Place along the tensor axis.
    pub tensor_index: u32,
    /// The job, with every default resolved.
    pub spec: JobSpec,
    /// Threads of libtorch, the same for all ranks.
    pub threads: u32,
    /// The run's folder, seen by all ranks under the same path.
    pub directory: String,
    /// The pipeline stages of this rank, in ascending order.
    pub stages: Vec<Stage>,
    /// The logical tensor shards of this rank, of [`Assignment::shard_count`].
    pub shards: Range<u32>,
    /// Logical tensor shards in all.
    pub shard_count: u32,
    /// Ranks along the tensor axis, in order; this one is among them.
    pub tensor_group: Vec<u32>,
    /// Ranks along the data axis, in order; this one is among them.
    pub data_group: Vec<u32>,
    /// What this rank holds: one row for each use of a slice, place by place.
    pub parameters: Vec<ParameterRow>,
    /// Slots for squared norms in the closing exchange.
    pub norm_slots: u32,
    /// The micro-batches of each gradient group, over the whole step.
    pub runs: Vec<Range<u32>>,
    /// The gradient groups that this data rank owns.
    pub owned_runs: Range<u32>,
    /// For each data rank, the tree nodes it reduces by itself.
    pub data_nodes: Vec<Vec<TreeNode>>,
    /// The data ranks among which the optimizer's state is sharded: [`Assignment::data_group`] under
    /// ZeRO-1, else this rank alone.
    pub optimizer_group: Vec<u32>,
    /// The actions of a training step.
    pub train: Vec<Action>,
    /// The actions of one round of evaluation, forward only.
    pub evaluate: Vec<Action>,
    /// The tokens.
    pub data: PreparedData,
    /// The checkpoint to start from; `None` starts from initial values.
    pub resume: Option<Resume>,
    /// The copies that ranks keep of each other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_replica: Option<PeerReplica>,
    /// How long an operation on a group may take before it fails.
    pub operation_ms: u64,
    /// How long a group may take to form.
    pub rendezvous_ms: u64,
}

/// A copy that this rank keeps of what another rank alone holds, and the copy that is kept of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerReplica {
    /// The rank that this one copies.
    pub of: u32,
    /// The rank that copies this one.
    pub by: u32,
    /// The rows of the rank that this one copies.
    pub parameters: Vec<ParameterRow>,
    /// Which slice of its optimizer's state that rank holds: its place in its optimizer group.
    pub slice: u32,
}

/// One pipeline stage of a rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Which of all stages.
    pub index: u32,
    /// Whether it starts with the token embedding.
    pub embedding: bool,
    /// Its transformer layers.
    pub layers: Range<u32>,
    /// Whether it ends with the final norm, the head and the loss.
    pub head: bool,
    /// The rank of the previous stage; it may be this rank.
    pub previous: Option<u32>,
    /// The rank of the next stage; it may be this rank.
    pub next: Option<u32>,
    /// What each layer computes again in its backward pass.
    pub recompute: Vec<Recompute>,
}

/// What a layer computes again in its backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Nothing: all intermediate values are kept.
    Nothing,
    /// One of its blocks, from that block's input.
    Block(Block),
    /// All of it, from its input.
    Layer,
}

/// A job's tokens, prepared once. A worker whose files have other digests refuses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreparedData {
    /// Digest of `tokenizer.json`; `None` where tokens are synthetic.
    pub tokenizer_digest: Option<String>,
    /// The tokens to train on.
    pub train: TokenSource,
    /// The validation tokens; `None` without a validation split.
    pub validation: Option<TokenFile>,
    /// Bytes of the validation text, for bits per byte.
    pub validation_bytes: u64,
    /// The tokens that stand around a text.
    #[serde(default)]
    pub framing: Framing,
    /// Where the initial weights come from, if not from the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
}

/// A checkpoint whose weights another run begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weights {
    /// Its folder.
    pub folder: String,
    /// The digest of its manifest.
    pub digest: String,
}

impl PreparedData {
    /// Data whose only tokens are to train on, without a tokenizer.
    pub fn of_tokens(train: impl Into<TokenSource>) -> PreparedData {
        PreparedData {
            tokenizer_digest: None,
            train: train.into(),
            validation: None,
            validation_bytes: 0,
            framing: Framing::default(),
            weights: None,
        }
    }
}

/// Where tokens come from. In JSON each variant has fields that the other lacks, and these tell them apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenSource {
    /// A file holds them.
    File(TokenFile),
    /// Each reader computes them.
    Synthetic(SyntheticTokens),
}

impl TokenSource {
    /// How many tokens there are.
    pub fn tokens(&self) -> u64 {
        match self {
            TokenSource::File(file) => file.tokens,
            TokenSource::Synthetic(synthetic) => synthetic.tokens,
        }
    }

    /// The file that holds them, if one does.
    pub fn file(&self) -> Option<&TokenFile> {
        match self {
            TokenSource::File(file) => Some(file),
            TokenSource::Synthetic(_) => None,
        }
    }
}

impl From<TokenFile> for TokenSource {
    fn from(file: TokenFile) -> TokenSource {
        TokenSource::File(file)
    }
}

impl From<SyntheticTokens> for TokenSource {
    fn from(synthetic: SyntheticTokens) -> TokenSource {
        TokenSource::Synthetic(synthetic)
    }
}

/// Uniformly random tokens: each is a function of the seed and of its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyntheticTokens {
    /// How many there are.
    pub tokens: u64,
    /// The job's seed.
    pub seed: u64,
    /// Each is below this.
    pub vocab: u32,
}

/// A file of tokens, little-endian `u32`s.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenFile {
    /// Its path below the run's folder.
    pub path: String,
    /// How many tokens it holds.
    pub tokens: u64,
    /// The blake3 digest, in hex, of the list of its blocks' digests.
    pub digest: String,
}

/// A committed checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resume {
    /// The step after which it was written.
    pub step: Step,
    /// Its folder below the run's folder.
    pub path: String,
    /// The digest of its manifest.
    pub digest: String,
}
