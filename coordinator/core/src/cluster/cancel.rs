//! Cancelled jobs. One that is at work ends like a drained worker's run: its ranks stop after the same step and
//! save, so that nothing is lost. One that has nothing to save ends at once, and so does any job whose user does
//! not want to wait.

use coxswain_types::ids::Step;
use coxswain_types::status::Phase;

use super::entry::Entry;
use super::event::{CancelWhen, Effect, Weight};
use super::job::{Cancelling, Job};
use super::run::GenerationRun;
use super::summary::{JobEnding, JobState};
use super::{Cluster, notice};

/// How long the ranks of a cancelled job may take to stop, beside the time of a few steps: it covers a large
/// checkpoint on a slow disk. After it the job ends unsaved, so that a rank that hangs holds up no cancel for ever.
pub(super) const STOP_MS: u64 = 300_000;

impl Job {
    /// Whether it was cancelled and its ranks did not stop in time.
    pub(super) fn is_overdue(&self, now_ms: u64) -> bool {
        self.cancelling.as_ref().is_some_and(|cancelling| cancelling.until_ms <= now_ms)
    }

    /// The steps that are lost if it ends now, if there are any.
    fn unsaved(&self) -> Option<String> {
        let saved = self.checkpoint.as_ref().map_or(Step(0), |checkpoint| checkpoint.step);
        // Steps that an interrupted generation took are known by their bits only.
        let taken = self.taken.keys().next_back().copied().unwrap_or_default().max(self.step.0);
        let steps = match taken.saturating_sub(saved.0) {
            0 => return None,
            1 => "1 step".to_owned(),
            steps => format!("{steps} steps"),
        };
        Some(match saved {
            Step(0) => format!("{steps} lost: there is no checkpoint"),
            saved => format!("{steps} since the checkpoint of step {saved} lost"),
        })
    }
}

impl GenerationRun {
    /// Whether its ranks may have taken a step, as far as they have said. An earlier coordinator may know of more.
    fn may_have_steps(&self) -> bool {
        let past_loading = |phase: &Option<Phase>| matches!(phase, Some(Phase::Running | Phase::Done));
        self.is_orphaned() || self.seats.iter().any(|seat| past_loading(&seat.phase))
    }
}

impl Cluster {
    /// A user wants the job no more.
    pub(super) fn cancel(&mut self, id: &str, reason: &str, when: CancelWhen, out: &mut Vec<Effect>) {
        let now_ms = self.now_ms;
        let Some(job) = self.job(id).filter(|job| !job.state.is_over()) else { return };
        if planted!(CancelIgnored) && job.state != JobState::Queued {
            return;
        }
        let run = self.runs.iter().find(|run| run.job == id);
        // After an interruption ranks hold steps in memory that no checkpoint has.
        let saves = run.filter(|run| run.may_have_steps() || !job.taken.is_empty());
        let Some(run) = saves.filter(|_| when == CancelWhen::AfterStep) else {
            return self.end_unsaved(id, reason.to_owned(), out);
        };
        if job.cancelling.is_some() {
            return;
        }
        let until_ms = now_ms.saturating_add(STOP_MS).saturating_add(run.patience_ms());
        let Some(job) = self.job_mut(id) else { return };
        let reason = reason.to_owned();
        job.cancelling = Some(Cancelling { reason: reason.clone(), until_ms });
        job.enter(JobState::Running, format!("ends after the step at hand, which is saved: {reason}"));
        let text = format!("job {id} is cancelled and ends after the step at hand: {reason}");
        let about = notice(Weight::Info, text).about_run(id, job.generation);
        out.push(Effect::Record(Entry::Cancelling { job: id.to_owned(), reason }));
        out.push(Effect::Notice(about));
    }

    /// Whether the job was cancelled and is still at work.
    pub(super) fn is_cancelling(&self, id: &str) -> bool {
        self.job(id).is_some_and(|job| job.cancelling.is_some())
    }

    /// When cancelled jobs end whatever their ranks do.
    pub(super) fn cancel_deadlines_ms(&self) -> impl Iterator<Item = u64> {
        let open = self.jobs.iter().filter(|job| !job.state.is_over());
        open.filter_map(|job| job.cancelling.as_ref()).map(|cancelling| cancelling.until_ms)
    }

    /// All ranks of a cancelled job stopped after `step`, whose checkpoint can be read.
    pub(super) fn stopped(&mut self, id: &str, step: Step, out: &mut Vec<Effect>) {
        let reason = self.job(id).and_then(|job| job.cancelling.as_ref()).map(|it| it.reason.clone());
        let reason = format!("{}; stopped after step {step}, which is saved", reason.unwrap_or_default());
        self.end(id, JobEnding::Cancelled, reason, out);
    }

    /// A cancelled job cannot save, and ends all the same.
    pub(super) fn give_up(&mut self, id: &str, cause: &str, out: &mut Vec<Effect>) {
        let reason = self.job(id).and_then(|job| job.cancelling.as_ref()).map(|it| it.reason.clone());
        self.end_unsaved(id, format!("{}; {cause}", reason.unwrap_or_default()), out);
    }

    fn end_unsaved(&mut self, id: &str, reason: String, out: &mut Vec<Effect>) {
        let reason = match self.job(id).and_then(Job::unsaved) {
            Some(unsaved) => format!("{reason}; {unsaved}"),
            None => reason,
        };
        self.end(id, JobEnding::Cancelled, reason, out);
    }
}
