//! What is computed, top to bottom: embedding, layers, head.
//!
//! The model knows nothing of pipelines or data ranks; tensor parallelism shows in the two calls
//! `copy_to_group` and `reduce_from_group`, over a group that may have one rank.

mod init;
mod layer;
mod param;
mod stage;

pub use init::initial_values;
pub(crate) use layer::buffer;
pub use layer::{Cache, Layer, Rotary};
pub(crate) use param::ROW_ALIGN;
pub use param::{Bucket, Param, Parameters};
pub use stage::{Head, Shape, Stage};
