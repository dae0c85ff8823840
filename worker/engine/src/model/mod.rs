//! What is computed, top to bottom: embedding, layers, head.
//!
//! The model knows nothing of pipelines or data ranks. Tensor parallelism shows in the two calls
//! `copy_to_shards` and `reduce_from_shards`, over a group that may have one rank.

mod attention;
mod bridge;
mod cache;
mod embedding;
mod ffn;
mod head;
mod init;
mod layer;
mod linear;
mod norm;
mod param;
mod pass;
mod positions;
mod stage;
mod uses;

pub use bridge::Bridge;
pub use cache::Cache;
pub use embedding::Embedding;
pub use head::HeadModule;
pub use init::initial_values;
pub use layer::{Keeps, Layer, Piece, pieces};
pub(crate) use layer::{buffer, on_device};
pub use norm::Norm;
pub(crate) use param::kind;
pub(crate) use param::zeros;
pub use param::{Bucket, Param, Parameters};
pub use pass::{Dropout, Pass, Site};
pub use positions::Rotary;
pub use stage::{Context, Shape, StageModule};
