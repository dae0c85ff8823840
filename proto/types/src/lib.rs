//! Checked types that coordinator and worker agree on: no prost, no I/O, no libtorch.
//!
//! Reading order:
//! - [`ids`]: what is counted: ranks, steps, micro-batches, generations.
//! - [`job`]: what the user asked for, after every check has passed.
//! - [`axis`]: the axes of its layout, by name.
//! - [`model`]: the transformer of a job, composed of the parts that families share.
//! - [`forms`]: the forms of its parts, each with all that is known of it.
//! - [`bounds`]: what a job's numbers lie within, wherever the job was read.
//! - [`framing`]: the tokens around a text.
//! - [`hash`]: the hash behind pseudo-random choices.
//! - [`mask`]: which keys a query sees, exactly and in tiles.
//! - [`params`]: the parameter table, one pure function of the model.
//! - [`buckets`]: where a rank's parameters lie.
//! - [`tree`]: the canonical order in which gradients are added, whatever the layout.
//! - [`schedule`]: the actions of a step and their text form.
//! - [`assignment`]: all that one worker needs to know; it leaves no choices.
//! - [`rate`]: the learning rate of a step.
//! - [`status`]: what a worker says of itself and what is wanted of it.
//!
//! The text form of a job (YAML) belongs to `coxswain-core`, the wire form to `coxswain-proto`.

pub mod activity;
pub mod assignment;
pub mod axis;
pub mod bounds;
pub mod buckets;
pub mod forms;
pub mod framing;
pub mod hash;
pub mod ids;
pub mod job;
pub mod mask;
pub mod model;
pub mod params;
pub mod rate;
pub mod schedule;
pub mod status;
pub mod tree;

pub use assignment::Assignment;
pub use ids::{Generation, MicroBatch, Rank, Step, WorkerId};
pub use job::JobSpec;
