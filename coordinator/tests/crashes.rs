//! The coordinator's process is killed and started again, and nothing that it promised is lost.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "../src/tests/fake.rs"]
#[allow(dead_code, reason = "tests in the crate use more of it")]
mod fake;
#[allow(dead_code, reason = "other tests use more of it")]
mod serve;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use coxswain_core::cluster::{Compute, Entry, FormedRank, Submission};
use coxswain_core::spec::{JobText, parse};
use coxswain_files::hash::draw_below;
use coxswain_proto::wire;
use coxswain_proto::wire::jobs_client::JobsClient;
use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::status::{Published, SavedFile};
use fake::{Faults, Given, Worker};
use rustix::process::{Pid, Signal, kill_process};
use serve::{Serve, free_port, long};
use tokio::task::JoinHandle;
use tonic::transport::Channel;

const JOB: &str = "
name: tiny
model: {layers: 2, dim: 32, heads: 4, kv_heads: 2, ffn: 64, vocab: 300}
data: {synthetic: {tokens: 4096}}
train: {steps: 1000000, sequence: 16, micro_batch_size: 1, global_micro_batches: 2, learning_rate: 1.0e-3}
layout: {pipeline: 2}
checkpoint: {every: 5}
";

/// A journal of a run that took its checkpoints until there were `count` records.
fn journal(count: usize) -> String {
    let job = "tiny-1".to_owned();
    let generation = Generation(7);
    let spec = parse(&JobText { source: "job", text: JOB, sets: &[], base: Path::new("/") }).unwrap();
    let rank = |rank: u32| FormedRank {
        worker: WorkerId(format!("w{rank}")),
        incarnation: 1,
        digest: "d".repeat(64),
        stage: rank,
        host: "alpha".to_owned(),
        pid: 1000 + rank,
        cores: 2,
        slow_percent: 100,
    };
    let mut entries = vec![
        Entry::Submitted(Box::new(Submission {
            job: job.clone(),
            spec,
            directory: "/nowhere/run".to_owned(),
            chosen: None,
        })),
        Entry::Formed {
            job: job.clone(),
            generation,
            ranks: (0..2).map(rank).collect(),
            threads: 1,
            from: Step(0),
            revision: 1,
            layout: None,
            compute: Compute { device: "cpu".to_owned(), runtime: "none".to_owned() },
        },
    ];
    for step in (1..).map(|n| Step(n * 5)).take(count / 2 - 1) {
        let file = |n: u32| SavedFile {
            name: format!("{}-g7-r{:03}.safetensors", ["model", "optimizer"][n as usize % 2], n / 2),
            bytes: 1_000_000,
            digest: "d".repeat(64),
        };
        let files = (0..8).map(file).collect();
        entries.push(Entry::Committed { job: job.clone(), generation, step, files });
        let checkpoint = Published { step, digest: "m".repeat(64) };
        entries.push(Entry::Published { job: job.clone(), checkpoint });
    }
    let mut text = "coxswain journal 2\n".to_owned();
    for entry in &entries {
        let json = serde_json::to_string(entry).unwrap();
        text += &format!("{} {:08x} {json}\n", json.len(), crc32fast::hash(json.as_bytes()));
    }
    text
}

fn middle(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_of_a_hundred_thousand_records_is_served_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data/journal");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text = journal(100_000);
    let mut times = Vec::new();
    for _ in 0..5 {
        fs::write(&path, &text).unwrap();
        let serve = Serve::start(folder.path(), free_port());
        let (took, mut jobs) = serve.first_answer().await;
        let job = jobs.get(wire::GetRequest { job: "tiny-1".to_owned() }).await.unwrap().into_inner();
        assert_eq!(job.checkpoint.unwrap().step, 49_999 * 5);
        times.push(took);
    }
    let (median, worst) = middle(times);
    println!(
        "100000 records, {} bytes: first answer after {median:?} (median), {worst:?} (worst)",
        text.len()
    );
    // 500 ms on a machine that has nothing else to do; tests run beside others.
    assert!(median < Duration::from_millis(2000), "{median:?}");
    assert!(fs::metadata(&path).unwrap().len() < text.len() as u64 / 2, "the journal was written shorter");
}

/// What the coordinator has promised of each job: whether it is cancelled.
type Promised = BTreeMap<String, bool>;

async fn submit(jobs: &mut JobsClient<Channel>, directory: &Path) -> Result<String, tonic::Status> {
    let request = wire::SubmitRequest {
        manifest: JOB.to_owned(),
        origin: "job.yaml".to_owned(),
        base: "/".to_owned(),
        directory: directory.to_str().unwrap().to_owned(),
        sets: vec![],
        ..Default::default()
    };
    Ok(jobs.submit(request).await?.into_inner().job)
}

