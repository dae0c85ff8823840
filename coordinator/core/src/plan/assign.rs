//! Everything that was decided, put into one assignment for each rank.

use std::ops::Range;

use coxswain_types::params::{Parameter, ParameterRow, Place, Split, norm_slots, parameter_table, slice_of};
use coxswain_types::status::WorkerInfo;
use coxswain_types::tree::{Node, cover, split};
use coxswain_types::{Assignment, Rank};

use super::PlanRequest;
use super::mesh::{Coordinates, Mesh};
use super::schedule;

/// How long an operation on a group may take. A peer may be busy with a micro-batch of a large model
/// or with writing a large checkpoint, so this is no measure of health: a peer that died is seen at
/// once, and one that stopped loses its lease, upon which waits are aborted. It only keeps a rank
/// that nobody speaks to any more from waiting for ever.
const OPERATION_MS: u64 = 3_600_000;

/// How long a group may take to form. Forming itself takes well under a second; the rest is for
/// peers that still load libtorch or read a checkpoint.
const FORMING_MS: u64 = 20_000;

/// What is the same for every rank.
struct Shared {
    runs: Vec<Range<u32>>,
    owned_runs: Vec<Range<u32>>,
    data_nodes: Vec<Vec<Node>>,
    table: Vec<Parameter>,
    first_slots: Vec<u32>,
    norm_slots: u32,
}

/// One assignment for each worker of `seated`, whose place in it is its rank.
pub(super) fn assign(
    request: &PlanRequest<'_>,
    mesh: &Mesh,
    stages: &[Range<u32>],
    seated: &[&WorkerInfo],
) -> Vec<Assignment> {
    let spec = request.spec;
    let runs = split(spec.train.micro_batches, spec.train.reduction_runs);
    let owned_runs = split(spec.train.reduction_runs, spec.layout.data);
    let data_nodes = owned_runs.iter().map(|owned| cover(spec.train.reduction_runs, owned)).collect();
    let table = parameter_table(&spec.model);
    let (first_slots, norm_slots) = norm_slots(&table, spec.layout.tensor);
    let shared = Shared { runs, owned_runs, data_nodes, table, first_slots, norm_slots };
    (0..).zip(seated).map(|(rank, worker)| assignment(request, mesh, stages, &shared, rank, worker)).collect()
}

fn assignment(
    request: &PlanRequest<'_>,
    mesh: &Mesh,
    stages: &[Range<u32>],
    shared: &Shared,
    rank: u32,
    worker: &WorkerInfo,
) -> Assignment {
    let at = mesh.coordinates(rank);
    let pipeline = request.spec.layout.pipeline;
    let owned_runs = shared.owned_runs[at.data as usize].clone();
    let micro_batches =
        shared.runs[owned_runs.start as usize].start..shared.runs[owned_runs.end as usize - 1].end;
    let (embedding, head) = (at.stage == 0, at.stage + 1 == pipeline);
    let layers = stages[at.stage as usize].clone();
    let here = |place| match place {
        Place::Embedding => embedding,
        Place::Layer(layer) => layers.contains(&layer),
        Place::Head => head,
    };
    let parameters = rows(request, mesh, shared, at, here);
    Assignment {
        job: request.job.clone(),
        generation: request.generation,
        worker: worker.id.clone(),
        rank: Rank(rank),
        world: mesh.world(),
        data_index: at.data,
        stage: at.stage,
        tensor_index: at.tensor,
        spec: request.spec.clone(),
        threads: request.threads,
        directory: request.directory.to_owned(),
        embedding,
        layers,
        head,
        tensor_group: mesh.tensor_group(at),
        data_group: mesh.data_group(at),
        previous: mesh.previous(at),
        next: mesh.next(at),
        parameters,
        norm_slots: shared.norm_slots,
        runs: shared.runs.clone(),
        owned_runs,
        data_nodes: shared.data_nodes.clone(),
        train: schedule::train(at.stage, pipeline, micro_batches.clone()),
        evaluate: schedule::evaluate(at.stage, pipeline, micro_batches),
        data: request.data.clone(),
        resume: request.resume.clone(),
        operation_ms: OPERATION_MS,
        forming_ms: FORMING_MS,
    }
}

/// The rank's rows of the parameter table.
fn rows(
    request: &PlanRequest<'_>,
    mesh: &Mesh,
    shared: &Shared,
    at: Coordinates,
    here: impl Fn(Place) -> bool,
) -> Vec<ParameterRow> {
    let tensor = request.spec.layout.tensor;
    let on_stage = shared.table.iter().zip(&shared.first_slots).filter(|(p, _)| here(p.place));
    on_stage
        .map(|(parameter, first_slot)| {
            let slice = slice_of(parameter, at.tensor, tensor);
            // One of the ranks that hold the same slice speaks for it: the first of the first data rank.
            let speaks = at.data == 0 && slice.holders.start == at.tensor;
            // A replicated parameter sees all of its gradient on every rank; a slice that several
            // ranks hold sees the part that comes through each rank's own query heads.
            let partial = parameter.split != Split::Replicated && slice.holders.len() > 1;
            let holders = slice.holders.clone().filter(|_| partial);
            ParameterRow {
                replicas: holders.map(|tensor| mesh.rank(Coordinates { tensor, ..at })).collect(),
                norm_slot: speaks.then_some(first_slot + slice.ordinal),
                saves: speaks,
                ..parameter.row(&slice)
            }
        })
        .collect()
}
