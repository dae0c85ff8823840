//! Idle workers become the ranks of a generation: the plan is asked for, and its assignments are
//! put into their journaled form.

use std::collections::BTreeMap;

use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::status::WorkerInfo;

use super::event::{Compute, Effect, Entry, Weight};
use super::job::Job;
use super::run::{Run, Seat};
use super::summary::{Ending, JobState};
use super::{Cluster, notice};
use crate::plan::{Fit, KEEPS_UP, PlanRequest, encode, plan, threads_for};

/// A generation that can start.
struct Formation {
    /// The workers, by rank.
    seats: Vec<Seat>,
    /// What the workers compute with.
    compute: Compute,
    /// Threads of each rank's libtorch.
    threads: u32,
    /// Where the number of threads comes from.
    threads_from: &'static str,
}

impl Cluster {
    /// Forms a generation of the job on these workers; a job that cannot be formed ends.
    pub(super) fn form(&mut self, index: usize, workers: &[WorkerInfo], fit: &Fit, out: &mut Vec<Effect>) {
        let generation = Generation(self.generation.0 + 1);
        let job = &mut self.jobs[index];
        let id = job.id().to_owned();
        let planned = |slow_percent: &_| plan_for(job, fit, generation, workers, slow_percent);
        // A budget of memory may leave those who keep up no room for more.
        let formation = match planned(&job.slow_for_plans()).or_else(|_| planned(&BTreeMap::new())) {
            Ok(formation) => formation,
            Err(reason) => return self.end(&id, Ending::Failed, reason, out),
        };
        let (from, steps, threads) = (job.step, job.steps(), formation.threads);
        let compute = formation.compute.clone();
        let again = job.generation > Generation(0);
        if !again {
            job.saved_ms = self.now_ms;
        }
        job.generation = generation;
        job.threads = Some(threads);
        job.compute = Some(compute.clone());
        job.formed = formation.seats.iter().map(Seat::formed).collect();
        job.layout = Some(fit.layout).filter(|layout| *layout != job.submission.spec.layout);
        job.begun = None;
        let mut reason = at_work(workers.len(), generation);
        if job.layout.is_some() {
            reason.push_str(&format!(" ({}, until more workers are here)", fit.reason));
        }
        job.enter(JobState::Running, reason);
        let layout = job.layout;
        let ranks = job.formed.clone();
        self.revisions.grow();
        let revision = self.revisions.newest();
        let record =
            Entry::Formed { job: id.clone(), generation, ranks, threads, from, revision, layout, compute };
        out.push(Effect::Record(record));
        let mut text = formation.reason(from, again);
        text.push_str(&formation.relieved());
        if layout.is_some() {
            text.push_str(&format!(", as {}: for all of its layout there are too few workers", fit.reason));
        }
        out.push(Effect::Notice(notice(Weight::Info, text).about_run(&id, generation)));
        out.extend(formation.seats.iter().map(|seat| Effect::Wake(seat.info.id.clone())));
        self.generation = generation;
        self.noted = 0;
        let mut run = Run::new(id, generation, formation.seats, steps, from, revision);
        run.formed_ms = self.now_ms;
        run.share(&fit.spec(&self.jobs[index].submission.spec), Some(threads));
        self.runs.push(run);
    }
}

/// Why a job runs.
pub(super) fn at_work(workers: usize, generation: Generation) -> String {
    let noun = if workers == 1 { "worker" } else { "workers" };
    format!("on {workers} {noun}, generation {generation}")
}

impl Formation {
    /// Whose share of the work is another since they are slow.
    fn relieved(&self) -> String {
        let slow = self.seats.iter().filter(|seat| seat.slow_percent > KEEPS_UP);
        let slow = slow.map(|seat| {
            let factor = f64::from(seat.slow_percent) / f64::from(KEEPS_UP);
            format!("{} takes {factor:.1} times as long", seat.info.id)
        });
        let slow: Vec<_> = slow.collect();
        if slow.is_empty() { String::new() } else { format!("; work is divided as {}", slow.join(" and ")) }
    }

    /// What was formed and why so. After an earlier generation, which may have left something in memory, its ranks
    /// find out where they go on from, and say so when they do.
    fn reason(&self, from: Step, again: bool) -> String {
        let names: Vec<_> = self.seats.iter().map(|seat| seat.info.id.0.as_str()).collect();
        let start = match from {
            _ if again => String::new(),
            Step(0) => " from the start".to_owned(),
            step => format!(" from the checkpoint of step {step}"),
        };
        let threads = if self.threads == 1 { "thread" } else { "threads" };
        format!(
            "runs{start} on {} with {} {threads} each ({})",
            names.join(", "),
            self.threads,
            self.threads_from
        )
    }
}

/// Plans the job for `workers`, which are as many as the layout of `fit` needs. Threads are those of the job's
/// generation before, since another number gives other bits.
fn plan_for(
    job: &Job,
    fit: &Fit,
    generation: Generation,
    workers: &[WorkerInfo],
    slow_percent: &BTreeMap<WorkerId, u32>,
) -> Result<Formation, String> {
    let submission = &job.submission;
    let prepared = job.prepared.as_ref().ok_or("it was not prepared; please report this")?;
    let (threads, threads_from) = match (submission.spec.train.threads, job.threads.or(prepared.threads)) {
        (Some(threads), _) => (threads, "as the job says"),
        (None, Some(threads)) if job.threads.is_some() => (threads, "as before"),
        (None, Some(threads)) => (threads, "as in the checkpoint"),
        (None, None) => (threads_for(workers), "the cores of each machine over its workers"),
    };
    let spec = fit.spec(&submission.spec);
    let planned = plan(&PlanRequest {
        job: submission.job.clone(),
        generation,
        spec: &spec,
        workers,
        directory: &submission.directory,
        data: &prepared.data,
        resume: prepared.resume.clone(),
        before: &job.formed.iter().map(|rank| rank.worker.clone()).collect::<Vec<_>>(),
        slow_percent,
        threads,
    })
    .map_err(|error| error.to_string())?;
    let by_id: BTreeMap<_, _> = workers.iter().map(|info| (&info.id, info)).collect();
    let seat = |assignment| {
        let (json, digest) = encode(assignment);
        let info = by_id.get(&assignment.worker).copied();
        let info =
            info.ok_or_else(|| format!("the plan names {}, which was not asked for", assignment.worker))?;
        Ok(Seat {
            info: info.clone(),
            stage: assignment.pipeline_index,
            slow_percent: slow_percent.get(&info.id).copied().unwrap_or(KEEPS_UP),
            digest,
            assignment: Some(json),
            phase: None,
            step: Step(0),
            heard_ms: 0,
            activity: None,
            stale: false,
        })
    };
    let seats = planned.assignments.iter().map(seat).collect::<Result<Vec<_>, String>>()?;
    let compute = seats.first().map(|seat| Compute::of(&seat.info)).ok_or("the plan has no ranks")?;
    Ok(Formation { seats, compute, threads, threads_from })
}
