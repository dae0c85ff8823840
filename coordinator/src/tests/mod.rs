//! The coordinator in this process, with its real network and workers that compute nothing.

mod certificates;
mod fake;
mod network;
mod page;
mod proxy;
mod secured;
mod security;
#[allow(dead_code, unreachable_pub, reason = "other tests use more of it")]
#[path = "../../../tests/src/skip.rs"]
pub(crate) mod skip;
mod tunnel;

use std::sync::Arc;
use std::time::{Duration, Instant};

use coxswain_proto::wire;
use coxswain_proto::wire::job_update::Event;
use coxswain_proto::wire::jobs_client::JobsClient;
use coxswain_transport::{connect, jobs_client};
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::store::RendezvousStore;
use crate::view::hub::Hub;
use crate::{driver, metrics, service};
use fake::{Faults, work};

const JOB: &str = "
name: tiny
model: {layers: 2, dim: 32, heads: 4, kv_heads: 2, ffn: 64, vocab: 300}
data: {synthetic: {tokens: 4096}}
train: {steps: 5, sequence: 16, micro_batch_size: 1, global_micro_batches: 2, learning_rate: 1.0e-3}
layout: {pipeline: 2}
";

/// A coordinator on a port of its own.
struct Site {
    url: String,
    jobs: JobsClient<Channel>,
    hub: Arc<Hub>,
    folder: tempfile::TempDir,
    tasks: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Site {
    async fn start() -> Site {
        Site::start_in(tempfile::tempdir().unwrap()).await
    }

    async fn start_in(folder: tempfile::TempDir) -> Site {
        let (handle, store, driver) =
            driver::start(&folder.path().join("coordinator"), driver::LeftOver::Continue).unwrap();
        let listener = service::listen("127.0.0.1:0", false).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let store: Arc<RendezvousStore> = store;
        let hub = Hub::new(handle.clone());
        let access = service::Access::without_certificates(&listener);
        let port = service::Port { listener, access, roots: None, hub: hub.clone() };
        let served = tokio::spawn(service::serve_on(port, handle, store, std::future::pending()));
        let jobs = jobs_client(connect(&url).await.unwrap());
        Site { url, jobs, hub, folder, tasks: vec![driver, served] }
    }

    /// The coordinator goes away at once; its folder stays.
    async fn kill(self) -> tempfile::TempDir {
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
        self.folder
    }

    fn run_folder(&self) -> std::path::PathBuf {
        self.folder.path().join("run")
    }

    async fn submit(&mut self, job: &str, sets: &[&str]) -> Result<String, Status> {
        self.submit_to("run", job, sets).await
    }

    async fn submit_to(&mut self, run: &str, job: &str, sets: &[&str]) -> Result<String, Status> {
        let request = wire::SubmitRequest {
            manifest: job.to_owned(),
            origin: "job.yaml".to_owned(),
            base: "/".to_owned(),
            directory: self.folder.path().join(run).to_str().unwrap().to_owned(),
            sets: sets.iter().map(|set| (*set).to_owned()).collect(),
            ..Default::default()
        };
        Ok(self.jobs.submit(request).await?.into_inner().job)
    }

    fn worker(&self, name: &str, faults: Faults) -> JoinHandle<Result<String, String>> {
        let (url, name) = (self.url.clone(), name.to_owned());
        tokio::spawn(async move { work(&url, &name, faults).await })
    }

    /// Follows a job to its end: the steps that were reported and its last state.
    async fn follow(&mut self, job: &str) -> (Vec<u64>, wire::JobSummary) {
        let request = wire::WatchRequest { job: job.to_owned() };
        let mut events = self.jobs.watch(request).await.unwrap().into_inner();
        let (mut steps, mut last) = (vec![], wire::JobSummary::default());
        let patience = Duration::from_secs(60);
        while let Some(event) = tokio::time::timeout(patience, events.message()).await.unwrap().unwrap() {
            match event.event.unwrap() {
                Event::Summary(summary) => last = summary,
                Event::Report(report) => steps.push(report.step),
                Event::Checkpoint(_) => {}
            }
        }
        (steps, last)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_runs_from_submission_to_its_last_checkpoint() {
    let mut site = Site::start().await;
    let job = site.submit(JOB, &[]).await.unwrap();
    assert_eq!(job, "tiny-1");
    // Watched before it can start, so that nothing is missed.
    let mut follower = Site { jobs: site.jobs.clone(), ..Site::start().await };
    let followed = tokio::spawn(async move { follower.follow("tiny-1").await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let _workers = [site.worker("w0", Faults::default()), site.worker("w1", Faults::default())];
    let (steps, last) = followed.await.unwrap();
    assert_eq!(steps, [1, 2, 3, 4, 5]);
    assert_eq!((last.state(), last.step, last.generation), (wire::JobState::Done, 5, 1), "{last:?}");
    assert_eq!(last.checkpoint.map(|checkpoint| checkpoint.step), Some(5));
    let noted: Vec<_> =
        metrics::read(&site.run_folder().as_path().into()).unwrap().iter().map(|line| line.step).collect();
    assert_eq!(noted, [1, 2, 3, 4, 5]);
    let list = site.jobs.list(wire::ListRequest::default()).await.unwrap().into_inner();
    assert_eq!((list.jobs.len(), list.workers.len()), (1, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_dies_is_named_at_once() {
    let mut site = Site::start().await;
    let job = site.submit(JOB, &["train.steps=1000", "recovery.on_loss=fail"]).await.unwrap();
    let dies = Faults { dies_at: Some(3), ..Faults::default() };
    let _workers = [site.worker("w0", Faults::default()), site.worker("w1", dies)];
    let start = Instant::now();
    let (_, last) = site.follow(&job).await;
    assert_eq!(last.state(), wire::JobState::Failed);
    let pid = std::process::id();
    let cause = format!("worker w1 (rank 1, stage 1, pid {pid} on alpha) was lost: its connection closed");
    assert_eq!(last.reason, cause);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_fails_or_falls_silent_is_named() {
    let rows = [
        (Faults { fails_at: Some(2), ..Faults::default() }, "failed: the disk is full"),
        (Faults { stalls_at: Some(2), ..Faults::default() }, "was lost: no sign of life for 5 s"),
    ];
    for (faults, cause) in rows {
        let mut site = Site::start().await;
        let job = site.submit(JOB, &["train.steps=100000", "recovery.on_loss=fail"]).await.unwrap();
        let _workers = [site.worker("w0", Faults::default()), site.worker("w1", faults)];
        let start = Instant::now();
        let (_, last) = site.follow(&job).await;
        assert!(last.reason.contains("worker w1 (rank 1") && last.reason.ends_with(cause), "{}", last.reason);
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_worker_is_replaced_by_an_idle_one() {
    let mut site = Site::start().await;
    let job = site.submit(JOB, &["train.steps=50"]).await.unwrap();
    let dies = Faults { dies_at: Some(3), ..Faults::default() };
    let _workers = [site.worker("w0", Faults::default()), site.worker("w1", dies)];
    let _spare = site.worker("w2", Faults::default());
    let (_, last) = site.follow(&job).await;
    assert_eq!((last.state(), last.step), (wire::JobState::Done, 50), "{}", last.reason);
    let noted: Vec<_> =
        metrics::read(&site.run_folder().as_path().into()).unwrap().iter().map(|line| line.step).collect();
    assert_eq!(noted, (1..=50).collect::<Vec<_>>(), "each step once");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_workers_of_a_failed_job_serve_the_next() {
    let mut site = Site::start().await;
    let first = site.submit(JOB, &["train.steps=100000", "recovery.on_loss=fail"]).await.unwrap();
    let _stays = site.worker("w0", Faults::default());
    let _dies = site.worker("w1", Faults { dies_at: Some(2), ..Faults::default() });
    assert_eq!(site.follow(&first).await.1.state(), wire::JobState::Failed);
    let second = site.submit(JOB, &[]).await.unwrap();
    let _fresh = site.worker("w2", Faults::default());
    let (_, last) = site.follow(&second).await;
    assert_eq!((last.state(), last.generation), (wire::JobState::Done, 2), "{}", last.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_comes_back_knows_its_jobs() {
    let mut site = Site::start().await;
    let job = site.submit(JOB, &["train.steps=200"]).await.unwrap();
    let clings = Faults { clings: true, ..Faults::default() };
    let workers = [site.worker("w0", clings), site.worker("w1", clings)];
    let mut jobs = site.jobs.clone();
    while jobs.get(wire::GetRequest { job: job.clone() }).await.unwrap().into_inner().step < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let folder = site.kill().await;
    for worker in workers {
        let ended = tokio::time::timeout(Duration::from_secs(10), worker).await;
        assert!(ended.unwrap().unwrap().is_err(), "workers notice that the coordinator went away");
    }
    let mut site = Site::start_in(folder).await;
    // These are not the processes that were at work, so the job is formed anew.
    let _workers = [site.worker("w0", Faults::default()), site.worker("w1", Faults::default())];
    let (_, last) = site.follow(&job).await;
    assert_eq!((last.state(), last.generation), (wire::JobState::Done, 2), "{}", last.reason);
    assert_eq!(site.submit(JOB, &[]).await.unwrap(), "tiny-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_job_frees_its_workers() {
    let mut site = Site::start().await;
    let job = site.submit(JOB, &["train.steps=100000"]).await.unwrap();
    let _workers = [site.worker("w0", Faults::default()), site.worker("w1", Faults::default())];
    let again = site.submit(JOB, &[]).await.unwrap_err();
    assert_eq!(again.code(), Code::FailedPrecondition, "two jobs in one folder: {again}");
    let cancel = wire::CancelRequest { job: job.clone(), reason: "enough".to_owned(), now: false };
    site.jobs.cancel(cancel.clone()).await.unwrap();
    let (_, last) = site.follow(&job).await;
    assert_eq!(last.state(), wire::JobState::Cancelled);
    assert!(last.reason.starts_with("enough"), "{}", last.reason);
    assert_eq!(site.jobs.cancel(cancel).await.unwrap_err().code(), Code::FailedPrecondition);
    let second = site.submit(JOB, &[]).await.unwrap();
    assert_eq!(site.follow(&second).await.1.state(), wire::JobState::Done);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_is_refused_with_its_reason() {
    let mut site = Site::start().await;
    let rows: [(&str, &[&str], &str); 4] = [
        (JOB, &["model.heads=5"], "model.heads"),
        (JOB, &["train.steps"], "write it as PATH=VALUE"),
        ("name: [", &[], "job.yaml"),
        (JOB, &["layout.pipeline=3"], "layout.pipeline"),
    ];
    for (job, sets, expected) in rows {
        let error = site.submit(job, sets).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(expected), "{}", error.message());
    }
    let unknown = site.jobs.get(wire::GetRequest { job: "none-1".to_owned() }).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
}

/// What is kept in the journal and shown to others has bounds, and no line of it can pass for another.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_caller_says_is_bounded() {
    let mut site = Site::start().await;
    let worker = site.worker("w0", Faults::default());
    let job = site.submit(JOB, &["train.steps=100000"]).await.unwrap();
    for (text, told) in [("x".repeat(5000), "at most"), ("all is well\nfake-1 done".to_owned(), "control")] {
        let run = format!("run{text}");
        let mut refused = vec![site.submit_to(&run, JOB, &[]).await.unwrap_err()];
        let cancel = wire::CancelRequest { job: job.clone(), reason: text.clone(), now: false };
        refused.push(site.jobs.cancel(cancel).await.unwrap_err());
        let drain = wire::DrainRequest { worker: "w0".to_owned(), reason: text.clone() };
        refused.push(site.jobs.drain(drain).await.unwrap_err());
        for error in refused {
            assert_eq!(error.code(), Code::InvalidArgument, "{error}");
            assert!(error.message().contains(told) && error.message().len() < 200, "{error}");
        }
    }
    let long = site.jobs.get(wire::GetRequest { job: "x".repeat(100_000) }).await.unwrap_err();
    assert!(long.message().len() < 200, "{long}");
    let deep = format!("{}=1", ["a"; 40_000].join("."));
    let deep = site.submit_to("deep", JOB, &[&deep]).await.unwrap_err();
    assert!(deep.message().contains("has 40000 keys"), "{deep}");
    assert!(!worker.is_finished(), "the worker is still here");
}

#[tokio::test]
async fn an_address_that_others_reach_needs_a_word() {
    for address in ["0.0.0.0:0", "[::]:0"] {
        let refused = service::listen(address, false).await.unwrap_err().to_string();
        assert!(refused.contains("--insecure-network") && refused.contains("nor authenticated"), "{refused}");
        assert!(refused.contains("coxswain certs init") && refused.contains("--tls-dir"), "{refused}");
    }
    service::listen("0.0.0.0:0", true).await.unwrap();
    service::listen("127.0.0.1:0", false).await.unwrap();
    service::listen("localhost:0", false).await.unwrap();
    assert!(service::listen("nonsense", false).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_jobs_run_at_once_and_a_third_waits_for_both() {
    let mut site = Site::start().await;
    let first = site.submit_to("run-1", JOB, &["train.steps=100000"]).await.unwrap();
    let second = site.submit_to("run-2", JOB, &["train.steps=20"]).await.unwrap();
    let large = site.submit_to("run-3", JOB, &["layout.data=2", "priority=-1"]).await.unwrap();
    let _workers = ["w0", "w1", "w2", "w3"].map(|name| site.worker(name, Faults::default()));
    let (steps, last) = site.follow(&second).await;
    assert_eq!((last.state(), last.step), (wire::JobState::Done, 20), "{}", last.reason);
    assert!(steps.ends_with(&[20]), "{steps:?}");
    let mut get =
        async |job: &str| site.jobs.get(wire::GetRequest { job: job.to_owned() }).await.unwrap().into_inner();
    assert_eq!(get(&first).await.state(), wire::JobState::Running);
    let waits = get(&large).await;
    assert!(
        !matches!(waits.state(), wire::JobState::Running | wire::JobState::Done),
        "all or none: {waits:?}"
    );
    let cancel = wire::CancelRequest { job: first, reason: "enough".to_owned(), now: false };
    site.jobs.cancel(cancel).await.unwrap();
    let (_, last) = site.follow(&large).await;
    assert_eq!((last.state(), last.priority), (wire::JobState::Done, -1), "{}", last.reason);
    for (run, steps) in [("run-2", 20), ("run-3", 5)] {
        let noted = metrics::read(&site.folder.path().join(run).as_path().into()).unwrap();
        let noted: Vec<_> = noted.iter().map(|line| line.step).collect();
        assert_eq!(noted, (1..=steps).collect::<Vec<_>>(), "each job has its own metrics");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_drained_or_leaves_is_replaced() {
    for by_user in [true, false] {
        let mut site = Site::start().await;
        let job = site.submit(JOB, &["train.steps=60"]).await.unwrap();
        let leaves = Faults { leaves_at: Some(10).filter(|_| !by_user), ..Faults::default() };
        let _stays = site.worker("w0", Faults::default());
        let out = site.worker("w1", leaves);
        let get = wire::GetRequest { job: job.clone() };
        while site.jobs.get(get.clone()).await.unwrap().into_inner().step < 5 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let _spare = site.worker("w2", Faults::default());
        if by_user {
            let drain =
                |worker: &str| wire::DrainRequest { worker: worker.into(), reason: "a new disk".into() };
            assert_eq!(site.jobs.drain(drain("w9")).await.unwrap_err().code(), Code::NotFound);
            while site.jobs.drain(drain("w2")).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let _other = site.worker("w3", Faults::default());
            site.jobs.drain(drain("w1")).await.unwrap();
        }
        let (_, last) = site.follow(&job).await;
        assert_eq!((last.state(), last.generation), (wire::JobState::Done, 2), "{}", last.reason);
        let left = tokio::time::timeout(Duration::from_secs(10), out).await.unwrap().unwrap().unwrap();
        assert_eq!(
            left,
            if by_user { "it is drained: a new disk" } else { "it leaves: it was asked to stop" }
        );
        let noted = metrics::read(&site.run_folder().as_path().into()).unwrap();
        let noted: Vec<_> = noted.iter().map(|line| line.step).collect();
        assert_eq!(noted, (1..=60).collect::<Vec<_>>(), "each step once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_journal_is_told_as_it_grows_and_a_job_is_explained() {
    let mut site = Site::start().await;
    let request = wire::EventsRequest { job: String::new(), follow: true };
    let mut events = site.jobs.events(request).await.unwrap().into_inner();
    let job = site.submit(JOB, &[]).await.unwrap();
    let _workers = [site.worker("w0", Faults::default()), site.worker("w1", Faults::default())];
    let (_, last) = site.follow(&job).await;
    assert_eq!(last.state(), wire::JobState::Done);
    let (mut kinds, patience) = (vec![], Duration::from_secs(10));
    while kinds.last().is_none_or(|kind| kind != "ended") {
        let event = tokio::time::timeout(patience, events.message()).await.unwrap().unwrap().unwrap();
        assert!(event.at_ms > 0, "{event:?}");
        kinds.push(event.kind);
    }
    // The data is ready before, between or after the workers are here.
    let (ready, others): (Vec<_>, Vec<_>) = kinds.into_iter().partition(|kind| kind == "prepared");
    let expected = [
        "started",
        "submitted",
        "preparing",
        "joined",
        "joined",
        "formed",
        "committed",
        "published",
        "ended",
    ];
    assert_eq!((ready.len(), others), (1, expected.map(str::to_owned).to_vec()));
    // The same from the past, and of the job alone.
    let request = wire::EventsRequest { job: job.clone(), follow: false };
    let mut past = site.jobs.events(request).await.unwrap().into_inner();
    let mut kinds = vec![];
    while let Some(event) = past.message().await.unwrap() {
        kinds.push(event.kind);
    }
    assert_eq!(kinds, ["submitted", "preparing", "prepared", "formed", "committed", "published", "ended"]);
    let request = wire::EventsRequest { job: "none-1".to_owned(), follow: true };
    let mut unknown = site.jobs.events(request).await.unwrap().into_inner();
    assert_eq!(unknown.message().await.unwrap_err().code(), Code::NotFound);
    let text = site.jobs.explain(wire::ExplainRequest { job }).await.unwrap().into_inner().text;
    assert!(text.starts_with("tiny-1 is done: step 5 is taken"), "{text}");
    let unknown = site.jobs.explain(wire::ExplainRequest { job: "none-1".to_owned() }).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
}
