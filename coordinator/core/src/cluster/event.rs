//! What happens to a cluster, and what follows from it.

use coxswain_types::assignment::{PreparedData, Resume};
use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::status::{StepReport, WorkerStatus};
use serde::{Deserialize, Serialize};

use super::entry::{Entry, NoteKind, Submission};
use super::question::{PlanAnswer, Planning};

/// What was found in the run's folder before the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PreparedJob {
    /// The tokens.
    pub data: PreparedData,
    /// The newest checkpoint, if there is one.
    pub resume: Option<Resume>,
    /// The threads that the checkpoint was made with. They are kept where the job names none, since
    /// another number gives other bits.
    pub threads: Option<u32>,
    /// The runtime that the checkpoint was made with; other runtimes give different bits.
    pub runtime: Option<String>,
}

/// How thoroughly the checkpoints in a run's folder are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckDepth {
    /// The manifest and file sizes. The ranks verify contents; for a finished job, which starts no ranks, this does
    /// too.
    Manifest,
    /// Every byte, after a rank reported damage.
    Whole,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A user wants a job done.
    Submitted(Box<Submission>),
    /// Progress of [`Effect::Prepare`].
    Preparing {
        /// The job's id.
        job: String,
        /// The current phase and how much of it is done.
        doing: String,
    },
    /// The answer to [`Effect::Prepare`].
    Prepared {
        /// The job's id.
        job: String,
        /// What was found, or why the job cannot run.
        result: Result<PreparedJob, String>,
    },
    /// The answer to [`Effect::Plan`].
    Planned {
        /// The question's number.
        ticket: u64,
        /// Who does what, or why the job cannot run.
        result: Result<PlanAnswer, String>,
    },
    /// A worker says how it is.
    Seen {
        /// What it says.
        status: WorkerStatus,
    },
    /// The answer to [`Effect::Report`] and [`Effect::Sync`]: lines of metrics are in the run's folder.
    Written {
        /// The job's id.
        job: String,
        /// Every report up to this step is there.
        step: Step,
        /// Whether they would survive a crash of the machine.
        synced: bool,
    },
    /// A worker's stream ended.
    Lost {
        /// Which worker.
        worker: WorkerId,
        /// Which of its processes.
        incarnation: u64,
        /// What was noticed, such as `its connection closed`.
        why: String,
    },
    /// A user wants a job no more.
    Cancelled {
        /// The job's id.
        job: String,
        /// Why.
        reason: String,
        /// When a job that is at work ends.
        when: CancelWhen,
    },
    /// A user wants a worker no more: it shall end once nothing needs it.
    Drain {
        /// Which worker.
        worker: WorkerId,
        /// Why.
        reason: String,
    },
    /// The shell could not do what the job needs.
    Broken {
        /// The job's id.
        job: String,
        /// What it could not do and why.
        reason: String,
    },
    /// The coordinator is about to end: all workers shall leave.
    Dismissed {
        /// Why.
        reason: String,
    },
    /// The coordinator itself did not run for [`super::PAUSE_MS`] or longer, so a silent worker or a closed connection
    /// does not show a loss.
    Paused {
        /// How long it did not run.
        for_ms: u64,
    },
    /// [`super::Cluster::next_deadline_ms`] has come.
    Tick,
}

/// When a job that is at work and was cancelled ends. Any other ends at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelWhen {
    /// After the step at hand, which is saved.
    AfterStep,
    /// At once: steps since its newest checkpoint are lost.
    Now,
}

/// What follows from an event, in the order in which it has to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Write this down so that it survives a crash, before any later effect is visible to anyone.
    Record(Entry),
    /// Prepare the job's tokens and find its newest checkpoint, then say [`Event::Prepared`].
    Prepare {
        /// The job's id.
        job: String,
        /// How thoroughly to check; damaged checkpoints are set aside.
        look: CheckDepth,
    },
    /// Plan a generation beside the cluster ([`Planning::plan`]), for that takes seconds with thousands of ranks;
    /// then say [`Event::Planned`].
    Plan(Box<Planning>),
    /// What is wanted of this worker changed: send it [`super::Cluster::desired`].
    Wake(WorkerId),
    /// Send this process away.
    Refuse {
        /// The name it goes by.
        worker: WorkerId,
        /// Which of the processes of that name.
        incarnation: u64,
        /// Why.
        reason: String,
    },
    /// A step was taken: append it to the run's metrics, beside the cluster, then say [`Event::Written`].
    Report {
        /// The job's id.
        job: String,
        /// The step.
        report: StepReport,
    },
    /// Sync the job's metrics, then say [`Event::Written`] with this step, even if lines are missing: lines that a
    /// power cut or a user removed cannot be restored.
    Sync {
        /// The job's id.
        job: String,
        /// The newest step that was reported.
        step: Step,
    },
    /// Remove the job's checkpoints up to that of step `newest`, except the newest `keep` of these.
    Prune {
        /// The job's id.
        job: String,
        /// The step of the checkpoint that was published last.
        newest: Step,
        /// How many stay.
        keep: u32,
    },
    /// Tell people.
    Notice(Notice),
}

/// How much a notice matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Weight {
    /// The ordinary course of things.
    Info,
    /// Something a person may want to look into.
    Warning,
}

/// Something that people should know, with what it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// How much it matters.
    pub weight: Weight,
    /// The job, if it is about one.
    pub job: Option<String>,
    /// The generation, if it is about one.
    pub generation: Option<Generation>,
    /// The worker, if it is about one.
    pub worker: Option<WorkerId>,
    /// What happened and why.
    pub text: String,
}

impl Notice {
    /// As the journal has it.
    pub(super) fn noted(&self, kind: NoteKind) -> Entry {
        let Notice { job, generation, worker, text, .. } = self.clone();
        Entry::Noted { kind, job, generation, worker, text }
    }
}
