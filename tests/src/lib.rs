//! Whole clusters of real processes on one machine.
//!
//! - [`Run`]: a job in a folder of its own, started with `coxswain up`, and what it left there.
//! - [`programs`]: the binaries under test.
//! - [`text`]: text to train on, the same on every machine.
//!
//! The tests themselves lie in `tests/`: a table of layouts, failures, deployment files.

mod corpus;
mod run;

pub use corpus::text;
pub use run::{Outcome, Run, Summary, programs, wait_until};
