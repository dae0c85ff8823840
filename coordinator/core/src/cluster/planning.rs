//! Plans, from the question to the answer. The cluster asks one question at a time; the shell plans in a thread of
//! its own, and meanwhile every other event is handled. There are two: who does what in a generation, whose answer
//! counts if its workers are still free; and which layout so many workers can take, which a job remembers.

use std::collections::BTreeMap;

use coxswain_types::assignment::{PreparedData, Resume};
use coxswain_types::ids::{Generation, WorkerId};
use coxswain_types::job::JobSpec;
use coxswain_types::status::{Phase, WorkerInfo};

use super::event::{Effect, Weight};
use super::job::Job;
use super::summary::{Ending, JobState};
use super::{Cluster, notice};
use crate::plan::{Fit, KEEPS_UP, PlanRequest, counted, encode, fitting, plan, threads_for};

/// How many layouts a job remembers. A search takes as long as a plan, so what is forgotten costs seconds at most.
const MAX_FITS: usize = 64;

const OTHER_QUESTION: &str = "the planner answered another question; please report this";

/// A question to the planner.
#[derive(Clone, Debug, PartialEq)]
pub struct Planning {
    /// Tells this question from others; the answer names it.
    pub ticket: u64,
    /// The job's id.
    pub job: String,
    question: Question,
}

#[derive(Clone, Debug, PartialEq)]
enum Question {
    Formation(Box<Formation>),
    Fit(Box<JobSpec>, Sizes),
}

/// Between how many ranks a layout is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Sizes {
    /// It has no more than these.
    pub(super) available: u32,
    /// It has more than these.
    pub(super) least: u32,
}

/// A generation that would be formed: all that its plan is made from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Formation {
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

/// The planner's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned(Answer);

#[derive(Clone, Debug, PartialEq)]
enum Answer {
    /// Who does what, by rank.
    Formation(Vec<PlannedRank>),
    /// The largest layout between these sizes, if there is one.
    Fit(Option<Fit>),
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
    /// Answers the question.
    ///
    /// # Errors
    /// Why the job cannot run in this layout, in words.
    pub fn plan(&self) -> Result<Planned, String> {
        let answer = match &self.question {
            Question::Fit(spec, Sizes { available, least }) => Answer::Fit(fitting(spec, *available, *least)),
            // A budget of memory may leave those who keep up no room for more.
            Question::Formation(formation) => Answer::Formation(
                formation
                    .plan(&self.job, &formation.slow_percent)
                    .or_else(|_| formation.plan(&self.job, &BTreeMap::new()))?,
            ),
        };
        Ok(Planned(answer))
    }
}

impl Formation {
    fn plan(&self, job: &str, slow_percent: &BTreeMap<WorkerId, u32>) -> Result<Vec<PlannedRank>, String> {
        let planned = plan(&PlanRequest {
            job: job.to_owned(),
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
        Ok(ranks.collect())
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
        let generation = Generation(self.generation.0 + 1);
        let job = &mut self.jobs[index];
        match formation(job, generation, workers, fit) {
            Ok(formation) => {
                job.reason = format!(
                    "its work is divided among {}",
                    counted(formation.workers.len() as u64, "worker", "workers")
                );
                self.ask(index, Question::Formation(Box::new(formation)), out);
            }
            Err(reason) => {
                let id = job.id().to_owned();
                self.end(&id, Ending::Failed, reason, out);
            }
        }
    }

    /// Asks which layout between these sizes the job can take.
    pub(super) fn ask_for_fit(&mut self, index: usize, sizes: Sizes, out: &mut Vec<Effect>) {
        let spec = Box::new(self.jobs[index].submission.spec.clone());
        self.ask(index, Question::Fit(spec, sizes), out);
    }

    fn ask(&mut self, index: usize, question: Question, out: &mut Vec<Effect>) {
        self.tickets += 1;
        let planning = Planning { ticket: self.tickets, job: self.jobs[index].id().to_owned(), question };
        self.planning = Some(planning.clone());
        out.push(Effect::Plan(Box::new(planning)));
    }

    /// The answer to the newest question: a generation is formed, and a job that cannot be planned ends. Where a worker
    /// is free no more, or the job is over, the queue goes on as if nothing had been asked.
    pub(super) fn planned(&mut self, ticket: u64, result: Result<Planned, String>, out: &mut Vec<Effect>) {
        let Some(planning) = self.planning.take_if(|planning| planning.ticket == ticket) else { return };
        let of_job = |job: &Job| job.id() == planning.job && !job.state.is_over();
        let Some(index) = self.jobs.iter().position(of_job) else { return };
        let job = &mut self.jobs[index];
        match (planning.question, result) {
            (Question::Fit(_, sizes), result) => {
                let found = match result {
                    Ok(Planned(Answer::Fit(fit))) => fit,
                    // The job waits for all of its workers, as it would without a smaller layout.
                    failed => {
                        let why = failed.err().unwrap_or_else(|| OTHER_QUESTION.to_owned());
                        let text = format!("no smaller layout can be looked for: {why}");
                        out.push(Effect::Notice(notice(Weight::Warning, text).about_job(&planning.job)));
                        None
                    }
                };
                // Not one by one: the answer that is here now has to stay, or it would be asked for again at once.
                if job.fits.len() >= MAX_FITS {
                    job.fits.clear();
                }
                job.fits.insert(sizes, found);
            }
            (Question::Formation(_), _) if job.state != JobState::Gathering => {}
            (Question::Formation(formation), Ok(Planned(Answer::Formation(ranks)))) => {
                if formation.workers.iter().all(|worker| self.is_free(worker)) {
                    self.form(index, &formation, ranks, out);
                }
            }
            (_, Err(reason)) => self.end(&planning.job, Ending::Failed, reason, out),
            (_, Ok(_)) => {
                self.end(&planning.job, Ending::Failed, OTHER_QUESTION.to_owned(), out);
            }
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

/// What a plan is made from. Threads are those of the job's generation before, since another number gives other bits.
fn formation(
    job: &Job,
    generation: Generation,
    workers: Vec<WorkerInfo>,
    fit: Fit,
) -> Result<Formation, String> {
    let submission = &job.submission;
    let prepared = job.prepared.as_ref().ok_or("it was not prepared; please report this")?;
    let (threads, threads_from) = match (submission.spec.train.threads, job.threads.or(prepared.threads)) {
        (Some(threads), _) => (threads, "as the job says"),
        (None, Some(threads)) if job.threads.is_some() => (threads, "as before"),
        (None, Some(threads)) => (threads, "as in the checkpoint"),
        (None, None) => (threads_for(&workers), "the cores of each machine over its workers"),
    };
    Ok(Formation {
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
