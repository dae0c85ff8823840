//! A job and the workers at hand become one [`Assignment`] for each rank. Pure: the same request
//! gives the same plan, byte for byte, so that a replay of the journal plans nothing anew.
//!
//! - `placement`: which worker takes which rank, and how many threads it gets.
//! - `mesh`: ranks, their coordinates and groups.
//! - `balance`: who computes how much; `partition`, `divide`: layers to stages, and pieces to workers at large.
//! - `schedule`: the list of actions of each pipeline rank.
//! - `assign`: all of it, put into assignments.
//! - `recompute`: which layers are computed again in the backward pass.
//! - `check`: an independent reader that refuses a plan which would hang or leave work out.
//! - `memory`, `activations`, `reduction`: what a rank needs.
//! - `timeline`: who waits for whom; [`time`]: how long a step takes on given machines.
//! - `pipeline`: one pipeline of a plan, where all of it would be too much.
//! - [`search`]: the best layout for given machines.
//! - `cost`: how long planning takes, before it begins.
//! - `fitting`: the largest part of a layout that fewer workers can take.
//! - `print`, `breakdown`, `grid`, `svg`, `json`, `shown`: a plan as people, programs and pages read it.

mod activations;
mod assign;
mod balance;
mod breakdown;
pub mod check;
mod cost;
mod divide;
mod encode;
mod fitting;
mod grid;
mod json;
mod memory;
mod mesh;
mod partition;
mod pipeline;
mod placement;
mod print;
mod recompute;
mod reduction;
mod schedule;
pub mod search;
mod shown;
mod svg;
pub mod time;
mod timeline;

use std::collections::BTreeMap;

use coxswain_types::assignment::{PreparedData, Resume, TokenFile};
use coxswain_types::job::Schedule;
use coxswain_types::status::WorkerInfo;
use coxswain_types::{Assignment, Generation, JobSpec, WorkerId};

use crate::code::ErrorCode;
use crate::hardware::Machines;

pub use balance::{KEEPS_UP, rebalance_gain, shares};
pub use cost::Cost;
pub use encode::{MAX_ASSIGNMENT_BYTES, encode};
pub use fitting::{Fit, fitting};
pub use memory::{Memory, RUNTIME};
pub use placement::threads_for;
pub(crate) use print::{counted, mebibytes};
pub use shown::{GridPlace, PlannedPart, PlannedSpan, PlannedStep, sketch_shown};
pub use svg::svg;

use balance::Balance;
use mesh::Mesh;

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct PlanRequest<'a> {
    /// The job's id.
    pub job: String,
    /// The formation to plan.
    pub generation: Generation,
    /// The checked job.
    pub spec: &'a JobSpec,
    /// The workers that may be used, in any order. More than the layout needs stay idle.
    pub workers: &'a [WorkerInfo],
    /// The run's folder, under the same path for all workers.
    pub directory: &'a str,
    /// The tokens.
    pub data: &'a PreparedData,
    /// The checkpoint to start from.
    pub resume: Option<Resume>,
    /// The workers of the job's generation before, by rank. Those that are still here keep their places:
    /// what they hold need not travel.
    pub before: &'a [WorkerId],
    /// How long workers take for the same work, in percent of how long their peers take; who is not listed
    /// keeps up.
    pub slow_percent: &'a BTreeMap<WorkerId, u32>,
    /// Threads of each worker's libtorch: `train.threads`, or else the number that was chosen once.
    pub threads: u32,
}

