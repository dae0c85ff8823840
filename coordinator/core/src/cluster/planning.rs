//! Plans, from the question to the answer. The cluster asks one question at a time; the shell plans in a thread of
//! its own, and meanwhile every other event is handled. There are two: who does what in a generation, whose answer
//! counts if its workers are still free; and which layout so many workers can take, which a job remembers.

use coxswain_types::ids::Generation;
use coxswain_types::status::{Phase, WorkerInfo};

use super::event::{Effect, Weight};
use super::job::Job;
use super::question::{Answer, Formation, PlanAnswer, Planning, Question, RankCounts};
use super::summary::{JobEnding, JobState};
use super::{Cluster, notice};
use crate::plan::{Fit, counted, threads_for};

/// How many layouts a job remembers. A search takes as long as a plan, so what is forgotten costs seconds at most.
const MAX_FITS: usize = 64;

const OTHER_QUESTION: &str = "the planner answered another question; please report this";

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
                self.end(&id, JobEnding::Failed, reason, out);
            }
        }
    }

    /// Asks which layout between these sizes the job can take.
    pub(super) fn ask_for_fit(&mut self, index: usize, sizes: RankCounts, out: &mut Vec<Effect>) {
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
    pub(super) fn planned(&mut self, ticket: u64, result: Result<PlanAnswer, String>, out: &mut Vec<Effect>) {
        let Some(planning) = self.planning.take_if(|planning| planning.ticket == ticket) else { return };
        let of_job = |job: &Job| job.id() == planning.job && !job.state.is_over();
        let Some(index) = self.jobs.iter().position(of_job) else { return };
        let job = &mut self.jobs[index];
        match (planning.question, result) {
            (Question::Fit(_, sizes), result) => {
                let found = match result {
                    Ok(PlanAnswer(Answer::Fit(fit))) => fit,
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
            (Question::Formation(formation), Ok(PlanAnswer(Answer::Formation(ranks)))) => {
                let free = formation.workers.iter().all(|worker| self.is_free(worker));
                if free || planted!(PlanOutlivesWorker) {
                    self.form(index, &formation, ranks, out);
                }
            }
            (_, Err(reason)) => self.end(&planning.job, JobEnding::Failed, reason, out),
            (_, Ok(_)) => {
                self.end(&planning.job, JobEnding::Failed, OTHER_QUESTION.to_owned(), out);
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
            && (self.run_of(&worker.id).is_none() || planted!(OneWorkerForTwoJobs))
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
