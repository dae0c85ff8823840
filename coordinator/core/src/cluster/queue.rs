//! Whose turn it is. Jobs wait in the order of their priorities, of equal ones a job that was at work
//! already before one that was not, and then in the order of submission. A job gets all of its workers or
//! none. One that waits for workers keeps what there is from those behind it, so none waits for ever.
//!
//! A job that was interrupted keeps the workers that it has left, unless one of a higher priority needs
//! them. Nothing that runs is interrupted for another job.

use std::cmp::Reverse;

use coxswain_types::ids::Generation;
use coxswain_types::status::WorkerInfo;

use super::Cluster;
use super::entry::Entry;
use super::event::{CheckDepth, Effect};
use super::job::Job;
use super::placement::{Growth, IdlePool, Placement, Rebalance, Shortage};
use super::question::RankCounts;
use super::run::GenerationRun;
use super::summary::{JobEnding, JobState};
use crate::plan::Fit;

/// How many new jobs have their tokens made ready at once: each takes a machine's cores.
const MAX_PREPARING: usize = 4;

/// How long a job that is being prepared holds back those behind it. If preparation takes longer, jobs that are ready
/// go first.
const HOLD_MS: u64 = 60_000;

/// How many coordinators in a row may end while they prepare a job. The work is done in a child process, but the
/// system may end both when memory runs out. An intended restart counts as well.
pub const MAX_TRIES: u32 = 5;

/// What a job can do now.
enum Turn {
    /// Its tokens can be made ready.
    Prepare(usize),
    /// A generation of it can be planned, and then formed.
    Form(usize, Vec<WorkerInfo>, Fit),
    /// The planner can look for a layout of it.
    Look(usize, RankCounts),
    /// Its generation, which is smaller than its layout, can be formed anew with so many more workers.
    Grow(Generation, usize, Fit),
    /// Its generation can be formed anew with its work divided otherwise.
    Rebalance(usize, Rebalance),
}

