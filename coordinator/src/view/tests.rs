use std::sync::Arc;

use coxswain_core::cluster::{JobEnding, JobState, JobSummary, Numbers, RankState, WorkerSummary};
use coxswain_core::plan::{GridPlace, PlannedPart};
use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::job::Layout;
use coxswain_types::status::{Phase, Published, WorkerInfo};
use serde_json::json;

use super::*;
use crate::auth::{Known, shown_by};

fn summary(job: &str, state: JobState) -> JobSummary {
    JobSummary {
        job: job.to_owned(),
        name: "demo".to_owned(),
        priority: 0,
        state,
        reason: "on 2 workers, generation 2".to_owned(),
        about: Vec::new(),
        cancelling: false,
        generation: Generation(2),
        step: Step(40),
        steps: 100,
        directory: format!("/runs/{job}"),
        workers: 2,
        checkpoint: Some(Published { step: Step(30), digest: String::new() }),
        unit: "token",
        numbers: Some(Numbers {
            loss: 2.5,
            validation: Some(if job == "demo-1" { 2.75 } else { f64::NAN }),
            tokens_per_second: 640.0,
            step_seconds: 0.5,
        }),
    }
}

fn worker(name: &str, job: Option<&str>) -> WorkerSummary {
    WorkerSummary {
        info: WorkerInfo {
            id: WorkerId(name.to_owned()),
            incarnation: 1,
            host: "alpha".to_owned(),
            pid: 7,
            cores: 4,
            device: "cpu".to_owned(),
            runtime: "libtorch".to_owned(),
            serves: None,
        },
        phase: if job.is_some() { Phase::Running } else { Phase::Idle },
        job: job.map(str::to_owned),
        generation: Generation(2),
        step: Step(40),
        peak_tensor_bytes: 1 << 20,
        leaving: None,
    }
}

fn rank(rank: u32, state: RankState, waits_for: Option<u32>) -> RankShown {
    RankShown {
        rank,
        place: GridPlace { data: 0, pipeline: rank, tensor: 0 },
        worker: format!("w{rank}"),
        host: "alpha".to_owned(),
        pid: 7,
        state,
        doing: "1F3".to_owned(),
        for_ms: 1500,
        waits_for,
        step: 40,
        busy_us: Some(250_000),
        peak_tensor_bytes: Some(900_000),
        slow: (rank == 0).then_some(2.0),
    }
}

fn event(at_ms: u64, kind: &str, generation: u64, fields: serde_json::Value) -> EventLine {
    EventLine {
        at_ms,
        kind: kind.to_owned(),
        job: Some("demo-2".to_owned()),
        generation: Some(generation),
        worker: None,
        text: kind.to_owned(),
        fields: fields.as_object().cloned().unwrap(),
    }
}

/// A job at work that was interrupted once.
pub(crate) fn sample_detail() -> JobDetail {
    let mut spec = crate::job::parse(
        "{name: demo, model: {layers: 2, dim: 32, heads: 4, vocab: 300}, data: {synthetic: {tokens: 4096}}, \
         train: {steps: 100, sequence: 16, global_micro_batches: 4}}",
        "job.yaml",
        std::path::Path::new("/"),
        &[],
    )
    .unwrap();
    spec.layout = Layout { pipeline: 2, ..Layout::ONE };
    let generation = GenerationShown {
        spec,
        generation: Generation(2),
        at_work: true,
        step_seconds: Some(0.5),
        slow_percent: vec![100, 100],
        ranks: vec![rank(0, RankState::Working, None), rank(1, RankState::Waiting, Some(0))],
        waiting: Some("worker w1 (stage 1) waits for worker w0 (stage 0)".to_owned()),
    };
    let part = PlannedPart { holds: "layers 0..1".to_owned(), parameters: 100, tensor_bytes: 1_000_000 };
    detail(&DetailInput {
        job: "demo-2",
        generation: Some(&generation),
        parts: &[part.clone(), part],
        planned: None,
        checkpoints: &[],
        events: &[
            event(1000, "interrupted", 1, json!({})),
            event(3000, "begun", 2, json!({"step": 20, "origin": "checkpoint", "again": 5})),
            event(4000, "published", 2, json!({"step": 30})),
        ],
    })
}

