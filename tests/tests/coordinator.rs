//! A killed coordinator costs nothing: its workers go on, and it finds them when it is back. Without a supervisor
//! that restarts workers, the run shrinks, grows when others join, and lets one go at the end of a step.

use std::time::Duration;

use anyhow::{Result, ensure};
use coxswain_tests::chaos::began_from_memory;
use coxswain_tests::process::{lines, signal};
use coxswain_tests::{Folder, Run, SOON, Site, wait_until};

const STEPS: usize = 300;
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
    for away_ms in [0, 300, 1500] {
        site.kill_coordinator(Duration::from_millis(away_ms))?;
        let before = lines(&metrics);
        wait_until("a step that is noted again", SOON, || lines(&metrics) > before.min(STEPS - 1))?;
        std::thread::sleep(CALM);
    }
    wait_until("the last step", 2 * SOON, || lines(&metrics) == STEPS)?;
    wait_until("the end", SOON, || site.done())?;
    let lived = run.read()?;
    if let Some(how) = lived.bits_differ(&calm) {
        anyhow::bail!("{how}");
    }
    for index in 0..2 {
        let log = site.log(index)?;
        ensure!(log.matches("joining from").count() == 1, "w{index} joined more than once:\n{log}");
        ensure!(log.matches("lost the coordinator").count() == 3, "w{index} did not lose it:\n{log}");
    }
    let said = site.said();
    ensure!(!said.contains("workers are gathered"), "the run was interrupted:\n{said}");
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
    wait_until("a smaller generation", SOON, || site.said().contains("generation=2"))?;
    let before = lines(&metrics);
    wait_until("its steps", SOON, || lines(&metrics) > before)?;
    site.join()?;
    wait_until("a generation of all again", SOON, || site.said().contains("generation=3"))?;
    site.join()?;
    let here = |name: &str| site.coxswain(&["status"]).is_ok_and(|(_, said)| said.contains(name));
    wait_until("a spare", SOON, || here("w5"))?;
    site.coxswain(&["drain", "w0"])?;
    wait_until("a generation without w0", SOON, || site.said().contains("generation=4"))?;
    wait_until("the last step", 3 * SOON, || lines(&metrics) == MANY)?;
    wait_until("the end", SOON, || site.done())?;
    let events = site.events()?;
    ensure!(began_from_memory(&events) == 3, "not all generations went on from memory: {events:#?}");
    match run.read()?.bits_differ(&calm) {
        Some(how) => anyhow::bail!("{how}"),
        None => Ok(()),
    }
}
