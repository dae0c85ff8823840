//! How a step is spread: cuts of the autograd graph, the interpreter of a step's actions, and the
//! gradient tree over micro-batches and data ranks.

mod cut;
mod pipeline;
mod probe;
mod reduce;
mod seat;
mod shared;

pub use cut::Cut;
pub use pipeline::{MicroLoss, Mode, Runner};
pub use probe::{Finding, Probe};
pub use reduce::GradientSum;
pub use seat::{Seat, seats};
