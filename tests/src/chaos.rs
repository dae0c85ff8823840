//! Losses of workers, thrown at a run by dice that fall the same way each time.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process::{lines, signal};
use crate::{Run, wait_until};

/// A loaded machine may take this long to come from a loss to the next step, and some.
pub const RECOVERY: Duration = Duration::from_secs(30);
/// How long a disturbed run may take after its last loss.
const REST: Duration = Duration::from_secs(240);
/// Between the first step after a loss and the next loss, at most.
const CALM_MS: u64 = 400;

/// What is thrown at a run.
#[derive(Clone, Copy, Debug)]
pub struct Chaos {
    /// How many workers are lost, one after the other.
    pub losses: usize,
    /// Where the dice start.
    pub seed: u64,
    /// The signals that are sent, in turn.
    pub signs: &'static [&'static str],
}

/// The processes of the run's newest generation, by rank, as its coordinator's log tells.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn at_work(run: &Run) -> Result<Vec<u32>> {
    let said = std::fs::read_to_string(run.out().with_extension("stderr")).context("the run's log")?;
    let pid = |name: &str| -> Option<u32> {
        let here = format!("worker {name} is here (pid ");
        let line = said.lines().rev().find(|line| line.contains(&here))?;
        line.split_once(&here)?.1.split_once(' ')?.0.parse().ok()
    };
    let pid = |name: &str| pid(name).with_context(|| format!("{name} is not told of"));
    names_at_work(&said)?.into_iter().map(pid).collect()
}

/// The workers of the newest generation, by rank, as a coordinator's log tells.
///
/// # Errors
/// There is none.
pub fn names_at_work(said: &str) -> Result<Vec<&str>> {
    let formed = said.lines().rev().find_map(|line| line.split_once(" runs from ")?.1.split_once(" on "));
    let names = formed.and_then(|(_, rest)| rest.split_once(" with ")).context("no generation is told of")?.0;
    Ok(names.split(", ").collect())
}

/// How often the run says that its workers are gathered again.
pub fn interruptions(run: &Run) -> usize {
    let said = std::fs::read_to_string(run.out().with_extension("stderr")).unwrap_or_default();
    said.matches("workers are gathered to go on").count() + said.matches("workers are gathered anew").count()
}

/// How many generations went on from what ranks held in memory, and not from a checkpoint.
///
/// # Errors
/// The workers' logs cannot be read.
pub fn from_memory(run: &Run) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(run.out().join("logs")).context("reading the workers' logs")? {
        let text = std::fs::read_to_string(entry?.path())?;
        // Every rank says so; the lead rank once for each generation.
        count +=
            text.lines().filter(|line| line.contains("held in memory") && line.contains("rank=0")).count();
    }
    Ok(count)
}

/// Waits until the run has noted more than `before` steps; `false` where it has ended instead.
///
/// # Errors
/// There is no new step within [`RECOVERY`].
pub fn next_step(run: &Run, child: &mut Child, before: usize) -> Result<bool> {
    let metrics = run.out().join("metrics.jsonl");
    let start = Instant::now();
    while lines(&metrics) <= before {
        if child.try_wait().context("looking at the run")?.is_some() {
            return Ok(false);
        }
        ensure!(start.elapsed() < RECOVERY, "no new step within {RECOVERY:?}; it has {before}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(true)
}

impl Chaos {
    /// Runs the job under losses to a good end. For each loss: how long it took from the signal to the
    /// first step that the run had not taken before.
    ///
    /// # Errors
    /// The run ends badly, hangs, or does not notice a loss.
    pub fn disturb(&self, run: &Run) -> Result<Vec<Duration>> {
        let mut child = run.start()?;
        let metrics = run.out().join("metrics.jsonl");
        wait_until("the first steps", RECOVERY, || lines(&metrics) >= 3)?;
        let (mut dice, mut took) = (Dice(self.seed), Vec::new());
        for turn in 0..self.losses {
            std::thread::sleep(Duration::from_millis(dice.below(CALM_MS)));
            let workers = at_work(run)?;
            let lost = workers[dice.below(workers.len() as u64) as usize];
            let (seen, mut before) = (interruptions(run), lines(&metrics));
            let start = Instant::now();
            signal(lost, self.signs[turn % self.signs.len()])?;
            // What ranks had under way may still be noted.
            while interruptions(run) == seen && child.try_wait().context("looking at the run")?.is_none() {
                before = before.max(lines(&metrics));
                ensure!(start.elapsed() < RECOVERY, "the loss of {lost} is not noticed");
                std::thread::sleep(Duration::from_millis(2));
            }
            if !next_step(run, &mut child, before)? {
                break;
            }
            took.push(start.elapsed());
        }
        let outcome = run.wait(child, REST)?;
        ensure!(outcome.code == Some(0), "exit code {:?}\n{}", outcome.code, outcome.stderr);
        Ok(took)
    }
}

/// Numbers that are the same in each run of a test.
struct Dice(u64);

impl Dice {
    fn below(&mut self, most: u64) -> u64 {
        // The constants are Knuth's; only the high bits are used.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}
