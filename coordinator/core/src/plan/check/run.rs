//! The messages of each pair of ranks, then all ranks at once.

use std::collections::BTreeSet;

use coxswain_types::Assignment;
use coxswain_types::assignment::Stage;
use coxswain_types::schedule::Kind;

use super::{CheckedList, Violation};

/// Messages between two stages, in one direction, carry no numbers: the first sent is the first
/// received. Those of other stages travel apart from them.
pub(super) fn check_messages(pass: CheckedList, assignments: &[Assignment]) -> Result<(), Violation> {
    let micro_batches = |a: &Assignment, stage: u32, kind: Kind| -> String {
        let of_kind = pass.actions(a).iter().filter(|action| (action.stage, action.kind) == (stage, kind));
        of_kind.map(|action| action.micro_batch.to_string()).collect::<Vec<_>>().join(" ")
    };
    for a in assignments {
        for stage in &a.stages {
            let from = stage.index;
            for (rank, to, send, receive) in [
                (stage.next, from.checked_add(1), Kind::SendForward, Kind::RecvForward),
                (stage.previous, from.checked_sub(1), Kind::SendBackward, Kind::RecvBackward),
            ] {
                let other = rank.and_then(|rank| assignments.get(rank as usize));
                let (Some(other), Some(to)) = (other, to) else { continue };
                let (sent, received) = (micro_batches(a, from, send), micro_batches(other, to, receive));
                if sent != received {
                    return Err(Violation::Messages { list: pass.list, from, to, sent, received });
                }
            }
        }
    }
    Ok(())
}

/// What has happened in a pipeline: computed on a stage of this rank, or sent to it.
#[derive(Default)]
struct Happened {
    /// (data rank, tensor rank, stage, kind, micro-batch)
    done: BTreeSet<(u32, u32, u32, Kind, u32)>,
}

impl Happened {
    fn note(&mut self, a: &Assignment, stage: u32, kind: Kind, micro_batch: u32) {
        self.done.insert((a.data_index, a.tensor_index, stage, kind, micro_batch));
    }

    fn has(&self, a: &Assignment, stage: u32, kinds: &[Kind], micro_batch: u32) -> bool {
        let key = |kind: &Kind| (a.data_index, a.tensor_index, stage, *kind, micro_batch);
        kinds.iter().any(|kind| self.done.contains(&key(kind)))
    }

    /// Whether a stage's neighbour on `rank` has made `kinds` and, if it is another rank, sent it.
    fn arrived(
        &self,
        a: &Assignment,
        rank: Option<u32>,
        stage: Option<u32>,
        kinds: (&[Kind], Kind),
        m: u32,
    ) -> bool {
        let (Some(rank), Some(stage)) = (rank, stage) else { return true };
        if rank == a.rank.0 { self.has(a, stage, kinds.0, m) } else { self.has(a, stage, &[kinds.1], m) }
    }

    fn ready(&self, a: &Assignment, stage: &Stage, kind: Kind, m: u32) -> bool {
        match kind {
            Kind::Forward => {
                let before = (&[Kind::Forward][..], Kind::SendForward);
                self.arrived(a, stage.previous, stage.index.checked_sub(1), before, m)
            }
            Kind::Backward | Kind::Input => {
                let after = (&[Kind::Backward, Kind::Input][..], Kind::SendBackward);
                self.arrived(a, stage.next, stage.index.checked_add(1), after, m)
            }
            Kind::Weight => self.has(a, stage.index, &[Kind::Input], m),
            Kind::RecvForward | Kind::SendForward | Kind::RecvBackward | Kind::SendBackward => true,
        }
    }
}

/// Runs all ranks: a send never waits, a receive is only posted, a compute action waits for what the
/// stage beside it makes.
pub(super) fn run_all(pass: CheckedList, assignments: &[Assignment]) -> Result<(), Violation> {
    let mut next = vec![0_usize; assignments.len()];
    let mut happened = Happened::default();
    // Every round but the last moves a rank on, so there are no more rounds than actions.
    loop {
        let mut moved = false;
        for (rank, a) in assignments.iter().enumerate() {
            while let Some(now) = pass.actions(a).get(next[rank]) {
                let m = now.micro_batch.0;
                let stage = a.stages.iter().find(|stage| stage.index == now.stage);
                if !stage.is_some_and(|stage| happened.ready(a, stage, now.kind, m)) {
                    break;
                }
                happened.note(a, now.stage, now.kind, m);
                next[rank] += 1;
                moved = true;
            }
        }
        if !moved {
            break;
        }
    }
    let stuck = assignments.iter().zip(next).filter_map(|(a, next)| {
        let now = pass.actions(a).get(next)?;
        Some(format!("rank {} at {now}", a.rank))
    });
    let waiting: Vec<_> = stuck.collect();
    if waiting.is_empty() {
        return Ok(());
    }
    Err(Violation::Deadlock { list: pass.list, waiting: waiting.join(", ") })
}
