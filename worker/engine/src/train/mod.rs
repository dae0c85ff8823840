//! The step, its closing exchange, the learning rate, the loop, what is saved of a training.

mod closing;
mod crossing;
mod engine;
mod handover;
mod held;
mod muon;
mod norms;
mod optimizer;
mod rate;
mod replica;
mod saving;
mod shared_folder;
mod state;
mod takeover;
mod verdict;

pub use closing::{Closing, Vote};
pub use engine::{Control, Engine, EngineEvent};
pub use optimizer::{Moments, Optimizer, StepNumbers};
pub use rate::learning_rate;
pub use state::State;
pub use verdict::{Trainer, Verdict};
