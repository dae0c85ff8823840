//! Training and generation on one rank. Knows libtorch; knows no RPC and no plan: it interprets an
//! [`Assignment`](coxswain_types::Assignment).
//!
//! Reading order:
//! - [`model`]: parameters, layers, the stage; top to bottom what is computed.
//! - [`parallel`]: cuts, the interpreter of a step's actions, the gradient tree.
//! - [`train`]: the step, its closing exchange, the learning rate, the loop, what is saved of a training.
//! - [`data`]: micro-batches from token files.
//! - [`checkpoint`]: slices of tensors to disk and back.
//! - [`generate`]: text from a checkpoint.
//!
//! Shapes in names: b samples, t tokens, n rows (b * t), d model dim, h heads, g key/value heads,
//! k head dim, v vocabulary.

pub mod checkpoint;
pub mod data;
mod error;
pub mod generate;
pub mod model;
pub mod parallel;
pub mod train;

pub use error::EngineError;
pub use train::{Control, Engine, EngineEvent, State};
