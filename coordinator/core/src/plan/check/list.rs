//! Each rank's actions by themselves: every one that is needed, no other, in order, and no more held
//! at once than the schedule promises.

use std::collections::{BTreeMap, BTreeSet};

use coxswain_types::Assignment;
use coxswain_types::assignment::Stage;
use coxswain_types::job::Schedule;
use coxswain_types::schedule::{Action, Kind};

use super::mesh::owned;
use super::{CheckedList, Violation, action};

/// Receives that a rank of a schedule of ours has posted and not used: the one that its next compute
/// action needs, and the one after it.
const POSTED_RECEIVES: usize = 2;

pub(super) fn check(pass: CheckedList, a: &Assignment) -> Result<(), Violation> {
    let (rank, list) = (a.rank.index(), pass.list);
    let owned = owned(a);
    let mut positions = BTreeMap::new();
    let mut kinds = BTreeMap::new();
    for stage in &a.stages {
        kinds.insert(stage.index, stage_kinds(pass, a, stage)?);
    }
    for (position, action) in pass.actions(a).iter().enumerate() {
        let known = kinds.get(&action.stage).is_some_and(|kinds| kinds.contains(&action.kind));
        if !known || !owned.contains(&action.micro_batch.0) {
            return Err(Violation::Foreign { rank, list, action: *action });
        }
        if positions.insert(*action, position).is_some() {
            return Err(Violation::Twice { rank, list, action: *action });
        }
    }
    for (stage, kinds) in kinds {
        let all = owned.iter().flat_map(|m| kinds.iter().map(move |kind| action(stage, *kind, *m)));
        if let Some(missing) = all.into_iter().find(|action| !positions.contains_key(action)) {
            return Err(Violation::Missing { rank, list, action: missing });
        }
        if let Some((first, second)) = disorder(stage, &owned, &positions) {
            return Err(Violation::Order { rank, list, first, second });
        }
    }
    check_bounds(pass, a, owned.len())
}

/// What a stage has to do for each micro-batch.
fn stage_kinds(pass: CheckedList, a: &Assignment, stage: &Stage) -> Result<Vec<Kind>, Violation> {
    let has = |kinds: &[Kind]| {
        pass.actions(a).iter().any(|action| action.stage == stage.index && kinds.contains(&action.kind))
    };
    let (whole, split) = (has(&[Kind::Backward]), has(&[Kind::Input, Kind::Weight]));
    if pass.backward && whole && split {
        return Err(Violation::Mixed { rank: a.rank.index(), list: pass.list, stage: stage.index });
    }
    let elsewhere = |rank: Option<u32>| rank.is_some_and(|rank| rank != a.rank.0);
    let (before, after, back) = (elsewhere(stage.previous), elsewhere(stage.next), pass.backward);
    // Compute actions first: where one is missing, its messages are missing too and say less.
    let needed = [
        (Kind::Forward, true),
        (Kind::Backward, back && !split),
        (Kind::Input, back && split),
        (Kind::Weight, back && split),
        (Kind::RecvForward, before),
        (Kind::SendForward, after),
        (Kind::RecvBackward, after && back),
        (Kind::SendBackward, before && back),
    ];
    Ok(needed.into_iter().filter(|(_, needed)| *needed).map(|(kind, _)| kind).collect())
}

/// Two actions of a stage that stand in the wrong order: first, what must come first.
fn disorder(
    stage: u32,
    owned: &BTreeSet<u32>,
    positions: &BTreeMap<Action, usize>,
) -> Option<(Action, Action)> {
    let wrong = |first: Action, second: Action| {
        let (i, j) = (positions.get(&first)?, positions.get(&second)?);
        (i > j).then_some((first, second))
    };
    let within = [
        (Kind::RecvForward, Kind::Forward),
        (Kind::Forward, Kind::SendForward),
        (Kind::Forward, Kind::Backward),
        (Kind::Forward, Kind::Input),
        (Kind::RecvBackward, Kind::Backward),
        (Kind::RecvBackward, Kind::Input),
        (Kind::Backward, Kind::SendBackward),
        (Kind::Input, Kind::SendBackward),
        (Kind::Input, Kind::Weight),
    ];
    for m in owned {
        for (first, second) in within {
            if let Some(found) = wrong(action(stage, first, *m), action(stage, second, *m)) {
                return Some(found);
            }
        }
    }
    // Gradients accumulate in micro-batch order: the order of backwards is part of the result.
    let pairs = || owned.iter().zip(owned.iter().skip(1));
    [Kind::Forward, Kind::Backward, Kind::Input, Kind::Weight]
        .into_iter()
        .flat_map(|kind| pairs().map(move |(m, n)| (action(stage, kind, *m), action(stage, kind, *n))))
        .find_map(|(first, second)| wrong(first, second))
}