/// Why a job waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Waiting<'a> {
    /// This job has its turn first.
    Behind(&'a str),
    /// The tokens of this job are being made ready.
    ForTokens(&'a str),
    /// The planner divides the work of this job.
    ForPlan(&'a str),
    /// There are too few workers for it.
    ForWorkers {
        shortage: Shortage<'a>,
        /// Why its last generation ended.
        since: Option<&'a str>,
        /// The job that has its turn first.
        first: Option<&'a str>,
    },
}

/// What a job in the queue means for those behind it.
enum Outlook {
    /// It can go on now.
    Turn(Turn),
    /// It waits for no workers.
    Passes,
    /// It will need workers once its tokens are ready: they are kept for it.
    Prepares,
    /// It waits for workers, or for its turn: what it can have is kept for it.
    Waits,
}

impl Cluster {
    /// Whatever can go on without waiting for anyone does so. Each turn takes a job on by a state, and a
    /// state comes back with an event only, so this ends.
    pub(super) fn advance_queue(&mut self, out: &mut Vec<Effect>) {
        while self.dismissed.is_none() {
            let (reasons, turn) = self.next_turn();
            for (index, reason) in reasons {
                self.jobs[index].reason = reason;
            }
            match turn {
                None => return,
                Some(Turn::Prepare(index)) => self.prepare(index, out),
                Some(Turn::Form(index, workers, fit)) => self.ask_for_plan(index, workers, fit, out),
                Some(Turn::Look(index, sizes)) => self.ask_for_fit(index, sizes, out),
                Some(Turn::Grow(generation, more, fit)) => self.grow(generation, more, &fit, out),
                Some(Turn::Rebalance(index, rebalance)) => self.rebalance(index, &rebalance, out),
            }
        }
    }

    /// Has the job's tokens made ready, unless that seems to crash coordinators.
    fn prepare(&mut self, index: usize, out: &mut Vec<Effect>) {
        let now_ms = self.now_ms;
        let job = &mut self.jobs[index];
        let id = job.id().to_owned();
        if !job.recovers() {
            if job.tries >= MAX_TRIES {
                let reason = format!(
                    "{MAX_TRIES} coordinators in a row ended while they made its tokens ready, so this one does not \
                     try; if they ended for another reason, submit it again"
                );
                return self.end(&id, JobEnding::Failed, reason, out);
            }
            job.tries += 1;
            job.reason = "its tokens are being made ready".to_owned();
            out.push(Effect::Record(Entry::Preparing { job: id.clone(), tries: job.tries }));
        }
        job.state = JobState::Preparing;
        job.preparing_ms = now_ms;
        let look = if job.doubts { CheckDepth::Whole } else { CheckDepth::Manifest };
        out.push(Effect::Prepare { job: id, look });
    }

    /// The jobs that wait for workers, in the order in which they have their turn; also those at work that want
    /// more of them, or others.
    fn waiting(&self) -> Vec<usize> {
        let mut waiting: Vec<_> = (0..self.jobs.len())
            .filter(|&index| {
                self.jobs[index].waits() || self.jobs[index].is_shrunk() || self.is_unbalanced(index)
            })
            .collect();
        waiting.sort_by_key(|&index| {
            let job = &self.jobs[index];
            (Reverse(job.priority()), job.generation == Generation(0), index)
        });
        waiting
    }

    /// When a job may shrink, grow or be divided anew, if nothing happens before.
    pub(super) fn queue_deadlines_ms(&self) -> impl Iterator<Item = u64> {
        let prepares = self.jobs.iter().filter(|job| job.prepares_anew());
        let holds = prepares.map(|job| job.preparing_ms + HOLD_MS);
        let shrinks = self.jobs.iter().filter(|job| job.state == JobState::Gathering);
        let improves = (0..self.jobs.len()).flat_map(|index| {
            let job = &self.jobs[index];
            let run = self.runs.iter().find(|run| run.generation == job.generation);
            let grows = run.filter(|_| job.is_shrunk()).map(|run| run.improves_ms(0));
            let unbalanced = run.filter(|_| self.is_unbalanced(index));
            grows.into_iter().chain(unbalanced.map(|run| run.improves_ms(job.rebalances)))
        });
        let met = self.jobs.iter().filter(|job| job.waits() || job.is_shrunk());
        let met = met.filter_map(|job| job.apart.ends_ms(self.now_ms));
        shrinks.filter_map(|job| job.shrinks_ms()).chain(improves).chain(holds).chain(met)
    }

    /// The first job in the queue that can go on, and why those before it wait, where that is news.
    fn next_turn(&self) -> (Vec<(usize, String)>, Option<Turn>) {
        let waiting = self.waiting();
        // Most of the time no job waits, and looking at all workers is not free.
        if waiting.is_empty() {
            return (Vec::new(), None);
        }
        let mut walk = QueueWalk::new(self, &waiting);
        let turn = waiting.iter().find_map(|&index| walk.visit(index));
        let told = walk.reasons.iter().map(|(index, waiting)| (*index, waiting.to_string()));
        (told.filter(|(index, reason)| self.jobs[*index].reason != *reason).collect(), turn)
    }
}

/// A walk along the queue, from the job that has its turn first.
struct QueueWalk<'a> {
    cluster: &'a Cluster,
    pool: IdlePool<'a>,
    /// The jobs that are being prepared for their first generation.
    preparing: Vec<&'a Job>,
    /// The first job that waits.
    first: Option<&'a str>,
    /// The first that waits and is not being prepared.
    ready: Option<&'a str>,
    reasons: Vec<(usize, Waiting<'a>)>,
}

impl<'a> QueueWalk<'a> {
    fn new(cluster: &'a Cluster, waiting: &[usize]) -> QueueWalk<'a> {
        let preparing = waiting.iter().map(|&index| &cluster.jobs[index]).filter(|job| job.prepares_anew());
        QueueWalk {
            cluster,
            pool: IdlePool::new(cluster),
            preparing: preparing.collect(),
            first: None,
            ready: None,
            reasons: Vec::new(),
        }
    }

    /// Looks at a job; keeps workers for it if it waits.
    fn visit(&mut self, index: usize) -> Option<Turn> {
        let job = &self.cluster.jobs[index];
        let outlook = match job.state {
            JobState::Queued => self.queued(index, job),
            JobState::Preparing => self.preparing(job),
            JobState::Gathering => self.gathering(index, job),
            JobState::Running => self.running(index, job),
            JobState::Ended(_) => Outlook::Passes,
        };
        match outlook {
            Outlook::Turn(turn) => return Some(turn),
            Outlook::Passes => return None,
            Outlook::Prepares => {}
            Outlook::Waits => self.ready = self.ready.or(Some(job.id())),
        }
        self.pool.keep(index);
        self.first = self.first.or(Some(job.id()));
        None
    }

    fn wait(&mut self, index: usize, waiting: Waiting<'a>) -> Outlook {
        self.reasons.push((index, waiting));
        Outlook::Waits
    }

    fn queued(&mut self, index: usize, job: &Job) -> Outlook {
        match (self.ready, self.prepared_before(job)) {
            _ if job.recovers() => Outlook::Turn(Turn::Prepare(index)),
            (None, None) => Outlook::Turn(Turn::Prepare(index)),
            (Some(ready), _) => self.wait(index, Waiting::Behind(ready)),
            (None, Some(other)) => self.wait(index, Waiting::ForTokens(other.id())),
        }
    }

    /// A job that has to be prepared before this one is, if there is one.
    fn prepared_before(&self, job: &Job) -> Option<&'a Job> {
        let first = self.preparing.first().copied();
        // A job that may have crashed a coordinator is prepared alone, so that no other job is blamed with it.
        let alone = self.preparing.iter().copied().find(|job| job.tries > 1);
        let full = first.filter(|_| self.preparing.len() >= MAX_PREPARING);
        alone.or(full).or(first.filter(|_| job.tries > 0))
    }

    fn preparing(&self, job: &Job) -> Outlook {
        match job.prepares_anew() {
            true if job.preparing_ms + HOLD_MS <= self.cluster.now_ms => Outlook::Passes,
            true => Outlook::Prepares,
            false => Outlook::Waits,
        }
    }

    fn gathering(&mut self, index: usize, job: &'a Job) -> Outlook {
        let planned = self.cluster.plans();
        if planned == Some(job.id()) {
            return Outlook::Waits;
        }
        match (self.pool.choose(index), planned) {
            (Ok(Placement::Workers(workers, fit)), None) => Outlook::Turn(Turn::Form(index, workers, fit)),
            (Ok(Placement::Unplanned(sizes)), None) => Outlook::Turn(Turn::Look(index, sizes)),
            (Ok(_), Some(other)) => self.wait(index, Waiting::ForPlan(other)),
            (Err(shortage), _) => {
                let since = job.interruption.as_deref();
                self.wait(index, Waiting::ForWorkers { shortage, since, first: self.first })
            }
        }
    }

    /// A job at work may be formed anew for something better. While its ranks stop for that, it waits as others do.
    fn running(&self, index: usize, job: &Job) -> Outlook {
        let run = self.cluster.runs.iter().find(|run| run.generation == job.generation);
        let may = |before: u32| {
            let due = |run: &&GenerationRun| run.improves_ms(before) <= self.cluster.now_ms;
            run.filter(|run| run.directive.stop.is_none() && run.is_taken()).filter(due)
        };
        match may(0).map(|run| self.pool.growth(index, run)) {
            Some(Growth::To(more, fit)) => return Outlook::Turn(Turn::Grow(job.generation, more, fit)),
            Some(Growth::Unplanned(sizes)) if self.cluster.plans().is_none() => {
                return Outlook::Turn(Turn::Look(index, sizes));
            }
            Some(Growth::Unplanned(_) | Growth::None) | None => {}
        }
        let unbalanced = may(job.rebalances).filter(|_| self.cluster.is_unbalanced(index));
        match unbalanced.and_then(|run| self.pool.rebalance(index, run)) {
            Some(rebalance) => Outlook::Turn(Turn::Rebalance(index, rebalance)),
            None if run.is_none_or(|run| run.directive.stop.is_none()) => Outlook::Passes,
            None => Outlook::Waits,
        }
    }
}
