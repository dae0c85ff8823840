//! Whole clusters in simulated time: the coordinator's core with workers, users, disks, networks and clocks
//! that fail in every way that a seed can think of. One seed is one history, and repeats to the last event.
//!
//! - [`swarm`]: what a seed decides; [`faults`]: the families of faults.
//! - `world`, `queue`: the loop. `coordinator`, `disk`: the real core under a simulated driver.
//! - `worker`, `engine`, `memory`, `network`, `folder`, `client`, `chaos`: all that is around it.
//! - `truth`: what runs must come to. `judge`: the rules. [`run`]: the phases of a history.
//! - [`shrink`]: a failing history becomes a short story. [`sweep`]: many seeds on all cores.

pub mod faults;
pub mod random;
pub mod run;
pub mod shrink;
pub mod swarm;
pub mod sweep;

mod chaos;
mod client;
mod coordinator;
mod disk;
mod engine;
mod folder;
mod judge;
mod memory;
mod network;
mod queue;
mod truth;
mod worker;
mod world;

pub use judge::RuleViolation;
