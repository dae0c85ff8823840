//! One model of what people see of a cluster. Pages, `top` and `status --format json` show it, each in its own way.
//!
//! - [`history`]: what interrupted a job, and what that cost, out of the journal's events.
//! - [`series`]: a run's numbers over its steps, out of its metrics.
//! - [`saves`]: the checkpoints in a run's folder.
//! - [`runs`]: the runs below a folder, beside each other.
//! - [`hub`]: what is remembered between two looks, so that many watchers cost the coordinator no more than one.
//!
//! [`view`] is a pure function of what they found.

pub(crate) mod history;
pub(crate) mod hub;
pub(crate) mod runs;
pub(crate) mod saves;
pub(crate) mod series;
#[cfg(test)]
pub(crate) mod tests;

use std::time::Duration;

use coxswain_core::cluster::{GenerationShown, JobState, JobSummary, RankShown, WorkerSummary};
use coxswain_core::plan::{PlannedPart, PlannedStep};
use coxswain_proto::convert::phase_to_wire;
use serde::{Deserialize, Serialize};

use crate::auth::{Caller, table};
use crate::event_line::EventLine;
use crate::handle::Times;
use crate::views::{job_to_wire, phase_word, state_word};
use history::{Disruption, Losses};
use saves::SavedCheckpoint;

/// The cluster as one caller sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClusterView {
    /// When it was looked at, in milliseconds since the epoch.
    pub(crate) at_ms: u64,
    pub(crate) coordinator: CoordinatorView,
    pub(crate) caller: CallerView,
    /// The newest first.
    pub(crate) jobs: Vec<JobView>,
    pub(crate) workers: Vec<WorkerView>,
    /// One job in full.
    pub(crate) detail: Option<JobDetail>,
}

/// The coordinator itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CoordinatorView {
    pub(crate) version: String,
    pub(crate) uptime_s: u64,
}

/// Who looks, and what they may do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CallerView {
    pub(crate) who: String,
    pub(crate) may_cancel: bool,
    pub(crate) may_drain: bool,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobView {
    pub(crate) job: String,
    pub(crate) name: String,
    /// In one word.
    pub(crate) state: String,
    /// Why it is in that state.
    pub(crate) reason: String,
    pub(crate) over: bool,
    /// Whether it was cancelled and ends after the step at hand.
    pub(crate) cancelling: bool,
    pub(crate) generation: u64,
    pub(crate) step: u64,
    pub(crate) steps: u64,
    pub(crate) directory: String,
    pub(crate) workers: u32,
    pub(crate) priority: i32,
    /// The step of its newest checkpoint.
    pub(crate) checkpoint: Option<u64>,
    pub(crate) loss: Option<f64>,
    pub(crate) validation_loss: Option<f64>,
    pub(crate) tokens_per_second: Option<f64>,
    pub(crate) step_seconds: Option<f64>,
    /// What its speed is counted in, such as `token`.
    pub(crate) unit: String,
    pub(crate) left_s: Option<f64>,
    pub(crate) elapsed_s: Option<u64>,
    pub(crate) over_s: Option<u64>,
}

/// A worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct WorkerView {
    pub(crate) worker: String,
    pub(crate) host: String,
    pub(crate) pid: u32,
    pub(crate) cores: u32,
    pub(crate) device: String,
    pub(crate) runtime: String,
    /// In one word.
    pub(crate) phase: String,
    pub(crate) job: Option<String>,
    pub(crate) generation: u64,
    pub(crate) step: u64,
    pub(crate) peak_tensor_bytes: u64,
    /// Why it is being drained, if it is.
    pub(crate) leaving: Option<String>,
}

/// One job in full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct JobDetail {
    pub(crate) job: String,
    /// Its newest generation.
    pub(crate) grid: Option<GridView>,
    /// The step as it is planned.
    pub(crate) planned: Option<PlannedStep>,
    /// What interrupted it, the newest first.
    pub(crate) interruptions: Vec<Disruption>,
    pub(crate) lost: Losses,
    /// The newest first.
    pub(crate) checkpoints: Vec<SavedCheckpoint>,
    /// What happened, the newest first.
    pub(crate) events: Vec<EventLine>,
}

/// The ranks of a generation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct GridView {
    pub(crate) generation: u64,
    /// Whether it is at work.
    pub(crate) at_work: bool,
    pub(crate) pipeline: u32,
    pub(crate) tensor: u32,
    pub(crate) data: u32,
    /// Who waits for whom the longest, in words.
    pub(crate) waiting: Option<String>,
    pub(crate) ranks: Vec<RankCell>,
}

/// A rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RankCell {
    #[serde(flatten)]
    pub(crate) shown: RankShown,
    /// The share of its newest step in which it computed, in `0..1`.
    pub(crate) busy: Option<f64>,
    /// What it holds, and how much it was planned to take.
    pub(crate) planned: Option<PlannedPart>,
}

/// What a view is made from.
pub(crate) struct ViewInput<'a> {
    pub(crate) at_ms: u64,
    pub(crate) uptime: Duration,
    pub(crate) caller: &'a Caller,
    pub(crate) now_s: u64,
    pub(crate) jobs: &'a [(JobSummary, Times)],
    pub(crate) workers: &'a [WorkerSummary],
    pub(crate) detail: Option<JobDetail>,
}

/// What is known of the job that is shown in full.
pub(crate) struct DetailInput<'a> {
    pub(crate) job: &'a str,
    pub(crate) generation: Option<&'a GenerationShown>,
    pub(crate) parts: &'a [PlannedPart],
    pub(crate) planned: Option<&'a PlannedStep>,
    pub(crate) checkpoints: &'a [SavedCheckpoint],
    /// Its events, from the oldest to the newest.
    pub(crate) events: &'a [EventLine],
}

