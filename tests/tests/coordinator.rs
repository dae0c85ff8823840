//! A killed coordinator costs nothing: its workers go on, and it finds them when it is back. Without a supervisor
//! that restarts workers, the run shrinks, grows when others join, and lets one go at the end of a step.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coxswain_tests::process::{lines, signal};
use coxswain_tests::{Folder, Run, SOON, Site, events, wait_until};

const STEPS: usize = 300;
/// How long the coordinator is away, each time that it is killed.
const AWAY_MS: [u64; 3] = [0, 300, 1500];
/// Between two kills.
const CALM: Duration = Duration::from_millis(700);

#[test]
fn a_killed_coordinator_interrupts_nothing() -> Result<()> {
    let folder = Folder::new()?;
    let steps = format!("train.steps={STEPS}");
    let calm = folder.run("calm").set(&steps).summary()?;
    let run: Run = folder.run("lived");
    let mut site = Site::new(&folder, 2)?;
    site.submit(&run, &["layout.pipeline=2", &steps])?;
    let metrics = run.out().join("metrics.jsonl");
    wait_until("the first steps", SOON, || lines(&metrics) >= 3)?;
    for away_ms in AWAY_MS {
        site.kill_coordinator(Duration::from_millis(away_ms))?;
        let before = lines(&metrics);
        wait_until("a step that is noted again", SOON, || lines(&metrics) > before.min(STEPS - 1))?;
        std::thread::sleep(CALM);
    }
    wait_until("the last step", 2 * SOON, || lines(&metrics) == STEPS)?;
    site.wait_for_end()?;
    let lived = run.read()?;
    if let Some(how) = lived.bits_differ(&calm) {
        anyhow::bail!("{how}");
    }
    for index in 0..2 {
        // No event tells of it: the coordinator was not there.
        let log = site.log(index)?;
        let lost = log.matches("lost the coordinator").count();
        ensure!(lost == AWAY_MS.len(), "w{index} lost it {lost} times:\n{log}");
    }
    let told = site.events()?;
    ensure!(events::count(&told, "started") == 1 + AWAY_MS.len(), "it was not killed: {told:#?}");
    ensure!(events::count(&told, "formed") == 1, "the run was formed again: {told:#?}");
    ensure!(events::interruptions(&told) == 0, "the run was interrupted: {told:#?}");
    Ok(())
}

#[test]
fn a_run_shrinks_grows_and_lets_a_worker_go_with_the_same_bits() -> Result<()> {
    // Growth comes ten seconds after a formation at the soonest.
    const MANY: usize = 2000;
    let folder = Folder::new()?;
    let steps = format!("train.steps={MANY}");
    // As few micro-batches as two stages and two data ranks can share: short steps, of which there are many.
    let sparse = ["checkpoint.every=100", "train.validate_every=0", "train.global_micro_batches=4", &steps];
    let calm = sparse.iter().fold(folder.run("calm"), |run, set| run.set(set)).summary()?;
    let run: Run = folder.run("lived").layout(2, 1, 2);
    let mut site = Site::new(&folder, 4)?;
    let layout = ["layout.pipeline=2", "layout.data=2", "recovery.on_loss=shrink"];
    site.submit(&run, &[&layout[..], &sparse].concat())?;
    let metrics = run.out().join("metrics.jsonl");
    wait_until("the first steps", SOON, || lines(&metrics) >= 3)?;
    signal(site.worker(3), "KILL")?;
    site.wait_for_generation(2, SOON).context("a smaller one")?;
    let before = lines(&metrics);
    wait_until("its steps", SOON, || lines(&metrics) > before)?;
    site.join()?;
    site.wait_for_generation(3, SOON).context("one of all again")?;
    site.join()?;
    site.wait_for_worker("w5").context("a spare")?;
    site.coxswain(&["drain", "w0"])?;
    site.wait_for_generation(4, SOON).context("one without w0")?;
    wait_until("the last step", 3 * SOON, || lines(&metrics) == MANY)?;
    site.wait_for_end()?;
    let told = site.events()?;
    ensure!(events::from_memory(&told) == 3, "not all generations went on from memory: {told:#?}");
    match run.read()?.bits_differ(&calm) {
        Some(how) => anyhow::bail!("{how}"),
        None => Ok(()),
    }
}
