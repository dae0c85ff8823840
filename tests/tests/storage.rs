//! What a run's files cost: an interruption reads neither the checkpoint nor the corpus again, damage is found before
//! a step is taken from it, and slow storage of one rank makes the others wait and fails no rank.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]
#![allow(clippy::print_stdout, reason = "what was measured")]

use std::fs;
use std::io::Write as _;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use coxswain_comm::{DataPort, FileStore, Links};
use coxswain_engine::{Control, Engine, EngineEvent};
use coxswain_files::folders::step_folder;
use coxswain_files::{
    Checkpoint, Digests, Header, ShardTensor, StoreFolder, latest, prepare, publish, write_shard,
};
use coxswain_tests::chaos::{at_work, interruptions, next_step};
use coxswain_tests::process::{lines, signal};
use coxswain_tests::threads::assignments_of;
use coxswain_tests::{Folder, JOB, Run, skip, text, wait_until};
use coxswain_types::activity::{EnginePhase, EngineWork};
use coxswain_types::status::Directive;

/// How long ranks wait for each other to join, and how long the files of one take to check.
const JOINING_MS: u64 = 1500;
const CHECKING: Duration = Duration::from_millis(2500);

/// What the files of the small run weigh, and what may be read after a loss: statuses, manifests, lists of digests.
const BALLAST_BYTES: u64 = 32 << 20;
const CORPUS_BYTES: usize = 8 << 20;
const READ_MAX_BYTES: u64 = 4 << 20;

/// After this long a file that changes again shows it.
const SETTLES: Duration = Duration::from_secs(3);

/// How many losses of the large run are timed, and how much longer than of the small one they may take.
const LOSSES: usize = 5;
const SLOWER_MAX: f64 = 1.5;

/// To write or read some gigabytes.
const PATIENCE: Duration = Duration::from_secs(240);

/// Remembers the links, so that others can look at what a rank does, and keeps the rank for a while before it looks at
/// its files, as slow storage would.
#[derive(Default)]
struct Watch {
    links: Mutex<Option<Links>>,
    checking: Duration,
}

impl Control for Watch {
    fn directive(&self) -> Directive {
        Directive { revision: 1, ..Directive::NONE }
    }

    fn tell(&self, event: EngineEvent) {
        if let EngineEvent::Linked(links) = event {
            *self.links.lock().unwrap() = Some(links);
            std::thread::sleep(self.checking);
        }
    }
}

#[test]
fn a_rank_that_checks_its_files_for_long_is_waited_for() -> Result<()> {
    let folder = Folder::new()?;
    let [run, store] = ["run", "store"].map(|name| folder.path().join(name));
    let text = JOB.replace("text: text.txt", &format!("text: {}", folder.path().join("text.txt").display()));
    let mut assignments = assignments_of(&text, &[("layout.data".to_owned(), "2".to_owned())])?;
    let data = prepare(&run.as_path().into(), &assignments[0].spec, None, &Digests::default(), &|_| Ok(()))?;
    fs::create_dir_all(&store)?;
    for a in &mut assignments {
        a.directory = run.to_string_lossy().into_owned();
        a.data = data.clone();
        (a.generation.0, a.rendezvous_ms) = (1, JOINING_MS);
    }
    let slow = Watch { checking: CHECKING, ..Watch::default() };
    let watches = [Watch::default(), slow];
    let built = std::thread::scope(|scope| {
        let ranks: Vec<_> = assignments
            .iter()
            .zip(&watches)
            .map(|(a, watch)| {
                let store = FileStore::new(store.clone(), JOINING_MS);
                scope.spawn(move || {
                    let port = DataPort::local()
                        .map_err(|error| coxswain_engine::EngineError::Other(error.to_string()))?;
                    Engine::build(a.clone(), store, &port, ("test", tch::Device::Cpu), watch, &mut None)
                        .map(drop)
                })
            })
            .collect();
        // The slow rank has joined, and looks at no file yet.
        let joined = || watches[1].links.lock().unwrap().is_some();
        wait_until("the slow rank", PATIENCE, joined)?;
        // What it does is there to be told.
        let links = watches[1].links.lock().unwrap().clone();
        let doing = links.map(|links| links.doing().what);
        for rank in ranks {
            rank.join().map_err(|_| anyhow!("a rank panicked"))??;
        }
        Ok::<_, anyhow::Error>(doing)
    })?;
    ensure!(built == Some(EngineWork::Phase(EnginePhase::CheckingFiles)), "it was {built:?}");
    Ok(())
}