/// The most events and interruptions of a job that are shown; `coxswain events` has all.
const MAX_SHOWN: usize = 200;

/// The cluster as `caller` may see it.
pub(crate) fn view(input: ViewInput<'_>) -> ClusterView {
    let sees = |job: &str| input.caller.sees(job);
    let jobs = input.jobs.iter().filter(|(job, _)| sees(&job.job)).rev();
    // Idle workers are everybody's.
    let workers = input.workers.iter().filter(|worker| worker.job.as_deref().is_none_or(sees));
    ClusterView {
        at_ms: input.at_ms,
        coordinator: CoordinatorView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_s: input.uptime.as_secs(),
        },
        caller: caller_view(input.caller, input.now_s),
        jobs: jobs.map(|(job, times)| job_view(job, *times)).collect(),
        workers: workers.map(worker_view).collect(),
        detail: input.detail,
    }
}

/// The job that is shown in full where no one is asked for: one at work before others, then the newest.
pub(crate) fn most_worth<'a>(caller: &Caller, jobs: &'a [(JobSummary, Times)]) -> Option<&'a JobSummary> {
    let seen = jobs.iter().map(|(job, _)| job).filter(|job| caller.sees(&job.job));
    let worth = |job: &&JobSummary| match job.state {
        JobState::Running => 2,
        state if !state.is_over() => 1,
        _ => 0,
    };
    // Of equals the last, which is the newest.
    seen.max_by_key(worth)
}

fn caller_view(caller: &Caller, now_s: u64) -> CallerView {
    let may = |call: &str| table::decide(&format!("/coxswain.v1.Jobs/{call}"), caller, now_s).is_ok();
    let who = match caller {
        Caller::Trusted => "owner".to_owned(),
        Caller::Anonymous => "a caller without a certificate".to_owned(),
        Caller::OtherUser(user) => format!("user {user}"),
        Caller::Known(known) => known.identity.to_string(),
    };
    CallerView { who, may_cancel: may("Cancel"), may_drain: may("Drain") && caller.all_jobs("").is_ok() }
}

fn finite(number: f64) -> Option<f64> {
    number.is_finite().then_some(number)
}

fn job_view(summary: &JobSummary, times: Times) -> JobView {
    let wire = job_to_wire(summary.clone(), times);
    JobView {
        state: state_word(wire.state()).to_owned(),
        over: summary.state.is_over(),
        cancelling: summary.cancelling,
        checkpoint: wire.checkpoint.as_ref().map(|checkpoint| checkpoint.step),
        loss: wire.loss.and_then(finite),
        validation_loss: wire.validation_loss.and_then(finite),
        tokens_per_second: wire.tokens_per_second.and_then(finite),
        step_seconds: summary.numbers.and_then(|numbers| finite(numbers.step_seconds)),
        left_s: wire.left_s.and_then(finite),
        elapsed_s: wire.elapsed_s,
        over_s: wire.over_s,
        job: wire.job,
        name: wire.name,
        reason: wire.reason,
        generation: wire.generation,
        step: wire.step,
        steps: wire.steps,
        directory: wire.directory,
        workers: wire.workers,
        priority: wire.priority,
        unit: wire.unit,
    }
}

fn worker_view(worker: &WorkerSummary) -> WorkerView {
    let (phase, _) = phase_to_wire(worker.phase.clone());
    WorkerView {
        worker: worker.info.id.0.clone(),
        host: worker.info.host.clone(),
        pid: worker.info.pid,
        cores: worker.info.cores,
        device: worker.info.device.clone(),
        runtime: worker.info.runtime.clone(),
        phase: phase_word(phase).to_owned(),
        job: worker.job.clone(),
        generation: worker.generation.0,
        step: worker.step.0,
        peak_tensor_bytes: worker.peak_tensor_bytes,
        leaving: worker.leaving.clone(),
    }
}

/// One job in full.
pub(crate) fn detail(input: &DetailInput<'_>) -> JobDetail {
    let interruptions = history::disruptions(input.events);
    let lost = Losses::of(&interruptions);
    let newest = |count: usize| count.saturating_sub(MAX_SHOWN);
    JobDetail {
        job: input.job.to_owned(),
        grid: input.generation.map(|generation| grid(generation, input.parts)),
        planned: input.planned.cloned(),
        lost,
        interruptions: interruptions[newest(interruptions.len())..].iter().rev().cloned().collect(),
        checkpoints: input.checkpoints.to_vec(),
        events: input.events[newest(input.events.len())..].iter().rev().cloned().collect(),
    }
}

fn grid(generation: &GenerationShown, parts: &[PlannedPart]) -> GridView {
    let layout = &generation.spec.layout;
    let cells = generation.ranks.iter().map(|rank| RankCell {
        busy: busy(rank.busy_us, generation.step_seconds),
        planned: parts.get(rank.rank as usize).cloned(),
        shown: rank.clone(),
    });
    GridView {
        generation: generation.generation.0,
        at_work: generation.at_work,
        pipeline: layout.pipeline,
        tensor: layout.tensor,
        data: layout.data,
        waiting: generation.waiting.clone(),
        ranks: cells.collect(),
    }
}

/// The share of a step. Both are of the newest step that was heard of, which may not be the same one.
fn busy(busy_us: Option<u64>, step_seconds: Option<f64>) -> Option<f64> {
    let share = busy_us? as f64 / 1e6 / step_seconds.filter(|seconds| *seconds > 0.0)?;
    Some(share.clamp(0.0, 1.0))
}
