//! What must be left: a journal that gives the state again, and every promise kept.

use coxswain_core::cluster::{Cluster, Entry, Event, JobEnding, JobState};
use coxswain_types::ids::{Step, WorkerId};
use coxswain_types::status::DesiredState;

use crate::coordinator::at_work;
use crate::truth;
use crate::world::World;

impl World {
    /// What a starting coordinator finds is what was synced, and at most one entry whose sync was not seen.
    pub(crate) fn judge_found(&mut self, entries: &[Entry]) {
        match entries.len().checked_sub(self.judge.entries) {
            Some(0) => {}
            Some(1) => {
                if let Some(entry) = entries.last() {
                    self.judge_recorded(&entry.clone());
                }
            }
            _ => {
                let (found, synced) = (entries.len(), self.judge.entries);
                self.broken("S6", format!("{synced} entries were synced and {found} are there"));
            }
        }
    }

    /// The journal from its first byte gives what lives: every job with its end, every generation at work with
    /// its ranks and its open checkpoint, the next job's id. Not in it are what workers say again (where they
    /// are, how far) and what is found again (prepared tokens, assignments in full).
    pub(crate) fn judge_replay(&mut self) {
        let entries = match self.disk.read() {
            Ok(entries) => entries,
            Err(why) => return self.broken("replay", why),
        };
        let (again, live) = (Cluster::replay(entries), &self.coordinator.cluster);
        let mut faults = Vec::new();
        if at_work(&again) != at_work(live) {
            faults.push(format!("at work are {:?}, not {:?}", at_work(&again), at_work(live)));
        }
        let next = |cluster: &Cluster| cluster.next_job("x", "/nowhere").ok();
        if next(&again) != next(live) {
            faults.push(format!("the next job is {:?}, not {:?}", next(&again), next(live)));
        }
        let durable = |cluster: &Cluster| {
            let jobs = cluster.jobs().into_iter().map(|job| {
                let over = job.state.is_over().then(|| (job.state, job.reason.clone()));
                let running = job.state == JobState::Running;
                let at_work = (running, job.cancelling);
                (job.job, job.name, job.directory, job.steps, job.workers, job.generation, over, at_work)
            });
            jobs.collect::<Vec<_>>()
        };
        if durable(&again) != durable(live) {
            faults.push(format!("jobs are {:?}, not {:?}", durable(&again), durable(live)));
        }
        for slot in 0..self.slots.len() {
            let worker = WorkerId(format!("w{slot}"));
            // Documents and members are not in the journal, revisions of idle workers begin anew, reports are
            // told again.
            let durable = |cluster: &Cluster| DesiredState {
                assignment: None,
                revision: 0,
                leave: None,
                acknowledged: Step(0),
                ..cluster.desired(&worker)
            };
            if durable(&again) != durable(live) {
                faults.push(format!("{worker} is asked {:?}, not {:?}", durable(&again), durable(live)));
            }
        }
        if !faults.is_empty() {
            self.broken("replay", faults.join("; "));
        }
    }

    /// A user was told that a job is accepted.
    pub(crate) fn judge_accepted(&mut self, job: &str) {
        self.judge.accepted.push(job.to_owned());
        if !self.judge.jobs.contains_key(job) {
            self.broken("S6", format!("{job} was accepted and is not on disk"));
        }
    }

    /// A user was told that a worker is drained.
    pub(crate) fn judge_drain(&mut self, worker: &WorkerId) {
        let member = self.judge.members.get(worker).copied();
        if member.is_some() && self.judge.drained.get(worker).copied() != member {
            self.broken("S6", format!("{worker} was drained, and that is not on disk"));
        }
    }

    /// The process that was drained and is still here long after.
    pub(crate) fn judge_drained(&mut self) {
        let stays = self.processes.iter().find(|process| {
            let info = &process.status.info;
            process.alive && self.judge.drained.get(&info.id) == Some(&info.incarnation)
        });
        if let Some(name) = stays.map(|process| process.status.info.id.clone()) {
            self.broken("L5", format!("{name} was drained and does not leave"));
        }
    }

    /// A user was told that a job is cancelled.
    pub(crate) fn judge_cancel(&mut self, job: &str) {
        if self.judge.jobs.get(job).is_some_and(|record| record.ended.is_none() && !record.cancelling) {
            self.broken("S6", format!("{job} was cancelled and goes on"));
        }
    }

    /// Every promise that was ever made is kept.
    pub(crate) fn judge_promises(&mut self) {
        let accepted = self.judge.accepted.clone();
        if let Some(job) = accepted.iter().find(|job| !self.judge.jobs.contains_key(*job)) {
            self.broken("S6", format!("{job} was accepted and is lost"));
        }
        let done: Vec<_> = self
            .judge
            .jobs
            .iter()
            .filter(|(_, record)| record.ended == Some(JobEnding::Done))
            .map(|(job, record)| (job.clone(), record.directory.clone(), record.steps))
            .collect();
        for (job, directory, steps) in done {
            let truth = self.truth(&directory, steps);
            let folder = self.folders.entry(directory.clone()).or_default().clone();
            if folder.read(Step(steps), None) != Ok(truth) {
                self.broken("S5", format!("{job} is done, and its last checkpoint does not hold the truth"));
            }
            for step in 1..=steps {
                let (loss, norm) = truth::measured(self.truth(&directory, step));
                if folder.metrics.get(&step) != Some(&(loss.to_bits(), norm.to_bits())) {
                    self.broken("S4", format!("{job} is done, and step {step} was not told"));
                }
            }
            self.judge_folder(&directory);
        }
        self.judge_replay();
        self.coordinator
            .cluster
            .handle(self.coordinator.now_ms(), Event::Dismissed { reason: "enough".into() });
        for slot in 0..self.slots.len() {
            let worker = WorkerId(format!("w{slot}"));
            if self.coordinator.cluster.desired(&worker).leave.is_none() {
                self.broken("L3", format!("{worker} is not sent away by a coordinator that ends"));
            }
        }
    }
}
