//! What ranks hold in memory when their generation ends, and where the next one goes on from it, as
//! `worker/engine/src/train/handover.rs` decides it.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use coxswain_types::Assignment;
use coxswain_types::status::StepReport;

/// The parts of a layer that data ranks may hold: as many numbers of ranks divide it as there are in a job.
const WHOLE: u64 = 840;

/// How many reports are remembered for a rank that comes to lead.
const REPORTS_MAX: usize = 4096;

/// A shard of a layer, and which of its parts are meant.
#[derive(Clone, Debug)]
struct SimPiece {
    layer: u32,
    tensor: u32,
    weights: Range<u64>,
    moments: Range<u64>,
}

/// The state that a rank holds.
#[derive(Clone, Debug)]
pub(crate) struct SimHeld {
    pub(crate) job: String,
    pub(crate) step: u64,
    pub(crate) state: u64,
    /// Whether it has voted on the step that follows, and so can take it.
    pub(crate) voted: bool,
    /// The state before the step that it took last.
    pub(crate) before: Option<u64>,
    pieces: Vec<SimPiece>,
    reports: VecDeque<StepReport>,
}

/// What a rank brings to a handover.
#[derive(Clone, Debug)]
pub(crate) struct SimRoster {
    held: Option<SimHeld>,
    needs: Vec<SimPiece>,
}

/// Where a generation goes on from.
#[derive(Clone, Debug)]
pub(crate) struct SimStart {
    pub(crate) step: u64,
    pub(crate) state: u64,
    pub(crate) reports: Vec<StepReport>,
}

impl SimHeld {
    /// What a rank with this assignment comes to hold.
    pub(crate) fn new(assignment: &Assignment) -> SimHeld {
        SimHeld {
            job: assignment.job.clone(),
            step: 0,
            state: 0,
            voted: false,
            before: None,
            pieces: pieces(assignment),
            reports: VecDeque::new(),
        }
    }

    /// Begins to train.
    pub(crate) fn begin(&mut self, start: SimStart) {
        (self.step, self.state, self.reports) = (start.step, start.state, start.reports.into());
    }

    /// Takes a step.
    pub(crate) fn close(&mut self, state: u64, report: StepReport) {
        self.before = Some(self.state);
        (self.step, self.state, self.voted) = (self.step + 1, state, false);
        self.reports.push_back(report);
        if self.reports.len() > REPORTS_MAX {
            self.reports.pop_front();
        }
    }

    /// Whether it can take part in what goes on at a step with this state, by taking that step if need be.
    fn comes_to(&self, step: u64, state: u64, before: Option<u64>) -> bool {
        let follows = self.voted && self.step + 1 == step && Some(self.state) == before;
        (self.step, self.state) == (step, state) || follows
    }
}

/// What this rank says when a generation begins.
pub(crate) fn roster(assignment: &Assignment, held: Option<&SimHeld>) -> SimRoster {
    let mut held = held.filter(|held| held.job == assignment.job).cloned();
    for piece in held.iter_mut().filter(|held| held.voted).flat_map(|held| &mut held.pieces) {
        // Once it takes the step that it has voted on, only its own part is of that step.
        piece.weights = piece.moments.clone();
    }
    SimRoster { held, needs: pieces(assignment) }
}

fn pieces(assignment: &Assignment) -> Vec<SimPiece> {
    let parts = assignment.optimizer_group.len() as u64;
    let border = |index: u64| index * WHOLE / parts.max(1);
    let index = if parts > 1 { u64::from(assignment.data_index) } else { 0 };
    let layers = assignment.stages.iter().flat_map(|stage| stage.layers.clone());
    let piece = |layer| SimPiece {
        layer,
        tensor: assignment.tensor_index,
        weights: 0..WHOLE,
        moments: border(index)..border(index + 1),
    };
    layers.map(piece).collect()
}

/// The newest state that all ranks can come to from what they hold, not older than their checkpoint.
pub(crate) fn decide(rosters: &BTreeMap<u32, SimRoster>, least: u64) -> Option<SimStart> {
    let held = || rosters.values().filter_map(|roster| roster.held.as_ref());
    let mut marks: Vec<_> = held().map(|held| (held.step, held.state)).collect();
    marks.retain(|(step, _)| *step >= least);
    marks.sort_unstable();
    marks.dedup();
    marks.into_iter().rev().find_map(|(step, state)| {
        let first = held().find(|held| (held.step, held.state) == (step, state))?;
        let come: Vec<_> = held().filter(|held| held.comes_to(step, state, first.before)).collect();
        let sources: Vec<_> = come.iter().flat_map(|held| &held.pieces).collect();
        let whole = rosters.values().flat_map(|roster| &roster.needs).all(|need| {
            let here = |piece: &&&SimPiece| (piece.layer, piece.tensor) == (need.layer, need.tensor);
            let of = |what: fn(&SimPiece) -> &Range<u64>| {
                covers(sources.iter().filter(here).map(|piece| what(piece)), what(need))
            };
            of(|piece| &piece.weights) && of(|piece| &piece.moments)
        });
        whole.then(|| SimStart { step, state, reports: first.reports.iter().cloned().collect() })
    })
}

/// Whether the parts make up all that is needed.
fn covers<'a>(parts: impl Iterator<Item = &'a Range<u64>>, need: &Range<u64>) -> bool {
    let mut parts: Vec<_> = parts.cloned().collect();
    parts.sort_by_key(|part| part.start);
    let mut start = need.start;
    for part in parts {
        if part.start <= start {
            start = start.max(part.end);
        }
    }
    start >= need.end
}
