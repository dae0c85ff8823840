//! 1F1B (arXiv 2104.04473): a rank first takes in as many micro-batches as there are ranks behind it,
//! then alternates one forward with one backward, then drains. On rank r of p no more than p - r
//! micro-batches are in flight.

use coxswain_types::schedule::{Action, Kind};

use super::RankStages;

pub(super) fn compute(seat: &RankStages) -> Vec<Action> {
    let ahead = (seat.ranks - seat.rank - 1).min(seat.count());
    let mut forwards = (0..seat.count()).map(|index| seat.action(0, Kind::Forward, index));
    let mut list: Vec<_> = forwards.by_ref().take(ahead as usize).collect();
    for index in 0..seat.count() {
        list.extend(forwards.next());
        list.push(seat.action(0, Kind::Backward, index));
    }
    list
}
