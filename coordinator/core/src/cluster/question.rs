//! What the planner is asked and what it answers, as values: who does what in a generation, or which layout so many
//! workers can take.

use std::collections::BTreeMap;

use coxswain_types::assignment::{PreparedData, Resume};
use coxswain_types::ids::{Generation, WorkerId};
use coxswain_types::job::JobSpec;
use coxswain_types::status::WorkerInfo;

use crate::plan::{Fit, KEEPS_UP, PlanRequest, encode, fitting, plan};

/// A question to the planner.
#[derive(Clone, Debug, PartialEq)]
pub struct Planning {
    /// Tells this question from others; the answer names it.
    pub ticket: u64,
    /// The job's id.
    pub job: String,
    pub(super) question: Question,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Question {
    Formation(Box<Formation>),
    Fit(Box<JobSpec>, RankCounts),
}

/// Bounds on the number of ranks of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RankCounts {
    /// No layout with more ranks.
    pub(super) at_most: u32,
    /// Only layouts with more ranks than this.
    pub(super) above: u32,
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
    pub(super) spec: JobSpec,
    /// The run's folder.
    pub(super) directory: String,
    pub(super) data: PreparedData,
    pub(super) resume: Option<Resume>,
    /// The workers of the generation before, by rank.
    pub(super) before: Vec<WorkerId>,
    /// How slow workers are known to be, in percent of their peers' time.
    pub(super) slow_percent: BTreeMap<WorkerId, u32>,
}

/// The planner's answer.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanAnswer(pub(super) Answer);

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
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
    pub fn plan(&self) -> Result<PlanAnswer, String> {
        let answer = match &self.question {
            Question::Fit(spec, RankCounts { at_most, above }) => {
                Answer::Fit(fitting(spec, *at_most, *above))
            }
            // A budget of memory may leave those who keep up no room for more.
            Question::Formation(formation) => Answer::Formation(
                formation
                    .plan(&self.job, &formation.slow_percent)
                    .or_else(|_| formation.plan(&self.job, &BTreeMap::new()))?,
            ),
        };
        Ok(PlanAnswer(answer))
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
