//! Losses of workers, thrown at a run by dice that fall the same way each time.

use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process::{lines, signal};
use crate::{Run, events, wait_until};

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

/// The processes of the run's newest generation, by rank.
///
/// # Errors
/// There is none, or the journal cannot be read.
pub fn at_work(run: &Run) -> Result<Vec<u32>> {
    events::processes_at_work(&run.events()?)
}

/// How often the run's workers were gathered again.
pub fn interruptions(run: &Run) -> usize {
    // Before the run's first entry there is no journal.
    run.events().map_or(0, |all| events::interruptions(&all))
}

/// What the run's journal says, a line for each entry.
fn story(run: &Run) -> String {
    let events = run.events().unwrap_or_default();
    events.iter().map(|event| format!("{} {}\n", event["kind"], event["text"])).collect()
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
            if child.try_wait().context("looking at the run")?.is_some() {
                break;
            }
            let start = Instant::now();
            signal(lost, self.signs[turn % self.signs.len()])?;
            // Between the look at the steps and the one at the journal no formation takes its first step: joining
            // takes longer than both.
            let before = loop {
                let noted = lines(&metrics);
                if !at_work(run)?.contains(&lost) || child.try_wait().context("looking at the run")?.is_some()
                {
                    break noted;
                }
                ensure!(start.elapsed() < RECOVERY, "no formation without {lost}:\n{}", story(run));
                std::thread::sleep(Duration::from_millis(10));
            };
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
