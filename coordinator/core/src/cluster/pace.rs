//! Stragglers: ranks that compute for longer than their peers, step after step.

use std::collections::BTreeMap;

use coxswain_types::status::Pace;

use crate::plan::KEEPS_UP;

/// A rank whose busy time is more than this many times that of its peers is slow.
const SLOW: f64 = 1.5;

/// For how many steps in a row a rank is slow before it is named, and not slow before that is withdrawn.
const STREAK: u32 = 5;

/// And for how long: steps of a small model take milliseconds, and what another process does in five of them is
/// no sign of a slow machine.
const LASTS_MS: u64 = 3000;

/// Steps of which some ranks have not told yet. Ranks close each step together; the rest is room for statuses
/// that come late. A rank may also skip one, whose step is then not judged.
const MAX_OPEN: usize = 8;

/// What is said of a rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum PaceFinding {
    /// It takes so many times as long as its peers.
    Slow(usize, f64),
    /// It keeps up again.
    Recovered(usize),
}

impl PaceFinding {
    /// Of which rank.
    pub(super) fn rank(self) -> usize {
        match self {
            PaceFinding::Slow(rank, _) | PaceFinding::Recovered(rank) => rank,
        }
    }
}

/// The busy times of the ranks of a generation.
#[derive(Clone, Debug, Default)]
pub(super) struct Paces {
    /// Each rank's place along the pipeline axis.
    stages: Vec<u32>,
    /// The share of the work of each rank.
    shares: Vec<f64>,
    open: BTreeMap<u64, Vec<Option<u64>>>,
    ranks: Vec<Streak>,
    /// Whether busy times say nothing.
    ignored: bool,
}

/// What a rank has been for some steps.
#[derive(Clone, Copy, Debug, Default)]
struct Streak {
    steps: u32,
    /// When its first step was judged.
    since_ms: u64,
    /// The mean factor of the streak until it was named, while it is one of slowness.
    factor: Option<f64>,
    named: bool,
}

impl Paces {
    /// Of ranks at these places, which have these shares of the work (any unit) and were as slow as this, in
    /// percent of their peers' time, when it was divided.
    pub(super) fn new(stages: Vec<u32>, shares: Vec<f64>, slow_percent: &[u32]) -> Paces {
        let known = |percent: &u32| {
            let factor = f64::from(*percent) / f64::from(KEEPS_UP);
            let named = factor > SLOW;
            Streak { steps: STREAK, since_ms: 0, factor: named.then_some(factor), named }
        };
        let ranks = slow_percent.iter().map(known).collect();
        Paces { stages, shares, open: BTreeMap::new(), ranks, ignored: false }
    }

    /// Busy times say nothing from here on.
    pub(super) fn ignore(&mut self) {
        self.ignored = true;
    }

    /// The factor of a rank that was named and has not recovered.
    pub(super) fn slow(&self, rank: usize) -> Option<f64> {
        self.ranks.get(rank).filter(|streak| streak.named).map(|streak| streak.factor.unwrap_or(SLOW))
    }

    /// Takes in how long a step took a rank; says what is new once all have told of it.
    pub(super) fn note(&mut self, now_ms: u64, rank: usize, pace: &Pace) -> Vec<PaceFinding> {
        if self.ignored {
            return Vec::new();
        }
        let world = self.stages.len();
        let told = self.open.entry(pace.step.0).or_insert_with(|| vec![None; world]);
        if let Some(busy_us) = told.get_mut(rank) {
            *busy_us = Some(pace.busy_us);
        }
        let all: Option<Vec<u64>> = told.iter().copied().collect();
        let Some(all) = all else {
            while self.open.len() > MAX_OPEN {
                self.open.pop_first();
            }
            return Vec::new();
        };
        // What is older will not be complete any more.
        self.open = self.open.split_off(&(pace.step.0 + 1));
        (0..world).filter_map(|rank| self.judge(now_ms, rank, &all)).collect()
    }

    fn judge(&mut self, now_ms: u64, rank: usize, busy_us: &[u64]) -> Option<PaceFinding> {
        let factor = self.factor(rank, busy_us)?;
        let streak = self.ranks.get_mut(rank)?;
        let slow = factor > SLOW;
        if slow != streak.factor.is_some() {
            (streak.steps, streak.since_ms, streak.factor) = (0, now_ms, slow.then_some(factor));
        }
        streak.steps += 1;
        if !streak.named {
            streak.factor = streak.factor.map(|mean| mean + (factor - mean) / f64::from(streak.steps));
        }
        let lasts = streak.steps >= STREAK && now_ms >= streak.since_ms + LASTS_MS;
        if slow == streak.named || !lasts {
            return None;
        }
        streak.named = slow;
        Some(if slow {
            PaceFinding::Slow(rank, streak.factor.unwrap_or(factor))
        } else {
            PaceFinding::Recovered(rank)
        })
    }

    /// A rank's busy time for its share of the work over the median of its peers: those at the same place, which do
    /// the same, or all others where it is alone there.
    fn factor(&self, rank: usize, busy_us: &[u64]) -> Option<f64> {
        let own = *self.stages.get(rank)?;
        let share = |rank: usize| self.shares.get(rank).copied().filter(|share| *share > 0.0).unwrap_or(1.0);
        let others = || (0..busy_us.len()).filter(move |&other| other != rank);
        let mut peers: Vec<_> = others().filter(|&other| self.stages[other] == own).collect();
        if peers.is_empty() {
            peers = others().collect();
        }
        let mut paces: Vec<f64> = peers.iter().map(|&peer| busy_us[peer] as f64 / share(peer)).collect();
        paces.sort_by(f64::total_cmp);
        let middle = paces.len() / 2;
        let median = match paces.len() {
            0 => return None,
            odd if odd % 2 == 1 => paces[middle],
            _ => (paces[middle - 1] + paces[middle]) / 2.0,
        };
        (median > 0.0).then(|| busy_us[rank] as f64 / share(rank) / median)
    }
}

