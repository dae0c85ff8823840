//! Interleaved 1F1B (arXiv 2104.04473): each rank has several stages, so that the pipeline fills and
//! drains in steps of one stage and not of a rank's whole share.
//!
//! Micro-batches go in groups of as many as there are ranks: a group passes a rank's first stage, then
//! its second, and so on; backwards go through the stages in reverse. Rank r of p with v stages takes
//! in 2 (p - r - 1) + (v - 1) p forwards ahead of its first backward, then alternates.
//!
//! That order needs whole groups; with a smaller last group ranks would wait for each other for ever.
//! So the list is made for whole groups, and micro-batches that do not exist are left out of it. Since
//! no micro-batch needs another, what is left still works, and holds no more.

use coxswain_types::schedule::{Action, Kind};

use super::RankStages;

pub(super) fn compute(seat: &RankStages) -> Vec<Action> {
    let RankStages { rank, ranks, chunks, .. } = *seat;
    let ahead = 2 * (ranks - rank - 1) + (chunks - 1) * ranks;
    let mut forwards = order(seat, Kind::Forward).into_iter();
    let mut list: Vec<_> = forwards.by_ref().take(ahead as usize).collect();
    for backward in order(seat, Kind::Backward) {
        list.extend(forwards.next());
        list.push(backward);
    }
    existing(seat, list)
}

/// The forwards alone, in the same order.
pub(super) fn forwards(seat: &RankStages) -> Vec<Action> {
    existing(seat, order(seat, Kind::Forward))
}

/// All actions of a kind, over whole groups.
fn order(seat: &RankStages, kind: Kind) -> Vec<Action> {
    let mut list = Vec::new();
    for group in 0..seat.count().div_ceil(seat.ranks) {
        for turn in 0..seat.chunks {
            let chunk = if kind == Kind::Forward { turn } else { seat.chunks - 1 - turn };
            list.extend((0..seat.ranks).map(|i| seat.action(chunk, kind, group * seat.ranks + i)));
        }
    }
    list
}

fn existing(seat: &RankStages, list: Vec<Action>) -> Vec<Action> {
    list.into_iter().filter(|action| seat.micro_batches.contains(&action.micro_batch.0)).collect()
}
