//! Workers that are lost cost time and nothing else: the bits are those of a run that nobody disturbed.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coxswain_tests::process::{children, lines, signal};
use coxswain_tests::{Folder, Run, wait_until};

/// A loaded machine may take this long to come from a loss to the next step, and some.
const RECOVERY: Duration = Duration::from_secs(30);
/// How long a disturbed run may take in all.
const LIMIT: Duration = Duration::from_secs(240);
/// Kills in one run.
const KILLS: usize = 6;

fn job(folder: &Folder, name: &str, layout: (u32, u32, u32)) -> Run {
    let (pipeline, tensor, data) = layout;
    let run =
        folder.run(name).layout(pipeline, tensor, data).set("train.steps=240").set("checkpoint.every=8");
    run.set("train.evaluate_every=60")
}

/// Numbers below `most`, the same on each run of the test.
fn dice(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |most| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % most
    }
}

fn interruptions(run: &Run) -> usize {
    let said = std::fs::read_to_string(run.out().with_extension("stderr")).unwrap_or_default();
    said.matches("workers are gathered to go on").count()
}

/// Waits until the run has come further than its newest step so far.
fn expect_progress(run: &Run, child: &mut Child, before: usize) -> Result<bool> {
    let metrics = run.out().join("metrics.jsonl");
    let start = Instant::now();
    loop {
        if child.try_wait().context("looking at the run")?.is_some() {
            return Ok(false);
        }
        if lines(&metrics) > before {
            return Ok(true);
        }
        ensure!(start.elapsed() < RECOVERY, "no new step within {RECOVERY:?}; it has {before}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn disturb(run: &Run, seed: u64, signs: &[&str]) -> Result<()> {
    let mut child = run.start()?;
    let metrics = run.out().join("metrics.jsonl");
    wait_until("the first steps", RECOVERY, || lines(&metrics) >= 3)?;
    let mut dice = dice(seed);
    let mut kills = 0;
    while kills < KILLS {
        std::thread::sleep(Duration::from_millis(dice(400)));
        let workers = children(child.id())?;
        ensure!(!workers.is_empty(), "there are no workers");
        let lost = workers[dice(workers.len() as u64) as usize];
        let before = lines(&metrics);
        signal(lost, signs[kills % signs.len()])?;
        kills += 1;
        if !expect_progress(run, &mut child, before)? {
            break;
        }
    }
    let outcome = run.wait(child, LIMIT)?;
    ensure!(outcome.code == Some(0), "exit code {:?} after {kills} losses\n{}", outcome.code, outcome.stderr);
    let seen = interruptions(run);
    println!("{kills} losses, {seen} interruptions");
    ensure!(seen > 0 && seen + 2 >= kills, "{kills} losses made {seen} interruptions\n{}", outcome.stderr);
    Ok(())
}

#[test]
fn lost_workers_change_no_bit() -> Result<()> {
    let folder = Folder::new()?;
    let calm = job(&folder, "calm", (1, 1, 1)).summary()?;
    for (name, layout, signs) in [
        ("killed dp2 pp2", (2, 1, 2), ["KILL"].as_slice()),
        ("asked to stop pp2 tp2", (2, 2, 1), ["TERM", "KILL"].as_slice()),
    ] {
        let tensor = format!("train.tensor_shards={}", layout.1);
        let (run, calm) = match layout.1 {
            1 => (job(&folder, name, layout), calm.clone()),
            _ => (
                job(&folder, name, layout).set(&tensor),
                job(&folder, "calm shards", (1, 1, 1)).set(&tensor).summary()?,
            ),
        };
        disturb(&run, 7, signs)?;
        // Reading refuses a step that stands twice in the metrics.
        let lived = run.read()?;
        ensure!(lived.losses.len() == 240, "{name}: {} steps are noted", lived.losses.len());
        if let Some(how) = lived.bits_differ(&calm) {
            anyhow::bail!("{name}: {how}");
        }
    }
    Ok(())
}

#[test]
fn a_stopped_worker_is_replaced() -> Result<()> {
    let folder = Folder::new()?;
    let run = job(&folder, "stopped", (2, 1, 1)).set("train.steps=400");
    let mut child = run.start()?;
    let metrics = run.out().join("metrics.jsonl");
    wait_until("the first steps", RECOVERY, || lines(&metrics) >= 3)?;
    // A pause of a second is no loss.
    let workers = children(child.id())?;
    signal(workers[1], "STOP")?;
    std::thread::sleep(Duration::from_secs(1));
    signal(workers[1], "CONT")?;
    let before = lines(&metrics);
    ensure!(expect_progress(&run, &mut child, before)?, "the run ended");
    ensure!(interruptions(&run) == 0, "a pause of a second interrupted the run");
    signal(workers[1], "STOP")?;
    wait_until("the loss", RECOVERY, || interruptions(&run) == 1)?;
    // What wakes up after it was replaced, or given up, does no harm.
    signal(workers[1], "CONT")?;
    let outcome = run.wait(child, LIMIT)?;
    ensure!(outcome.code == Some(0), "exit code {:?}\n{}", outcome.code, outcome.stderr);
    ensure!(run.read()?.losses.len() == 400, "not all steps are noted");
    Ok(())
}
