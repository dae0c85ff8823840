//! What the coordinator decides while a cluster runs: events become effects.
//!
//! The life of a job: it waits for its turn, its tokens are prepared, workers are gathered, a
//! generation of them runs, and it ends. Several jobs run at once, each on workers of its own. When a worker
//! is lost its generation is given up, and workers are gathered again, to go on from the newest checkpoint; or
//! the job ends, if its file says so.
//!
//! - [`event`]: what happens, and what follows; [`mod@entry`]: what the journal holds.
//! - `member`: the workers that are here, and their leases.
//! - `run`: a generation at work, and why it ended.
//! - `heard`: what a status means for its worker's run, and what follows.
//! - `saving`: when ranks save; `checkpoints`: when a checkpoint is decided.
//! - `job`, `life`: a job from its submission to its end; `replay`: what a restart makes of it.
//! - [`fn@compact`]: a journal in fewer entries.
//! - `apart`: workers between which the network does not answer.
//! - `queue`, `placement`: whose turn it is, and which workers it can have: those that compute as the job began.
//! - `question`, `planning`: a plan that is asked for, and made beside the cluster; `form`: idle workers become the
//!   ranks of a generation; `regroup`: one ends at a step's boundary; `cause`: why one cannot go on.
//! - `cancel`: a cancelled job saves after the current step and ends, or ends at once.
//! - `desired`, `revision`: what is wanted of each worker, and its number.
//! - `hang`, `pace`: who holds up a run, and who slows it down; `watch`: how people are told.
//! - [`summary`], `shown`, `explain`, [`job_event`]: what people are shown.
//!
//! The core has no clock: `now_ms` is the shell's monotonic time. What is written down survives a
//! restart ([`Cluster::replay`]); what workers say again by themselves is not written down.

mod apart;
mod cancel;
mod cause;
mod checkpoints;
mod compact;
mod desired;
pub mod entry;
pub mod event;
mod explain;
mod form;
mod hang;
mod heard;
mod job;
pub mod job_event;
mod life;
mod member;
mod pace;
mod placement;
mod planning;
mod question;
mod queue;
mod regroup;
mod replay;
mod revision;
mod run;
mod saving;
mod shown;
pub mod summary;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::BTreeMap;

use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::status::WorkerStatus;

pub use compact::compact;
use entry::NoteKind;
pub use entry::{Compute, Entry, FormedRank, Submission};
pub use event::{CancelWhen, CheckDepth, Effect, Event, Notice, PreparedJob, Weight};
pub use member::{LEASE_MS, MAX_WORKERS, PAUSE_MS};
pub use run::{GRACE_MS, RETURN_MS};
pub use shown::{GenerationShown, RankShown, RankState};
pub use summary::{JobEnding, JobState, JobSummary, Numbers, WorkerSummary, duration};

pub use apart::APART_MS;
pub use hang::HANG_MS;
use job::Job;
pub use job::SHRINK_AFTER_MS;
pub use job_event::JobEvent;
pub use life::{MAX_FAILED_ATTEMPTS, MAX_WAITING, SubmitError};
use member::{Admission, MemberTable};
pub use question::{PlanAnswer, Planning};
pub use queue::MAX_TRIES;
use regroup::DrainRequest;
pub use regroup::GROW_AFTER_MS;
use revision::Revisions;
use run::GenerationRun;

/// How much is noted in the journal between two formations. Each note is synced, so a thousand workers that come
/// at once, or a rank that is slow now and then, must not hold up the rest.
const MAX_NOTED: usize = 256;

/// All that the coordinator knows.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// When the event happened that is being handled.
    now_ms: u64,
    /// In the order of submission.
    jobs: Vec<Job>,
    /// Jobs ever submitted; their ids count on.
    submitted: u64,
    /// The newest generation.
    generation: Generation,
    /// Grows with every change of what is wanted.
    revisions: Revisions,
    members: MemberTable,
    /// The generations at work, from older to newer.
    runs: Vec<GenerationRun>,
    /// The plan that was asked for and is not here yet.
    planning: Option<Planning>,
    /// Plans that were ever asked for.
    tickets: u64,
    /// Notes in the journal since a generation was formed.
    noted: usize,
    /// Processes that users want no more.
    drains: BTreeMap<WorkerId, DrainRequest>,
    /// Why all workers shall leave, once they shall.
    dismissed: Option<String>,
    /// When jobs in the queue were last looked at.
    looked_ms: u64,
    /// Events that were more than a heartbeat.
    news: u64,
}

