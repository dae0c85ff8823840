//! Whole clusters of real processes on one machine.
//!
//! - [`Run`]: a job in a folder of its own, for `coxswain up` or a [`Site`], and what it left there.
//! - [`Folder`]: a temporary folder with a small job and its text.
//! - [`Table`]: runs, and what each must equal.
//! - [`Site`]: a coordinator and workers, each started by the test.
//! - [`browser`]: a Chromium that a test drives.
//! - [`chaos`]: losses of workers, thrown at a run.
//! - [`events`]: what a coordinator's journal says.
//! - [`faulty`]: a network within this process that misbehaves as told.
//! - [`threads`]: ranks as threads of this process.
//! - [`nodes`]: two nodes on this machine, and a cluster on them.
//! - [`random`]: small random jobs, held to one process.
//! - [`process`]: processes as the operating system sees them.
//! - [`commands`]: command lines that documents show.
//! - [`skip`]: tests that are left out, which say so.
//!
//! The tests themselves lie in `tests/`: tables of layouts and modes, certificates, failures, two
//! nodes, memory, convergence, text that is generated, deployment files.

pub mod browser;
pub mod chaos;
pub mod commands;
mod corpus;
pub mod events;
pub mod faulty;
mod folder;
pub mod nodes;
pub mod process;
pub mod random;
mod run;
mod site;
pub mod skip;
mod table;
pub mod threads;

pub use corpus::text;
pub use folder::{Folder, JOB};
pub use run::{EMULATED, Outcome, Run, Summary, emulated_gpu, programs, wait_until};
pub use site::{SOON, Site};
pub use table::{Equal, Row, Table, try_all};
