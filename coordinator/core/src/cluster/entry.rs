//! What the journal holds: what must outlive the coordinator, and the values that it is made of.

use std::collections::BTreeMap;
use std::fmt;

use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::job::{JobSpec, Layout};
use coxswain_types::status::{Origin, Published, SavedFile, WorkerInfo};
use serde::{Deserialize, Serialize};

use super::summary::JobEnding;
use crate::plan::KEEPS_UP;

/// A job that was asked for. Its id comes from [`super::Cluster::next_job`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submission {
    /// The job's id.
    pub job: String,
    /// What was asked for.
    pub spec: JobSpec,
    /// The run's folder, seen by the coordinator and all workers under this path.
    pub directory: String,
    /// Why a plan chose the job's layout, where the job left it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<String>,
}

/// What the journal holds. A cluster is replayed from its entries alone, so they carry all that
/// must outlive the coordinator, and nothing that workers say again by themselves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "entry")]
pub enum Entry {
    /// The entries before this one were compacted ([`super::compact()`]); it has the counts that they had.
    Compacted {
        /// The number of entries that were removed.
        entries: u64,
        /// The number of submitted jobs that were removed.
        submitted: u64,
        /// The newest generation until then.
        generation: Generation,
        /// The newest start until then.
        epoch: u64,
        /// The newest process of each name that had a rank or was drained until then.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        newest: BTreeMap<WorkerId, u64>,
    },
    /// A coordinator started on this journal.
    Started {
        /// Counts the starts on this journal, from 1 on.
        epoch: u64,
    },
    /// A job was accepted.
    Submitted(Box<Submission>),
    /// The data of a job that never ran is about to be made ready.
    Preparing {
        /// The job's id.
        job: String,
        /// Which attempt this is; each earlier one ended with its coordinator.
        tries: u32,
    },
    /// The data of a job that never ran is ready.
    Prepared {
        /// The job's id.
        job: String,
    },
    /// Workers were formed into a generation.
    Formed {
        /// The job's id.
        job: String,
        /// The new generation.
        generation: Generation,
        /// Who is in it, by rank.
        ranks: Vec<FormedRank>,
        /// Threads of each rank's libtorch.
        threads: u32,
        /// The step that the run starts from.
        from: Step,
        /// The number of the directive that it runs to its last step.
        #[serde(default)]
        revision: u64,
        /// Its layout, where that is not the job's own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        layout: Option<Layout>,
        /// What its workers compute with; every later generation of the job must match.
        compute: Compute,
    },
    /// All ranks of a generation shall save after a step, and go on.
    Saving {
        /// The job's id.
        job: String,
        /// The generation.
        generation: Generation,
        /// The number of this directive.
        revision: u64,
        /// They save after the first step from this one on.
        after: Step,
    },
    /// A generation began to train: what it found to go on from.
    Begun {
        /// The job's id.
        job: String,
        /// The generation.
        generation: Generation,
        /// Steps taken in the state that it began with.
        step: Step,
        /// Where that state was.
        origin: Origin,
        /// How many recorded steps are taken again.
        again: u64,
    },
    /// All ranks of a generation shall stop after a step, and save.
    Stopping {
        /// The job's id.
        job: String,
        /// The generation.
        generation: Generation,
        /// The number of this directive.
        revision: u64,
        /// Why.
        reason: String,
    },
    /// A user cancelled a job that is at work: it ends after a step, once that is saved.
    Cancelling {
        /// The job's id.
        job: String,
        /// Why.
        reason: String,
    },
    /// A generation stopped after a step, and ends; its job goes on in another formation.
    Regrouped {
        /// The job's id.
        job: String,
        /// The generation that ended.
        generation: Generation,
        /// The step that all its ranks have taken, and whose checkpoint can be read.
        step: Step,
        /// Why.
        reason: String,
    },
    /// A user drained a worker.
    Drained {
        /// Which worker.
        worker: WorkerId,
        /// Which of its processes.
        incarnation: u64,
        /// Why.
        reason: String,
    },
    /// Something that people should know later too, and that decides nothing.
    Noted {
        /// Its kind.
        kind: NoteKind,
        /// The job, if it is about one.
        job: Option<String>,
        /// The generation, if it is about one.
        generation: Option<Generation>,
        /// The worker, if it is about one.
        worker: Option<WorkerId>,
        /// What happened and why.
        text: String,
    },
    /// A generation could not go on; its job shall.
    Interrupted {
        /// The job's id.
        job: String,
        /// The generation that ended.
        generation: Generation,
        /// Why.
        reason: String,
    },
    /// Every rank has its part of a checkpoint on disk: it will be published.
    Committed {
        /// The job's id.
        job: String,
        /// The generation that wrote it.
        generation: Generation,
        /// After which step.
        step: Step,
        /// The files of all ranks.
        files: Vec<SavedFile>,
    },
    /// Readers can see the checkpoint.
    Published {
        /// The job's id.
        job: String,
        /// The checkpoint.
        checkpoint: Published,
    },
    /// The job is over.
    Ended {
        /// The job's id.
        job: String,
        /// How it ended.
        ending: JobEnding,
        /// Why.
        reason: String,
    },
}

/// A worker's kind of device and runtime; a different one gives different bits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Compute {
    /// The kind of device, such as `cpu`.
    pub device: String,
    /// The libtorch, and the instructions of the processor or the name of the GPU.
    pub runtime: String,
}

impl Compute {
    /// Reads it from a worker's info.
    pub fn of(info: &WorkerInfo) -> Compute {
        let device = info.device.split(':').next().unwrap_or(&info.device);
        Compute { device: device.to_owned(), runtime: info.runtime.clone() }
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.device, self.runtime)
    }
}

/// A rank of a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormedRank {
    /// Which worker.
    pub worker: WorkerId,
    /// Which of its processes.
    pub incarnation: u64,
    /// The digest of its assignment.
    pub digest: String,
    /// Its place along the pipeline axis.
    #[serde(default)]
    pub stage: u32,
    /// The machine it runs on, for people.
    #[serde(default)]
    pub host: String,
    /// Its process, for people.
    #[serde(default)]
    pub pid: u32,
    /// The cores of its machine; 0 where they are not known.
    #[serde(default)]
    pub cores: u32,
    /// How long it takes for the same work, in percent of how long its peers take, as far as its work was
    /// divided by that.
    #[serde(default = "keeps_up", skip_serializing_if = "is_up")]
    pub slow_percent: u32,
}

fn keeps_up() -> u32 {
    KEEPS_UP
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_up(slow_percent: &u32) -> bool {
    *slow_percent == KEEPS_UP
}

/// What is noted that decides nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoteKind {
    /// A worker is here.
    Joined,
    /// A worker is gone.
    Gone,
    /// A rank waits for longer than it should.
    Hang,
    /// A rank computes for longer than its peers.
    Straggler,
    /// A straggler keeps up again.
    Recovered,
}

impl NoteKind {
    /// Its name in events.
    pub fn name(self) -> &'static str {
        match self {
            NoteKind::Joined => "joined",
            NoteKind::Gone => "gone",
            NoteKind::Hang => "hang",
            NoteKind::Straggler => "straggler",
            NoteKind::Recovered => "recovered",
        }
    }
}
