//! The life of a job, from its submission to its end.

use coxswain_types::ids::{Generation, Step};
use coxswain_types::job::OnLoss;
use coxswain_types::status::{Begun, Published, StepReport};

use super::cause::Cause;
use super::entry::{Entry, NoteKind, Submission};
use super::event::{Effect, PreparedJob, Weight};
use super::job::Job;
use super::job_event::begun_text;
use super::run::Commit;
use super::summary::{JobEnding, JobState, JobSummary};
use super::{Cluster, notice};
use crate::plan::PlanError;

/// The most jobs that may wait. A longer queue is a mistake of whoever fills it, and each job costs
/// memory until it ends.
pub const MAX_WAITING: usize = 1000;

/// How many jobs that are over are remembered for `status`; the journal keeps all.
const MAX_REMEMBERED: usize = 1000;

/// How often in a row a job is interrupted without a new step in between before it is given up: what
/// comes again each time has a cause. Several losses while old steps are taken again may be one.
pub const MAX_FAILED_ATTEMPTS: u32 = 10;

/// Why a job cannot be taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full.
    #[error("{MAX_WAITING} jobs wait already, which is the most; wait for some to end, or cancel some")]
    Full,
    /// Another job writes to the same folder.
    #[error(
        "job {other} writes to {directory} and is not over; wait for its end, cancel it, or give another folder"
    )]
    Directory {
        /// The other job.
        other: String,
        /// The folder.
        directory: String,
    },
    /// It cannot be planned, whichever workers come.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A fault of the planner.
    #[error("the planner failed; the coordinator's log says where, please report it")]
    Planner,
}

impl Cluster {
    /// The id of the next job, if one of this name that writes to `directory` can be taken.
    ///
    /// # Errors
    /// The queue is full, or another job writes to the folder.
    pub fn next_job(&self, name: &str, directory: &str) -> Result<String, SubmitError> {
        let open = || self.jobs.iter().filter(|job| !job.state.is_over());
        if open().count() >= MAX_WAITING {
            return Err(SubmitError::Full);
        }
        if let Some(other) = open().find(|job| job.submission.directory == directory) {
            return Err(SubmitError::Directory {
                other: other.id().to_owned(),
                directory: directory.to_owned(),
            });
        }
        Ok(format!("{name}-{}", self.submitted + 1))
    }

    /// What was asked for under this id, if it is still known.
    pub fn submission(&self, job: &str) -> Option<&Submission> {
        self.job(job).map(|job| &job.submission)
    }

    /// All jobs that are known, in the order of submission.
    pub fn jobs(&self) -> Vec<JobSummary> {
        self.jobs.iter().map(Job::summary).collect()
    }

    /// The ids of all jobs that are known.
    pub fn job_ids(&self) -> impl Iterator<Item = &str> {
        self.jobs.iter().map(Job::id)
    }

    /// Until when workers of a job that is not over are kept apart, since they did not reach each other.
    pub fn apart_until_ms(&self) -> Option<u64> {
        self.jobs.iter().filter(|job| !job.state.is_over()).filter_map(|job| job.apart.last_ms()).max()
    }

    /// One job as it is now.
    pub fn summary(&self, job: &str) -> Option<JobSummary> {
        self.job(job).map(Job::summary)
    }

    pub(super) fn job(&self, id: &str) -> Option<&Job> {
        self.jobs.iter().rev().find(|job| job.id() == id)
    }

    pub(super) fn job_mut(&mut self, id: &str) -> Option<&mut Job> {
        self.jobs.iter_mut().rev().find(|job| job.id() == id)
    }

    pub(super) fn forget(&mut self) {
        let over = self.jobs.iter().filter(|job| job.state.is_over()).count();
        if over > MAX_REMEMBERED
            && let Some(oldest) = self.jobs.iter().position(|job| job.state.is_over())
        {
            self.jobs.remove(oldest);
        }
    }

    /// The job's generation cannot go on: its workers are gathered again, or the job ends.
    pub(super) fn interrupt(&mut self, id: &str, cause: Cause, out: &mut Vec<Effect>) {
        match self.job(id) {
            Some(job) if job.submission.spec.recovery.on_loss == OnLoss::Fail && job.cancelling.is_none() => {
                self.end(id, JobEnding::Failed, cause, out);
            }
            _ => self.gather_again(id, cause, out),
        }
    }

    /// A rank found its checkpoint damaged. No worker was lost, so `on_loss: fail` does not apply.
    pub(super) fn doubt(&mut self, id: &str, cause: Cause, out: &mut Vec<Effect>) {
        if let Some(job) = self.job_mut(id) {
            job.doubts = true;
        }
        self.gather_again(id, cause, out);
    }

