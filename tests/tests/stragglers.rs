//! Work that is divided anew, away from a worker that is slow: it costs time and changes no bit.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coxswain_tests::process::lines;
use coxswain_tests::{Folder, Run, SOON, Site, Summary, events, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Lets a process run for a sixth of the time, until told to stop. A step's computing takes some milliseconds, and
/// pauses come as often: each step is as slow as the next. Half of the time would be too little of a difference for
/// this model's layers, whose head weighs as much as most of one.
fn slow_down(pid: u32, stop: &AtomicBool) -> Result<()> {
    let pid = Pid::from_raw(pid.try_into()?).context("a process has a number")?;
    while !stop.load(Ordering::Relaxed) {
        kill_process(pid, Signal::STOP)?;
        std::thread::sleep(Duration::from_millis(5));
        kill_process(pid, Signal::CONT)?;
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// One after the other, and apart from other tests: a machine that is busy makes the other worker slow as well.
#[test]
fn a_worker_that_is_slow_gets_less_work_with_the_same_bits() -> Result<()> {
    let folder = Folder::new()?;
    let calm = SPARSE.iter().fold(folder.run("calm"), |run, set| run.set(set)).summary()?;
    // Fewer layers, and fewer runs of micro-batches.
    relieves((2, 1), &["layout.pipeline=2"], &calm).context("a slow stage")?;
    relieves((1, 2), &["layout.data=2", "layout.zero=1"], &calm).context("a slow data rank")
}

const MANY: usize = 500;
const SPARSE: [&str; 3] = ["checkpoint.every=100", "train.validate_every=0", "train.steps=500"];

fn relieves((pipeline, data): (u32, u32), layout: &[&str], calm: &Summary) -> Result<()> {
    let folder = Folder::new()?;
    let run: Run = folder.run("lived").layout(pipeline, 1, data);
    let site = Site::new(&folder, 2)?;
    site.submit(&run, &[layout, &SPARSE, &["recovery.rebalance=true"]].concat())?;
    let metrics = run.out().join("metrics.jsonl");
    wait_until("the first steps", SOON, || lines(&metrics) >= 3)?;
    let (stop, slow) = (AtomicBool::new(false), site.worker(0));
    let relieved = std::thread::scope(|scope| {
        let slowing = scope.spawn(|| slow_down(slow, &stop));
        let relieved = site.wait_for_generation(2, SOON);
        stop.store(true, Ordering::Relaxed);
        let slowed =
            slowing.join().map_err(|_| anyhow::anyhow!("the thread that slows a worker down panicked"));
        relieved.and(slowed.and_then(|slowed| slowed))
    });
    relieved.context("work that is divided anew")?;
    wait_until("the last step", 2 * SOON, || lines(&metrics) == MANY)?;
    site.wait_for_end()?;
    let (told, lived) = (site.events()?, run.read()?);
    // The slow worker was named, the run stopped for that after a step, and no worker was lost.
    let slow = told.iter().find(|event| event["kind"] == "straggler").context("no straggler was named")?;
    ensure!(slow["worker"] == "w0", "another worker was named: {slow}");
    ensure!(events::count(&told, "regrouped") > 0, "the run was not stopped: {told:#?}");
    let slowed = |event: &Value| {
        let ranks = event["ranks"].as_array().map_or(&[][..], Vec::as_slice);
        ranks.iter().any(|rank| rank["worker"] == "w0" && rank["slow_percent"].as_u64() > Some(100))
    };
    ensure!(told.iter().any(slowed), "the work is divided as it was: {told:#?}");
    ensure!(events::count(&told, "interrupted") == 0, "a worker was lost: {told:#?}");
    match lived.bits_differ(calm) {
        Some(how) => anyhow::bail!("{how}"),
        None => Ok(()),
    }
}
