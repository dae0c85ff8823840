//! Every decision of the coordinator, free of I/O: no clock, no randomness, no files, no sockets.
//!
//! - [`spec`]: the text of a job file becomes a checked job, or a list of refusals.
//! - [`plan`]: a job and the workers at hand become one assignment for each rank.
//! - [`cluster`]: events become effects while the job runs.
//! - [`hardware`]: machines as numbers, for plans.
//! - [`code`]: stable names of refusals.
//! - [`columns`]: tables of text.
//! - [`certificate`]: runs of one job in several layouts become a proof that the numbers are the same.
//! - `planted`: bugs that the simulator plants to see them caught; other builds are free of them.

#[macro_use]
#[cfg(feature = "mutations")]
pub mod planted;
#[macro_use]
#[cfg(not(feature = "mutations"))]
#[allow(unreachable_pub, reason = "the simulator's build alone shows it to other crates")]
mod planted;

pub mod certificate;
pub mod cluster;
pub mod code;
pub mod columns;
pub mod hardware;
pub mod plan;
pub mod spec;
