//! Workers that are lost cost time and nothing else: the bits are those of a run without disturbance.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use coxswain_console::say;
use coxswain_core::cluster::LEASE_MS;
use coxswain_tests::chaos::{Chaos, RECOVERY, interruptions, next_step};
use coxswain_tests::process::{children, is_alive, lines, signal};
use coxswain_tests::{Folder, Run, SOON, Site, events, skip, wait_until};

/// From a loss to the next new step, over a step's time: what `cargo xtask chaos` demands.
const MEDIAN_MAX_S: f64 = 1.0;
const WORST_MAX_S: f64 = 2.5;

/// A job of so many steps that saves every eighth.
fn job(folder: &Folder, name: &str, layout: (u32, u32, u32), steps: usize) -> Run {
    let (pipeline, tensor, data) = layout;
    let run = folder.run(name).layout(pipeline, tensor, data).set(&format!("train.steps={steps}"));
    run.set("checkpoint.every=8").set("train.validate_every=60").set("train.tensor_shards=2")
}

/// Runs the job under losses, and holds it to the bits of the same job on one worker.
fn held_to_calm(folder: &Folder, run: &Run, steps: usize, chaos: Chaos) -> Result<Vec<Duration>> {
    let took = chaos.disturb(run)?;
    // Reading refuses a step that stands twice in the metrics.
    let lived = run.read()?;
    ensure!(lived.losses.len() == steps, "{} of {steps} steps are noted", lived.losses.len());
    let calm = job(folder, &format!("calm {steps}"), (1, 1, 1), steps);
    if !calm.out().exists() {
        // `cargo xtask chaos` takes thousands of steps, more than other runs may.
        let outcome = calm.wait(calm.start()?, 4 * RECOVERY + Duration::from_millis(100) * steps as u32)?;
        ensure!(outcome.code == Some(0), "exit code {:?}\n{}", outcome.code, outcome.stderr);
    }
    let calm = calm.read()?;
    match lived.bits_differ(&calm) {
        Some(how) => bail!("{}: {how}", run.out().display()),
        None => Ok(took),
    }
}

#[test]
fn lost_workers_change_no_bit() -> Result<()> {
    let folder = Folder::new()?;
    for (name, layout, losses, signs) in [
        ("killed dp2 pp2", (2, 1, 2), 12, ["KILL"].as_slice()),
        ("asked to stop pp2 tp2", (2, 2, 1), 8, ["TERM", "KILL"].as_slice()),
    ] {
        let run = job(&folder, name, layout, 200);
        let took = held_to_calm(&folder, &run, 200, Chaos { losses, seed: 7, signs })?;
        say(&format!("{name}: {took:.2?}"));
        ensure!(took.len() >= losses / 2, "the run was over after {} losses", took.len());
    }
    Ok(())
}

/// `coxswain up` restarts a worker that exits, which would hide the exit; these workers are not restarted.
#[test]
fn workers_that_lose_a_peer_stay_and_so_does_what_they_hold() -> Result<()> {
    const STEPS: usize = 60;
    const LOSSES: usize = 4;
    let folder = Folder::new()?;
    let calm = job(&folder, "calm", (1, 1, 1), STEPS).summary()?;
    let run = folder.run("lived");
    let mut site = Site::new(&folder, 3)?;
    let steps = format!("train.steps={STEPS}");
    let sets = [
        "layout.tensor=2",
        "recovery.peer_replica=true",
        "checkpoint.every=8",
        "train.validate_every=20",
        &steps,
    ];
    site.submit(&run, &sets)?;
    let metrics = run.out().join("metrics.jsonl");
    let mut lost = Vec::new();
    for turn in 0..LOSSES {
        let before = lines(&metrics);
        wait_until("steps", SOON, || lines(&metrics) >= before + 3)?;
        let name = events::workers_at_work(&site.events()?)?[turn % 2].to_owned();
        let index: usize = name.trim_start_matches('w').parse().with_context(|| name.clone())?;
        ensure!(lines(&metrics) < STEPS, "the run was over before loss {turn}");
        signal(site.worker(index), "KILL")?;
        lost.push(index);
        site.join()?;
        site.wait_for_generation(turn as u64 + 2, SOON)?;
    }
    wait_until("the last step", SOON, || lines(&metrics) == STEPS)?;
    site.wait_for_end()?;
    for index in (0..3 + LOSSES).filter(|index| !lost.contains(index)) {
        ensure!(is_alive(site.worker(index)), "w{index} has ended:\n{}", site.log(index)?);
    }
    let told = site.events()?;
    let held = events::from_memory(&told);
    ensure!(held == LOSSES, "{held} generations went on from memory: {told:#?}");
    match run.read()?.bits_differ(&calm) {
        Some(how) => bail!("{how}"),
        None => Ok(()),
    }
}

