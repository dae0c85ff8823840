//! Who computes when, if every compute action took one unit of time and messages none: the grid of
//! a printed plan.

use std::collections::BTreeSet;

use coxswain_types::schedule::{Action, Kind};

/// For each stage, what it computes in each unit of time; `None` is idle. The lists are those of the
/// stages of one data rank, in order, and have passed the plan's check.
pub(super) fn timeline(lists: &[&[Action]]) -> Vec<Vec<Option<Action>>> {
    let compute: Vec<Vec<Action>> = lists
        .iter()
        .map(|list| {
            list.iter().filter(|a| matches!(a.kind, Kind::Forward | Kind::Backward)).copied().collect()
        })
        .collect();
    let longest: usize = compute.iter().map(Vec::len).sum();
    let mut rows: Vec<Vec<Option<Action>>> = vec![Vec::new(); lists.len()];
    let mut next = vec![0; lists.len()];
    let mut done = BTreeSet::new();
    // One rank computes in every unit at least, or none ever will again.
    for _ in 0..longest {
        let ready = |stage: usize, action: &Action| match action.kind {
            Kind::Forward => stage == 0 || done.contains(&(stage - 1, Kind::Forward, action.micro_batch)),
            _ => stage + 1 == rows.len() || done.contains(&(stage + 1, Kind::Backward, action.micro_batch)),
        };
        let now: Vec<Option<Action>> = (0..rows.len())
            .map(|stage| compute[stage].get(next[stage]).filter(|action| ready(stage, action)).copied())
            .collect();
        if now.iter().all(Option::is_none) {
            break;
        }
        for (stage, action) in now.into_iter().enumerate() {
            next[stage] += usize::from(action.is_some());
            done.extend(action.map(|a| (stage, a.kind, a.micro_batch)));
            rows[stage].push(action);
        }
    }
    rows
}

/// The share of time that stages are idle, in `0..1`.
pub(super) fn idle_share(rows: &[Vec<Option<Action>>]) -> f64 {
    let cells: usize = rows.iter().map(Vec::len).sum();
    let idle = rows.iter().flatten().filter(|cell| cell.is_none()).count();
    if cells == 0 { 0.0 } else { idle as f64 / cells as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::schedule::train;

    #[test]
    fn the_idle_share_of_1f1b_is_the_known_one() {
        for stages in 1..=5_u32 {
            for micro_batches in 1..=9 {
                let lists: Vec<_> = (0..stages).map(|stage| train(stage, stages, 0..micro_batches)).collect();
                let lists: Vec<_> = lists.iter().map(Vec::as_slice).collect();
                let known = f64::from(stages - 1) / f64::from(micro_batches + stages - 1);
                let found = idle_share(&timeline(&lists));
                assert!((found - known).abs() < 1e-12, "{stages} {micro_batches}: {found} {known}");
            }
        }
    }
}