#[cfg(test)]
mod tests {
    use coxswain_types::ids::Step;
    use proptest::prelude::RngExt as _;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    use super::*;

    /// A step, of which there is one a second.
    fn run(paces: &mut Paces, step: u64, busy_us: &[u64]) -> Vec<PaceFinding> {
        run_at(paces, 1000 * step, step, busy_us)
    }

    fn run_at(paces: &mut Paces, now_ms: u64, step: u64, busy_us: &[u64]) -> Vec<PaceFinding> {
        let note = |(rank, &busy_us)| paces.note(now_ms, rank, &Pace { step: Step(step), busy_us });
        busy_us.iter().enumerate().flat_map(note).collect()
    }

    #[test]
    fn a_slow_rank_is_named_once_and_withdrawn_when_it_keeps_up() {
        // Two stages by two data ranks; the second stage has twice the work.
        let mut paces = Paces::new(vec![0, 1, 0, 1], vec![1.0, 2.0, 1.0, 2.0], &[KEEPS_UP; 4]);
        for step in 0..4 {
            assert_eq!(run(&mut paces, step, &[100, 420, 100, 200]), []);
        }
        assert_eq!(run(&mut paces, 4, &[100, 420, 100, 200]), [PaceFinding::Slow(1, 2.1)]);
        assert_eq!(run(&mut paces, 5, &[100, 500, 100, 200]), []);
        assert_eq!(paces.slow(1), Some(2.1));
        for step in 6..10 {
            assert_eq!(run(&mut paces, step, &[100, 210, 100, 200]), []);
        }
        assert_eq!(run(&mut paces, 10, &[100, 210, 100, 200]), [PaceFinding::Recovered(1)]);
    }

    #[test]
    fn a_few_short_slow_steps_make_no_straggler() {
        let mut paces = Paces::new(vec![0, 0], vec![1.0, 1.0], &[KEEPS_UP; 2]);
        // A step every 10 ms, of which another process slows two hundred.
        let found: Vec<_> = (0..250).map(|step| (step, if step < 200 { 900 } else { 300 })).collect();
        let found =
            found.into_iter().flat_map(|(step, busy)| run_at(&mut paces, 10 * step, step, &[busy, 300]));
        assert_eq!(found.collect::<Vec<_>>(), []);
        let found = (250..600).flat_map(|step| {
            let found = run_at(&mut paces, 10 * step, step, &[900, 300]);
            found.into_iter().map(move |finding| (step, finding)).collect::<Vec<_>>()
        });
        assert_eq!(found.collect::<Vec<_>>(), [(550, PaceFinding::Slow(0, 3.0))]);
    }

    #[test]
    fn a_rank_alone_at_its_stage_is_compared_by_its_share() {
        let mut paces = Paces::new(vec![0, 1, 2], vec![1.0, 1.0, 3.0], &[KEEPS_UP; 3]);
        let found: Vec<_> = (0..9).flat_map(|step| run(&mut paces, step, &[100, 200, 300])).collect();
        assert_eq!(found, [PaceFinding::Slow(1, 2.0)]);
    }

    #[test]
    fn who_has_less_work_since_it_is_slow_is_known_to_be_and_recovers() {
        // Two data ranks, of which one takes twice as long and has half as many micro-batches.
        let mut paces = Paces::new(vec![0, 0], vec![1.0, 2.0], &[200, KEEPS_UP]);
        assert_eq!(paces.slow(0), Some(2.0));
        for step in 0..9 {
            assert_eq!(run(&mut paces, step, &[200, 200]), [], "as slow as before");
        }
        for step in 9..13 {
            assert_eq!(run(&mut paces, step, &[100, 200]), []);
        }
        assert_eq!(run(&mut paces, 13, &[100, 200]), [PaceFinding::Recovered(0)]);
        assert_eq!(paces.slow(0), None);
    }

    #[test]
    fn a_step_that_a_rank_skips_is_not_judged_and_what_is_open_is_bounded() {
        let mut paces = Paces::new(vec![0, 0], vec![1.0, 1.0], &[KEEPS_UP; 2]);
        for step in 0..100 {
            assert_eq!(paces.note(step, 0, &Pace { step: Step(step), busy_us: 1 }), []);
        }
        assert_eq!(paces.open.len(), MAX_OPEN);
    }

    #[test]
    fn noise_is_no_straggler() {
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
        let mut runner = TestRunner::new_with_rng(Config::default(), rng);
        for stages in [vec![0, 0], vec![0, 1], vec![0, 1, 2, 3], vec![0, 1, 0, 1], vec![0; 8]] {
            let mut paces =
                Paces::new(stages.clone(), vec![1.0; stages.len()], &vec![KEEPS_UP; stages.len()]);
            for step in 0..1000 {
                let busy: Vec<u64> = stages.iter().map(|_| runner.rng().random_range(800..=1200)).collect();
                assert_eq!(run(&mut paces, step, &busy), [], "step {step} of {stages:?}");
            }
        }
    }
}
