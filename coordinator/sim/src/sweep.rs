//! Many seeds on all cores, and what they came to.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::RuleViolation;
use crate::faults::{Counts, FaultFamily};
use crate::run::run;
use crate::swarm::SimCase;

/// One in so many seeds runs twice, and has to leave the same trace.
const TWICE: u64 = 100;

/// What many seeds came to.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Seeds that ran.
    pub seeds: u64,
    /// Seeds that ran twice with equal traces.
    pub twice: u64,
    /// Events of each seed.
    pub events: Vec<u64>,
    /// Simulated time.
    pub simulated_us: u64,
    /// How often each family happened.
    pub counts: Counts,
    /// Seeds that broke a rule, the least first.
    pub failures: Vec<(u64, RuleViolation)>,
}

/// Runs `seeds` from `first` on over `threads`; stops soon after a failure unless `all`. `progress` hears
/// how many are done.
pub fn sweep(first: u64, seeds: u64, threads: usize, all: bool, progress: impl Fn(u64) + Sync) -> Sweep {
    let (next, failed) = (AtomicU64::new(0), AtomicBool::new(false));
    let total = Mutex::new(Sweep::default());
    let work = || {
        while all || !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= seeds {
                return;
            }
            let seed = first + number;
            let outcome = run(&SimCase::of(seed), false);
            let mut violation = outcome.violation;
            let twice = number.is_multiple_of(TWICE);
            if twice && run(&SimCase::of(seed), false).trace != outcome.trace {
                let text = "the same seed gave another history".to_owned();
                violation = violation.or(Some(RuleViolation { rule: "seed", text, at_us: 0 }));
            }
            let Ok(mut total) = total.lock() else { return };
            total.seeds += 1;
            total.twice += u64::from(twice);
            total.events.push(outcome.events);
            total.simulated_us += outcome.simulated_us;
            total.counts.add(&outcome.counts);
            if let Some(violation) = violation {
                failed.store(true, Ordering::Relaxed);
                total.failures.push((seed, violation));
            }
            progress(total.seeds);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.max(1) {
            scope.spawn(work);
        }
        work();
    });
    let mut sweep = total.into_inner().unwrap_or_default();
    sweep.failures.sort_by_key(|(seed, _)| *seed);
    sweep.events.sort_unstable();
    sweep
}

impl Sweep {
    /// The median number of events of a seed.
    pub fn median_events(&self) -> u64 {
        self.events.get(self.events.len() / 2).copied().unwrap_or_default()
    }

    /// Families that never happened.
    pub fn silent(&self) -> Vec<FaultFamily> {
        FaultFamily::ALL.into_iter().filter(|family| self.counts.of(*family) == 0).collect()
    }

    /// What people are told.
    pub fn report(&self) -> String {
        let events: u64 = self.events.iter().sum();
        let mut text = format!(
            "{} seeds, {events} events (median {} a seed), {:.0} simulated hours, {} faults; {} seeds ran twice\n",
            self.seeds,
            self.median_events(),
            self.simulated_us as f64 / 3.6e9,
            self.counts.total(),
            self.twice,
        );
        for row in FaultFamily::ALL.chunks(5) {
            let cells: Vec<_> = row
                .iter()
                .map(|family| format!("{:>13} {:<7}", family.name(), self.counts.of(*family)))
                .collect();
            text.push_str(cells.concat().trim_end());
            text.push('\n');
        }
        text
    }
}
