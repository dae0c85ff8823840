//! An independent reader of plans: it shares no code with the planner, takes the finished
//! assignments, and refuses whatever would hang, leave work out, do it twice, or hold more than the
//! schedule promises.
//!
//! - `mesh`: whether ranks, stages, neighbours, groups and rows fit together.
//! - `list`: each rank's actions by themselves: complete, in order, within the bounds.
//! - `run`: the messages of each pair of ranks, then all ranks at once.

mod list;
mod mesh;
mod run;

use coxswain_types::schedule::{Action, Kind};
use coxswain_types::{Assignment, MicroBatch};

pub use list::{peak_in_flight, peak_posted};

/// What is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Ranks and their neighbours do not fit together.
    #[error("rank {rank}: {what}")]
    Mesh {
        /// The rank.
        rank: usize,
        /// What does not fit.
        what: &'static str,
    },
    /// A rank lacks a row of the parameter table, or has one too many.
    #[error("rank {rank}: {what} {name}")]
    Rows {
        /// The rank.
        rank: usize,
        /// What is wrong with the row.
        what: &'static str,
        /// The parameter's name.
        name: String,
    },
    /// A micro-batch is done by no data rank or by several.
    #[error("micro-batch {micro_batch} of the step belongs to {owners} data ranks")]
    Owners {
        /// The micro-batch.
        micro_batch: u32,
        /// How many have it.
        owners: usize,
    },
    /// An action that this rank has no business with.
    #[error("rank {rank}, {list}: {action} does not belong there")]
    Foreign {
        /// The rank.
        rank: usize,
        /// `train` or `evaluate`.
        list: &'static str,
        /// The action.
        action: Action,
    },
    /// A stage has whole backwards and split ones.
    #[error("rank {rank}, {list}: stage {stage} has B beside I and W; a stage has either")]
    Mixed {
        /// The rank.
        rank: usize,
        /// `train` or `evaluate`.
        list: &'static str,
        /// The stage.
        stage: u32,
    },
    /// An action is listed twice.
    #[error("rank {rank}, {list}: {action} is listed twice")]
    Twice {
        /// The rank.
        rank: usize,
        /// `train` or `evaluate`.
        list: &'static str,
        /// The action.
        action: Action,
    },
    /// An action is not listed.
    #[error("rank {rank}, {list}: {action} is missing")]
    Missing {
        /// The rank.
        rank: usize,
        /// `train` or `evaluate`.
        list: &'static str,
        /// The action.
        action: Action,
    },
    /// Two actions stand in the wrong order.
    #[error("rank {rank}, {list}: {first} must come before {second}")]
    Order {
        /// The rank.
        rank: usize,
        /// `train` or `evaluate`.
        list: &'static str,
        /// What must come first.
        first: Action,
        /// What must come second.
        second: Action,
    },
    /// A receive is posted too late to travel under the compute before it.
    #[error("rank {rank}, {list}: {action} is posted too late to travel under a compute action")]
    LatePost {
        /// The rank.
        rank: usize,
        /// `train` or `evaluate`.
        list: &'static str,
        /// The receive.
        action: Action,
    },
    /// More is held at once than the schedule promises.
    #[error("rank {rank}, {list}: {held} {what} are held at once; at most {most} may be")]
    Held {
        /// The rank.
        rank: usize,
        /// `train` or `evaluate`.
        list: &'static str,
        /// What is held.
        what: &'static str,
        /// How many.
        held: usize,
        /// How many may be.
        most: usize,
    },
    /// Sends and receives between two stages differ.
    #[error("{list}: stage {from} sends [{sent}] to stage {to}, which receives [{received}]")]
    Messages {
        /// `train` or `evaluate`.
        list: &'static str,
        /// The sender.
        from: u32,
        /// The receiver.
        to: u32,
        /// The micro-batches that are sent, in order.
        sent: String,
        /// The micro-batches that are received, in order.
        received: String,
    },
    /// Ranks wait for each other.
    #[error("{list}: no rank can go on; waiting are {waiting}")]
    Deadlock {
        /// `train` or `evaluate`.
        list: &'static str,
        /// The ranks and the actions at which they stand.
        waiting: String,
    },
}

impl Violation {
    /// Whether the actions are at fault, and not the ranks that they are given to.
    pub fn in_actions(&self) -> bool {
        !matches!(self, Violation::Mesh { .. } | Violation::Rows { .. } | Violation::Owners { .. })
    }
}

/// Checks a whole plan, its assignments in the order of their ranks.
///
/// # Errors
/// The first violation.
pub fn check(assignments: &[Assignment]) -> Result<(), Violation> {
    mesh::check(assignments)?;
    for pass in
        [CheckedList { list: "train", backward: true }, CheckedList { list: "evaluate", backward: false }]
    {
        for assignment in assignments {
            list::check(pass, assignment)?;
        }
        mesh::check_tensor_groups(pass, assignments)?;
        run::check_messages(pass, assignments)?;
        run::run_all(pass, assignments)?;
    }
    Ok(())
}

/// One of the two lists of every rank.
#[derive(Clone, Copy)]
struct CheckedList {
    list: &'static str,
    backward: bool,
}

impl CheckedList {
    fn actions(self, a: &Assignment) -> &[Action] {
        if self.backward { &a.train } else { &a.evaluate }
    }
}

fn action(stage: u32, kind: Kind, micro_batch: u32) -> Action {
    Action { stage, kind, micro_batch: MicroBatch(micro_batch) }
}

#[cfg(test)]
mod tests;
