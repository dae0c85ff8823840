//! The user's own lists, one for each pipeline rank, over micro-batches counted from 0.

use coxswain_types::MicroBatch;
use coxswain_types::schedule::{Action, Kind};

use super::RankStages;

/// The seat's list, moved to the micro-batches of its data rank. A list that is not there is empty,
/// which the plan's check refuses like any other list that leaves work out.
pub(super) fn actions(seat: &RankStages, lists: &[Vec<Action>]) -> Vec<Action> {
    let list = lists.get(seat.rank as usize).map(Vec::as_slice).unwrap_or_default();
    let moved = |action: &Action| {
        let micro_batch = MicroBatch(action.micro_batch.0.saturating_add(seat.micro_batches.start));
        Action { micro_batch, ..*action }
    };
    list.iter().map(moved).collect()
}

/// Whether the lists name sends or receives.
pub(super) fn has_messages(lists: &[Vec<Action>]) -> bool {
    let compute = [Kind::Forward, Kind::Backward, Kind::Input, Kind::Weight];
    lists.iter().flatten().any(|action| !compute.contains(&action.kind))
}
