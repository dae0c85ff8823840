//! A job as the coordinator knows it, and how far it has come.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coxswain_types::JobSpec;
use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::job::{Layout, OnLoss};
use coxswain_types::status::{Begun, Publish, Published, StepReport};

use super::apart::Apart;
use super::entry::{Compute, FormedRank, Submission};
use super::event::PreparedJob;
use super::question::RankCounts;
use super::revision::RunDirective;
use super::summary::{JobState, JobSummary, Numbers};
use crate::plan::{Fit, KEEPS_UP};

/// How many steps are remembered to compare them when they are taken again; 24 bytes each.
const MAX_TAKEN: usize = 100_000;

/// How many interruptions of a job `explain` tells of; the journal has all.
pub(super) const MAX_INTERRUPTIONS: usize = 20;

/// How long people are told nothing more of a worker that is slow now and then.
const TOLD_SLOW_MS: u64 = 60_000;

/// How long a worker that was lost may take to come back before its job goes on with fewer: a supervisor starts
/// a process in less, and the way back from fewer ranks costs a regrouping.
pub const SHRINK_AFTER_MS: u64 = 2000;

/// A cancelled job that is still at work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cancelling {
    /// Why it was cancelled.
    pub(super) reason: String,
    /// When it ends whatever its ranks do.
    pub(super) until_ms: u64,
}

/// What a job's workers have to compute with, so that its bits stay the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs<'a> {
    /// What its first generation began with.
    Began(&'a Compute),
    /// The runtime of its checkpoint, which does not say on which kind of device it was made.
    Checkpoint(&'a str),
}

/// A job and how far it has come.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) submission: Submission,
    pub(super) state: JobState,
    pub(super) reason: String,
    /// The workers that the reason is about, of a job that is over.
    pub(super) about: Vec<WorkerId>,
    pub(super) generation: Generation,
    /// The last step that is recorded.
    pub(super) step: Step,
    pub(super) checkpoint: Option<Published>,
    pub(super) prepared: Option<PreparedJob>,
    /// Attempts to make its tokens ready since one succeeded: those that ended with their coordinator, and this one.
    pub(super) tries: u32,
    /// When the newest preparation of its tokens began.
    pub(super) preparing_ms: u64,
    /// The layout of its newest generation, where that is not its own.
    pub(super) layout: Option<Layout>,
    /// The layouts that the planner found for fewer workers than its own needs.
    pub(super) fits: BTreeMap<RankCounts, Option<Fit>>,
    /// When its newest generation was lost; `None` where nothing was.
    pub(super) lost_ms: Option<u64>,
    /// Threads of each rank, once a generation has run.
    pub(super) threads: Option<u32>,
    /// What its workers compute with, once a generation was formed.
    pub(super) compute: Option<Compute>,
    /// A rank reported the newest checkpoint as damaged, and it has not been checked again.
    pub(super) doubts: bool,
    /// Why its last generation ended.
    pub(super) interruption: Option<String>,
    /// The newest interruptions: of which generation, after which step, and why.
    pub(super) interruptions: VecDeque<(Generation, Step, String)>,
    /// The newest generation, as the journal has it.
    pub(super) formed: Vec<FormedRank>,
    /// What is wanted of that generation.
    pub(super) directive: RunDirective,
    /// When it wrote its newest checkpoint, or began to run, or this coordinator started.
    pub(super) saved_ms: u64,
    /// Whether a user cancelled it while it was at work.
    pub(super) cancelling: Option<Cancelling>,
    /// What that generation committed and has not yet published.
    pub(super) committed: Option<Publish>,
    /// What that generation began with, once it has, and how many recorded steps it takes again.
    pub(super) begun: Option<(Begun, u64)>,
    /// Numbers of the newest steps.
    pub(super) numbers: Option<Numbers>,
    /// When people were told last that a worker is slow, and whether they believe it now.
    pub(super) told_slow: BTreeMap<WorkerId, (u64, bool)>,
    /// Interruptions since the last new step.
    pub(super) failed_attempts: u32,
    /// Workers whose device broke and that have not worked for it since.
    pub(super) broke: BTreeSet<WorkerId>,
    /// Workers between which the network did not answer.
    pub(super) apart: Apart,
    /// Workers that are slow, in percent of their peers' time: as ranks told, and after a restart as far as work was
    /// divided by it.
    pub(super) slow: BTreeMap<WorkerId, u32>,
    /// How often its work was divided anew.
    pub(super) rebalances: u32,
    /// The bits of loss and gradient norm of steps that may be taken again.
    pub(super) taken: BTreeMap<u64, (u64, u64)>,
}

