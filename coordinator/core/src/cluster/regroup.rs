//! Generations that end at a step's boundary without anything being lost: all ranks stop after the same step,
//! save, and the job goes on from there with other workers, or with its work divided anew. So a worker is taken
//! out whom a user drains or who was asked to stop, so a run that shrank grows again, and so a straggler gets
//! less work or is replaced.
//!
//! A stop is a directive like the last step is: ranks agree on it in the closing exchange, by its number. For that
//! every rank must know the directive before it, so a generation is stopped only once all ranks have theirs; and a
//! directive keeps its number whoever tells it, so the number is in the journal before a rank hears of it.

use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::status::{Leave, LeaveCause};

use crate::plan::{Fit, KEEPS_UP};

use super::entry::Entry;
use super::event::{Effect, Weight};
use super::explain::{growth_reason, rebalance_reason};
use super::member::MAX_WORKERS;
use super::placement::Rebalance;
use super::revision::RunDirective;
use super::run::GenerationRun;
use super::summary::JobState;
use super::{Cluster, notice};

/// How long a job that shrank stays as it is before it grows. A regrouping costs about a second of every rank,
/// so workers that come one after the other do not cost a tenth of the time.
pub const GROW_AFTER_MS: u64 = 10_000;

/// How often in a row that time doubles for a job whose work is divided anew again and again: a machine that is
/// slow now and then shall not cost a regrouping each time. Ten seconds become ten minutes.
const MAX_DOUBLINGS: u32 = 6;

/// A worker that is being drained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DrainRequest {
    pub(super) incarnation: u64,
    pub(super) reason: String,
}

impl GenerationRun {
    /// When the run may be formed again for something better; `before` counts how often that has been done for its job.
    pub(super) fn improves_ms(&self, before: u32) -> u64 {
        self.formed_ms + (GROW_AFTER_MS << before.min(MAX_DOUBLINGS))
    }
}

impl Cluster {
    /// A user wants the worker's process to end once nothing needs it. Remembered until a newer
    /// one takes its name: one that counts as lost may come back.
    pub(super) fn drain(&mut self, worker: &WorkerId, reason: &str, out: &mut Vec<Effect>) {
        let Some(member) = self.members.get(worker) else { return };
        let incarnation = member.status.info.incarnation;
        if self.drains.get(worker).is_some_and(|drain| drain.incarnation == incarnation) {
            return;
        }
        let reason = reason.to_owned();
        out.push(Effect::Record(Entry::Drained {
            worker: worker.clone(),
            incarnation,
            reason: reason.clone(),
        }));
        let text = format!("worker {worker} is drained: {reason}");
        out.push(Effect::Notice(notice(Weight::Info, text).about_worker(worker)));
        self.drained(worker.clone(), DrainRequest { incarnation, reason });
        self.revisions.grow();
        out.push(Effect::Wake(worker.clone()));
    }

    pub(super) fn drained(&mut self, worker: WorkerId, drain: DrainRequest) {
        // One that is older than it never comes back, as with one that had a rank.
        self.members.remember(&worker, drain.incarnation);
        self.drains.insert(worker, drain);
        // Names of processes that ended while no coordinator was there to see it.
        while self.drains.len() > MAX_WORKERS {
            self.drains.pop_first();
        }
    }

    /// Why the worker shall have no place, if it shall have none.
    pub(super) fn wants_out(&self, worker: &WorkerId) -> Option<String> {
        self.leave_of(worker).map(|leave| leave.reason)
    }

    /// Why the worker's process shall end once nothing needs it, if it shall.
    pub(super) fn leave_of(&self, worker: &WorkerId) -> Option<Leave> {
        let member = self.members.get(worker)?;
        let drain = self.drains.get(worker);
        let drain = drain.filter(|drain| drain.incarnation == member.status.info.incarnation);
        let drained = drain.map(|drain| Leave {
            cause: LeaveCause::Drained,
            reason: format!("is drained: {}", drain.reason),
        });
        let asked = |why: &String| Leave { cause: LeaveCause::Asked, reason: format!("leaves: {why}") };
        drained.or_else(|| member.status.leaving.as_ref().map(asked))
    }