/// Submits jobs and cancels every second, until the coordinator is gone. Returns what was answered.
async fn demand(mut jobs: JobsClient<Channel>, folder: std::path::PathBuf) -> Promised {
    let mut promised = Promised::new();
    for n in 0.. {
        let Ok(job) = submit(&mut jobs, &folder.join(format!("job{n}"))).await else { break };
        promised.insert(job.clone(), false);
        if n % 2 == 0 {
            let cancel = wire::CancelRequest { job: job.clone(), reason: "enough".to_owned(), now: false };
            if jobs.cancel(cancel).await.is_err() {
                // It may be cancelled or not: nothing was promised.
                promised.remove(&job);
                break;
            }
            promised.insert(job, true);
        }
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    promised
}

fn start_worker(
    url: &str,
    name: &str,
    incarnation: u64,
    given: &Given,
) -> JoinHandle<Result<String, String>> {
    let worker = Worker::new(name, incarnation, Faults::default(), given.clone());
    let url = url.to_owned();
    tokio::spawn(async move { worker.work(&url).await })
}

async fn job_now(jobs: &mut JobsClient<Channel>, job: &str) -> wire::JobSummary {
    jobs.get(wire::GetRequest { job: job.to_owned() }).await.unwrap().into_inner()
}

/// Waits until the run has taken `more` steps in a generation from `generation` on.
async fn goes_on(jobs: &mut JobsClient<Channel>, job: &str, generation: u64, more: u64) -> wire::JobSummary {
    let mut first = None;
    for _ in 0..2000 {
        let now = job_now(jobs, job).await;
        assert_ne!(now.state(), wire::JobState::Failed, "{}", now.reason);
        if now.state() == wire::JobState::Running && now.generation >= generation {
            let begin = *first.get_or_insert((now.generation, now.step));
            if now.generation == begin.0 && now.step >= begin.1 + more {
                return now;
            }
            first = first.filter(|first| first.0 == now.generation);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the run does not go on: {:?}", job_now(jobs, job).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn whenever_the_coordinator_is_killed_nothing_that_it_promised_is_lost() {
    let (kills, seed) = (if long() { 50 } else { 5 }, 20);
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut serve = Serve::start(folder.path(), port);
    let (_, mut jobs) = serve.first_answer().await;
    let run = folder.path().join("run");
    let job = submit(&mut jobs, &run).await.unwrap();
    let given = Given::default();
    let mut workers = [start_worker(&serve.url, "w0", 1, &given), start_worker(&serve.url, "w1", 1, &given)];
    let (mut times, mut promised, mut generation, mut replaced) = (vec![], Promised::new(), 1, 1);
    goes_on(&mut jobs, &job, generation, 3).await;
    for kill in 0..kills {
        let demanded = tokio::spawn(demand(jobs.clone(), folder.path().join(format!("more{kill}"))));
        // Every fourth time a worker is started again meanwhile, so that generations come and go.
        let replace = kill % 4 == 3;
        tokio::time::sleep(Duration::from_millis(draw_below(seed, kill, 200).into())).await;
        if replace {
            workers[1].abort();
            replaced += 1;
            workers[1] = start_worker(&serve.url, "w1", replaced, &given);
        }
        tokio::time::sleep(Duration::from_millis(draw_below(seed, kill + 1000, 200).into())).await;
        serve.kill();
        promised.extend(demanded.await.unwrap());
        serve = Serve::start(folder.path(), port);
        let (took, again) = serve.first_answer().await;
        (jobs, generation) = (again, generation + u64::from(replace));
        times.push(took);
        for (job, cancelled) in &promised {
            let state = job_now(&mut jobs, job).await.state();
            assert_eq!(state == wire::JobState::Cancelled, *cancelled, "{job} is {state:?}");
        }
        let now = goes_on(&mut jobs, &job, generation, 3).await;
        assert_eq!(now.generation, generation, "no worker was started again for the coordinator's sake");
        assert!(workers.iter().all(|worker| !worker.is_finished()));
    }
    let last = job_now(&mut jobs, &job).await;
    let noted = || -> Vec<u64> {
        let lines = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let step = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
        lines.lines().filter_map(step).collect()
    };
    // `get` shows a step a moment before it is written.
    let mut steps = noted();
    for _ in 0..500 {
        if steps.len() as u64 >= last.step {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        steps = noted();
    }
    assert!(steps.len() as u64 >= last.step, "{} {}", steps.len(), last.step);
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<_>>(), "each step is recorded once");
    let (median, worst) = middle(times);
    println!(
        "{kills} kills, {} promises kept, generation {generation}: first answer after {median:?} (median), \
         {worst:?} (worst)",
        promised.len()
    );
    // Serving again takes milliseconds; tests run beside others.
    assert!(median < Duration::from_millis(1000), "{median:?}");
}

/// A coordinator may be stopped for longer than a lease, as by a debugger or a freezer of processes. Workers lose their connections meanwhile, and their run
/// goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_that_is_stopped_for_a_while_interrupts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let serve = Serve::start(folder.path(), free_port());
    let (_, mut jobs) = serve.first_answer().await;
    let job = submit(&mut jobs, &folder.path().join("run")).await.unwrap();
    let given = Given::default();
    let workers = [start_worker(&serve.url, "w0", 1, &given), start_worker(&serve.url, "w1", 1, &given)];
    goes_on(&mut jobs, &job, 1, 3).await;
    let pid = Pid::from_raw(serve.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    tokio::time::sleep(Duration::from_secs(8)).await;
    kill_process(pid, Signal::CONT).unwrap();
    let (_, mut jobs) = serve.first_answer().await;
    let now = goes_on(&mut jobs, &job, 1, 3).await;
    // Longer than a worker that is gone is waited for.
    tokio::time::sleep(Duration::from_secs(11)).await;
    let later = goes_on(&mut jobs, &job, 1, 3).await;
    assert_eq!((now.generation, later.generation), (1, 1), "{}", later.reason);
    assert!(workers.iter().all(|worker| !worker.is_finished()));
}