/// A backward of this job takes longer than the three seconds that what ends at once is given.
#[test]
fn a_worker_outlives_its_peer_whose_loss_meets_it_in_an_action_of_seconds() -> Result<()> {
    if skip::unless_long() {
        return Ok(());
    }
    const ACTION_MIN_S: f64 = 3.0;
    let folder = Folder::new()?;
    let run = folder.run("slow");
    let site = Site::new(&folder, 3)?;
    let sets = [
        "model={layers: 2, dim: 512, heads: 8, ffn: 2048, vocab: 515}",
        "data={synthetic: {tokens: 100000}}",
        "train.sequence=512",
        "train.micro_batch_size=64",
        "train.global_micro_batches=1",
        "train.validate_every=0",
        "train.steps=1000",
        "layout.pipeline=2",
        "recovery.peer_replica=true",
    ];
    site.submit(&run, &sets)?;
    let metrics = run.out().join("metrics.jsonl");
    wait_until("the first step", 8 * RECOVERY, || lines(&metrics) >= 1)?;
    // One micro-batch goes forward and backward over two stages, and a backward is two thirds of a stage.
    let step = step_seconds(&run)?;
    ensure!(step / 3.0 > ACTION_MIN_S, "a step takes {step:.1} s: its backwards are too short for this test");
    std::thread::sleep(Duration::from_secs_f64(step / 6.0));
    let workers = events::workers_at_work(&site.events()?)?;
    let index = |name: &String| name.trim_start_matches('w').parse::<usize>().with_context(|| name.clone());
    let (stays, lost) = (index(&workers[0])?, index(&workers[1])?);
    signal(site.worker(lost), "KILL")?;
    site.wait_for_generation(2, 4 * RECOVERY)?;
    wait_until("the next step", 8 * RECOVERY, || lines(&metrics) >= 2)?;
    ensure!(is_alive(site.worker(stays)), "w{stays} has ended:\n{}", site.log(stays)?);
    let told = site.events()?;
    ensure!(events::from_memory(&told) == 1, "the state in memory was lost: {told:#?}");
    Ok(())
}

#[test]
fn a_stopped_worker_is_replaced() -> Result<()> {
    let folder = Folder::new()?;
    let run = job(&folder, "stopped", (2, 1, 1), 150);
    let mut child = run.start()?;
    let metrics = run.out().join("metrics.jsonl");
    wait_until("the first steps", RECOVERY, || lines(&metrics) >= 3)?;
    // A pause of a second does not count as a loss.
    let workers = children(child.id())?;
    signal(workers[1], "STOP")?;
    std::thread::sleep(Duration::from_secs(1));
    signal(workers[1], "CONT")?;
    let before = lines(&metrics);
    ensure!(next_step(&run, &mut child, before)?, "the run ended");
    ensure!(interruptions(&run) == 0, "a pause of a second interrupted the run");
    signal(workers[1], "STOP")?;
    let took = wait_until("the loss", RECOVERY, || interruptions(&run) == 1)?;
    ensure!(took <= Duration::from_millis(2 * LEASE_MS), "the loss was seen after {took:?}");
    // The loss says who waited for whom.
    let said = std::fs::read_to_string(run.out().with_extension("stderr"))?;
    let cause = said.lines().find(|line| line.contains("was lost: no sign of life")).context("no cause")?;
    ensure!(cause.contains(" waits for ") && cause.contains("silent for"), "{cause}");
    // What wakes up after it was given up does no harm, and ends.
    signal(workers[1], "CONT")?;
    let outcome = run.wait(child, 8 * RECOVERY)?;
    ensure!(outcome.code == Some(0), "exit code {:?}\n{}", outcome.code, outcome.stderr);
    ensure!(run.read()?.losses.len() == 150, "not all steps are noted");
    Ok(())
}

