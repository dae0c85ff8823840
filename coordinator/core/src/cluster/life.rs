//! The life of a job, from its submission to its end, and what a restart makes of it.

use std::collections::BTreeMap;

use coxswain_types::ids::{Generation, Step};
use coxswain_types::job::OnLoss;
use coxswain_types::status::{Publish, Published, StepReport};

use super::event::{Effect, Entry, FormedRank, Prepared, Submission, Weight};
use super::form;
use super::run::Run;
use super::summary::{Ending, JobState, JobSummary};
use super::{Cluster, notice};

/// The most jobs that may wait. A longer queue is a mistake of whoever fills it, and each job costs
/// memory until it ends.
pub const MAX_WAITING: usize = 1000;

/// How many jobs that are over are remembered for `status`; the journal keeps all.
const MAX_REMEMBERED: usize = 1000;

/// How often in a row a job is interrupted without a new step in between before it is given up: what
/// comes again each time is no accident. Several losses while old steps are taken again may be one.
pub const MAX_SETBACKS: u32 = 10;

/// How many steps are remembered to compare them when they are taken again; 24 bytes each.
const MAX_TAKEN: usize = 100_000;

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
}

/// A job and how far it has come.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) submission: Submission,
    state: JobState,
    reason: String,
    generation: Generation,
    /// The last step that is recorded.
    step: Step,
    checkpoint: Option<Published>,
    prepared: Option<Prepared>,
    /// Threads of each rank, once a generation has run.
    threads: Option<u32>,
    /// Why its last generation is no more.
    interruption: Option<String>,
    /// The generation that the journal says is at work.
    formed: Vec<FormedRank>,
    /// What that generation committed and has not yet published.
    committed: Option<Publish>,
    /// Interruptions since the last new step.
    setbacks: u32,
    /// The bits of loss and gradient norm of steps that may be taken again.
    taken: BTreeMap<u64, (u64, u64)>,
}

impl Job {
    fn id(&self) -> &str {
        &self.submission.job
    }

    fn steps(&self) -> Step {
        Step(self.submission.spec.train.steps)
    }

    fn enter(&mut self, state: JobState, reason: impl Into<String>) {
        self.state = state;
        self.reason = reason.into();
    }