/// What schedules promise to hold at most. A user's own list promises nothing: what it holds is
/// counted from the list and stands in the memory estimate.
fn check_bounds(pass: CheckedList, a: &Assignment, micro_batches: usize) -> Result<(), Violation> {
    let (rank, list) = (a.rank.index(), pass.list);
    let layout = a.spec.layout;
    let (p, r) = (layout.pipeline as usize, a.pipeline_index as usize);
    let behind = p.saturating_sub(r);
    let most = match layout.schedule {
        Schedule::Custom { .. } if pass.backward => return Ok(()),
        Schedule::GPipe | Schedule::Custom { .. } => micro_batches,
        Schedule::OneFOneB => micro_batches.min(behind),
        Schedule::Interleaved { chunks } => {
            let v = chunks as usize;
            (micro_batches * v).min(2 * behind.saturating_sub(1) + v.saturating_sub(1) * p + 1)
        }
        Schedule::ZbH1 => micro_batches.min(p),
    };
    let actions = pass.actions(a);
    let bounds = [
        ("micro-batches in flight", if pass.backward { peak_in_flight(actions) } else { 0 }, most),
        ("posted receives", peak_posted(actions), POSTED_RECEIVES),
    ];
    if let Some((what, held, most)) = bounds.into_iter().find(|(_, held, most)| held > most) {
        return Err(Violation::Held { rank, list, what, held, most });
    }
    match late_post(actions) {
        Some(action) => Err(Violation::LatePost { rank, list, action }),
        None => Ok(()),
    }
}

/// The most micro-batches in flight at once in a list, counted once for each stage that holds one:
/// from the forward to the backward, and where that is split to W, which needs what I leaves behind.
pub fn peak_in_flight(actions: &[Action]) -> usize {
    let changes = actions.iter().map(|action| match action.kind {
        Kind::Forward => 1,
        Kind::Backward | Kind::Weight => -1,
        _ => 0,
    });
    peak(changes)
}

/// The most receives that are posted at once and not used yet.
pub fn peak_posted(actions: &[Action]) -> usize {
    let mut posted = BTreeSet::new();
    let changes = actions.iter().map(|action| match receive_of(action) {
        Some(receive) => -isize::from(posted.remove(&receive)),
        None if matches!(action.kind, Kind::RecvForward | Kind::RecvBackward) => {
            isize::from(posted.insert(*action))
        }
        None => 0,
    });
    peak(changes)
}

fn peak(changes: impl Iterator<Item = isize>) -> usize {
    let held = changes.scan(0, |held, change| {
        *held += change;
        Some(*held)
    });
    held.max().unwrap_or(0).try_into().unwrap_or(0)
}

/// The receive whose message a compute action uses, if it has come from another rank.
fn receive_of(action: &Action) -> Option<Action> {
    let kind = match action.kind {
        Kind::Forward => Kind::RecvForward,
        Kind::Backward | Kind::Input => Kind::RecvBackward,
        _ => return None,
    };
    Some(Action { kind, ..*action })
}

/// A receive with no compute action between its post and its use, though there was one before.
fn late_post(actions: &[Action]) -> Option<Action> {
    let mut computed = 0;
    let mut posted = BTreeMap::new();
    for action in actions {
        match action.kind {
            Kind::RecvForward | Kind::RecvBackward => {
                posted.insert(*action, computed);
            }
            Kind::SendForward | Kind::SendBackward => {}
            Kind::Forward | Kind::Backward | Kind::Input | Kind::Weight => {
                let when = receive_of(action).and_then(|receive| Some((receive, *posted.get(&receive)?)));
                if let Some((receive, when)) = when
                    && computed > 0
                    && when == computed
                {
                    return Some(receive);
                }
                computed += 1;
            }
        }
    }
    None
}
