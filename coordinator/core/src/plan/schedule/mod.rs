//! The order of forwards and backwards on a pipeline rank, as data.
//!
//! Each schedule is a pure function from a rank's seat to its list of compute actions; `messages`
//! adds sends and receives, the same way for all. On every stage forwards are in ascending micro-batch
//! order, and so are backwards: gradients accumulate in that order, so no schedule changes a sum, and
//! the messages of an edge match by their order alone. Whether a list works is not decided here but
//! proven by `check`, which shares no code with this folder.
//!
//! - `gpipe`: all forwards, then all backwards.
//! - `one_f_one_b`: one forward, one backward.
//! - `interleaved`: the same over several stages of a rank.
//! - `zero_bubble`: weight gradients fill the bubbles.
//! - `custom`: the user's own lists.
//! - `messages`: sends and receives.

mod custom;
mod gpipe;
mod interleaved;
mod messages;
mod one_f_one_b;
mod zero_bubble;

use std::ops::Range;

use coxswain_types::MicroBatch;
use coxswain_types::job::{Layout, Schedule};
use coxswain_types::schedule::{Action, Kind};

/// What a list is made for: one pipeline rank of one data rank. Stage s is on rank s mod `ranks`.
#[derive(Clone, Debug)]
struct RankStages {
    /// The pipeline rank.
    rank: u32,
    /// Pipeline ranks in all.
    ranks: u32,
    /// Stages of a rank.
    chunks: u32,
    /// The micro-batches of the data rank.
    micro_batches: Range<u32>,
}

impl RankStages {
    fn new(layout: &Layout, rank: u32, micro_batches: Range<u32>) -> RankStages {
        RankStages { rank, ranks: layout.pipeline, chunks: layout.schedule.chunks(), micro_batches }
    }

    /// Number of micro-batches.
    fn count(&self) -> u32 {
        self.micro_batches.end - self.micro_batches.start
    }

    /// The action of this rank's stage number `chunk` on micro-batch `index`, counted from the rank's
    /// first.
    fn action(&self, chunk: u32, kind: Kind, index: u32) -> Action {
        let micro_batch = MicroBatch(self.micro_batches.start + index);
        Action { stage: chunk * self.ranks + self.rank, kind, micro_batch }
    }
}

/// The actions of a training step on a pipeline rank, over these micro-batches of the step. `actions`
/// are the user's own lists, for [`Schedule::Custom`].
pub(super) fn train(
    layout: &Layout,
    actions: &[Vec<Action>],
    pipeline_index: u32,
    micro_batches: Range<u32>,
) -> Vec<Action> {
    let seat = RankStages::new(layout, pipeline_index, micro_batches);
    let compute = match layout.schedule {
        Schedule::GPipe => gpipe::compute(&seat),
        Schedule::OneFOneB => one_f_one_b::compute(&seat),
        Schedule::Interleaved { .. } => interleaved::compute(&seat),
        Schedule::ZbH1 => zero_bubble::compute(&seat),
        Schedule::Custom { .. } => custom::actions(&seat, actions),
    };
    // A user who wrote one message has written all of them.
    let complete =
        layout.schedule == Schedule::Custom { chunks: seat.chunks } && custom::has_messages(actions);
    if complete { compute } else { messages::with_messages(&seat, &compute) }
}

/// The actions of one round of evaluation: forwards only, in the order in which the interleaved
/// schedule does them. A rank's next stage starts as soon as one micro-batch for each rank has passed
/// the one before, so no more than that many wait between two stages, and no rank waits for long.
pub(super) fn evaluate(layout: &Layout, pipeline_index: u32, micro_batches: Range<u32>) -> Vec<Action> {
    let seat = RankStages::new(layout, pipeline_index, micro_batches);
    messages::with_messages(&seat, &interleaved::forwards(&seat))
}

#[cfg(test)]
mod tests;
