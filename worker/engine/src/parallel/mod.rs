//! How a step is spread: cuts of the autograd graph, the interpreter of a step's actions, and the
//! canonical sum of gradients over micro-batches and data ranks.

mod cut;
mod pipeline;
mod reduce;

pub use cut::Cut;
pub use pipeline::{MicroLoss, Mode, Runner};
pub use reduce::Reduction;
