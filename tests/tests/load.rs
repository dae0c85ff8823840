//! A machine with more to do than it can: no worker is taken for dead.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use coxswain_tests::process::lines;
use coxswain_tests::{Folder, SOON, Site, events, skip, wait_until};

/// A bystander that wants a core of its own.
fn burn(stop: &AtomicBool) {
    let mut x = 1_u64;
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..1_000_000 {
            x = black_box(x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
}

#[test]
fn twice_the_load_evicts_no_worker() -> Result<()> {
    let time = Duration::from_secs(if skip::long() { 600 } else { 20 });
    let folder = Folder::new()?;
    let run = folder.run("run").layout(2, 1, 2);
    let site = Site::new(&folder, 4)?;
    let stop = AtomicBool::new(false);
    let cores = std::thread::available_parallelism()?.get();
    let steps = std::thread::scope(|scope| {
        // Beside the four workers, which have less to do than that where there are more cores.
        for _ in 0..2 * cores {
            scope.spawn(|| burn(&stop));
        }
        let steps = steps_under_load(&site, &run, time);
        stop.store(true, Ordering::Relaxed);
        steps
    })?;
    let told = site.events()?;
    println!("{steps} steps in {time:?} beside {} bystanders on {cores} cores", 2 * cores);
    ensure!(steps > 0, "no step was taken beside them");
    for sign in ["interrupted", "regrouped", "gone"] {
        ensure!(events::count(&told, sign) == 0, "after {steps} steps: {told:#?}");
    }
    ensure!(events::count(&told, "formed") == 1, "the run was formed again: {told:#?}");
    Ok(())
}

/// How many steps the run takes in this time, after its first.
fn steps_under_load(site: &Site<'_>, run: &coxswain_tests::Run, time: Duration) -> Result<usize> {
    let endless = ["train.steps=1000000", "train.validate_every=0", "checkpoint.every=500"];
    site.submit(run, &[["layout.pipeline=2", "layout.data=2"].as_slice(), &endless].concat())?;
    let metrics = run.out().join("metrics.jsonl");
    wait_until("the first step", 2 * SOON, || lines(&metrics) > 0)?;
    let before = lines(&metrics);
    std::thread::sleep(time);
    Ok(lines(&metrics) - before)
}