/// Who does what. It prints as a table and the schedule's grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// One for each rank, in order.
    pub assignments: Vec<Assignment>,
    /// Workers that the layout has no rank for, in order.
    pub spares: Vec<WorkerId>,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The layout needs more.
    #[error(
        "needs {needed} workers (pipeline {pipeline} x tensor {tensor} x data {data}), {found} {} here; \
         start more, or make layout smaller",
        if *found == 1 { "is" } else { "are" }
    )]
    TooFewWorkers {
        /// The product of the layout.
        needed: u32,
        /// Pipeline stages.
        pipeline: u32,
        /// Tensor ranks.
        tensor: u32,
        /// Data ranks.
        data: u32,
        /// How many there are.
        found: usize,
    },
    /// A worker is listed more than once.
    #[error("worker {0} is listed twice; names are unique in a cluster, so give one of them another")]
    WorkerTwice(WorkerId),
    /// The job cannot have come through `spec::parse`.
    #[error("{0}: the job was not checked before it was planned; please report this")]
    Unchecked(&'static str),
    /// The plan's own check refused it.
    #[error("the plan would not work: {0}; please report this")]
    Broken(check::Violation),
    /// The user's own schedule would hang, leave work out or do it twice.
    #[error(
        "layout.actions: this schedule would not work: {0}; stage s stands on line 1 + s mod layout.pipeline. \
         Each rank does every micro-batch of a data rank on each of its stages: F, then B or I and W, in ascending \
         order of micro-batches. `coxswain plan --schedule 1f1b` prints one that works"
    )]
    Custom(check::Violation),
    /// No choice of layers to compute again brings a worker below the budget.
    #[error(
        "{worker} needs about {} even if every layer is computed again, and train.recompute allows {}; raise \
         the budget, use more pipeline or tensor ranks, set layout.zero to 1, or make train.micro_batch_size smaller",
        print::mebibytes(*.needed), print::mebibytes(*.bytes)
    )]
    Budget {
        /// The worker that needs the most of those that compute together.
        worker: WorkerId,
        /// The bytes that it needs.
        needed: u64,
        /// The bytes that it may have.
        bytes: u64,
    },
    /// Planning would take too long, or too much memory.
    #[error("a plan of this job would be too large: {0}")]
    TooLarge(Cost),
    /// No message carries an assignment.
    #[error(
        "a rank's assignment has over {} MiB, and at most {} can be sent; it names each slice of each layer and each \
         action of a step, so give the job more pipeline or tensor ranks, fewer train.tensor_shards or fewer \
         train.global_micro_batches",
        bytes >> 20, MAX_ASSIGNMENT_BYTES >> 20
    )]
    TooLong {
        /// The bytes that it has at least.
        bytes: u64,
    },
    /// An assignment does not survive its encoding.
    #[error("the assignment of rank {0} changes when it is encoded; please report this")]
    Encoding(u32),
}

impl PlanError {
    /// What kind of refusal it is.
    pub fn code(&self) -> ErrorCode {
        match self {
            PlanError::TooFewWorkers { .. } => ErrorCode::WorkersTooFew,
            PlanError::WorkerTwice(_) => ErrorCode::WorkerTwice,
            PlanError::Custom(_) => ErrorCode::ScheduleBroken,
            PlanError::Budget { .. } => ErrorCode::BudgetUnmet,
            PlanError::TooLarge(_) => ErrorCode::PlanTooLarge,
            PlanError::TooLong { .. } => ErrorCode::AssignmentTooLong,
            PlanError::Unchecked(_) | PlanError::Broken(_) | PlanError::Encoding(_) => {
                ErrorCode::PlannerFault
            }
        }
    }
}

/// Plans one generation.
///
/// # Errors
/// Too few workers, a schedule of the user's own that would not work, a budget that cannot be met, or a
/// fault of the planner that its own check has found.
pub fn plan(request: &PlanRequest<'_>) -> Result<Plan, PlanError> {
    let spec = request.spec;
    check_layout(spec)?;
    Cost::of(spec).expect_bounded()?;
    let (seated, spares) = placement::place(request.workers, &spec.layout)?;
    let seated = placement::keep(seated, request.before);
    let mesh = Mesh::new(&spec.layout);
    let slow = |worker: &&WorkerInfo| request.slow_percent.get(&worker.id).copied().unwrap_or(KEEPS_UP);
    let balance = Balance::new(spec, &seated.iter().map(slow).collect::<Vec<_>>());
    let ids = (0..).zip(seated.iter().map(|worker| &worker.id));
    let mut assignments = assign::assign(request, &mesh, &balance, ids);
    recompute::choose(&mut assignments)?;
    let own = matches!(spec.layout.schedule, Schedule::Custom { .. });
    check::check(&assignments).map_err(|violation| {
        let refuse = if own && violation.in_actions() { PlanError::Custom } else { PlanError::Broken };
        refuse(violation)
    })?;
    // Ranks of one pipeline index differ only in integers and worker names, which JSON keeps.
    let first_of_stage = |a: &&Assignment| (a.data_index, a.tensor_index) == (0, 0);
    assignments.iter().filter(first_of_stage).try_for_each(encode::check)?;
    Ok(Plan { assignments, spares })
}