    /// Gives up the job's generation and gathers workers again, up to [`MAX_FAILED_ATTEMPTS`] times without a new step.
    fn gather_again(&mut self, id: &str, cause: Cause, out: &mut Vec<Effect>) {
        let now_ms = self.now_ms;
        let Some(job) = self.job_mut(id) else { return };
        if job.cancelling.is_some() {
            return self.give_up(id, &cause.text, out);
        }
        if !planted!(AttemptsNeverCounted) {
            job.failed_attempts += 1;
        }
        if job.failed_attempts > MAX_FAILED_ATTEMPTS {
            let text = format!(
                "{}; {MAX_FAILED_ATTEMPTS} tries before this one made no new step either",
                cause.text
            );
            return self.end(id, JobEnding::Failed, Cause { text, ..cause }, out);
        }
        let (cause, generation) = (cause.text, job.generation);
        job.enter(JobState::Queued, cause.clone());
        job.interrupted(cause.clone());
        job.lost_ms = Some(now_ms);
        let text = format!("{cause}; workers are gathered to go on");
        out.push(Effect::Record(Entry::Interrupted { job: id.to_owned(), generation, reason: cause }));
        out.push(Effect::Notice(notice(Weight::Warning, text).about_run(id, generation)));
        self.disband(id, out);
    }

    /// Lets the workers of the job's generation go.
    pub(super) fn disband(&mut self, id: &str, out: &mut Vec<Effect>) {
        let Some(index) = self.runs.iter().position(|run| run.job == id) else { return };
        let run = self.runs.remove(index);
        self.revisions.grow();
        out.extend(run.seats.into_iter().map(|seat| Effect::Wake(seat.info.id)));
    }

    pub(super) fn submit(&mut self, submission: Submission, out: &mut Vec<Effect>) {
        let job = submission.job.clone();
        let text = format!("job {job} is accepted");
        out.push(Effect::Record(Entry::Submitted(Box::new(submission.clone()))));
        out.push(Effect::Notice(notice(Weight::Info, text).about_job(&job)));
        self.enqueue(submission);
    }

    /// A recovering job keeps its reason, which says what was lost.
    pub(super) fn preparing(&mut self, id: &str, doing: String) {
        let job = self.job_mut(id).filter(|job| job.state == JobState::Preparing && !job.recovers());
        if let Some(job) = job {
            job.reason = doing;
        }
    }

    pub(super) fn prepared(&mut self, id: &str, result: Result<PreparedJob, String>, out: &mut Vec<Effect>) {
        let Some(job) = self.job_mut(id).filter(|job| job.state == JobState::Preparing) else { return };
        job.doubts = false;
        match result {
            Err(reason) => self.end(id, JobEnding::Failed, reason, out),
            Ok(prepared) => {
                let from = prepared.resume.as_ref().map(|resume| resume.step);
                let digest = prepared.resume.as_ref().map(|resume| resume.digest.clone());
                job.step = from.unwrap_or_default();
                job.checkpoint = from.zip(digest).map(|(step, digest)| Published { step, digest });
                if planted!(ResumeForgotten) {
                    job.step = Step(0);
                    job.prepared = Some(PreparedJob { resume: None, ..prepared });
                } else {
                    job.prepared = Some(prepared);
                }
                let steps = job.steps();
                if job.prepares_anew() {
                    job.tries = 0;
                    out.push(Effect::Record(Entry::Prepared { job: id.to_owned() }));
                }
                job.enter(JobState::Gathering, "");
                if from.is_some_and(|from| from >= steps) {
                    let reason = match job.step {
                        step if step == steps => {
                            format!("all of its {steps} steps are taken; raise train.steps to go on")
                        }
                        step => format!(
                            "step {step} is taken already, and train.steps is {steps}; raise it to go on, or give \
                             another folder to begin anew"
                        ),
                    };
                    self.end(id, JobEnding::Done, reason, out);
                }
            }
        }
    }

    pub(super) fn broken(&mut self, id: &str, mut reason: String, out: &mut Vec<Effect>) {
        let Some(job) = self.job(id).filter(|job| !job.state.is_over()) else { return };
        if job.state == JobState::Gathering {
            reason.push_str(&format!("; the job was {}", job.reason));
        }
        self.end(id, JobEnding::Failed, reason, out);
    }

    pub(super) fn end(
        &mut self,
        id: &str,
        ending: JobEnding,
        cause: impl Into<Cause>,
        out: &mut Vec<Effect>,
    ) {
        let Some(job) = self.job_mut(id) else { return };
        let Cause { text: reason, workers } = cause.into();
        job.enter(JobState::Ended(ending), reason.clone());
        job.about = workers;
        let (weight, word) = match ending {
            JobEnding::Done => (Weight::Info, "is done"),
            JobEnding::Failed => (Weight::Warning, "failed"),
            JobEnding::Cancelled => (Weight::Info, "was cancelled"),
        };
        let text = format!("job {id} {word}: {reason}");
        let mut about = notice(weight, text).about_job(id);
        if job.generation > Generation(0) {
            about.generation = Some(job.generation);
        }
        out.push(Effect::Record(Entry::Ended { job: id.to_owned(), ending, reason }));
        out.push(Effect::Notice(about));
        self.disband(id, out);
        self.forget();
    }

