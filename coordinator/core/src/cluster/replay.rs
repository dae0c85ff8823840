//! What a restart makes of the journal.

use coxswain_types::status::{Begun, Publish};

use super::Cluster;
use super::cancel::STOP_MS;
use super::entry::{Entry, Submission};
use super::form::at_work;
use super::job::{Cancelling, Job};
use super::regroup::DrainRequest;
use super::revision::RunDirective;
use super::run::GenerationRun;
use super::summary::JobState;
use crate::plan::KEEPS_UP;

impl Cluster {
    /// The state after `entries`, as a restart finds it. A generation that was at work goes on when all
    /// of its workers are back within [`RETURN_MS`](super::RETURN_MS) of a clock that starts at zero.
    pub fn replay(entries: impl IntoIterator<Item = Entry>) -> Cluster {
        let mut cluster = Cluster::default();
        entries.into_iter().for_each(|entry| cluster.apply(entry));
        let at_work = cluster.jobs.iter().filter(|job| job.state == JobState::Running);
        cluster.runs = at_work.map(GenerationRun::orphaned).collect();
        cluster.runs.sort_by_key(|run| run.generation);
        cluster
    }

    /// Takes in an entry of the journal. `compact` knows what each one sets.
    pub(super) fn apply(&mut self, entry: Entry) {
        if cfg!(feature = "mutations") && is_forgotten(&entry) {
            return;
        }
        match entry {
            Entry::Compacted { submitted, generation, epoch, newest, .. } => {
                for (worker, incarnation) in &newest {
                    self.members.remember(worker, *incarnation);
                }
                self.submitted += submitted;
                self.generation = self.generation.max(generation);
                self.revisions.passed(epoch);
            }
            Entry::Started { epoch } => self.revisions.passed(epoch),
            Entry::Noted { .. } => {}
            Entry::Submitted(submission) => self.enqueue(*submission),
            Entry::Preparing { job, tries } => {
                if let Some(job) = self.job_mut(&job) {
                    job.tries = tries;
                }
            }
            Entry::Prepared { job } => {
                if let Some(job) = self.job_mut(&job) {
                    job.tries = 0;
                }
            }
            Entry::Formed { job, generation, from, threads, ranks, revision, layout, compute } => {
                if !planted!(GenerationResetAtBoot) {
                    self.generation = self.generation.max(generation);
                }
                for rank in ranks.iter().filter(|_| !planted!(IncarnationLostAtBoot)) {
                    self.members.remember(&rank.worker, rank.incarnation);
                }
                if let Some(job) = self.job_mut(&job) {
                    job.tries = 0;
                    job.threads = Some(threads).filter(|_| !planted!(ThreadsLostAtBoot));
                    job.compute = Some(compute);
                    job.enter(JobState::Running, at_work(ranks.len(), generation));
                    let slow = ranks.iter().filter(|rank| rank.slow_percent > KEEPS_UP);
                    job.slow = slow.map(|rank| (rank.worker.clone(), rank.slow_percent)).collect();
                    // People have been told, by an earlier coordinator.
                    job.told_slow = job.slow.keys().map(|worker| (worker.clone(), (0, true))).collect();
                    job.formed = ranks;
                    job.layout = layout;
                    job.directive = RunDirective { revision, ..RunDirective::default() };
                    job.committed = None;
                    job.begun = None;
                    job.generation = generation;
                    job.step = from;
                }
            }
            Entry::Begun { job, step, origin, again, .. } => {
                if let Some(job) = self.job_mut(&job) {
                    job.begun = Some((Begun { step, origin }, again));
                }
            }
            Entry::Stopping { job, revision, reason, .. } => {
                if let Some(job) = self.job_mut(&job) {
                    job.directive = RunDirective { revision, stop: Some(reason), ..RunDirective::default() };
                }
            }
            Entry::Saving { job, revision, after, .. } => {
                if let Some(job) = self.job_mut(&job) {
                    job.directive = RunDirective { revision, save_after: after, ..RunDirective::default() };
                }
            }
            Entry::Cancelling { job, reason } => {
                if let Some(job) = self.job_mut(&job) {
                    // The clock of this start begins at zero.
                    job.cancelling = Some(Cancelling { reason, until_ms: STOP_MS });
                }
            }
            Entry::Drained { worker, incarnation, reason } => {
                self.drained(worker, DrainRequest { incarnation, reason });
            }
            Entry::Interrupted { job, reason, .. } | Entry::Regrouped { job, reason, .. } => {
                if let Some(job) = self.job_mut(&job) {
                    if !planted!(InterruptionLostAtBoot) {
                        job.enter(JobState::Queued, reason.clone());
                    }
                    job.interrupted(reason);
                    // Workers that it had look for this coordinator, whose clock starts at zero.
                    job.lost_ms = Some(0);
                }
            }
            Entry::Committed { job, step, files, .. } => {
                if let Some(job) = self.job_mut(&job) {
                    job.committed = Some(Publish { step, files });
                }
            }
            Entry::Published { job, checkpoint } => {
                if let Some(job) = self.job_mut(&job) {
                    if !planted!(PublishedLostAtBoot) {
                        job.committed = None;
                    }
                    job.step = checkpoint.step;
                    job.checkpoint = Some(checkpoint);
                }
            }
            Entry::Ended { job, ending, reason } => {
                if let Some(job) = self.job_mut(&job) {
                    if !planted!(EndLostAtBoot) {
                        job.enter(JobState::Ended(ending), reason);
                    }
                    // A job that is over no longer asks for these.
                    job.formed = Vec::new();
                    job.slow.clear();
                    job.tries = 0;
                    job.directive = RunDirective::default();
                    job.cancelling = None;
                    job.begun = None;
                    job.committed = None;
                }
                self.forget();
            }
        }
    }

    pub(super) fn enqueue(&mut self, submission: Submission) {
        self.submitted += 1;
        self.jobs.push(Job::new(submission));
    }
}

/// Whether a planted bug keeps a restart from what the entry says.
fn is_forgotten(entry: &Entry) -> bool {
    match entry {
        Entry::Stopping { .. } => planted!(StopLostAtBoot),
        Entry::Cancelling { .. } => planted!(CancelLostAtBoot),
        Entry::Drained { .. } => planted!(DrainLostAtBoot),
        Entry::Committed { .. } => planted!(CommitLostAtBoot),
        _ => false,
    }
}
