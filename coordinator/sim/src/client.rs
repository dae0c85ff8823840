//! Users: they submit jobs, again where one writes to the same folder, and cancel some. They drain
//! workers.

use std::path::Path;

use coxswain_core::cluster::{CancelWhen, Event, Submission};
use coxswain_core::spec::{self, JobText};

use crate::faults::FaultFamily;
use crate::swarm::JobPlan;
use crate::truth::Lineage;
use crate::world::{SECOND_US, SimEvent, World};

/// Between two tries of a user.
const AGAIN_US: u64 = 10 * SECOND_US;

impl World {
    /// Takes a job into what may be submitted; its number.
    pub(crate) fn add_job(&mut self, plan: JobPlan) -> usize {
        let text = JobText { source: "job.yaml", text: &plan.text, sets: &[], base: Path::new("/") };
        match spec::parse(&text) {
            Ok(spec) => self.specs.push(spec),
            // The simulation writes the job files, so this is its own fault.
            Err(error) => self.broken("job file", format!("{error}\n{}", plan.text)),
        }
        let truth = Lineage::new(&plan.directory, plan.micro_batches);
        self.truths.entry(plan.directory.clone()).or_insert(truth);
        self.jobs.push(plan);
        self.jobs.len() - 1
    }

    /// A user submits a job, and tries again while it is not taken.
    pub(crate) fn submit(&mut self, job: usize) {
        let (Some(plan), Some(spec)) = (self.jobs.get(job), self.specs.get(job)) else { return };
        let (directory, spec) = (plan.directory.clone(), spec.clone());
        if !self.coordinator.serves(self.now_us) {
            return self.after(SECOND_US, SimEvent::User { job });
        }
        let Ok(id) = self.coordinator.cluster.next_job(&spec.name, &directory) else {
            return self.after(AGAIN_US, SimEvent::User { job });
        };
        let life = self.coordinator.life;
        self.tell(|| format!("a user submits {id}, which writes to {directory}"));
        let submission = Submission { job: id.clone(), spec, directory, chosen: None };
        self.handle(Event::Submitted(Box::new(submission)));
        match self.coordinator.up && self.coordinator.life == life {
            true => self.judge_accepted(&id),
            // The answer never came: a user looks whether the job is there.
            false => self.after(AGAIN_US, SimEvent::User { job }),
        }
    }

    /// A user cancels a job that is not over.
    pub(crate) fn cancel(&mut self, number: u64) {
        if !self.may(FaultFamily::Cancel) {
            return;
        }
        let again_us = SECOND_US * self.chance.clients.between(20, 300);
        self.after(again_us, SimEvent::Cancel { number: number + 1 });
        if !self.coordinator.serves(self.now_us) {
            return;
        }
        let jobs = self.coordinator.cluster.jobs();
        let open: Vec<_> = jobs.into_iter().filter(|job| !job.state.is_over()).map(|job| job.job).collect();
        if open.is_empty() {
            return;
        }
        let job = open[self.chance.clients.below(open.len() as u64) as usize].clone();
        let life = self.coordinator.life;
        self.counts.count(FaultFamily::Cancel);
        self.tell(|| format!("a user cancels {job}"));
        self.judge.cancelled(&job);
        let when = if number.is_multiple_of(3) { CancelWhen::Now } else { CancelWhen::AfterStep };
        let reason = "a user wanted it no more".to_owned();
        self.handle(Event::Cancelled { job: job.clone(), reason, when });
        if self.coordinator.up && self.coordinator.life == life {
            self.judge_cancel(&job);
        }
    }

    /// A user drains a worker; `false` without an answer.
    pub(crate) fn drain(&mut self, process: usize) -> bool {
        if !self.coordinator.serves(self.now_us) {
            return false;
        }
        let name = self.name(process);
        self.tell(|| format!("a user drains worker {name}"));
        let worker = self.processes[process].status.info.id.clone();
        let life = self.coordinator.life;
        self.handle(Event::Drain { worker: worker.clone(), reason: "its machine is needed".to_owned() });
        if self.coordinator.up && self.coordinator.life == life {
            self.judge_drain(&worker);
        }
        true
    }
}