impl Cluster {
    /// What follows from `event` at `now_ms` of the shell's monotonic clock.
    pub fn handle(&mut self, now_ms: u64, event: Event) -> Vec<Effect> {
        let mut out = Vec::new();
        self.now_ms = now_ms;
        // Before anything else, so that whatever is said from here on is above what an earlier start said.
        if let Some(epoch) = self.revisions.open() {
            out.push(Effect::Record(Entry::Started { epoch }));
            self.members.issue_above(self.revisions.newest());
        }
        let mut steady = None;
        match event {
            Event::Submitted(submission) => self.submit(*submission, &mut out),
            Event::Preparing { job, doing } => self.preparing(&job, doing),
            Event::Prepared { job, result } => self.prepared(&job, result, &mut out),
            Event::Planned { ticket, result } => self.planned(ticket, result, &mut out),
            Event::Seen { status } => steady = self.seen(now_ms, status, &mut out),
            Event::Written { job, step, synced } => steady = self.written(&job, step, synced, &mut out),
            Event::Lost { worker, incarnation, why } => self.lost(&worker, incarnation, &why, &mut out),
            Event::Cancelled { job, reason, when } => self.cancel(&job, &reason, when, &mut out),
            Event::Drain { worker, reason } => self.drain(&worker, &reason, &mut out),
            Event::Broken { job, reason } => self.broken(&job, reason, &mut out),
            Event::Dismissed { reason } => self.dismiss(reason, &mut out),
            Event::Paused { for_ms } => self.paused(now_ms, for_ms, &mut out),
            Event::Tick => self.expire(now_ms, &mut out),
        }
        self.advance(steady.as_ref(), &mut out);
        if cfg!(feature = "mutations") {
            out.retain(|effect| !matches!(effect, Effect::Record(entry) if is_unrecorded(entry)));
        }
        // A desired state is read off the state as the whole event leaves it, so it may be sent only after all that
        // this state follows from is on disk.
        if !planted!(WakeBeforeRecord) {
            out.sort_by_key(|effect| matches!(effect, Effect::Wake(_)));
        }
        out
    }

    /// Gives a worker process its incarnation. There is none before the first event, with which this start is in the
    /// journal: an earlier start could have given the same.
    pub fn register(&mut self) -> Option<u64> {
        self.revisions.is_open().then(|| self.members.issue())
    }

    /// Grows with every event after which a job may be shown in another way, beside its steps.
    pub fn news(&self) -> u64 {
        self.news
    }

    /// When [`Event::Tick`] is due, if nothing else happens before.
    pub fn next_deadline_ms(&self) -> Option<u64> {
        let verdicts = self.runs.iter().filter_map(|run| run.deadline_ms(&self.members));
        // What is past has been looked at, and needs an event to change.
        let queue = self.queue_deadlines_ms().filter(|due_ms| *due_ms > self.looked_ms);
        let stops = self.cancel_deadlines_ms();
        let leases = self.members.next_expiry_ms().filter(|_| !planted!(LeaseWithoutTimer));
        leases.into_iter().chain(verdicts).chain(queue).chain(stops).min()
    }

    /// The jobs and generations whose ranks may meet.
    pub fn rendezvous(&self) -> Vec<(&str, Generation)> {
        self.runs.iter().map(|run| (run.job.as_str(), run.generation)).collect()
    }

    /// Whatever can go on without waiting for anyone does so. Most of what happens is that a worker says how it
    /// is, and that this changes nothing for the queue: then only the run of this `steady` worker is looked at.
    fn advance(&mut self, steady: Option<&WorkerId>, out: &mut Vec<Effect>) {
        let now_ms = self.now_ms;
        let concerned = |run: &&GenerationRun| steady.is_none_or(|worker| run.rank_of(worker).is_some());
        let generations: Vec<_> = self.runs.iter().filter(concerned).map(|run| run.generation).collect();
        generations.into_iter().for_each(|generation| self.advance_run(now_ms, generation, out));
        if steady.is_none() || !out.is_empty() {
            self.news += 1;
            self.looked_ms = now_ms;
            self.advance_queue(out);
        }
    }

