//! The step, its closing exchange, the learning rate, the loop.

mod closing;
mod engine;
mod optimizer;
mod rate;

pub use closing::{Closing, Vote};
pub use engine::{Control, Engine, Event};
pub use optimizer::Optimizer;
pub use rate::learning_rate;
