//! GPipe (arXiv 1811.06965): all forwards, then all backwards. Every micro-batch is in flight at once.

use coxswain_types::schedule::{Action, Kind};

use super::RankStages;

pub(super) fn compute(seat: &RankStages) -> Vec<Action> {
    let all = |kind| (0..seat.count()).map(move |index| seat.action(0, kind, index));
    all(Kind::Forward).chain(all(Kind::Backward)).collect()
}