    /// The generation that the worker has a place in, whichever process goes by its name.
    fn run_of(&self, worker: &WorkerId) -> Option<&GenerationRun> {
        self.runs.iter().find(|run| run.rank_of(worker).is_some())
    }

    /// Takes in what a worker says; returns the worker where it is as free for work, or as bound, as before.
    fn seen(&mut self, now_ms: u64, status: WorkerStatus, out: &mut Vec<Effect>) -> Option<WorkerId> {
        let worker = status.info.id.clone();
        let incarnation = status.info.incarnation;
        match self.members.admit(now_ms, status.clone()) {
            Admission::Refused(reason) => {
                let text = format!(
                    "refused worker {worker} (pid {} on {}): {reason}",
                    status.info.pid, status.info.host
                );
                out.push(Effect::Notice(notice(Weight::Warning, text).about_worker(&worker)));
                out.push(Effect::Refuse { worker, incarnation, reason });
                return None;
            }
            Admission::Steady => {
                self.observe(now_ms, &status, out);
                return Some(worker);
            }
            Admission::Replaced { incarnation: older } => {
                self.drains.remove(&worker);
                if !planted!(ReplacedKeepsSeat) {
                    self.lost_from_run(&worker, older, "a newer process took its name", out);
                }
                self.welcome(&status, out);
            }
            Admission::New => self.welcome(&status, out),
            Admission::Changed => {}
        }
        self.observe(now_ms, &status, out);
        None
    }

    fn welcome(&mut self, status: &WorkerStatus, out: &mut Vec<Effect>) {
        let info = &status.info;
        let mut text =
            format!("worker {} is here (pid {} on {}, {})", info.id, info.pid, info.host, info.device);
        let mut weight = Weight::Info;
        if info.runtime.is_empty() {
            weight = Weight::Warning;
            text.push_str("; it does not say which libtorch it has, so it gets no work");
        } else if status.generation > self.generation {
            weight = Weight::Warning;
            text.push_str(&format!(
                "; it speaks of generation {}, which this coordinator never formed, so that is ignored",
                status.generation
            ));
        }
        self.note(NoteKind::Joined, notice(weight, text).about_worker(&info.id), out);
        out.push(Effect::Wake(info.id.clone()));
    }

    /// Takes in which reports of a job are written. Returns the worker that leads it, for whom nothing else changes.
    fn written(&mut self, job: &str, step: Step, synced: bool, out: &mut Vec<Effect>) -> Option<WorkerId> {
        let run = self.runs.iter_mut().find(|run| run.job == job)?;
        let lead = run.seats.first()?.info.id.clone();
        if run.wrote(step, synced) {
            self.revisions.grow();
            out.push(Effect::Wake(lead.clone()));
        }
        Some(lead)
    }

    fn lost(&mut self, worker: &WorkerId, incarnation: u64, why: &str, out: &mut Vec<Effect>) {
        if !self.members.remove(worker, incarnation) {
            return;
        }
        if planted!(DrainLostWithStream) {
            self.drains.remove(worker);
        }
        let about = notice(Weight::Info, format!("worker {worker} is gone: {why}")).about_worker(worker);
        self.note(NoteKind::Gone, about, out);
        self.lost_from_run(worker, incarnation, why, out);
    }

    /// Interrupts the run if the lost process is the reason for its end.
    fn lost_from_run(&mut self, worker: &WorkerId, incarnation: u64, why: &str, out: &mut Vec<Effect>) {
        let Some((run, rank)) = self.run_of(worker).and_then(|run| Some((run, run.rank_of(worker)?))) else {
            return;
        };
        if run.seats[rank].info.incarnation != incarnation {
            return;
        }
        if run.awaits_after_pause() {
            let generation = run.generation;
            let run = self.runs.iter_mut().find(|run| run.generation == generation);
            return run.into_iter().for_each(|run| run.seats[rank].phase = None);
        }
        if let Some(cause) = run.lost(self.now_ms, rank, why) {
            let job = run.job.clone();
            self.interrupt(&job, cause, out);
        }
    }