fn seen_by(caller: &Caller) -> ClusterView {
    let jobs = [
        (summary("demo-1", JobState::Ended(JobEnding::Done)), Times { over_s: Some(60), ..Times::default() }),
        (summary("demo-2", JobState::Running), Times { elapsed_s: Some(90), over_s: None }),
        (summary("other-3", JobState::Queued), Times::default()),
    ];
    let workers = [worker("w0", Some("demo-2")), worker("w1", Some("other-3")), worker("w2", None)];
    view(ViewInput {
        at_ms: 64_000,
        uptime: Duration::from_secs(120),
        caller,
        now_s: 0,
        jobs: &jobs,
        workers: &workers,
        detail: None,
    })
}

/// A cluster with jobs and workers in several states.
pub(crate) fn sample_view() -> ClusterView {
    seen_by(&Caller::Trusted)
}

fn caller(uri: &str) -> Caller {
    Caller::Known(Arc::new(Known::new(shown_by(uri, u64::MAX))))
}

#[test]
fn a_caller_sees_its_jobs_their_workers_and_idle_ones() {
    let rows = [
        (Caller::Trusted, vec!["other-3", "demo-2", "demo-1"], vec!["w0", "w1", "w2"], (true, true)),
        (
            caller("coxswain://submitter/s/job/demo-*"),
            vec!["demo-2", "demo-1"],
            vec!["w0", "w2"],
            (true, false),
        ),
        (
            caller("coxswain://viewer/v/job/*"),
            vec!["other-3", "demo-2", "demo-1"],
            vec!["w0", "w1", "w2"],
            (false, false),
        ),
        (Caller::OtherUser(7), vec![], vec!["w2"], (false, false)),
    ];
    for (caller, jobs, workers, may) in rows {
        let view = seen_by(&caller);
        let names = |all: &[JobView]| all.iter().map(|job| job.job.clone()).collect::<Vec<_>>();
        assert_eq!(names(&view.jobs), jobs, "{caller:?}");
        let here: Vec<_> = view.workers.iter().map(|worker| worker.worker.clone()).collect();
        assert_eq!(here, workers, "{caller:?}");
        assert_eq!((view.caller.may_cancel, view.caller.may_drain), may, "{caller:?}");
    }
}

#[test]
fn the_job_that_is_shown_is_one_at_work() {
    let job = |name: &str, state| (summary(name, state), Times::default());
    let done = JobState::Ended(JobEnding::Done);
    let rows = [
        (vec![], None),
        (vec![job("a-1", done), job("a-2", done)], Some("a-2")),
        (vec![job("a-1", JobState::Queued), job("a-2", done)], Some("a-1")),
        (vec![job("a-1", JobState::Running), job("a-2", JobState::Queued)], Some("a-1")),
        (vec![job("a-1", JobState::Running), job("a-2", JobState::Running)], Some("a-2")),
    ];
    for (jobs, expected) in rows {
        assert_eq!(most_worth(&Caller::Trusted, &jobs).map(|job| job.job.as_str()), expected);
    }
}

#[test]
fn a_view_is_read_back_as_it_was_written() {
    let view = ClusterView { detail: Some(sample_detail()), ..sample_view() };
    let text = serde_json::to_string(&view).unwrap();
    assert_eq!(serde_json::from_str::<ClusterView>(&text).unwrap(), view);
    let detail = view.detail.unwrap();
    let grid = detail.grid.unwrap();
    assert_eq!(grid.ranks[0].busy, Some(0.5));
    assert_eq!((detail.lost.steps, detail.lost.seconds), (5, 2.0));
    assert_eq!(view.jobs[0].validation_loss, None, "JSON has no word for NaN");
}