/// Adds so many bytes to the newest checkpoint of a run, in tensors that no model asks for.
fn weigh_down(run: &Run, bytes: u64) -> Result<()> {
    /// A tensor; one at a time is in memory.
    const PART_BYTES: u64 = 32 << 20;
    let (_, folder) = latest(&run.out().into())?.context("there is no checkpoint")?;
    let manifest = Checkpoint::open(&folder, None)?.manifest().clone();
    let len = PART_BYTES / 4;
    let part =
        |at| ShardTensor { name: format!("ballast/{at:03}"), shape: vec![len], dim: 0, offset: 0, len };
    let parts: Vec<_> = (0..bytes / PART_BYTES).map(part).collect();
    let name = "ballast.safetensors";
    let file = write_shard(&folder, name, &parts, |_, slab| slab.write(&vec![0; PART_BYTES as usize]))?;
    let files = [manifest.files, vec![file]].concat();
    let header = Header {
        job: manifest.job,
        step: manifest.step,
        spec: manifest.spec,
        fingerprint: manifest.fingerprint,
        data: manifest.data,
    };
    publish(&folder, &files, header)?;
    Ok(())
}

/// A run of two data ranks that goes on, without an end, from a checkpoint and a text that weigh so much.
fn heavy(folder: &Folder, name: &str, ballast_bytes: u64, corpus_bytes: usize) -> Result<Run> {
    let [job, corpus] = ["yaml", "txt"].map(|ending| folder.path().join(format!("{name}.{ending}")));
    let part = text(900);
    fs::write(&corpus, part.repeat(corpus_bytes.div_ceil(part.len())))?;
    let text = JOB.replace("text: text.txt", &format!("text: {name}.txt, validation: 0"));
    fs::write(&job, text.replace("validate_every: 7", "validate_every: 0"))?;
    let run = Run::new(&job, folder.path().join(name)).layout(1, 1, 2);
    let first = run.clone().set("train.steps=5");
    let outcome = first.wait(first.start()?, PATIENCE)?;
    ensure!(outcome.code == Some(0), "exit code {:?}\n{}", outcome.code, outcome.stderr);
    if ballast_bytes > 0 {
        weigh_down(&run, ballast_bytes)?;
        // A file that changed a moment ago may change again unseen, so its digest is not remembered.
        std::thread::sleep(SETTLES);
    }
    Ok(run.set("train.steps=1000000").set("checkpoint.every=0"))
}

/// Kills a worker of the run; returns how long it takes to the first new step.
fn lose_one(run: &Run, child: &mut std::process::Child) -> Result<Duration> {
    let metrics = run.out().join("metrics.jsonl");
    let (lost, seen) = (at_work(run)?[1], interruptions(run));
    let start = Instant::now();
    signal(lost, "KILL")?;
    wait_until("the loss", PATIENCE, || interruptions(run) > seen)?;
    ensure!(next_step(run, child, lines(&metrics))?, "the run ended");
    Ok(start.elapsed())
}

/// What the threads of a process have read so far. What is told of the process itself has the reads of its children
/// that have ended.
fn read_bytes(pid: u32) -> Result<u64> {
    let mut bytes = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task")).context("the threads of the process")? {
        // One that has ended meanwhile tells nothing.
        let Ok(text) = fs::read_to_string(thread?.path().join("io")) else { continue };
        let read = text.lines().find_map(|line| line.strip_prefix("rchar: ")?.trim().parse::<u64>().ok());
        bytes += read.context("rchar")?;
    }
    Ok(bytes)
}

/// What ranks had hashed when they were ready: the generation and the bytes of each.
fn hashed(run: &Run) -> Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(run.out().join("logs"))? {
        let text = fs::read_to_string(entry?.path())?;
        for line in text.lines().filter(|line| line.contains("hashed_bytes=")) {
            let value = |key: &str| -> Option<u64> {
                let rest = line.split_once(key)?.1;
                rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
            };
            found.push(value("generation=").zip(value("hashed_bytes=")).with_context(|| line.to_owned())?);
        }
    }
    Ok(found)
}

