//! Which workers a job can have. Idle workers are candidates, in the order in which the job wants them; the answer is a
//! placement, or a shortage that says what is missing. A run that is at work may grow, or be faster if its work were
//! divided among others. All answers are values: `explain` has the words for them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use coxswain_types::ids::WorkerId;
use coxswain_types::status::WorkerInfo;

use super::Cluster;
use super::apart::Parted;
use super::entry::Compute;
use super::job::{Job, Needs};
use super::question::RankCounts;
use super::run::{GenerationRun, RankSeat};
use crate::plan::{Fit, KEEPS_UP, rebalance_gain};

/// How many times as fast a step's computing must become for work to be divided anew: a regrouping costs about a
/// second of every rank, and busy times vary by some percent.
const MIN_GAIN: f64 = 1.2;

/// What a job that gathers workers can have.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Placement {
    /// These workers, in this layout.
    Workers(Vec<WorkerInfo>, Fit),
    /// As many as are here, in a layout that the planner has yet to find.
    Unplanned(RankCounts),
}

/// Why a job cannot have as many workers as its layout needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shortage<'a> {
    /// There are enough, but the network between some does not answer.
    Parted {
        /// How many it needs.
        world: usize,
        /// Two that do not reach each other.
        parted: Parted<'a>,
    },
    /// There are enough, but they would give different bits.
    Mixed {
        /// How many it needs.
        world: usize,
        /// How many compute with what.
        groups: Vec<(usize, Compute)>,
    },
    /// There are too few.
    Missing {
        /// How many it needs.
        world: usize,
        /// How many of them it can have.
        open: usize,
        /// What it needs of them, where idle workers differ in that.
        needs: Option<Needs<'a>>,
        /// Where the others are, and how many.
        elsewhere: BTreeMap<Whereabouts<'a>, usize>,
    },
}

/// Where a worker is that a job cannot have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Whereabouts<'a> {
    /// It works for this job.
    AtWork(&'a str),
    /// It serves other jobs only.
    Bound,
    /// It is idle and would give other bits.
    Idle(Compute),
    /// It is idle and kept for this job.
    KeptFor(&'a str),
    /// It is about to leave.
    Leaving,
    /// It does not say which libtorch it has.
    Unknown,
    /// It still ends what it did.
    Busy,
}

/// What a run can be that is smaller than its job's layout.
pub(super) enum Growth {
    /// No more than it is.
    None,
    /// As large as this, with so many more workers.
    To(usize, Fit),
    /// What the planner says of this size.
    Unplanned(RankCounts),
}

/// A division of a run's work that is worth a regrouping.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rebalance {
    /// How many times as fast the slowest rank would be done.
    pub(super) gain: f64,
    /// The ranks that are slow now or were when work was divided.
    pub(super) ranks: Vec<Eased>,
}

/// A rank that another division of work spares, or gives its share back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Eased {
    /// Which rank.
    pub(super) rank: usize,
    /// The worker that can take its place.
    pub(super) spare: Option<WorkerId>,
}

/// How much a job wants a worker that it may have: the least the most. One whose device broke is the last choice; one
/// that keeps up goes before a slow one, as far as the job minds; then those that hold what the job can go on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Preference {
    trust: Trust,
    /// In percent of its peers' time; `None` where it keeps up.
    slow_percent: Option<u32>,
    had_by: HadBy,
}

/// Whether a worker's device broke for the job, and has not worked for it since.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Trust {
    Sound,
    Broke,
}

/// Which interrupted job a worker belonged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum HadBy {
    This,
    None,
    Other,
}

/// The idle workers, while one decision is made. Those that a job keeps are not open to jobs behind it.
pub(super) struct IdlePool<'a> {
    cluster: &'a Cluster,
    /// Who has nothing to do, and the index of the job that keeps it.
    idle: BTreeMap<&'a WorkerId, (&'a WorkerInfo, Option<usize>)>,
    /// Which job each worker belonged to whose job is interrupted.
    had: BTreeMap<&'a WorkerId, usize>,
}

