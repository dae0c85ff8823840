//! The workers that wait for work, and for whom: a view of the members while one decision is made.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use coxswain_types::ids::WorkerId;
use coxswain_types::status::WorkerInfo;

use super::Cluster;
use super::event::Compute;
use super::planning::Sizes;
use super::regroup::MIN_GAIN;
use super::run::{Run, Seat};
use crate::plan::{Fit, KEEPS_UP, counted, rebalance_gain};

/// What a job that gathers workers can do.
pub(super) enum Choice {
    /// Have these, in this layout.
    Form(Vec<WorkerInfo>, Fit),
    /// Ask for a layout of this size.
    Look(Sizes),
    /// Wait, and for what.
    Wait(String),
}

/// What a run can be that is smaller than its job's layout.
pub(super) enum Growth {
    /// No more than it is.
    None,
    /// As large as this, with so many more workers.
    To(usize, Fit),
    /// What the planner says of this size.
    Look(Sizes),
}

/// Idle workers. Those that a job keeps leave the hall while jobs behind it are looked at.
pub(super) struct Hall<'a> {
    cluster: &'a Cluster,
    /// Who has nothing to do, and the index of the job that keeps it.
    idle: Vec<(&'a WorkerInfo, Option<usize>)>,
    /// Which job each worker belonged to whose job is interrupted.
    had: BTreeMap<&'a WorkerId, usize>,
}