    /// Why the generation should be formed anew, if it should.
    pub(super) fn wants_regrouping(&self, generation: Generation) -> Option<String> {
        let run = self.runs.iter().find(|run| run.generation == generation)?;
        if run.directive.stop.is_some() || !run.is_taken() {
            return None;
        }
        if let Some(cancelling) = self.job(&run.job).and_then(|job| job.cancelling.as_ref()) {
            return Some(cancelling.reason.clone());
        }
        let out = |rank: usize| {
            let why = self.wants_out(&run.seats[rank].info.id)?;
            Some(format!("{} {why}", run.describe(rank)))
        };
        (0..run.seats.len()).find_map(out)
    }

    /// Stops a run that shrank, since `more` workers that wait would let it be `fit`.
    pub(super) fn grow(&mut self, generation: Generation, more: usize, fit: &Fit, out: &mut Vec<Effect>) {
        self.stop(generation, growth_reason(more, fit), out);
    }

    /// Stops a run whose work shall be divided anew.
    pub(super) fn rebalance(&mut self, index: usize, rebalance: &Rebalance, out: &mut Vec<Effect>) {
        let Some(job) = self.jobs.get_mut(index) else { return };
        job.rebalances += 1;
        let generation = job.generation;
        let run = self.runs.iter().find(|run| run.generation == generation);
        if let Some(reason) = run.map(|run| rebalance_reason(run, rebalance)) {
            self.stop(generation, reason, out);
        }
    }

    /// Whether the job's workers are not as slow as its work was divided for, and that matters to it.
    pub(super) fn is_unbalanced(&self, index: usize) -> bool {
        let job = &self.jobs[index];
        let slow = |worker: &WorkerId| job.slow.get(worker).copied().unwrap_or(KEEPS_UP);
        job.state == JobState::Running
            && job.rebalances_work()
            && job.formed.iter().any(|rank| rank.slow_percent != slow(&rank.worker))
    }

    /// Has all ranks stop after a step, and save.
    pub(super) fn stop(&mut self, generation: Generation, reason: String, out: &mut Vec<Effect>) {
        self.revisions.grow();
        let revision = self.revisions.newest();
        let Some(run) = self.runs.iter_mut().find(|run| run.generation == generation) else { return };
        run.directive = RunDirective { revision, stop: Some(reason.clone()), ..RunDirective::default() };
        let job = run.job.clone();
        let wakes: Vec<_> = run.seats.iter().map(|seat| Effect::Wake(seat.info.id.clone())).collect();
        let then = if self.is_cancelling(&job) { "ends" } else { "goes on in another formation" };
        let text = format!("{reason}; the run saves after a step and {then}");
        let about = notice(Weight::Info, text).about_run(&job, generation);
        out.push(Effect::Record(Entry::Stopping { job, generation, revision, reason }));
        out.push(Effect::Notice(about));
        out.extend(wakes);
    }

    /// All ranks stopped after `step`, short of the last one: workers are gathered again. It is not a failed attempt.
    pub(super) fn regroup(&mut self, id: &str, step: Step, reason: String, out: &mut Vec<Effect>) {
        let Some(job) = self.job_mut(id) else { return };
        let generation = job.generation;
        job.enter(JobState::Queued, reason.clone());
        job.interrupted(reason.clone());
        job.lost_ms = None;
        let text = format!("stopped after step {step} and saved; workers are gathered anew");
        out.push(Effect::Record(Entry::Regrouped { job: id.to_owned(), generation, step, reason }));
        out.push(Effect::Notice(notice(Weight::Info, text).about_run(id, generation)));
        self.disband(id, out);
    }
}
