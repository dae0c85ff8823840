//! A plan as a program reads it: the facts of the printed form, with the lists of actions.

use std::ops::RangeInclusive;

use coxswain_types::assignment::Stage;
use coxswain_types::job::{Layout, Precision};
use coxswain_types::schedule::Action;
use coxswain_types::{Assignment, Generation, Rank, WorkerId};
use serde::Serialize;

use super::grid::micro_batches;
use super::print::{held_parameters, holds, schedule_name};
use super::{Memory, Plan, RUNTIME};

#[derive(Serialize)]
struct PlanJson<'a> {
    job: &'a str,
    generation: Generation,
    layout: Layout,
    /// The schedule as people call it.
    schedule: String,
    precision: Precision,
    threads: u32,
    /// Parameters of the model, each counted once.
    parameters: u64,
    /// Units of time of a step, if a rank's forward takes one and its backward two.
    makespan: f64,
    /// Share of that time that pipeline ranks are idle.
    bubble: f64,
    ranks: Vec<RankJson<'a>>,
    spares: &'a [WorkerId],
}

#[derive(Serialize)]
struct RankJson<'a> {
    rank: Rank,
    data: u32,
    pipeline: u32,
    tensor: u32,
    worker: &'a WorkerId,
    holds: String,
    stages: &'a [Stage],
    /// Parameters of this rank, each counted once.
    parameters: u64,
    /// Tensors at the rank's peak, part by part.
    memory: Memory,
    /// The sum of them.
    tensor_bytes: u64,
    /// What the worker's process holds beside tensors, from the least to the most.
    runtime_bytes: [u64; 2],
    /// Both: the process's resident memory.
    resident_bytes: [u64; 2],
    micro_batches: [u32; 2],
    train: &'a [Action],
}

impl Plan {
    /// The plan as a JSON object; `parameters` is the model's total.
    ///
    /// # Errors
    /// Never for a plan out of [`super::plan`]; the writer of JSON could fail in theory.
    pub fn to_json(&self) -> Result<serde_json::Value, serde_json::Error> {
        let Some(first) = self.assignments.first() else { return Ok(serde_json::Value::Null) };
        serde_json::to_value(PlanJson {
            job: &first.job,
            generation: first.generation,
            layout: first.spec.layout,
            schedule: schedule_name(first.spec.layout.schedule),
            precision: first.spec.train.precision,
            threads: first.threads,
            parameters: self.parameters(),
            makespan: self.makespan(),
            bubble: self.bubble(),
            ranks: self.assignments.iter().zip(self.memory()).map(rank).collect(),
            spares: &self.spares,
        })
    }
}

fn rank<'a>((a, memory): (&'a Assignment, Memory)) -> RankJson<'a> {
    let range = micro_batches(a);
    RankJson {
        rank: a.rank,
        data: a.data_index,
        pipeline: a.pipeline_index,
        tensor: a.tensor_index,
        worker: &a.worker,
        holds: holds(a),
        stages: &a.stages,
        parameters: held_parameters(a),
        memory,
        tensor_bytes: memory.tensor_bytes(),
        runtime_bytes: ends(&RUNTIME),
        resident_bytes: ends(&memory.resident_bytes()),
        micro_batches: [range.start, range.end],
        train: &a.train,
    }
}

fn ends(range: &RangeInclusive<u64>) -> [u64; 2] {
    [*range.start(), *range.end()]
}