    /// Tells people, now and in the journal where a job is open and not too much was noted since a generation was
    /// formed.
    fn note(&mut self, kind: NoteKind, about: Notice, out: &mut Vec<Effect>) {
        if self.noted < MAX_NOTED && self.jobs.iter().any(|job| !job.state.is_over()) {
            self.noted += 1;
            out.push(Effect::Record(about.noted(kind)));
        }
        out.push(Effect::Notice(about));
    }

    fn expire(&mut self, now_ms: u64, out: &mut Vec<Effect>) {
        let why = format!("no sign of life for {} s", LEASE_MS / 1000);
        for (worker, incarnation) in self.members.expired(now_ms) {
            self.lost(&worker, incarnation, &why, out);
            out.push(Effect::Refuse { worker, incarnation, reason: format!("it counts as lost: {why}") });
        }
    }

    /// This coordinator did not run for a while. As after a restart, workers have some seconds to report back, and
    /// connections that closed in the meantime do not count as losses.
    fn paused(&mut self, now_ms: u64, for_ms: u64, out: &mut Vec<Effect>) {
        self.members.renew(now_ms);
        for job in &mut self.jobs {
            if let Some(cancelling) = &mut job.cancelling {
                cancelling.until_ms = cancelling.until_ms.saturating_add(for_ms);
            }
        }
        for run in &mut self.runs {
            run.wait_after_pause(now_ms);
            let text = format!(
                "the coordinator did not run for {:.1} s, so it waits for its workers to report back",
                for_ms as f64 / 1000.0
            );
            out.push(Effect::Notice(notice(Weight::Warning, text).about_run(&run.job, run.generation)));
        }
    }

    fn dismiss(&mut self, reason: String, out: &mut Vec<Effect>) {
        self.dismissed = Some(reason);
        self.revisions.grow();
        out.extend(self.members.iter().map(|member| Effect::Wake(member.status.info.id.clone())));
    }

    /// The workers that are here.
    pub fn workers(&self) -> Vec<WorkerSummary> {
        self.members.iter().map(|member| self.worker_summary(&member.status)).collect()
    }

    fn worker_summary(&self, status: &WorkerStatus) -> WorkerSummary {
        let run = self.run_of(&status.info.id);
        WorkerSummary {
            info: status.info.clone(),
            phase: status.phase.clone(),
            job: run.map(|run| run.job.clone()),
            generation: run.map_or(status.generation, |run| run.generation),
            step: status.step,
            peak_tensor_bytes: status.peak_tensor_bytes,
            leaving: self.wants_out(&status.info.id),
        }
    }
}

/// Whether a planted bug keeps the entry out of the journal.
fn is_unrecorded(entry: &Entry) -> bool {
    match entry {
        Entry::Started { .. } => planted!(EpochNotRecorded),
        Entry::Submitted(_) => planted!(SubmittedNotRecorded),
        Entry::Formed { .. } => planted!(FormedNotRecorded),
        Entry::Saving { .. } => planted!(SaveNotRecorded),
        Entry::Stopping { .. } => planted!(StopNotRecorded),
        Entry::Cancelling { .. } => planted!(CancelNotRecorded),
        Entry::Regrouped { .. } => planted!(RegroupedNotRecorded),
        Entry::Interrupted { .. } => planted!(InterruptedNotRecorded),
        Entry::Committed { .. } => planted!(CommittedNotRecorded),
        Entry::Published { .. } => planted!(PublishedNotRecorded),
        Entry::Ended { .. } => planted!(EndedNotRecorded),
        _ => false,
    }
}

fn notice(weight: Weight, text: String) -> Notice {
    Notice { weight, job: None, generation: None, worker: None, text }
}

impl Notice {
    fn about_run(self, job: &str, generation: Generation) -> Notice {
        Notice { job: Some(job.to_owned()), generation: Some(generation), ..self }
    }

    fn about_job(self, job: &str) -> Notice {
        Notice { job: Some(job.to_owned()), ..self }
    }

    fn about_worker(self, worker: &WorkerId) -> Notice {
        Notice { worker: Some(worker.clone()), ..self }
    }
}