impl Job {
    /// A job that has not been looked at yet.
    pub(super) fn new(submission: Submission) -> Job {
        Job {
            submission,
            state: JobState::Queued,
            reason: "waits for its turn".to_owned(),
            about: Vec::new(),
            generation: Generation(0),
            step: Step(0),
            checkpoint: None,
            prepared: None,
            tries: 0,
            preparing_ms: 0,
            layout: None,
            fits: BTreeMap::new(),
            lost_ms: None,
            threads: None,
            compute: None,
            doubts: false,
            interruption: None,
            interruptions: VecDeque::new(),
            formed: Vec::new(),
            directive: RunDirective::default(),
            saved_ms: 0,
            cancelling: None,
            committed: None,
            begun: None,
            numbers: None,
            told_slow: BTreeMap::new(),
            failed_attempts: 0,
            broke: BTreeSet::new(),
            apart: Apart::default(),
            slow: BTreeMap::new(),
            rebalances: 0,
            taken: BTreeMap::new(),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.submission.job
    }

    pub(super) fn steps(&self) -> Step {
        Step(self.submission.spec.train.steps)
    }

    pub(super) fn priority(&self) -> i32 {
        self.submission.spec.priority
    }

    pub(super) fn enter(&mut self, state: JobState, reason: impl Into<String>) {
        self.state = state;
        self.reason = reason.into();
    }

    /// Its generation has ended.
    pub(super) fn interrupted(&mut self, cause: String) {
        self.interruptions.push_back((self.generation, self.step, cause.clone()));
        if self.interruptions.len() > MAX_INTERRUPTIONS {
            self.interruptions.pop_front();
        }
        self.interruption = Some(cause);
    }

    /// Whether it waits for workers, or for what comes before that.
    pub(super) fn waits(&self) -> bool {
        matches!(self.state, JobState::Queued | JobState::Preparing | JobState::Gathering)
    }

    /// Whether it has been at work and shall be again.
    pub(super) fn recovers(&self) -> bool {
        self.waits() && self.generation > Generation(0)
    }

    /// Whether its tokens are being made ready for its first generation.
    pub(super) fn prepares_anew(&self) -> bool {
        self.state == JobState::Preparing && !self.recovers()
    }

    /// Whether it is at work with fewer workers than its own layout needs.
    pub(super) fn is_shrunk(&self) -> bool {
        self.state == JobState::Running && self.layout.is_some()
    }

    /// When it may go on with fewer workers than its own layout needs, if it may.
    pub(super) fn shrinks_ms(&self) -> Option<u64> {
        let asked = self.submission.spec.recovery.on_loss == OnLoss::Shrink;
        let shrinks = (asked || planted!(ShrinksWithoutLeave)) && self.recovers();
        shrinks.then(|| self.lost_ms.map_or(0, |lost_ms| lost_ms + SHRINK_AFTER_MS))
    }

    /// What its workers have to compute with, once that is known.
    pub(super) fn needs(&self) -> Option<Needs<'_>> {
        let made = || self.prepared.as_ref()?.runtime.as_deref().map(Needs::Checkpoint);
        self.compute.as_ref().map(Needs::Began).or_else(made)
    }

    /// Whether a worker that computes with this reproduces the job's bits.
    pub(super) fn computes_with(&self, compute: &Compute) -> bool {
        match self.needs() {
            None => true,
            Some(Needs::Began(began)) => began == compute,
            Some(Needs::Checkpoint(runtime)) => runtime == compute.runtime,
        }
    }

    /// Whether this worker was in its newest generation, by whichever process now.
    pub(super) fn had(&self, worker: &WorkerId) -> bool {
        self.formed.iter().any(|rank| rank.worker == *worker)
    }

    /// The job in the layout of its newest generation.
    pub(super) fn spec_at_work(&self) -> JobSpec {
        let spec = &self.submission.spec;
        Fit { layout: self.layout.unwrap_or(spec.layout), reason: String::new() }.spec(spec)
    }

    /// Whether a step of it was ever taken, as far as is remembered, or it was interrupted before: then a device that
    /// fails does not mean that every other would.
    pub(super) fn has_worked(&self) -> bool {
        self.step > Step(0) || !self.taken.is_empty() || self.interruption.is_some()
    }

    /// How many recorded steps are taken again by a generation that begins with this state.
    pub(super) fn again(&self, begun: Begun) -> u64 {
        let taken = self.taken.last_key_value().map(|(step, _)| *step);
        let interrupted = self.interruptions.back().map(|(_, step, _)| step.0);
        taken.max(interrupted).unwrap_or(0).saturating_sub(begun.step.0)
    }

