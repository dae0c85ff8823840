//! Jobs that block, crash or overfill whatever prepares them. Each fails alone, and the coordinator answers other calls.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "../src/tests/fake.rs"]
#[allow(dead_code, reason = "tests in the crate use more of it")]
mod fake;
#[allow(dead_code, reason = "other tests use more of it")]
mod serve;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use coxswain_proto::wire::jobs_client::JobsClient;
use coxswain_proto::wire::{self, JobState, JobSummary};
use fake::{Faults, work};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serve::{Serve, free_port};
use tonic::transport::Channel;

/// How long a job may take to a state that it has to reach.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a call may take, whatever another job does.
const ANSWER: Duration = Duration::from_secs(3);

/// Data that is ready at once.
const SYNTHETIC: &str = "{synthetic: {tokens: 4096}}";

fn job(name: &str, data: &str) -> String {
    format!(
        "
name: {name}
model: {{layers: 1, dim: 32, heads: 4, kv_heads: 2, ffn: 64, vocab: 8000}}
data: {data}
train: {{steps: 3, sequence: 16, micro_batch_size: 1, global_micro_batches: 1}}
"
    )
}

async fn submit(jobs: &mut JobsClient<Channel>, manifest: String, directory: &Path) -> String {
    let request = wire::SubmitRequest {
        manifest,
        origin: "job.yaml".to_owned(),
        base: "/".to_owned(),
        directory: directory.to_str().unwrap().to_owned(),
        sets: Vec::new(),
        ..Default::default()
    };
    jobs.submit(request).await.unwrap().into_inner().job
}

/// The job as it is now, which a coordinator tells at once.
async fn get(jobs: &mut JobsClient<Channel>, job: &str) -> JobSummary {
    let asked = jobs.get(wire::GetRequest { job: job.to_owned() });
    tokio::time::timeout(ANSWER, asked).await.expect("an answer").unwrap().into_inner()
}

/// The job once it is as it should be.
async fn until(jobs: &mut JobsClient<Channel>, job: &str, is: impl Fn(&JobSummary) -> bool) -> JobSummary {
    let start = Instant::now();
    loop {
        let summary = get(jobs, job).await;
        if is(&summary) {
            return summary;
        }
        assert!(start.elapsed() < PATIENCE, "{summary:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn is_over(summary: &JobSummary) -> bool {
    matches!(summary.state(), JobState::Done | JobState::Failed | JobState::Cancelled)
}

/// Writes a text of at least so many bytes in which no word repeats.
fn text(path: &Path, bytes: usize, between: &str) {
    let mut text = String::with_capacity(bytes + 16);
    let mut number: u64 = 1;
    while text.len() < bytes {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.extend((0..8).map(|letter| char::from(b'a' + (number >> (8 * letter)) as u8 % 26)));
        text.push_str(between);
    }
    fs::write(path, text).unwrap();
}

/// The processes that this one has started.
fn children(pid: u32) -> Vec<Pid> {
    let mut children = Vec::new();
    for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().unwrap())));
    }
    children
}

