//! Whole clusters of real processes on one machine.
//!
//! - [`Run`]: a job in a folder of its own, started with `coxswain up`, and what it left there.
//! - [`Folder`]: a temporary folder with a small job and its text.
//! - [`Table`]: runs, and what each must equal.
//! - [`process`]: processes as the operating system sees them.
//!
//! The tests themselves lie in `tests/`: a table of layouts, failures, two nodes, memory, text
//! that is generated, deployment files.

mod corpus;
mod folder;
pub mod process;
mod run;
mod table;

pub use corpus::text;
pub use folder::{Folder, JOB};
pub use run::{Outcome, Run, Summary, programs, wait_until};
pub use table::{Equal, Row, Table};