impl Plan {
    /// What a step takes on these machines, whose devices the ranks take in order; `None` where there are too few.
    pub fn predict(&self, cluster: &Machines) -> Option<time::Prediction> {
        time::predict(&self.slowest_pipeline(), cluster)
    }

    /// What each rank needs at its peak, in order.
    pub fn memory(&self) -> Vec<Memory> {
        self.assignments.iter().map(memory::memory).collect()
    }
}

/// Plans for workers that do not exist yet, all on one machine, with tokens that do not exist
/// either: for looking at a layout before anything is started.
///
/// # Errors
/// As [`plan`].
pub fn sketch(spec: &JobSpec, workers: u32) -> Result<Plan, PlanError> {
    sketch_of(spec, workers, &[])
}

/// Refuses a job that cannot be planned, as it is submitted. A plan that its caller cannot wait for is tried later, by
/// the one who makes it.
///
/// # Errors
/// As [`plan`].
pub fn expect_plannable(spec: &JobSpec) -> Result<(), PlanError> {
    check_layout(spec)?;
    let cost = Cost::of(spec);
    let quick = cost.is_quick();
    cost.expect_bounded()?;
    if quick { sketch(spec, spec.layout.world()).map(drop) } else { Ok(()) }
}

/// The same, of workers of which the first are this slow.
fn sketch_of(spec: &JobSpec, workers: u32, slow_percent: &[u32]) -> Result<Plan, PlanError> {
    let width = workers.saturating_sub(1).to_string().len();
    let workers: Vec<_> = (0..workers)
        .map(|i| WorkerInfo {
            id: WorkerId(format!("worker-{i:0width$}")),
            incarnation: 0,
            host: "localhost".to_owned(),
            pid: 0,
            cores: 1,
            device: "cpu".to_owned(),
            runtime: String::new(),
            serves: None,
        })
        .collect();
    let slow_percent = workers.iter().map(|worker| worker.id.clone()).zip(slow_percent.iter().copied());
    let nothing = TokenFile { path: String::new(), tokens: 0, digest: String::new() };
    let data = PreparedData::of_tokens(nothing);
    plan(&PlanRequest {
        job: spec.name.clone(),
        generation: Generation(1),
        spec,
        workers: &workers,
        directory: "",
        data: &data,
        resume: None,
        before: &[],
        slow_percent: &slow_percent.collect(),
        threads: spec.train.threads.unwrap_or(1),
    })
}

/// What the planner relies on. `spec::parse` refuses all of it with better words; a job from an old
/// journal comes here without passing that door.
fn check_layout(spec: &JobSpec) -> Result<(), PlanError> {
    let (model, train, layout) = (&spec.model, &spec.train, &spec.layout);
    let shards = train.shards(layout.tensor);
    let chunks = layout.schedule.chunks();
    let stages = u64::from(layout.pipeline) * u64::from(chunks);
    let divides = |a: u32, b: u32| a > 0 && b.is_multiple_of(a);
    let rules = [
        (
            (1..=u64::from(model.all_layers())).contains(&stages),
            "layout.pipeline times layout.chunks must be 1 to the number of layers",
        ),
        ((1..=model.layers).contains(&model.layer_groups), "model.layer_groups must be 1 to model.layers"),
        (model.heads > 0 && model.head_dim > 0, "model.heads and model.head_dim must be above 0"),
        (divides(model.kv_heads, model.heads), "model.kv_heads must divide model.heads"),
        (divides(layout.tensor, shards), "layout.tensor must divide train.tensor_shards"),
        (divides(shards, model.heads), "the number of tensor shards must divide model.heads"),
        (
            divides(shards, model.kv_heads) || divides(model.kv_heads, shards),
            "the number of tensor shards must divide model.kv_heads or be a multiple of it",
        ),
        (shards <= model.ffn, "there must be at most model.ffn tensor shards"),
        (shards <= model.vocab, "there must be at most model.vocab tensor shards"),
        (
            (1..=train.global_micro_batches).contains(&train.gradient_groups),
            "train.gradient_groups must be 1 to train.global_micro_batches",
        ),
        (
            (1..=train.gradient_groups).contains(&layout.data),
            "layout.data must be 1 to train.gradient_groups",
        ),
    ];
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, rule)) => Err(PlanError::Unchecked(rule)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
