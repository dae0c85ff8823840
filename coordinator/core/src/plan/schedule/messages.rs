//! Sends and receives, added to a list of compute actions.
//!
//! A receive is posted before the compute action that precedes the one that needs it, so that it
//! travels under that compute; a send follows what it sends at once. A send never waits for its
//! receiver. Stages of one rank hand over without messages; neighbours share a rank only where there
//! is one rank.

use coxswain_types::schedule::{Action, Kind};

use super::RankStages;

pub(super) fn with_messages(seat: &RankStages, compute: &[Action]) -> Vec<Action> {
    let mut list: Vec<_> = compute.first().and_then(|first| receive(seat, first)).into_iter().collect();
    for (i, now) in compute.iter().enumerate() {
        list.extend(compute.get(i + 1).and_then(|next| receive(seat, next)));
        list.push(*now);
        list.extend(send(seat, now));
    }
    list
}

/// The message that a compute action needs.
fn receive(seat: &RankStages, action: &Action) -> Option<Action> {
    match action.kind {
        Kind::Forward if comes_from_before(seat, action) => Some(Kind::RecvForward),
        Kind::Backward | Kind::Input if goes_on(seat, action) => Some(Kind::RecvBackward),
        _ => None,
    }
    .map(|kind| Action { kind, ..*action })
}

/// The message that a compute action makes.
fn send(seat: &RankStages, action: &Action) -> Option<Action> {
    match action.kind {
        Kind::Forward if goes_on(seat, action) => Some(Kind::SendForward),
        Kind::Backward | Kind::Input if comes_from_before(seat, action) => Some(Kind::SendBackward),
        _ => None,
    }
    .map(|kind| Action { kind, ..*action })
}

/// Whether another rank has the stage before.
fn comes_from_before(seat: &RankStages, action: &Action) -> bool {
    seat.ranks > 1 && action.stage > 0
}

/// Whether another rank has the stage after.
fn goes_on(seat: &RankStages, action: &Action) -> bool {
    seat.ranks > 1 && action.stage + 1 < seat.ranks * seat.chunks
}
