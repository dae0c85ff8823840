//! What people are shown: jobs and workers as they are now.

use coxswain_types::ids::{Generation, Step};
use coxswain_types::status::{Phase, Published, WorkerInfo};
use serde::{Deserialize, Serialize};

/// How a job can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// All steps are taken and the last checkpoint can be read.
    Done,
    /// It could not go on.
    Failed,
    /// A user wanted it no more.
    Cancelled,
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// Its tokens are being made ready.
    Preparing,
    /// It waits for workers.
    Gathering,
    /// A generation works on it.
    Running,
    /// It is over.
    Ended(Ending),
}

impl JobState {
    /// Whether the job is over.
    pub fn is_over(self) -> bool {
        matches!(self, JobState::Ended(_))
    }
}

/// A job as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSummary {
    /// Its id.
    pub job: String,
    /// Its name in the job file.
    pub name: String,
    /// The higher, the sooner it has its turn.
    pub priority: i32,
    /// Where it is in its life.
    pub state: JobState,
    /// Why it is there.
    pub reason: String,
    /// The newest generation that worked on it; 0 before the first.
    pub generation: Generation,
    /// The last step that is recorded.
    pub step: Step,
    /// Steps in all.
    pub steps: u64,
    /// The run's folder.
    pub directory: String,
    /// Workers that its layout needs.
    pub workers: u32,
    /// The newest checkpoint that readers can see.
    pub checkpoint: Option<Published>,
}

/// A worker as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerSummary {
    /// What it is.
    pub info: WorkerInfo,
    /// How far it has come.
    pub phase: Phase,
    /// The job it works for.
    pub job: Option<String>,
    /// The generation it belongs to.
    pub generation: Generation,
    /// Steps that it has applied.
    pub step: Step,
    /// The most bytes that its tensors took at once.
    pub peak_tensor_bytes: u64,
}