    /// Whether people are told now whether this worker is slow: where they believe the other, and of one that is slow
    /// now and then not again for a while.
    pub(super) fn tells_slow(&mut self, now_ms: u64, worker: &WorkerId, slow: bool) -> bool {
        let told = self.told_slow.get(worker).copied();
        match (slow, told) {
            (true, Some((told_ms, false))) if now_ms < told_ms + TOLD_SLOW_MS => false,
            (true, None | Some((_, false))) => {
                self.told_slow.insert(worker.clone(), (now_ms, true));
                true
            }
            (false, Some((told_ms, true))) => {
                self.told_slow.insert(worker.clone(), (told_ms, false));
                true
            }
            (true, Some((_, true))) | (false, None | Some((_, false))) => false,
        }
    }

    /// A worker of the job is this slow now.
    pub(super) fn found(&mut self, worker: WorkerId, slow_percent: u32) {
        if slow_percent > KEEPS_UP {
            self.slow.insert(worker, slow_percent);
        } else {
            self.slow.remove(&worker);
        }
    }

    /// Whether its work shall be divided by how slow its workers are.
    pub(super) fn rebalances_work(&self) -> bool {
        self.submission.spec.recovery.rebalance || planted!(RebalanceUnasked)
    }

    /// Who is slow, as far as work shall be divided by it.
    pub(super) fn slow_for_plans(&self) -> BTreeMap<WorkerId, u32> {
        if self.rebalances_work() { self.slow.clone() } else { BTreeMap::new() }
    }

    /// Compares a step that is taken again with what it gave before; `Err` says how they differ.
    pub(super) fn remember(&mut self, report: &StepReport) -> Result<(), String> {
        self.numbers = Some(Numbers::after(self.numbers, report));
        let bits = (report.loss.to_bits(), report.grad_norm.to_bits());
        let before = self.taken.insert(report.step, bits);
        if self.taken.len() > MAX_TAKEN {
            self.taken.pop_first();
        }
        match before {
            None => {
                if !planted!(AttemptsNeverForgiven) {
                    self.failed_attempts = 0;
                }
                let formed = &self.formed;
                let here = |worker: &WorkerId| formed.iter().any(|rank| rank.worker == *worker);
                self.broke.retain(|worker| !here(worker));
                self.apart.met(here);
            }
            Some((loss, norm)) if is_same(loss, bits.0) && is_same(norm, bits.1) => {}
            Some((loss, norm)) => {
                return Err(format!(
                    "step {} was taken again after an interruption and gave the loss {} and the gradient norm {} in \
                     place of {} and {}: a machine computes wrong, or this is a fault of ours; please report it",
                    report.step,
                    report.loss,
                    report.grad_norm,
                    f64::from_bits(loss),
                    f64::from_bits(norm),
                ));
            }
        }
        Ok(())
    }

    pub(super) fn summary(&self) -> JobSummary {
        JobSummary {
            job: self.id().to_owned(),
            name: self.submission.spec.name.clone(),
            priority: self.priority(),
            state: self.state,
            reason: self.reason.clone(),
            about: self.about.clone(),
            cancelling: self.cancelling.is_some() && !self.state.is_over(),
            generation: self.generation,
            step: self.step,
            steps: self.steps().0,
            directory: self.submission.directory.clone(),
            workers: self.submission.spec.layout.world(),
            checkpoint: self.checkpoint.clone(),
            unit: self.submission.spec.data.unit(),
            numbers: self.numbers,
        }
    }
}

/// Whether these are the bits of the same number. All NaNs count as equal: their payload carries no information.
fn is_same(before: u64, now: u64) -> bool {
    before == now || (f64::from_bits(before).is_nan() && f64::from_bits(now).is_nan())
}

#[cfg(test)]
mod tests {
    use super::is_same;

    #[test]
    fn a_step_that_is_taken_again_repeats_its_numbers_or_fails() {
        let (infinity, nan) = (f64::INFINITY, f64::NAN);
        let other_nan = f64::from_bits(nan.to_bits() ^ 1 << 63 | 7);
        assert!(other_nan.is_nan() && other_nan.to_bits() != nan.to_bits());
        let rows = [
            (1.5, 1.5, true),
            (1.5, 1.5 + f64::EPSILON, false),
            (0.0, -0.0, false),
            (nan, nan, true),
            (nan, other_nan, true),
            (infinity, infinity, true),
            (infinity, -infinity, false),
            (1.5, nan, false),
            (nan, 1.5, false),
            (1.5, infinity, false),
            (infinity, nan, false),
            (nan, infinity, false),
        ];
        for (before, now, same) in rows {
            assert_eq!(is_same(before.to_bits(), now.to_bits()), same, "{before} and then {now}");
        }
    }
}