    /// The generation goes on, is given up, or has reached its end.
    pub(super) fn advance_run(&mut self, now_ms: u64, generation: Generation, out: &mut Vec<Effect>) {
        let Some(index) = self.runs.iter().position(|run| run.generation == generation) else { return };
        let job = self.runs[index].job.clone();
        let cancelling = self.is_cancelling(&job);
        if self.job(&job).is_some_and(|job| job.is_overdue(now_ms)) {
            return self.give_up(&job, "its ranks did not stop in time", out);
        }
        let run = &mut self.runs[index];
        if let Some(chain) = run.hang(now_ms) {
            let text = format!("the run hangs: {chain}");
            let about = notice(Weight::Warning, text).about_run(&job, generation);
            return self.note(NoteKind::Hang, about, out);
        }
        if let Some(cause) = run.missing(now_ms).or_else(|| run.stuck(now_ms)) {
            return self.interrupt(&job, cause, out);
        }
        if let Some(complaint) = run.verdict(now_ms, &self.members) {
            let apart: Vec<_> = run.apart().collect();
            if let Some(job) = self.job_mut(&job) {
                job.apart.keep(now_ms, apart);
            }
            return match complaint.of_peer {
                true => self.interrupt(&job, complaint.cause, out),
                false => self.end(&job, JobEnding::Failed, complaint.cause, out),
            };
        }
        match run.commit() {
            Err(cause) => return self.end(&job, JobEnding::Failed, cause, out),
            Ok(Commit::Wait) => {}
            Ok(Commit::Sync(step)) => out.push(Effect::Sync { job: job.clone(), step }),
            Ok(Commit::Publish(publish)) => {
                let (step, files) = (publish.step, publish.files.clone());
                // The lead publishes it; the others may tell of what they saved since.
                let wakes: Vec<_> = run.seats.iter().map(|seat| Effect::Wake(seat.info.id.clone())).collect();
                self.revisions.grow();
                out.push(Effect::Record(Entry::Committed { job, generation, step, files }));
                return out.extend(wakes);
            }
        }
        match run.done_at() {
            Some(step) if step == run.steps => {
                let reason = format!("step {step} is taken and its checkpoint can be read");
                self.end(&job, JobEnding::Done, reason, out);
            }
            Some(step) if cancelling && !planted!(CancelledGoesOn) => self.stopped(&job, step, out),
            Some(step) => {
                // Ranks stop because they were told to, by this coordinator or an earlier one.
                let reason =
                    run.directive.stop.clone().unwrap_or_else(|| "it was stopped after a step".to_owned());
                self.regroup(&job, step, reason, out);
            }
            None => {
                if let Some(reason) = self.wants_regrouping(generation) {
                    self.stop(generation, reason, out);
                } else {
                    self.save_by_time(generation, out);
                }
            }
        }
    }

    /// The job's generation trains from here. Told once, for the lead rank says it with every status.
    pub(super) fn begun(&mut self, id: &str, begun: Begun, out: &mut Vec<Effect>) {
        let Some(job) = self.job_mut(id).filter(|job| job.begun.is_none()) else { return };
        let (generation, again) = (job.generation, job.again(begun));
        // What the first generation starts from was told when it was formed.
        let first = job.interruption.is_none();
        job.begun = Some((begun, again));
        let Begun { step, origin } = begun;
        let job = id.to_owned();
        out.push(Effect::Record(Entry::Begun { job, generation, step, origin, again }));
        if !first {
            let about = notice(Weight::Info, begun_text(begun, again));
            out.push(Effect::Notice(about.about_run(id, generation)));
        }
    }

    pub(super) fn reported(&mut self, id: &str, report: StepReport, out: &mut Vec<Effect>) {
        let Some(job) = self.job_mut(id) else { return };
        job.step = Step(report.step);
        match job.remember(&report) {
            Ok(()) => out.push(Effect::Report { job: id.to_owned(), report }),
            Err(reason) => self.end(id, JobEnding::Failed, reason, out),
        }
    }

    pub(super) fn published(&mut self, id: &str, checkpoint: Published, out: &mut Vec<Effect>) {
        let now_ms = self.now_ms;
        let newest = checkpoint.step;
        let Some(job) = self.job_mut(id) else { return };
        let keep = job.submission.spec.checkpoint.keep - u32::from(planted!(PruneTooMuch));
        job.checkpoint = Some(checkpoint.clone());
        job.saved_ms = now_ms;
        job.taken = job.taken.split_off(&(checkpoint.step.0 + 1));
        let text = format!("the checkpoint of step {} can be read", checkpoint.step);
        let about = notice(Weight::Info, text).about_run(id, job.generation);
        if planted!(PruneTooEarly) {
            out.push(Effect::Prune { job: id.to_owned(), newest, keep });
        }
        out.push(Effect::Record(Entry::Published { job: id.to_owned(), checkpoint }));
        out.push(Effect::Notice(about));
        out.push(Effect::Prune { job: id.to_owned(), newest, keep });
    }
}
