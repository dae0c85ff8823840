//! ZB-H1 (arXiv 2401.10241): a backward is split in two. I, for the input, is what the previous stage
//! waits for; W, for the weights, is awaited by no other action, and fills what would be bubbles.
//!
//! Rank r of p takes in p - r micro-batches, then repeats: an I, the W of r micro-batches before, a
//! forward. What W needs stays until then, so p micro-batches are in flight on every rank.

use coxswain_types::schedule::{Action, Kind};

use super::RankStages;

pub(super) fn compute(seat: &RankStages) -> Vec<Action> {
    let count = seat.count();
    let ahead = (seat.ranks - seat.rank).min(count);
    let mut forwards = (0..count).map(|index| seat.action(0, Kind::Forward, index));
    let mut weights = (0..count).map(|index| seat.action(0, Kind::Weight, index));
    let mut list: Vec<_> = forwards.by_ref().take(ahead as usize).collect();
    for index in 0..count {
        list.push(seat.action(0, Kind::Input, index));
        if index >= seat.rank {
            list.extend(weights.next());
        }
        list.extend(forwards.next());
    }
    list.extend(weights);
    list
}