/// A number that `cargo xtask chaos` gives.
fn given(name: &str, otherwise: u64) -> Result<u64> {
    std::env::var(name).map_or(Ok(otherwise), |text| text.parse().with_context(|| format!("{name}={text}")))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median time of a step that the run noted.
fn step_seconds(run: &Run) -> Result<f64> {
    let text = std::fs::read_to_string(run.out().join("metrics.jsonl")).context("reading the metrics")?;
    let seconds = |line: &str| -> Option<f64> {
        serde_json::from_str::<serde_json::Value>(line).ok()?.get("step_seconds")?.as_f64()
    };
    Ok(median(&text.lines().filter_map(seconds).collect::<Vec<_>>()))
}

/// Minutes: `cargo xtask chaos` runs it, and so does `cargo xtask test --long`.
#[test]
fn chaos() -> Result<()> {
    if std::env::var_os("COXSWAIN_CHAOS_KILLS").is_none() && !skip::long() {
        skip::left_to("cargo xtask chaos");
        return Ok(());
    }
    let (losses, seed) = (given("COXSWAIN_CHAOS_KILLS", 20)? as usize, given("COXSWAIN_CHAOS_SEED", 1)?);
    let steps = 60 * losses.max(2);
    let folder = Folder::new()?;
    let mut off = Vec::new();
    say("from kill -9 of a worker to the first new step, over the time of a step, in seconds");
    say(&format!("{:<20} {:>6} {:>12} {:>8} {:>8}", "layout", "kills", "from memory", "median", "worst"));
    for (name, layout, zero, peer_replica) in [
        ("dp2 x pp2, a spare", (2, 1, 2), "0", "false"),
        ("pp4, peer replicas", (4, 1, 1), "0", "true"),
        ("dp2 ZeRO-1, peer replicas", (1, 1, 2), "1", "true"),
        ("pp4, checkpoint", (4, 1, 1), "0", "false"),
    ] {
        let run = job(&folder, name, layout, steps).set(&format!("layout.zero={zero}"));
        let run = run
            .set(&format!("recovery.peer_replica={peer_replica}"))
            .spares(u32::from(name.contains("spare")));
        let took = held_to_calm(&folder, &run, steps, Chaos { losses, seed, signs: &["KILL"] })?;
        let step = step_seconds(&run)?;
        let over: Vec<f64> = took.iter().map(|took| took.as_secs_f64() - step).collect();
        let (median, worst) = (median(&over), over.iter().copied().fold(f64::NAN, f64::max));
        let memory = events::from_memory(&run.events()?);
        say(&format!("{name:<20} {:>6} {memory:>12} {median:>8.2} {worst:>8.2}", over.len()));
        if (memory == 0) != (name == "pp4, checkpoint") {
            off.push("not as it says");
        }
        if !(median <= MEDIAN_MAX_S && worst <= WORST_MAX_S) {
            off.push(name);
        }
    }
    say("all bits are those of one worker that runs undisturbed");
    ensure!(off.is_empty(), "above {MEDIAN_MAX_S} s in the median or {WORST_MAX_S} s at worst: {off:?}");
    Ok(())
}
