//! The rules that hold after every event. The judge reads what the coordinator writes down and says, and
//! keeps a record of its own; its numbers are its own too, for a judge must not follow what it judges.
//!
//! - `journal`: rules of what is written down (S1-S7, S13).
//! - `live`: rules of what is said and done (S1, S2, S8-S10, S12, L4).
//! - `end`: what must be left in the end (S4-S6, replay).

mod end;
mod journal;
mod live;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::mem::Discriminant;

use coxswain_core::cluster::{Entry, FormedRank, JobEnding};
use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::job::{Layout, OnLoss};
use coxswain_types::status::{Directive, SavedFile};

/// How long a worker may be silent, as both programs' documentation has it.
pub(crate) const LEASE_MS: u64 = 5000;
/// How long after its start a coordinator waits for workers of an earlier one.
pub(crate) const RETURN_MS: u64 = 10_000;
/// How many coordinators in a row may end while they prepare a job.
const MAX_TRIES: u32 = 5;
/// How long a complaint may wait for a cause: the grace, then a lease that began with it, and a second for
/// a timer that is late.
const JUDGED_MS: u64 = 1500 + LEASE_MS + 1000;
/// Interruptions in a row, without a new step, that a job survives.
const MAX_FAILED_ATTEMPTS: u32 = 10;

/// A rule was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleViolation {
    /// Which rule.
    pub rule: &'static str,
    /// How.
    pub text: String,
    /// When.
    pub at_us: u64,
}

/// What the judge knows.
#[derive(Default)]
pub(crate) struct Judge {
    pub(crate) violation: Option<RuleViolation>,
    /// The incidents that happened, by number.
    pub(crate) incidents: Vec<u64>,
    pub(crate) jobs: BTreeMap<String, JobRecord>,
    /// Entries that are on disk.
    entries: usize,
    /// The kinds of entries after which a replay was judged.
    replayed: HashSet<Discriminant<Entry>>,
    /// The newest generation on disk.
    generation: Generation,
    /// Jobs whose submission was answered.
    accepted: Vec<String>,
    /// The newest process of each name that a generation had.
    formed: BTreeMap<WorkerId, u64>,
    /// When each process was last heard of in this life of the coordinator, in its milliseconds.
    seen_ms: BTreeMap<(WorkerId, u64), u64>,
    /// The newest process of each name that the coordinator knows of.
    known: BTreeMap<WorkerId, u64>,
    /// The starts on disk.
    epoch: u64,
    /// The process of each name that a user drained last, on disk.
    pub(crate) drained: BTreeMap<WorkerId, u64>,
    /// The process of each name that said of itself that it leaves.
    leaving: BTreeMap<WorkerId, u64>,
    /// Names whose processes have been slow.
    pub(crate) slow: BTreeSet<WorkerId>,
    /// The processes that are members.
    members: BTreeMap<WorkerId, u64>,
    /// The newest generation that each process was sent directives of.
    asked: BTreeMap<usize, Generation>,
    /// What the ranks of a generation were told to do.
    parts: BTreeMap<Generation, BTreeMap<u32, live::SimPart>>,
    /// The newest number of a directive on disk.
    revision: u64,
    /// Jobs that a generation was formed of.
    formed_ever: BTreeSet<String>,
    /// Generations that were formed since all was healed.
    pub(crate) formed_since: BTreeMap<String, u32>,
}

/// A job, from what is on disk.
pub(crate) struct JobRecord {
    pub(crate) directory: String,
    layout: Layout,
    pub(crate) steps: u64,
    keep: u32,
    on_loss: OnLoss,
    rebalance: bool,
    every_minutes: u32,
    pub(crate) running: Option<Running>,
    pub(crate) ended: Option<JobEnding>,
    /// The newest checkpoint that was published.
    pub(crate) published: Step,
    /// The threads and the runtime that it began with.
    made: Option<(u32, String)>,
    /// Interruptions since the last step that was never taken before, and since the last step.
    since_new: u32,
    since_any: u32,
    /// The newest step that was reported.
    newest: u64,
    /// The shell had a reason to give it up.
    excused: bool,
    cancelled: bool,
    /// It was cancelled while it was at work, and that is on disk.
    cancelling: bool,
}

/// A generation at work.
pub(crate) struct Running {
    pub(crate) generation: Generation,
    ranks: Vec<FormedRank>,
    from: Step,
    committed: Option<(Step, Vec<SavedFile>)>,
    published: Step,
    /// When there was first a reason to give it up.
    complained_ms: Option<u64>,
    /// A rank said that the fault is its own.
    own: bool,
    /// The life of the coordinator that formed it.
    life: u32,
    /// When the coordinator noticed a pause, after which closed connections do not count as losses for a while.
    paused_ms: Option<u64>,
    /// What is wanted of it.
    directive: Directive,
    /// Whether its layout is smaller than the job's.
    shrunk: bool,
}

impl Running {
    fn complain(&mut self, now_ms: u64) {
        self.complained_ms.get_or_insert(now_ms);
    }

    /// Whether workers have time to report back after a pause, or had until a moment ago.
    fn awaits(&self, now_ms: u64) -> bool {
        self.paused_ms.is_some_and(|paused_ms| now_ms <= paused_ms + RETURN_MS + JUDGED_MS)
    }

    /// Whether there is a reason to give it up, in this life of the coordinator.
    fn is_lost(&self, life: u32, now_ms: u64) -> bool {
        self.complained_ms.is_some() || (self.life != life && now_ms >= RETURN_MS) || self.awaits(now_ms)
    }
}

impl Judge {
    /// The shell could not do what the job needs, or was told that it could not.
    pub(crate) fn excuse(&mut self, job: &str) {
        if let Some(record) = self.jobs.get_mut(job) {
            record.excused = true;
        }
    }

    /// Whether as many jobs as there are users were taken.
    pub(crate) fn accepted_all(&self, jobs: usize) -> bool {
        self.accepted.len() >= jobs
    }

    /// A user wants the job no more.
    pub(crate) fn cancelled(&mut self, job: &str) {
        if let Some(record) = self.jobs.get_mut(job) {
            record.cancelled = true;
        }
    }

    /// Whether the job may go on with fewer workers.
    pub(crate) fn shrinks(&self, job: &str) -> bool {
        self.jobs.get(job).is_some_and(|record| record.on_loss == OnLoss::Shrink)
    }

    /// Whether this process was drained, or said that it leaves.
    fn wants_out(&self, worker: &WorkerId, incarnation: u64) -> bool {
        [&self.drained, &self.leaving].iter().any(|out| out.get(worker) == Some(&incarnation))
    }

    /// Whether a newer process of this name is known.
    fn is_old(&self, worker: &WorkerId, incarnation: u64) -> bool {
        self.known.get(worker).is_some_and(|known| *known > incarnation)
    }

    /// The newest step that was told of the job that has this worker.
    fn newest_of(&self, worker: &WorkerId) -> Option<u64> {
        let has = |record: &&JobRecord| {
            let running = record.running.as_ref();
            running.is_some_and(|running| running.ranks.iter().any(|rank| rank.worker == *worker))
        };
        self.jobs.values().find(has).map(|record| record.newest)
    }

    /// The generation at work that has this worker.
    fn running_of(&mut self, worker: &WorkerId) -> Option<&mut Running> {
        let running = self.jobs.values_mut().filter_map(|record| record.running.as_mut());
        running.into_iter().find(|running| running.ranks.iter().any(|rank| rank.worker == *worker))
    }
}
