//! One pipeline of a plan: a rank for each pipeline index, of the data rank with the most micro-batches. All others do
//! the same or less, so these say what a step takes, at a cost that does not grow with the number of workers.

use std::collections::BTreeMap;

use coxswain_types::assignment::{PreparedData, TokenFile};
use coxswain_types::{Assignment, Generation, JobSpec, WorkerId};

use super::balance::Balance;
use super::mesh::{Coordinates, Mesh};
use super::{PlanError, PlanRequest, assign, check_layout, recompute};

/// The assignments of the slowest data rank's first tensor ranks, for workers that do not exist.
///
/// # Errors
/// A budget that cannot be met, or a job that was not checked.
pub(super) fn slowest(spec: &JobSpec) -> Result<Vec<Assignment>, PlanError> {
    check_layout(spec)?;
    let mesh = Mesh::new(&spec.layout);
    let balance = Balance::new(spec, &[]);
    let nothing = TokenFile { path: String::new(), tokens: 0, digest: String::new() };
    let data = PreparedData::of_tokens(nothing);
    let request = PlanRequest {
        job: spec.name.clone(),
        generation: Generation(1),
        spec,
        workers: &[],
        directory: "",
        data: &data,
        resume: None,
        before: &[],
        slow_percent: &BTreeMap::new(),
        threads: spec.train.threads.unwrap_or(1),
    };
    let data = balance.busiest_data_rank();
    let rank = |pipeline| mesh.rank(Coordinates { data, pipeline, tensor: 0 });
    let worker = WorkerId("worker".to_owned());
    let ranks = (0..spec.layout.pipeline).map(|pipeline| (rank(pipeline), &worker));
    let mut assignments = assign::assign(&request, &mesh, &balance, ranks);
    recompute::choose_alone(&mut assignments)?;
    Ok(assignments)
}