impl<'a> Hall<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Hall<'a> {
        let jobs = cluster.jobs.iter().enumerate().filter(|(_, job)| job.recovers());
        let had = jobs.flat_map(|(index, job)| job.formed.iter().map(move |rank| (&rank.worker, index)));
        let idle = cluster.members.iter().map(|member| &member.status.info);
        let idle = idle.filter(|info| cluster.is_free(info));
        Hall { cluster, idle: idle.map(|info| (info, None)).collect(), had: had.collect() }
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
        let free = self.idle.iter().filter(|(_, keeper)| keeper.is_none());
        free.map(|(info, _)| *info).filter(|info| self.may_have(job, info)).collect()
    }

    /// Keeps for a job that waits what jobs behind it could take.
    pub(super) fn keep(&mut self, job: usize) {
        let kept = |hall: &Hall<'_>, info: &WorkerInfo| hall.may_have(job, info);
        let keep: Vec<_> = self.idle.iter().map(|(info, _)| kept(self, info)).collect();
        for ((_, keeper), keep) in self.idle.iter_mut().zip(keep) {
            if keep && keeper.is_none() {
                *keeper = Some(job);
            }
        }
    }

    /// As many workers as the job's layout needs that compute alike, in the order in which they take ranks,
    /// or why there are none. Those that the job had go first, for they hold what it can go on from, and
    /// those that another job had go last; behind them those that are known to be slow, where the job wants that,
    /// and those that broke. No two are chosen between which the network does not answer.
    pub(super) fn choose(&self, index: usize) -> Choice {
        let job = &self.cluster.jobs[index];
        let spec = &job.submission.spec;
        let world = spec.layout.world() as usize;
        let open = self.open_to(index);
        let slow = job.slow_for_plans();
        let wanted = |info: &WorkerInfo| {
            let distrusted = (job.broke.contains(&info.id), slow.get(&info.id).copied());
            (distrusted, !job.had(&info.id), self.had.contains_key(&info.id))
        };
        let mut alike: BTreeMap<Compute, Vec<&WorkerInfo>> = BTreeMap::new();
        for &info in &open {
            alike.entry(Compute::of(info)).or_default().push(info);
        }
        let now_ms = self.cluster.now_ms;
        let apart = alike.values().filter(|group| group.len() >= world);
        let apart = apart.filter_map(|group| job.apart.why(now_ms, group)).next();
        for group in alike.values_mut() {
            group.sort_by_key(|info| (wanted(info), natural(&info.host), natural(&info.id.0)));
            *group = job.apart.together(now_ms, std::mem::take(group));
        }
        // The largest group; of equal ones the first, since max_by_key would take the last.
        let best = alike.values().rev().max_by_key(|group| group.len());
        let here = best.map_or(0, Vec::len);
        let fit = match here >= world {
            true => Some(Fit::own(spec)),
            false if here > 0 && self.may_shrink(index) => {
                let sizes = Sizes { available: u32::try_from(here).unwrap_or(u32::MAX), least: 0 };
                match job.fits.get(&sizes) {
                    Some(known) => known.clone(),
                    None => return Choice::Look(sizes),
                }
            }
            false => None,
        };
        match (best, fit) {
            (Some(group), Some(fit)) => {
                let mut group = group.clone();
                group.truncate(fit.layout.world() as usize);
                group.sort_by_key(|info| (natural(&info.host), natural(&info.id.0)));
                Choice::Form(group.into_iter().cloned().collect(), fit)
            }
            _ if apart.is_some() => {
                let why = apart.unwrap_or_default();
                Choice::Wait(format!("waiting for {world} workers that reach each other: {why}"))
            }
            _ if open.len() >= world => {
                let groups: Vec<_> =
                    alike.iter().map(|(compute, group)| format!("{} with {compute}", group.len())).collect();
                Choice::Wait(format!(
                    "waiting for {world} workers that compute alike: idle are {}; ranks of one generation must \
                     have the same kind of device and the same libtorch",
                    groups.join("; ")
                ))
            }
            _ => Choice::Wait(self.missing(index, &open, world)),
        }
    }

    /// Whether the job may go on with fewer workers than its own layout needs. Not while one that it had and that
    /// is here leaves its collectives: it will be idle in a moment.
    fn may_shrink(&self, index: usize) -> bool {
        let job = &self.cluster.jobs[index];
        let idle = |worker: &WorkerId| self.idle.iter().any(|(info, _)| info.id == *worker);
        let comes = |worker: &WorkerId| {
            let here = self.cluster.members.get(worker).is_some();
            here && !idle(worker)
                && self.cluster.run_of(worker).is_none()
                && self.cluster.wants_out(worker).is_none()
        };
        let due = job.shrinks_ms().is_some_and(|due_ms| due_ms <= self.cluster.now_ms);
        due && !job.formed.iter().any(|rank| comes(&rank.worker))
    }

    /// The workers that wait and could join the run.
    fn more(&self, index: usize, run: &Run) -> Vec<&'a WorkerInfo> {
        let first = run.seats.first().and_then(|seat| self.cluster.members.get(&seat.info.id));
        let Some(like) = first.map(|member| Compute::of(&member.status.info)) else { return Vec::new() };
        let alike = |info: &&WorkerInfo| Compute::of(info) == like;
        let job = &self.cluster.jobs[index];
        let apart =
            |info: &WorkerInfo, seat: &Seat| job.apart.parts(self.cluster.now_ms, &info.id, &seat.info.id);
        let reached = |info: &&WorkerInfo| !run.seats.iter().any(|seat| apart(info, seat));
        let reached = self.open_to(index).into_iter().filter(alike).filter(reached).collect();
        job.apart.together(self.cluster.now_ms, reached)
    }

    /// How many workers wait that could join the run of a job that shrank, and what it could be with them.
    pub(super) fn growth(&self, index: usize, run: &Run) -> Growth {
        let more = self.more(index, run).len();
        if more == 0 || !self.cluster.jobs[index].is_shrunk() {
            return Growth::None;
        }
        let now = run.seats.len();
        let size = |workers: usize| u32::try_from(workers).unwrap_or(u32::MAX);
        let sizes = Sizes { available: size(now + more), least: size(now) };
        match self.cluster.jobs[index].fits.get(&sizes) {
            None => Growth::Look(sizes),
            Some(fit) => fit.clone().map_or(Growth::None, |fit| Growth::To(more, fit)),
        }
    }

    /// Why the run would be faster if work were divided by how slow its workers are now, if it would: a straggler
    /// gets less, or a worker that waits takes its place, or one that keeps up again gets its share back.
    pub(super) fn rebalance_gain(&self, index: usize, run: &Run) -> Option<String> {
        let job = &self.cluster.jobs[index];
        let slow = job.slow_for_plans();
        let before: Vec<_> = run.seats.iter().map(|seat| seat.slow_percent).collect();
        let slow_of = |seat: &Seat| slow.get(&seat.info.id).copied().unwrap_or(KEEPS_UP);
        let here: Vec<_> = run.seats.iter().map(slow_of).collect();
        let mut by_slowness: Vec<_> = (0..here.len()).filter(|&rank| here[rank] > KEEPS_UP).collect();
        by_slowness.sort_by_key(|&rank| Reverse(here[rank]));
        // Those that `choose` takes first.
        let trusted = |info: &&WorkerInfo| !slow.contains_key(&info.id) && !job.broke.contains(&info.id);
        let spares = self.more(index, run).into_iter().filter(trusted);
        let mut then = here.clone();
        let replaced: Vec<_> = by_slowness.iter().zip(spares).map(|(&rank, spare)| (rank, spare)).collect();
        replaced.iter().for_each(|(rank, _)| then[*rank] = KEEPS_UP);
        let gain = rebalance_gain(&job.spec_at_work(), &before, &here, &then);
        if gain < MIN_GAIN {
            return None;
        }
        let of_rank = |rank: usize| {
            let spare = replaced.iter().find(|(of, _)| *of == rank);
            match (spare, here[rank] > KEEPS_UP) {
                (Some((_, spare)), _) => {
                    Some(format!("{}, and {} waits and can take its place", run.told_of(rank), spare.id))
                }
                (None, true) => Some(run.told_of(rank)),
                (None, false) if before[rank] > KEEPS_UP => Some(run.told_of(rank)),
                (None, false) => None,
            }
        };
        let why: Vec<_> = (0..here.len()).filter_map(of_rank).collect();
        Some(format!("{}; the slowest rank would be done {gain:.1} times as fast", why.join(", ")))
    }

    /// How many are missing, and where those are that the job cannot have.
    fn missing(&self, job: usize, open: &[&WorkerInfo], world: usize) -> String {
        let mut elsewhere: BTreeMap<String, usize> = BTreeMap::new();
        let here: BTreeSet<_> = open.iter().map(|info| &info.id).collect();
        for info in self.cluster.members.iter().map(|member| &member.status.info) {
            if !here.contains(&info.id) {
                *elsewhere.entry(self.whereabouts(job, info)).or_default() += 1;
            }
        }
        let elsewhere: Vec<_> = elsewhere.iter().map(|(place, count)| format!("{count} {place}")).collect();
        let workers = counted(world as u64, "worker", "workers");
        let mut missing = format!("waiting for {} of {workers}", world - open.len());
        let others =
            self.idle.iter().any(|(info, _)| !self.cluster.jobs[job].computes_with(&Compute::of(info)));
        if let Some(needs) = self.cluster.jobs[job].needs_text().filter(|_| others) {
            missing.push_str(&needs);
        }
        if elsewhere.is_empty() { missing } else { format!("{missing} (here: {})", elsewhere.join(", ")) }
    }

    fn whereabouts(&self, job: usize, info: &WorkerInfo) -> String {
        let name = |index: usize| self.cluster.jobs[index].id();
        if let Some(run) = self.cluster.run_of(&info.id) {
            return format!("at work for {}", run.job);
        }
        if !info.serves(name(job)) {
            return "bound to other jobs".to_owned();
        }
        let compute = Compute::of(info);
        if self.idle.iter().any(|(idle, _)| idle.id == info.id)
            && !self.cluster.jobs[job].computes_with(&compute)
        {
            return format!("idle with {compute}");
        }
        match self.idle.iter().find(|(idle, _)| idle.id == info.id) {
            Some((_, Some(keeper))) => format!("kept for {}", name(*keeper)),
            Some(_) => {
                let keeper = self.had.get(&info.id).copied().unwrap_or(job);
                format!("kept for {}", name(keeper))
            }
            None if self.cluster.wants_out(&info.id).is_some() => "leaving".to_owned(),
            None if info.runtime.is_empty() => "with an unknown libtorch".to_owned(),
            None => "not idle yet".to_owned(),
        }
    }
}

/// A key under which `worker-10` comes after `worker-2`.
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
    use super::natural;

    #[test]
    fn numbers_in_names_count_as_numbers() {
        let mut names = ["worker-10", "worker-2", "w", "worker-2b", "alpha1", ""];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["", "alpha1", "w", "worker-2", "worker-2b", "worker-10"]);
    }
}