/// Waits for a process to end.
async fn gone(pid: Pid) {
    let start = Instant::now();
    let ended = || {
        // Its new parent may leave it as a zombie.
        let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        test_kill_process(pid).is_err() || stat.contains(") Z ")
    };
    while !ended() {
        assert!(start.elapsed() < Duration::from_secs(5), "process {pid:?} is still there");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_cannot_be_written_fails_its_own_job() {
    let folder = tempfile::tempdir().unwrap();
    let (pipe, link) = (folder.path().join("pipe"), folder.path().join("link"));
    fs::create_dir(&pipe).unwrap();
    fs::create_dir(&link).unwrap();
    mknodat(CWD, pipe.join("metrics.jsonl"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    fs::write(folder.path().join("precious"), "of somebody else\n").unwrap();
    std::os::unix::fs::symlink(folder.path().join("precious"), link.join("metrics.jsonl")).unwrap();
    let mut serve = Serve::start(folder.path(), free_port());
    let (_, mut jobs) = serve.first_answer().await;
    let first = submit(&mut jobs, job("first", SYNTHETIC), &pipe).await;
    let second = submit(&mut jobs, job("second", SYNTHETIC), &link).await;
    let good = submit(&mut jobs, job("good", SYNTHETIC), &folder.path().join("good")).await;
    let url = serve.url.clone();
    let _worker = tokio::spawn(async move { work(&url, "w0", Faults::default()).await });
    for (poison, kind) in [(&first, "a named pipe"), (&second, "a symbolic link")] {
        let ended = until(&mut jobs, poison, is_over).await;
        assert_eq!(ended.state(), JobState::Failed);
        assert!(ended.reason.starts_with("metrics in ") && ended.reason.contains(kind), "{}", ended.reason);
    }
    assert_eq!(until(&mut jobs, &good, is_over).await.state(), JobState::Done);
    assert_eq!(fs::read_to_string(folder.path().join("precious")).unwrap(), "of somebody else\n");
    // A restart on its journal answers as well.
    serve.kill();
    let serve = Serve::start(folder.path(), free_port());
    let (_, mut jobs) = serve.first_answer().await;
    assert_eq!(get(&mut jobs, &first).await.state(), JobState::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_takes_all_memory_ends_its_own_job() {
    let folder = tempfile::tempdir().unwrap();
    // A text without blanks, whose pairs of letters all have to be counted.
    text(&folder.path().join("large"), 16 << 20, "");
    // 128 MiB for each process, of which a preparation may take three quarters.
    let serve = Serve::start_limited(folder.path(), free_port(), 128 << 10);
    let (_, mut jobs) = serve.first_answer().await;
    let data = format!("{{text: {}}}", folder.path().join("large").display());
    let large = submit(&mut jobs, job("large", &data), &folder.path().join("run")).await;
    let ended = until(&mut jobs, &large, is_over).await;
    assert_eq!(ended.state(), JobState::Failed);
    let told = "its data cannot be prepared: it takes more than the 96 MiB of memory that it may have";
    assert!(ended.reason.starts_with(told), "{}", ended.reason);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preparation_ends_with_its_job_and_with_its_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    text(&folder.path().join("large"), 60 << 20, " ");
    let mut serve = Serve::start(folder.path(), free_port());
    let (_, mut jobs) = serve.first_answer().await;
    let data = format!("{{text: {}}}", folder.path().join("large").display());
    let mut prepared = async |serve: &Serve, name: &str| {
        let before = children(serve.pid());
        let id = submit(&mut jobs, job(name, &data), &folder.path().join(name)).await;
        let start = Instant::now();
        loop {
            let new = children(serve.pid()).into_iter().find(|pid| !before.contains(pid));
            if let Some(pid) = new {
                return (id, pid);
            }
            assert!(start.elapsed() < PATIENCE, "no process prepares {id}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (cancelled, its) = prepared(&serve, "cancelled").await;
    let (killed, other) = prepared(&serve, "killed").await;
    let (last, its_own) = prepared(&serve, "last").await;
    let cancel = wire::CancelRequest { job: cancelled.clone(), reason: "enough".to_owned(), now: true };
    jobs.cancel(cancel).await.unwrap();
    gone(its).await;
    kill_process(other, Signal::KILL).unwrap();
    let ended = until(&mut jobs, &killed, is_over).await;
    assert!(ended.reason.contains("its process was killed, most likely since"), "{}", ended.reason);
    assert_eq!(get(&mut jobs, &cancelled).await.state(), JobState::Cancelled);
    until(&mut jobs, &last, |job| job.reason.contains(" MB")).await;
    serve.kill();
    gone(its_own).await;
    // The next coordinator answers, and prepares the job again.
    let serve = Serve::start(folder.path(), free_port());
    let (_, mut jobs) = serve.first_answer().await;
    until(&mut jobs, &last, |job| job.state() == JobState::Preparing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_belongs_to_one_job_under_any_path() {
    let folder = tempfile::tempdir().unwrap();
    let serve = Serve::start(folder.path(), free_port());
    let (_, mut jobs) = serve.first_answer().await;
    let (run, link) = (folder.path().join("run"), folder.path().join("link"));
    let url = serve.url.clone();
    let _worker = tokio::spawn(async move { work(&url, "w0", Faults::default()).await });
    let long = job("first", SYNTHETIC).replace("steps: 3", "steps: 1000000");
    let first = submit(&mut jobs, long, &run).await;
    until(&mut jobs, &first, |job| job.state() == JobState::Running).await;
    std::os::unix::fs::symlink(&run, &link).unwrap();
    let second = submit(&mut jobs, job("second", SYNTHETIC), &link).await;
    let ended = until(&mut jobs, &second, is_over).await;
    let told = format!("it is in use by job {first} (coordinator with pid {} on ", serve.pid());
    assert!(ended.state() == JobState::Failed && ended.reason.contains(&told), "{}", ended.reason);
    // The folder is free once its job is over.
    let cancel = wire::CancelRequest { job: first, reason: "enough".to_owned(), now: true };
    jobs.cancel(cancel).await.unwrap();
    let third = submit(&mut jobs, job("third", SYNTHETIC), &link).await;
    assert_eq!(until(&mut jobs, &third, is_over).await.state(), JobState::Done);
}
