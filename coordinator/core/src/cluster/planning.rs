//! A generation's plan, from the question to the answer. The cluster asks for one plan at a time; the shell makes it
//! in a thread of its own, and meanwhile every other event is handled. The answer counts if the workers that it
//! names are still free.

use std::collections::BTreeMap;

use coxswain_types::assignment::{PreparedData, Resume};
use coxswain_types::ids::{Generation, WorkerId};
use coxswain_types::job::JobSpec;
use coxswain_types::status::{Phase, WorkerInfo};

use super::Cluster;
use super::event::Effect;
use super::job::Job;
use super::summary::{Ending, JobState};
use crate::plan::{Fit, KEEPS_UP, PlanRequest, encode, plan, threads_for};

/// The question: all that a plan is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Planning {
    /// Tells this question from others; the answer names it.
    pub ticket: u64,
    /// The job's id.
    pub job: String,
    /// Which formation it would be.
    pub(super) generation: Generation,
    /// The workers, which are as many as the layout of `fit` needs.
    pub(super) workers: Vec<WorkerInfo>,
    /// The layout.
    pub(super) fit: Fit,
    /// Threads of each rank's libtorch.
    pub(super) threads: u32,
    /// Where the number of threads comes from.
    pub(super) threads_from: &'static str,
    /// The job in that layout.
    spec: JobSpec,
    /// The run's folder.
    directory: String,
    data: PreparedData,
    resume: Option<Resume>,
    /// The workers of the generation before, by rank.
    before: Vec<WorkerId>,
    /// How slow workers are known to be, in percent of their peers' time.
    slow_percent: BTreeMap<WorkerId, u32>,
}

/// The answer: who does what.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// By rank.
    pub(super) ranks: Vec<PlannedRank>,
}

/// A place in a plan.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PlannedRank {
    pub(super) worker: WorkerId,
    /// The place along the pipeline axis.
    pub(super) stage: u32,
    /// How slow the worker was taken to be, in percent of its peers' time.
    pub(super) slow_percent: u32,
    /// The assignment, as JSON.
    pub(super) json: String,
    /// Its digest.
    pub(super) digest: String,
}

impl Planning {
    /// Makes the plan.
    ///
    /// # Errors
    /// Why the job cannot run in this layout, in words.
    pub fn plan(&self) -> Result<Planned, String> {
        let nobody = BTreeMap::new();
        // A budget of memory may leave those who keep up no room for more.
        self.plan_for(&self.slow_percent).or_else(|_| self.plan_for(&nobody))
    }

    fn plan_for(&self, slow_percent: &BTreeMap<WorkerId, u32>) -> Result<Planned, String> {
        let planned = plan(&PlanRequest {
            job: self.job.clone(),
            generation: self.generation,
            spec: &self.spec,
            workers: &self.workers,
            directory: &self.directory,
            data: &self.data,
            resume: self.resume.clone(),
            before: &self.before,
            slow_percent,
            threads: self.threads,
        })
        .map_err(|error| error.to_string())?;
        let ranks = planned.assignments.into_iter().map(|assignment| {
            let (json, digest) = encode(&assignment);
            let slow_percent = slow_percent.get(&assignment.worker).copied().unwrap_or(KEEPS_UP);
            PlannedRank {
                stage: assignment.pipeline_index,
                worker: assignment.worker,
                slow_percent,
                json,
                digest,
            }
        });
        Ok(Planned { ranks: ranks.collect() })
    }
}

impl Cluster {
    /// Asks for a plan of the job on these workers.
    pub(super) fn ask_for_plan(
        &mut self,
        index: usize,
        workers: Vec<WorkerInfo>,
        fit: Fit,
        out: &mut Vec<Effect>,
    ) {
        let (ticket, generation) = (self.tickets + 1, Generation(self.generation.0 + 1));
        let job = &mut self.jobs[index];
        match question(job, ticket, generation, workers, fit) {
            Ok(planning) => {
                job.reason = format!("its work is divided among {}", people(planning.workers.len()));
                self.tickets = ticket;
                self.planning = Some(planning.clone());
                out.push(Effect::Plan(Box::new(planning)));
            }
            Err(reason) => {
                let id = job.id().to_owned();
                self.end(&id, Ending::Failed, reason, out);
            }
        }
    }

    /// The answer to the newest question: the generation is formed; a job that cannot be planned ends. Where a worker
    /// is free no more, or the job is over, the queue goes on as if nothing had been asked.
    pub(super) fn planned(&mut self, ticket: u64, result: Result<Planned, String>, out: &mut Vec<Effect>) {
        let Some(planning) = self.planning.take_if(|planning| planning.ticket == ticket) else { return };
        let gathers = |job: &Job| job.id() == planning.job && job.state == JobState::Gathering;
        let Some(index) = self.jobs.iter().position(gathers) else { return };
        match result {
            Err(reason) => self.end(&planning.job, Ending::Failed, reason, out),
            Ok(planned) if planning.workers.iter().all(|worker| self.is_free(worker)) => {
                self.form(index, &planning, planned, out);
            }
            Ok(_) => {}
        }
    }

    /// The job whose plan is being made.
    pub(super) fn plans(&self) -> Option<&str> {
        self.planning.as_ref().map(|planning| planning.job.as_str())
    }

    /// Whether the worker, as it is known here, can be given work.
    pub(super) fn is_free(&self, worker: &WorkerInfo) -> bool {
        let here = self.members.get(&worker.id).map(|member| &member.status);
        here.is_some_and(|status| status.phase == Phase::Idle && status.info == *worker)
            && !worker.runtime.is_empty()
            && self.run_of(&worker.id).is_none()
            && self.wants_out(&worker.id).is_none()
    }
}

/// What the plan is made from. Threads are those of the job's generation before, since another number gives other bits.
fn question(
    job: &Job,
    ticket: u64,
    generation: Generation,
    workers: Vec<WorkerInfo>,
    fit: Fit,
) -> Result<Planning, String> {
    let submission = &job.submission;
    let prepared = job.prepared.as_ref().ok_or("it was not prepared; please report this")?;
    let (threads, threads_from) = match (submission.spec.train.threads, job.threads.or(prepared.threads)) {
        (Some(threads), _) => (threads, "as the job says"),
        (None, Some(threads)) if job.threads.is_some() => (threads, "as before"),
        (None, Some(threads)) => (threads, "as in the checkpoint"),
        (None, None) => (threads_for(&workers), "the cores of each machine over its workers"),
    };
    Ok(Planning {
        ticket,
        job: submission.job.clone(),
        generation,
        threads,
        threads_from,
        spec: fit.spec(&submission.spec),
        directory: submission.directory.clone(),
        data: prepared.data.clone(),
        resume: prepared.resume.clone(),
        before: job.formed.iter().map(|rank| rank.worker.clone()).collect(),
        slow_percent: job.slow_for_plans(),
        workers,
        fit,
    })
}

/// A number of workers.
pub(super) fn people(workers: usize) -> String {
    format!("{workers} {}", if workers == 1 { "worker" } else { "workers" })
}