impl<'a> IdlePool<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> IdlePool<'a> {
        let jobs = cluster.jobs.iter().enumerate().filter(|(_, job)| job.recovers());
        let had = jobs.flat_map(|(index, job)| job.formed.iter().map(move |rank| (&rank.worker, index)));
        let idle = cluster.members.iter().map(|member| &member.status.info);
        let idle = idle.filter(|info| cluster.is_free(info)).map(|info| (&info.id, (info, None)));
        IdlePool { cluster, idle: idle.collect(), had: had.collect() }
    }

    /// Keeps for a job that waits what jobs behind it could take.
    pub(super) fn keep(&mut self, job: usize) {
        let keep: Vec<_> = self.idle.values().map(|(info, _)| self.may_have(job, info)).collect();
        for ((_, keeper), keep) in self.idle.values_mut().zip(keep) {
            if keep && keeper.is_none() {
                *keeper = Some(job);
            }
        }
    }

    /// As many workers as the job's layout needs that compute alike and reach each other: of those that it may have,
    /// the first candidates, in the order in which they take ranks.
    pub(super) fn choose(&self, index: usize) -> Result<Placement, Shortage<'a>> {
        let job = &self.cluster.jobs[index];
        let spec = &job.submission.spec;
        let world = spec.layout.world() as usize;
        let open = self.open_to(index);
        let alike = self.alike(index, &open);
        let now_ms = self.cluster.now_ms;
        let mut enough = alike.values().filter(|group| group.len() >= world);
        let parted = enough.find_map(|group| job.apart.first_pair(now_ms, group));
        let alike: BTreeMap<_, _> =
            alike.into_iter().map(|(compute, group)| (compute, job.apart.together(now_ms, group))).collect();
        // The largest group; of equal ones the first, since max_by_key would take the last.
        let best = alike.values().rev().max_by_key(|group| group.len());
        let fit = match best {
            Some(group) if group.len() >= world => Some(Fit::own(spec)),
            Some(group) if !group.is_empty() && self.may_shrink(index) => {
                let sizes = RankCounts { at_most: size(group.len()), above: 0 };
                match job.fits.get(&sizes) {
                    Some(known) => known.clone(),
                    None => return Ok(Placement::Unplanned(sizes)),
                }
            }
            _ => None,
        };
        if let (Some(group), Some(fit)) = (best, fit) {
            return Ok(Placement::Workers(first_of(group, fit.layout.world() as usize), fit));
        }
        Err(match parted {
            Some(parted) => Shortage::Parted { world, parted },
            None if open.len() >= world => {
                let groups = alike.into_iter().map(|(compute, group)| (group.len(), compute)).collect();
                Shortage::Mixed { world, groups }
            }
            None => self.missing(index, &open, world),
        })
    }

    /// What the run of a job that shrank could be with the workers that wait.
    pub(super) fn growth(&self, index: usize, run: &GenerationRun) -> Growth {
        let more = self.more(index, run).len();
        if more == 0 || !self.cluster.jobs[index].is_shrunk() {
            return Growth::None;
        }
        let now = run.seats.len();
        let sizes = RankCounts { at_most: size(now + more), above: size(now) };
        match self.cluster.jobs[index].fits.get(&sizes) {
            None => Growth::Unplanned(sizes),
            Some(fit) => fit.clone().map_or(Growth::None, |fit| Growth::To(more, fit)),
        }
    }

    /// How work would be divided by how slow workers are now, if that is worth it: a straggler gets less, or a worker
    /// that waits takes its place, or one that keeps up again gets its share back.
    pub(super) fn rebalance(&self, index: usize, run: &GenerationRun) -> Option<Rebalance> {
        let job = &self.cluster.jobs[index];
        let slow = job.slow_for_plans();
        let before: Vec<_> = run.seats.iter().map(|seat| seat.slow_percent).collect();
        let slow_of = |seat: &RankSeat| slow.get(&seat.info.id).copied().unwrap_or(KEEPS_UP);
        let here: Vec<_> = run.seats.iter().map(slow_of).collect();
        let mut by_slowness: Vec<_> = (0..here.len()).filter(|&rank| here[rank] > KEEPS_UP).collect();
        by_slowness.sort_by_key(|&rank| Reverse(here[rank]));
        // Those that `choose` takes first.
        let trusted = |info: &&WorkerInfo| !slow.contains_key(&info.id) && !job.broke.contains(&info.id);
        let spares = self.more(index, run).into_iter().filter(trusted).map(|info| info.id.clone());
        let mut spares: BTreeMap<_, _> = by_slowness.into_iter().zip(spares).collect();
        let mut then = here.clone();
        spares.keys().for_each(|&rank| then[rank] = KEEPS_UP);
        let gain = rebalance_gain(&job.spec_at_work(), &before, &here, &then);
        let changes = |rank: &usize| here[*rank] > KEEPS_UP || before[*rank] > KEEPS_UP;
        let ranks = (0..here.len()).filter(changes);
        let ranks = ranks.map(|rank| Eased { rank, spare: spares.remove(&rank) }).collect();
        (gain >= MIN_GAIN).then_some(Rebalance { gain, ranks })
    }

    /// Whether the worker serves the job, and gives its bits.
    fn suits(&self, job: usize, worker: &WorkerInfo) -> bool {
        let job = &self.cluster.jobs[job];
        worker.serves(job.id()) && job.computes_with(&Compute::of(worker))
    }

    /// Whether the job may have this worker: the worker suits it, and an interrupted one of at least its own
    /// priority goes before.
    fn may_have(&self, job: usize, worker: &WorkerInfo) -> bool {
        let priority = |index: usize| self.cluster.jobs[index].priority();
        let yields =
            |other: usize| other == job || priority(other) < priority(job) || !self.suits(other, worker);
        self.suits(job, worker) && self.had.get(&worker.id).is_none_or(|&other| yields(other))
    }

    /// The idle workers that the job may have.
    fn open_to(&self, job: usize) -> Vec<&'a WorkerInfo> {
        let free = self.idle.values().filter(|(_, keeper)| keeper.is_none());
        free.map(|(info, _)| *info).filter(|info| self.may_have(job, info)).collect()
    }

    /// Those workers by what they compute with, the most wanted first.
    fn alike(&self, index: usize, open: &[&'a WorkerInfo]) -> BTreeMap<Compute, Vec<&'a WorkerInfo>> {
        let job = &self.cluster.jobs[index];
        let slow = job.slow_for_plans();
        let mut alike: BTreeMap<Compute, Vec<&WorkerInfo>> = BTreeMap::new();
        for &info in open {
            let mut compute = Compute::of(info);
            if planted!(RuntimesMixed) {
                compute.runtime.clear();
            }
            alike.entry(compute).or_default().push(info);
        }
        for group in alike.values_mut() {
            group.sort_by_cached_key(|info| (self.preference(job, &slow, info), by_name(info)));
        }
        alike
    }

    fn preference(&self, job: &Job, slow: &BTreeMap<WorkerId, u32>, info: &WorkerInfo) -> Preference {
        Preference {
            trust: if job.broke.contains(&info.id) { Trust::Broke } else { Trust::Sound },
            slow_percent: slow.get(&info.id).copied(),
            had_by: match self.had.contains_key(&info.id) {
                _ if job.had(&info.id) => HadBy::This,
                false => HadBy::None,
                true => HadBy::Other,
            },
        }
    }

    /// Whether the job may go on with fewer workers than its own layout needs. Not while one that it had and that
    /// is here leaves its collectives: it will be idle in a moment.
    fn may_shrink(&self, index: usize) -> bool {
        let job = &self.cluster.jobs[index];
        let comes = |worker: &WorkerId| {
            let here = self.cluster.members.get(worker).is_some();
            here && !self.idle.contains_key(worker)
                && self.cluster.run_of(worker).is_none()
                && self.cluster.wants_out(worker).is_none()
        };
        let due = job.shrinks_ms().is_some_and(|due_ms| due_ms <= self.cluster.now_ms);
        due && !job.formed.iter().any(|rank| comes(&rank.worker))
    }

    /// The workers that wait and could join the run.
    fn more(&self, index: usize, run: &GenerationRun) -> Vec<&'a WorkerInfo> {
        let first = run.seats.first().and_then(|seat| self.cluster.members.get(&seat.info.id));
        let Some(like) = first.map(|member| Compute::of(&member.status.info)) else { return Vec::new() };
        let alike = |info: &&WorkerInfo| Compute::of(info) == like;
        let job = &self.cluster.jobs[index];
        let apart = |info: &WorkerInfo, seat: &RankSeat| {
            job.apart.parts(self.cluster.now_ms, &info.id, &seat.info.id)
        };
        let reached = |info: &&WorkerInfo| !run.seats.iter().any(|seat| apart(info, seat));
        let reached = self.open_to(index).into_iter().filter(alike).filter(reached).collect();
        job.apart.together(self.cluster.now_ms, reached)
    }

    /// How many are missing, and where those are that the job cannot have.
    fn missing(&self, index: usize, open: &[&WorkerInfo], world: usize) -> Shortage<'a> {
        let job = &self.cluster.jobs[index];
        let here: BTreeSet<_> = open.iter().map(|info| &info.id).collect();
        let mut elsewhere = BTreeMap::new();
        for info in self.cluster.members.iter().map(|member| &member.status.info) {
            if !here.contains(&info.id) {
                *elsewhere.entry(self.whereabouts(index, info)).or_default() += 1;
            }
        }
        let others = self.idle.values().any(|(info, _)| !job.computes_with(&Compute::of(info)));
        Shortage::Missing { world, open: open.len(), needs: job.needs().filter(|_| others), elsewhere }
    }

    fn whereabouts(&self, job: usize, info: &WorkerInfo) -> Whereabouts<'a> {
        let (cluster, compute) = (self.cluster, Compute::of(info));
        if let Some(run) = cluster.run_of(&info.id) {
            return Whereabouts::AtWork(&run.job);
        }
        if !info.serves(cluster.jobs[job].id()) {
            return Whereabouts::Bound;
        }
        match self.idle.get(&info.id).map(|(_, keeper)| *keeper) {
            Some(_) if !cluster.jobs[job].computes_with(&compute) => Whereabouts::Idle(compute),
            Some(keeper) => {
                let had = || self.had.get(&info.id).copied();
                Whereabouts::KeptFor(cluster.jobs[keeper.or_else(had).unwrap_or(job)].id())
            }
            None if cluster.wants_out(&info.id).is_some() => Whereabouts::Leaving,
            None if info.runtime.is_empty() => Whereabouts::Unknown,
            None => Whereabouts::Busy,
        }
    }
}