#[test]
fn an_interruption_reads_neither_the_checkpoint_nor_the_corpus() -> Result<()> {
    let folder = Folder::new()?;
    let run = heavy(&folder, "heavy", BALLAST_BYTES, CORPUS_BYTES)?;
    let before = lines(&run.out().join("metrics.jsonl"));
    let mut child = run.start()?;
    ensure!(next_step(&run, &mut child, before + 2)?, "the run ended");
    let read_before = read_bytes(child.id())?;
    lose_one(&run, &mut child)?;
    let read = read_bytes(child.id())?.saturating_sub(read_before);
    signal(child.id(), "INT")?;
    run.wait(child, PATIENCE)?;
    let hashed = hashed(&run)?;
    let newest = hashed.iter().map(|(generation, _)| *generation).max().context("no rank was ready")?;
    let of = |wanted: u64| hashed.iter().filter(move |(of, _)| *of == wanted).map(|(_, bytes)| *bytes);
    // The start looks at every byte of the checkpoint, and the interruption at next to none of any file.
    let start: u64 = of(newest - 1).sum();
    ensure!(start >= BALLAST_BYTES, "the start looked at {start} bytes: {hashed:?}");
    ensure!(of(newest).count() == 2 && of(newest).all(|bytes| bytes < READ_MAX_BYTES), "{hashed:?}");
    ensure!(read < READ_MAX_BYTES, "the coordinator read {read} bytes");
    Ok(())
}

#[test]
fn damage_is_found_before_a_step_is_taken_from_it() -> Result<()> {
    let folder = Folder::new()?;
    let run = folder.run("run").layout(1, 1, 2).set("checkpoint.every=5");
    let calm = run.summary()?;
    // It goes on from step 15, of which a byte has changed.
    let out = StoreFolder::from(run.out());
    step_folder(&out, 20).clear()?;
    let damaged = step_folder(&out, 15);
    let manifest = Checkpoint::open(&damaged, None)?.manifest().clone();
    let damaged = damaged.path();
    let file = manifest.files.iter().max_by_key(|file| file.bytes).context("no file")?;
    let mut bytes = fs::read(damaged.join(&file.name))?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(damaged.join(&file.name), bytes)?;
    let again = run.outcome()?;
    ensure!(again.code == Some(0), "exit code {:?}; it said:\n{}", again.code, again.stderr);
    ensure!(again.stderr.contains(&file.name), "{} is not named:\n{}", file.name, again.stderr);
    ensure!(damaged.join("manifest.json.damaged").is_file(), "it is not set aside:\n{}", again.stderr);
    match run.read()?.bits_differ(&calm) {
        None => Ok(()),
        Some(how) => Err(anyhow!("{how}")),
    }
}

/// From a loss to the next step, over a step's time, in the median of some.
fn recovery(run: &Run) -> Result<f64> {
    let metrics = run.out().join("metrics.jsonl");
    let before = lines(&metrics);
    let mut child = run.start()?;
    wait_until("the first steps", PATIENCE, || lines(&metrics) > before + 2)?;
    let mut took = Vec::new();
    for _ in 0..LOSSES {
        std::thread::sleep(Duration::from_millis(500));
        took.push(lose_one(run, &mut child)?.as_secs_f64());
    }
    signal(child.id(), "INT")?;
    run.wait(child, PATIENCE)?;
    let text = fs::read_to_string(&metrics)?;
    let seconds = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["step_seconds"].as_f64();
    let mut steps: Vec<f64> = text.lines().filter_map(seconds).collect();
    steps.sort_by(f64::total_cmp);
    took.sort_by(f64::total_cmp);
    Ok(took[took.len() / 2] - steps[steps.len() / 2])
}

/// Minutes, and 5 GiB of disk: `cargo xtask test --long` runs it.
#[test]
fn a_loss_takes_as_long_whatever_the_files_weigh() -> Result<()> {
    if skip::unless_long() {
        return Ok(());
    }
    let folder = Folder::new()?;
    let small = recovery(&heavy(&folder, "small", 0, 1 << 14)?)?;
    let large = recovery(&heavy(&folder, "large", 2 << 30, 128 << 20)?)?;
    let figures = format!("{small:.2} s, and {large:.2} s of 2.4 GiB");
    drop(writeln!(std::io::stdout(), "from kill -9 to the first new step, over a step's time: {figures}"));
    ensure!(large <= SLOWER_MAX * small, "{large:.2} s is more than {SLOWER_MAX} times {small:.2} s");
    Ok(())
}
