//! A plan as a page shows it: where each rank stands in the grid, what it holds, and the planned step as spans of time.

use coxswain_types::JobSpec;
use coxswain_types::job::Layout;
use coxswain_types::schedule::Kind;
use serde::{Deserialize, Serialize};

use super::cost::Cost;
use super::grid::caption;
use super::mesh::Mesh;
use super::print::{held_parameters, holds};
use super::{Plan, PlanError, sketch_of};

/// The most spans of a step that are shown. A picture has fewer pixels than that.
const MAX_SPANS: usize = 4000;

/// Where a rank stands: one index for each kind of axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GridPlace {
    /// Which of the data ranks.
    pub data: u32,
    /// Which of the pipeline ranks.
    pub pipeline: u32,
    /// Which of the tensor ranks.
    pub tensor: u32,
}

impl GridPlace {
    /// The place of a rank in a layout.
    pub fn of(layout: &Layout, rank: u32) -> GridPlace {
        let at = Mesh::new(layout).coordinates(rank);
        GridPlace { data: at.data, pipeline: at.pipeline, tensor: at.tensor }
    }
}

/// A rank's part of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedPart {
    /// The parts of the model that it holds, such as `embed layers 0..4`.
    pub holds: String,
    /// Its parameters, each counted once.
    pub parameters: u64,
    /// Its tensors at their peak.
    pub tensor_bytes: u64,
}

/// What a pipeline rank computes, and when.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedSpan {
    /// `F`, `B`, `I` or `W`.
    pub kind: String,
    /// The stage.
    pub stage: u32,
    /// The micro-batch.
    pub micro_batch: u32,
    /// From when on, in units of time.
    pub start: f64,
    /// Until when.
    pub end: f64,
}

/// A step as it is planned: the pipeline ranks of the data rank that sets the pace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedStep {
    /// The schedule, whose micro-batches, and what is lost to idling.
    pub caption: String,
    /// Units of time of the whole step.
    pub makespan: f64,
    /// The share of time that ranks are idle, in `0..1`.
    pub bubble: f64,
    /// One row for each pipeline rank; none where there are too many spans to be seen.
    pub rows: Vec<Vec<PlannedSpan>>,
}

impl Plan {
    /// Each rank's part, in order.
    pub fn parts(&self) -> Vec<PlannedPart> {
        let memory = self.memory().into_iter();
        let part = |(a, memory): (&_, super::Memory)| PlannedPart {
            holds: holds(a),
            parameters: held_parameters(a),
            tensor_bytes: memory.tensor_bytes(),
        };
        self.assignments.iter().zip(memory).map(part).collect()
    }

    /// The step.
    pub fn step(&self) -> Option<PlannedStep> {
        let first = *self.slowest_pipeline().first()?;
        let timeline = self.timeline();
        let unit = timeline.ticks as f64;
        let many = timeline.rows.iter().map(Vec::len).sum::<usize>() > MAX_SPANS;
        let rows = timeline.rows.iter().filter(|_| !many).map(|row| {
            let spans = row.iter().map(|span| PlannedSpan {
                kind: letter(span.action.kind).to_owned(),
                stage: span.action.stage,
                micro_batch: span.action.micro_batch.0,
                start: span.start as f64 / unit,
                end: span.end as f64 / unit,
            });
            spans.collect()
        });
        Some(PlannedStep {
            caption: caption(first, &timeline),
            makespan: timeline.makespan(),
            bubble: timeline.bubble(),
            rows: rows.collect(),
        })
    }
}

fn letter(kind: Kind) -> &'static str {
    match kind {
        Kind::Forward | Kind::RecvForward | Kind::SendForward => "F",
        Kind::Backward | Kind::RecvBackward | Kind::SendBackward => "B",
        Kind::Input => "I",
        Kind::Weight => "W",
    }
}

/// Plans a job for a page that shows it, for ranks that are this slow; `None` where that would take more than seconds.
///
/// # Errors
/// As [`super::plan`].
pub fn sketch_shown(spec: &JobSpec, slow_percent: &[u32]) -> Result<Option<Plan>, PlanError> {
    if !Cost::of(spec).is_quick() {
        return Ok(None);
    }
    sketch_of(spec, spec.layout.world(), slow_percent).map(Some)
}

#[cfg(test)]
mod tests {
    use coxswain_types::job::{Layout, Schedule};

    use super::GridPlace;

    #[test]
    fn each_place_of_the_grid_has_one_rank() {
        let layout = Layout { pipeline: 3, tensor: 2, data: 2, schedule: Schedule::OneFOneB, ..Layout::ONE };
        let mut places: Vec<_> = (0..layout.world())
            .map(|rank| GridPlace::of(&layout, rank))
            .map(|place| (place.data, place.pipeline, place.tensor))
            .collect();
        assert!(places.iter().all(|(data, pipeline, tensor)| *data < 2 && *pipeline < 3 && *tensor < 2));
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 12);
    }
}