/// The first `count` of a group, in the order in which they take ranks.
fn first_of(group: &[&WorkerInfo], count: usize) -> Vec<WorkerInfo> {
    let mut first: Vec<_> = group.iter().copied().take(count).cloned().collect();
    first.sort_by_cached_key(by_name);
    first
}

fn size(workers: usize) -> u32 {
    u32::try_from(workers).unwrap_or(u32::MAX)
}

/// A key under which workers of one machine stand together, and `worker-10` comes after `worker-2`.
fn by_name(info: &WorkerInfo) -> [Vec<(String, u64)>; 2] {
    [natural(&info.host), natural(&info.id.0)]
}

fn natural(text: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(digits);
        let end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        let (number, tail) = tail.split_at(end);
        parts.push((word.to_owned(), number.parse().unwrap_or(u64::MAX)));
        rest = tail;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let mut names = ["worker-10", "worker-2", "w", "worker-2b", "alpha1", ""];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["", "alpha1", "w", "worker-2", "worker-2b", "worker-10"]);
    }

    #[test]
    fn a_job_wants_sound_workers_then_quick_ones_then_its_own() {
        let ordered = [
            (Trust::Sound, None, HadBy::This),
            (Trust::Sound, None, HadBy::None),
            (Trust::Sound, None, HadBy::Other),
            (Trust::Sound, Some(150), HadBy::This),
            (Trust::Sound, Some(200), HadBy::This),
            (Trust::Sound, Some(200), HadBy::Other),
            (Trust::Broke, None, HadBy::This),
            (Trust::Broke, Some(150), HadBy::This),
        ];
        let ordered = ordered.map(|(trust, slow_percent, had_by)| Preference { trust, slow_percent, had_by });
        assert!(ordered.is_sorted(), "{ordered:?}");
    }
}