    /// Compares a step that is taken again with what it gave before; `Err` says how they differ.
    fn remember(&mut self, report: &StepReport) -> Result<(), String> {
        let bits = (report.loss.to_bits(), report.grad_norm.to_bits());
        let before = self.taken.insert(report.step, bits);
        if self.taken.len() > MAX_TAKEN {
            self.taken.pop_first();
        }
        match before {
            None => self.setbacks = 0,
            // What is not finite has many forms.
            Some(before) if before == bits || !report.loss.is_finite() => {}
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

    fn summary(&self) -> JobSummary {
        JobSummary {
            job: self.id().to_owned(),
            name: self.submission.spec.name.clone(),
            state: self.state,
            reason: self.reason.clone(),
            generation: self.generation,
            step: self.step,
            steps: self.steps().0,
            directory: self.submission.directory.clone(),
            workers: self.submission.spec.layout.world(),
            checkpoint: self.checkpoint.clone(),
        }
    }
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

    /// One job as it is now.
    pub fn summary(&self, job: &str) -> Option<JobSummary> {
        self.job(job).map(Job::summary)
    }

    /// The job whose turn it is.
    pub fn active(&self) -> Option<JobSummary> {
        self.active_job().map(Job::summary)
    }

    fn job(&self, id: &str) -> Option<&Job> {
        self.jobs.iter().rev().find(|job| job.id() == id)
    }

    fn job_mut(&mut self, id: &str) -> Option<&mut Job> {
        self.jobs.iter_mut().rev().find(|job| job.id() == id)
    }

    fn active_job(&self) -> Option<&Job> {
        self.jobs.iter().find(|job| job.state != JobState::Queued && !job.state.is_over())
    }

    /// The state after `entries`, as a restart finds it. A generation that was at work goes on when all
    /// of its workers are back within [`RETURN_MS`](super::RETURN_MS) of a clock that starts at zero.
    pub fn replay(entries: impl IntoIterator<Item = Entry>) -> Cluster {
        let mut cluster = Cluster::default();
        entries.into_iter().for_each(|entry| cluster.apply(entry));
        if let Some(job) = cluster.jobs.iter().find(|job| job.state == JobState::Running) {
            let (id, steps) = (job.id().to_owned(), job.steps());
            let run = Run::orphaned(id, job.generation, &job.formed, steps, job.step, job.committed.clone());
            cluster.run = Some(run);
        }
        cluster
    }

    fn apply(&mut self, entry: Entry) {
        match entry {
            Entry::Started { epoch } => self.revisions.passed(epoch),
            Entry::Submitted(submission) => self.enqueue(*submission),
            Entry::Formed { job, generation, from, threads, ranks } => {
                self.generation = self.generation.max(generation);
                if let Some(job) = self.job_mut(&job) {
                    job.threads = Some(threads);
                    let reason = format!("generation {generation} of {} workers", ranks.len());
                    job.enter(JobState::Running, reason);
                    job.formed = ranks;
                    job.committed = None;
                    job.generation = generation;
                    job.step = from;
                }
            }
            Entry::Interrupted { job, reason, .. } => {
                if let Some(job) = self.job_mut(&job) {
                    job.enter(JobState::Queued, reason.clone());
                    job.interruption = Some(reason);
                }
            }
            Entry::Committed { job, step, files, .. } => {
                if let Some(job) = self.job_mut(&job) {
                    job.committed = Some(Publish { step, files });
                }
            }
            Entry::Published { job, checkpoint } => {
                if let Some(job) = self.job_mut(&job) {
                    job.committed = None;
                    job.step = checkpoint.step;
                    job.checkpoint = Some(checkpoint);
                }
            }
            Entry::Ended { job, ending, reason } => {
                if let Some(job) = self.job_mut(&job) {
                    job.enter(JobState::Ended(ending), reason);
                }
                self.forget();
            }
        }
    }

    fn enqueue(&mut self, submission: Submission) {
        self.submitted += 1;
        self.jobs.push(Job {
            submission,
            state: JobState::Queued,
            reason: "waits for its turn".to_owned(),
            generation: Generation(0),
            step: Step(0),
            checkpoint: None,
            prepared: None,
            threads: None,
            interruption: None,
            formed: Vec::new(),
            committed: None,
            setbacks: 0,
            taken: BTreeMap::new(),
        });
    }

    fn forget(&mut self) {
        let over = self.jobs.iter().filter(|job| job.state.is_over()).count();
        if over > MAX_REMEMBERED
            && let Some(oldest) = self.jobs.iter().position(|job| job.state.is_over())
        {
            self.jobs.remove(oldest);
        }
    }

    /// The job's generation cannot go on: its workers are gathered again, or the job ends.
    pub(super) fn interrupt(&mut self, id: &str, cause: String, out: &mut Vec<Effect>) {
        let Some(job) = self.job_mut(id) else { return };
        if job.submission.spec.recovery.on_loss == OnLoss::Fail {
            return self.end(id, Ending::Failed, cause, out);
        }
        job.setbacks += 1;
        if job.setbacks > MAX_SETBACKS {
            let reason = format!("{cause}; {MAX_SETBACKS} tries before this one made no new step either");
            return self.end(id, Ending::Failed, reason, out);
        }
        let generation = job.generation;
        job.enter(JobState::Preparing, cause.clone());
        job.interruption = Some(cause.clone());
        let text = format!("{cause}; workers are gathered to go on from the newest checkpoint");
        out.push(Effect::Record(Entry::Interrupted { job: id.to_owned(), generation, reason: cause }));
        out.push(Effect::Notice(notice(Weight::Warning, text).about_run(id, generation)));
        out.push(Effect::Prepare { job: id.to_owned() });
        self.disband(id, out);
    }

    /// Lets the workers of the job's generation go.
    fn disband(&mut self, id: &str, out: &mut Vec<Effect>) {
        if let Some(run) = self.run.take_if(|run| run.job == id) {
            self.revisions.grow();
            out.extend(run.seats.into_iter().map(|seat| Effect::Wake(seat.info.id)));
        }
    }

    pub(super) fn submit(&mut self, submission: Submission, out: &mut Vec<Effect>) {
        let job = submission.job.clone();
        let text = format!("job {job} is accepted");
        out.push(Effect::Record(Entry::Submitted(Box::new(submission.clone()))));
        out.push(Effect::Notice(notice(Weight::Info, text).about_job(&job)));
        self.enqueue(submission);
    }

    pub(super) fn prepared(&mut self, id: &str, result: Result<Prepared, String>, out: &mut Vec<Effect>) {
        let Some(job) = self.job_mut(id).filter(|job| job.state == JobState::Preparing) else { return };
        match result {
            Err(reason) => self.end(id, Ending::Failed, reason, out),
            Ok(prepared) => {
                let from = prepared.resume.as_ref().map(|resume| resume.step);
                let digest = prepared.resume.as_ref().map(|resume| resume.digest.clone());
                job.step = from.unwrap_or_default();
                job.checkpoint = from.zip(digest).map(|(step, digest)| Published { step, digest });
                job.prepared = Some(prepared);
                let steps = job.steps();
                job.enter(JobState::Gathering, "");
                if from.is_some_and(|from| from >= steps) {
                    let reason = format!(
                        "its newest checkpoint is of step {}, and step {steps} is its last",
                        job.step
                    );
                    self.end(id, Ending::Done, reason, out);
                }
            }
        }
    }

    pub(super) fn cancel(&mut self, id: &str, reason: &str, out: &mut Vec<Effect>) {
        if self.job(id).is_some_and(|job| !job.state.is_over()) {
            self.end(id, Ending::Cancelled, reason.to_owned(), out);
        }
    }

    pub(super) fn broken(&mut self, id: &str, reason: String, out: &mut Vec<Effect>) {
        if self.job(id).is_some_and(|job| !job.state.is_over()) {
            self.end(id, Ending::Failed, reason, out);
        }
    }

    pub(super) fn end(&mut self, id: &str, ending: Ending, reason: String, out: &mut Vec<Effect>) {
        let Some(job) = self.job_mut(id) else { return };
        job.enter(JobState::Ended(ending), reason.clone());
        let (weight, word) = match ending {
            Ending::Done => (Weight::Info, "is done"),
            Ending::Failed => (Weight::Warning, "failed"),
            Ending::Cancelled => (Weight::Info, "was cancelled"),
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

    /// Whatever can go on without waiting for anyone does so.
    pub(super) fn advance(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        self.advance_run(now_ms, out);
        // A job that cannot be formed ends, and the next one has its turn.
        while self.dismissed.is_none() {
            match self.active_job().map(|job| job.state) {
                None => {
                    if !self.start_next(out) {
                        return;
                    }
                }
                Some(JobState::Gathering) => {
                    if !self.gather(out) {
                        return;
                    }
                }
                Some(_) => return,
            }
        }
    }

    fn advance_run(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        let Some(run) = &mut self.run else { return };
        let (job, generation) = (run.job.clone(), run.generation);
        if let Some(cause) = run.missing(now_ms) {
            return self.interrupt(&job, cause, out);
        }
        if let Some(complaint) = run.verdict(now_ms, &self.members) {
            return match complaint.of_peer {
                true => self.interrupt(&job, complaint.text, out),
                false => self.end(&job, Ending::Failed, complaint.text, out),
            };
        }
        match run.saving.commit() {
            Err(cause) => return self.end(&job, Ending::Failed, cause, out),
            Ok(None) => {}
            Ok(Some(publish)) => {
                let (step, files) = (publish.step, publish.files.clone());
                // The lead publishes it; the others may tell of what they saved since.
                let wakes: Vec<_> = run.seats.iter().map(|seat| Effect::Wake(seat.info.id.clone())).collect();
                self.revisions.grow();
                out.push(Effect::Record(Entry::Committed { job, generation, step, files }));
                return out.extend(wakes);
            }
        }
        if run.is_complete() {
            let reason = format!("step {} is taken and its checkpoint can be read", run.steps);
            self.end(&job, Ending::Done, reason, out);
        }
    }

    fn start_next(&mut self, out: &mut Vec<Effect>) -> bool {
        let Some(job) = self.jobs.iter_mut().find(|job| job.state == JobState::Queued) else { return false };
        job.enter(JobState::Preparing, "its tokens are being made ready");
        out.push(Effect::Prepare { job: job.id().to_owned() });
        true
    }

    /// Forms a generation for the job whose turn it is; `false` when it has to wait for workers.
    fn gather(&mut self, out: &mut Vec<Effect>) -> bool {
        let generation = Generation(self.generation.0 + 1);
        let Some(job) = self.jobs.iter_mut().find(|job| job.state == JobState::Gathering) else {
            return false;
        };
        let workers = match self.members.candidates(job.submission.spec.layout.world() as usize) {
            Ok(workers) => workers,
            Err(reason) => {
                let since =
                    job.interruption.as_ref().map_or(String::new(), |cause| format!(", since {cause}"));
                job.reason = reason + &since;
                return false;
            }
        };
        let Some(prepared) = &job.prepared else { return false };
        let id = job.id().to_owned();
        match form::form(&job.submission, prepared, generation, &workers, job.threads) {
            Err(reason) => self.end(&id, Ending::Failed, reason, out),
            Ok(formation) => {
                job.generation = generation;
                job.threads = Some(formation.threads);
                let from = job.step;
                let steps = job.steps();
                job.enter(JobState::Running, format!("generation {generation} of {} workers", workers.len()));
                let seated = |seat: &super::run::Seat| FormedRank {
                    worker: seat.info.id.clone(),
                    incarnation: seat.info.incarnation,
                    digest: seat.digest.clone(),
                    stage: seat.stage,
                    host: seat.info.host.clone(),
                    pid: seat.info.pid,
                };
                out.push(Effect::Record(Entry::Formed {
                    job: id.clone(),
                    generation,
                    ranks: formation.seats.iter().map(seated).collect(),
                    threads: formation.threads,
                    from,
                }));
                let text = formation.reason(from);
                out.push(Effect::Notice(notice(Weight::Info, text).about_run(&id, generation)));
                out.extend(formation.seats.iter().map(|seat| Effect::Wake(seat.info.id.clone())));
                self.generation = generation;
                self.revisions.grow();
                self.run = Some(Run::new(id, generation, formation.seats, steps, from));
            }
        }
        true
    }

    pub(super) fn reported(&mut self, id: &str, report: StepReport, out: &mut Vec<Effect>) {
        let Some(job) = self.job_mut(id) else { return };
        job.step = Step(report.step);
        match job.remember(&report) {
            Ok(()) => out.push(Effect::Report { job: id.to_owned(), report }),
            Err(reason) => self.end(id, Ending::Failed, reason, out),
        }
    }

    pub(super) fn published(&mut self, id: &str, checkpoint: Published, out: &mut Vec<Effect>) {
        let Some(job) = self.job_mut(id) else { return };
        job.checkpoint = Some(checkpoint.clone());
        job.taken = job.taken.split_off(&(checkpoint.step.0 + 1));
        let text = format!("the checkpoint of step {} can be read", checkpoint.step);
        let about = notice(Weight::Info, text).about_run(id, job.generation);
        out.push(Effect::Record(Entry::Published { job: id.to_owned(), checkpoint }));
        out.push(Effect::Notice(about));
        let Some(submission) = self.submission(id) else { return };
        let (directory, keep) = (submission.directory.clone(), submission.spec.checkpoint.keep);
        out.push(Effect::Prune { job: id.to_owned(), directory, keep });
    }
}
