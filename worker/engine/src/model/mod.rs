//! What is computed, top to bottom: embedding, layers, head.
//!
//! The model knows nothing of pipelines or data ranks. Tensor parallelism shows in the two calls
//! `copy_to_shards` and `reduce_from_shards`, over a group that may have one rank.

mod init;
mod layer;
mod norm;
mod param;
mod pass;
mod stage;

pub use init::initial_values;
pub(crate) use layer::buffer;
pub use layer::{Cache, Layer, Piece, pieces};
pub use norm::Norm;
pub(crate) use param::kind;
pub use param::{Bucket, Class, Param, Parameters};
pub use pass::{Dropout, Pass, Rotary, Site};
pub use stage::{Context, Embedding, Head, Shape, Stage};
