//! A plan as a program reads it: the facts of the printed form, with the lists of actions.

use coxswain_types::job::Layout;
use coxswain_types::params::ParameterRow;
use coxswain_types::schedule::Action;
use coxswain_types::{Assignment, Generation, Rank, WorkerId};
use serde::Serialize;

use super::print::{holds, micro_batches};
use super::{Memory, Plan};

#[derive(Serialize)]
struct PlanJson<'a> {
    job: &'a str,
    generation: Generation,
    layout: Layout,
    threads: u32,
    /// Parameters of the model, each counted once.
    parameters: u64,
    /// Share of time that stages wait, if every compute action takes as long.
    bubble: f64,
    ranks: Vec<RankJson<'a>>,
    spares: &'a [WorkerId],
}

#[derive(Serialize)]
struct RankJson<'a> {
    rank: Rank,
    data: u32,
    stage: u32,
    tensor: u32,
    worker: &'a WorkerId,
    holds: String,
    parameters: u64,
    memory: Memory,
    peak_bytes: u64,
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
            threads: first.threads,
            parameters: self.parameters(),
            bubble: self.bubble(),
            ranks: self.assignments.iter().zip(&self.memory).map(rank).collect(),
            spares: &self.spares,
        })
    }
}

fn rank<'a>((a, memory): (&'a Assignment, &Memory)) -> RankJson<'a> {
    let range = micro_batches(a);
    RankJson {
        rank: a.rank,
        data: a.data_index,
        stage: a.stage,
        tensor: a.tensor_index,
        worker: &a.worker,
        holds: holds(a),
        parameters: a.parameters.iter().map(ParameterRow::elements).sum(),
        memory: *memory,
        peak_bytes: memory.peak_bytes(),
        micro_batches: [range.start, range.end],
        train: &a.train,
    }
}
