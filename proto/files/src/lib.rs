//! What coordinator and worker agree on on disk: no libtorch, no RPC.
//!
//! Reading order:
//! - [`store`]: where a run's files lie: objects that are whole and durable or not there, in a local folder.
//! - [`atomic`]: a local file is either whole and synced or not there; digests.
//! - [`regular`]: only regular files are opened under names that a user gave.
//! - [`digests`]: digests of whole files, remembered.
//! - [`hash`]: the counter-based hash behind every pseudo-random choice here.
//! - [`tokenizer`], [`tokens`], [`mod@prepare`]: from text to a token file, once for a job; [`progress`]: how far
//!   that is, and whether it goes on.
//! - [`source`]: tokens that are ready to be read, from a file or computed.
//! - [`samples`]: which tokens the n-th sample holds, a pure function.
//! - [`region`]: slabs of a tensor and what two of them share, pure arithmetic.
//! - [`shards`]: one rank's part of a checkpoint, a safetensors file that explains itself.
//! - [`manifest`]: what makes shard files a checkpoint; publishing it.
//! - [`checkpoint`]: reading one, in any other cut than it was written in.
//! - [`hf`], [`gguf`]: models in the forms of others.
//! - [`folders`]: where checkpoints lie, the newest of them, and which are let go.
//!
//! When a checkpoint is written, and which is committed, is decided by the coordinator.

pub mod atomic;
pub mod checkpoint;
pub mod digests;
pub mod error;
#[cfg(test)]
mod fixture;
pub mod folders;
pub mod gguf;
pub mod hash;
pub mod hf;
pub mod manifest;
mod map;
pub mod prepare;
pub mod progress;
pub mod region;
pub mod regular;
pub mod samples;
pub mod shards;
pub mod source;
pub mod store;
pub mod tokenizer;
pub mod tokens;

pub use checkpoint::Checkpoint;
pub use digests::Digests;
pub use error::CheckpointError;
pub use folders::{latest, prune};
pub use manifest::{Fingerprint, Header, Manifest, publish};
pub use prepare::{PrepareError, prepare};
pub use progress::{PreparationProgress, Stopped};
pub use samples::{Samples, sample_index};
pub use shards::{ShardTensor, SlabWriter, write_shard};
pub use source::OpenTokens;
pub use store::StoreFolder;
pub use tokenizer::{TextStream, Tokenizer, TokenizerError};
pub use tokens::{OpenTokenFile, TokensError, write_tokens};
