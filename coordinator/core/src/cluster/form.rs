//! Idle workers become the ranks of a generation, as it was planned.

use std::collections::BTreeMap;

use coxswain_types::ids::{Generation, Step};

use super::entry::{Compute, Entry};
use super::event::{Effect, Weight};
use super::question::{Formation, PlannedRank};
use super::run::{GenerationRun, RankSeat};
use super::summary::{JobEnding, JobState};
use super::{Cluster, notice};
use crate::plan::{KEEPS_UP, counted};

impl Cluster {
    /// Forms the generation that was planned.
    pub(super) fn form(
        &mut self,
        index: usize,
        formation: &Formation,
        ranks: Vec<PlannedRank>,
        out: &mut Vec<Effect>,
    ) {
        let Formation { generation, threads, fit, .. } = formation;
        let (generation, threads) = (*generation, *threads);
        let job = &mut self.jobs[index];
        let id = job.id().to_owned();
        let (seats, compute) = match seats(formation, ranks) {
            Ok(found) => found,
            Err(reason) => return self.end(&id, JobEnding::Failed, reason, out),
        };
        let (from, steps) = (job.step, job.steps());
        let again = job.generation > Generation(0);
        if !again {
            job.saved_ms = self.now_ms;
        }
        job.generation = generation;
        job.threads = Some(threads);
        job.compute = Some(compute.clone());
        job.formed = seats.iter().map(RankSeat::formed).collect();
        job.layout = Some(fit.layout).filter(|layout| *layout != job.submission.spec.layout);
        job.begun = None;
        let mut reason = at_work(seats.len(), generation);
        if job.layout.is_some() {
            reason.push_str(&format!(" ({}, until more workers are here)", fit.reason));
        }
        job.enter(JobState::Running, reason);
        let layout = job.layout;
        let mut ranks = job.formed.clone();
        if planted!(RanksInWrongOrder) {
            ranks.reverse();
        }
        self.revisions.grow();
        let revision = self.revisions.newest();
        let record =
            Entry::Formed { job: id.clone(), generation, ranks, threads, from, revision, layout, compute };
        out.push(Effect::Record(record));
        let mut text = told(formation, &seats, from, again);
        text.push_str(&divided_as(&seats));
        if layout.is_some() {
            text.push_str(&format!(", as {}: for all of its layout there are too few workers", fit.reason));
        }
        out.push(Effect::Notice(notice(Weight::Info, text).about_run(&id, generation)));
        out.extend(seats.iter().map(|seat| Effect::Wake(seat.info.id.clone())));
        self.generation = generation;
        self.noted = 0;
        let mut run = GenerationRun::new(id, generation, seats, steps, from, revision);
        run.formed_ms = self.now_ms;
        run.share(&fit.spec(&self.jobs[index].submission.spec), Some(threads));
        self.runs.push(run);
    }
}

/// Why a job runs.
pub(super) fn at_work(workers: usize, generation: Generation) -> String {
    format!("on {}, generation {generation}", counted(workers as u64, "worker", "workers"))
}

/// The workers by rank, and what they compute with.
fn seats(formation: &Formation, ranks: Vec<PlannedRank>) -> Result<(Vec<RankSeat>, Compute), String> {
    let by_id: BTreeMap<_, _> = formation.workers.iter().map(|info| (&info.id, info)).collect();
    let seats = ranks.into_iter().map(|rank| {
        let info = by_id.get(&rank.worker).copied();
        let info = info.ok_or_else(|| format!("the plan names {}, which was not asked for", rank.worker))?;
        Ok(RankSeat {
            info: info.clone(),
            stage: rank.stage,
            slow_percent: rank.slow_percent,
            digest: rank.digest,
            assignment: Some(rank.json),
            phase: None,
            step: Step(0),
            heard_ms: 0,
            activity: None,
            pace: None,
            stale: false,
        })
    });
    let seats = seats.collect::<Result<Vec<_>, String>>()?;
    let compute = seats.first().map(|seat| Compute::of(&seat.info)).ok_or("the plan has no ranks")?;
    Ok((seats, compute))
}

/// Whose share of the work is another since they are slow.
fn divided_as(seats: &[RankSeat]) -> String {
    let slow = seats.iter().filter(|seat| seat.slow_percent > KEEPS_UP);
    let slow = slow.map(|seat| {
        let factor = f64::from(seat.slow_percent) / f64::from(KEEPS_UP);
        format!("{} takes {factor:.1} times as long", seat.info.id)
    });
    let slow: Vec<_> = slow.collect();
    if slow.is_empty() { String::new() } else { format!("; work is divided as {}", slow.join(" and ")) }
}

/// What was formed and why so. After an earlier generation, which may have left something in memory, its ranks
/// find out where they go on from, and say so when they do.
fn told(formation: &Formation, seats: &[RankSeat], from: Step, again: bool) -> String {
    let names: Vec<_> = seats.iter().map(|seat| seat.info.id.0.as_str()).collect();
    let start = match from {
        _ if again => String::new(),
        Step(0) => " from the start".to_owned(),
        step => format!(" from the checkpoint of step {step}"),
    };
    let Formation { threads, threads_from, .. } = formation;
    let threads = counted(*threads, "thread", "threads");
    format!("runs{start} on {} with {threads} each ({threads_from})", names.join(", "))
}
