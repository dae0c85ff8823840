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
use super::event::{Effect, Entry, Look};
use super::hall::{Choice, Growth, Hall};
use super::job::Job;
use super::planning::Sizes;
use super::run::Run;
use super::summary::{Ending, JobState};
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
    Look(usize, Sizes),
    /// Its generation, which is smaller than its layout, can be formed anew with so many more workers.
    Grow(Generation, usize, Fit),
    /// Its generation can be formed anew with its work divided otherwise, for this reason.
    Rebalance(usize, String),
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
                Some(Turn::Rebalance(index, reason)) => self.relieve(index, reason, out),
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
                return self.end(&id, Ending::Failed, reason, out);
            }
            job.tries += 1;
            job.reason = "its tokens are being made ready".to_owned();
            out.push(Effect::Record(Entry::Preparing { job: id.clone(), tries: job.tries }));
        }
        job.state = JobState::Preparing;
        job.preparing_ms = now_ms;
        let look = if job.doubts { Look::Whole } else { Look::Manifest };
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
            let relieves =
                run.filter(|_| self.is_unbalanced(index)).map(|run| run.improves_ms(job.rebalances));
            grows.into_iter().chain(relieves)
        });
        let met = self.jobs.iter().filter(|job| job.waits() || job.is_shrunk());
        let met = met.filter_map(|job| job.apart.ends_ms(self.now_ms));
        shrinks.filter_map(|job| job.shrinks_ms()).chain(improves).chain(holds).chain(met)
    }

    /// The first job in the queue that can go on, and why those before it wait.
    fn next_turn(&self) -> (Vec<(usize, String)>, Option<Turn>) {
        let mut reasons = Vec::new();
        let waiting = self.waiting();
        // Most of the time nobody waits, and looking at all workers is not free.
        if waiting.is_empty() {
            return (reasons, None);
        }
        let mut hall = Hall::new(self);
        let preparing = waiting.iter().map(|&index| &self.jobs[index]).filter(|job| job.prepares_anew());
        // A job that may have crashed a coordinator is prepared alone, so that no other job is blamed with it.
        let alone = preparing.clone().find(|job| job.tries > 1);
        let full = preparing.clone().nth(MAX_PREPARING - 1).and(preparing.clone().next());
        let busy_for = |job: &Job| alone.or(full).or(preparing.clone().next().filter(|_| job.tries > 0));
        // The first job that waits, and the first that is not being prepared.
        let (mut first, mut ready): (Option<&str>, Option<&str>) = (None, None);
        for &index in &waiting {
            let job = &self.jobs[index];
            match (job.state, ready, busy_for(job)) {
                (JobState::Queued, _, _) if job.recovers() => return (reasons, Some(Turn::Prepare(index))),
                (JobState::Queued, None, None) => return (reasons, Some(Turn::Prepare(index))),
                (JobState::Queued, Some(ready), _) => reasons.push((index, format!("waits behind {ready}"))),
                (JobState::Queued, None, Some(other)) => {
                    reasons.push((index, format!("waits until the tokens of {} are ready", other.id())));
                }
                (JobState::Running, _, _) => {
                    let run = self.runs.iter().find(|run| run.generation == job.generation);
                    let may = |before: u32| {
                        let due = |run: &&Run| run.improves_ms(before) <= self.now_ms;
                        run.filter(|run| run.directive.stop.is_none() && run.is_taken()).filter(due)
                    };
                    match may(0).map(|run| hall.growth(index, run)) {
                        Some(Growth::To(more, fit)) => {
                            return (reasons, Some(Turn::Grow(job.generation, more, fit)));
                        }
                        Some(Growth::Look(sizes)) if self.plans().is_none() => {
                            return (reasons, Some(Turn::Look(index, sizes)));
                        }
                        Some(Growth::Look(_) | Growth::None) | None => {}
                    }
                    let unbalanced = may(job.rebalances).filter(|_| self.is_unbalanced(index));
                    if let Some(reason) = unbalanced.and_then(|run| hall.rebalance_gain(index, run)) {
                        return (reasons, Some(Turn::Rebalance(index, reason)));
                    }
                    if run.is_none_or(|run| run.directive.stop.is_none()) {
                        continue;
                    }
                }
                (JobState::Gathering, ..) if self.plans() == Some(job.id()) => {}
                (JobState::Gathering, ..) => match (hall.choose(index), self.plans()) {
                    (Choice::Form(workers, fit), None) => {
                        return (reasons, Some(Turn::Form(index, workers, fit)));
                    }
                    (Choice::Look(sizes), None) => return (reasons, Some(Turn::Look(index, sizes))),
                    (Choice::Form(..) | Choice::Look(_), Some(other)) => {
                        reasons.push((index, format!("waits until the work of {other} is divided")));
                    }
                    (Choice::Wait(mut reason), _) => {
                        if let Some(cause) = &job.interruption {
                            reason.push_str(&format!(", since {cause}"));
                        }
                        if let Some(first) = first {
                            reason.push_str(&format!("; {first} waits too and is served first"));
                        }
                        reasons.push((index, reason));
                    }
                },
                (JobState::Preparing, ..) if job.prepares_anew() => {
                    if job.preparing_ms + HOLD_MS <= self.now_ms {
                        continue;
                    }
                    hall.keep(index);
                    first = first.or(Some(job.id()));
                    continue;
                }
                _ => {}
            }
            hall.keep(index);
            first = first.or(Some(job.id()));
            ready = ready.or(Some(job.id()));
        }
        reasons.retain(|(index, reason)| self.jobs[*index].reason != *reason);
        (reasons, None)
    }
}
