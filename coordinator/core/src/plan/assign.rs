//! Everything that was decided, put into one assignment for each rank.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use coxswain_types::assignment::{PeerReplica, Recompute, Stage};
use coxswain_types::axis::AxisKind;
use coxswain_types::params::{
    Parameter, ParameterRow, Place, Slice, Split, norm_slots, parameter_table, slice_of,
};
use coxswain_types::tree::{TreeNode, cover, split};
use coxswain_types::{Assignment, Rank, WorkerId};

use super::PlanRequest;
use super::balance::Balance;
use super::mesh::{Coordinates, Mesh};
use super::schedule;

/// How long an operation on a group may take. A peer may be busy with a micro-batch of a large model
/// or with writing a large checkpoint, so this does not measure health: a peer that died is seen at
/// once, and one that stopped loses its lease, upon which waits are aborted. It only keeps a rank
/// without peers from waiting for ever.
const OPERATION_MS: u64 = 3_600_000;

/// How long a group may take to form. Forming itself takes well under a second, and no file is read before it; the
/// rest is for machines under load.
const RENDEZVOUS_MS: u64 = 20_000;

/// What is the same for every rank.
struct PlanContext<'a> {
    request: &'a PlanRequest<'a>,
    mesh: &'a Mesh,
    balance: &'a Balance,
    runs: Vec<Range<u32>>,
    data_nodes: Vec<Vec<TreeNode>>,
    table: Vec<Parameter>,
    /// For each place the parameters used there, in the table's order: their index, and which use it is.
    used_at: BTreeMap<Place, Vec<(usize, usize)>>,
    first_slots: Vec<u32>,
    norm_slots: u32,
    shard_count: u32,
}

/// One assignment for each of these ranks, with its worker.
pub(super) fn assign<'w>(
    request: &PlanRequest<'_>,
    mesh: &Mesh,
    balance: &Balance,
    seated: impl IntoIterator<Item = (u32, &'w WorkerId)>,
) -> Vec<Assignment> {
    let spec = request.spec;
    let runs = split(spec.train.global_micro_batches, spec.train.gradient_groups);
    let data_nodes =
        balance.owned_runs.iter().map(|owned| cover(spec.train.gradient_groups, owned)).collect();
    let table = parameter_table(&spec.model);
    let shard_count = spec.train.shards(spec.layout.tensor);
    let (first_slots, norm_slots) = norm_slots(&table, shard_count);
    let mut used_at: BTreeMap<Place, Vec<(usize, usize)>> = BTreeMap::new();
    for (index, parameter) in table.iter().enumerate() {
        for (use_index, place) in parameter.places.iter().enumerate() {
            used_at.entry(*place).or_default().push((index, use_index));
        }
    }
    let shared = PlanContext {
        request,
        mesh,
        balance,
        runs,
        data_nodes,
        table,
        used_at,
        first_slots,
        norm_slots,
        shard_count,
    };
    seated.into_iter().map(|(rank, worker)| shared.assignment(rank, worker)).collect()
}

impl PlanContext<'_> {
    fn assignment(&self, rank: u32, worker: &WorkerId) -> Assignment {
        let request = self.request;
        let (spec, layout) = (request.spec, &request.spec.layout);
        let at = self.mesh.coordinates(rank);
        let owned_runs = self.balance.owned_runs[at.data as usize].clone();
        let micro_batches =
            self.runs[owned_runs.start as usize].start..self.runs[owned_runs.end as usize - 1].end;
        let data_group = self.mesh.group_of(at, AxisKind::Data);
        let stages = self.stages(at);
        let parameters = self.rows(at, &stages);
        Assignment {
            job: request.job.clone(),
            generation: request.generation,
            worker: worker.clone(),
            rank: Rank(rank),
            world: self.mesh.world(),
            data_index: at.data,
            pipeline_index: at.pipeline,
            tensor_index: at.tensor,
            spec: spec.clone(),
            threads: request.threads,
            directory: request.directory.to_owned(),
            stages,
            shards: self.shards(at.tensor),
            shard_count: self.shard_count,
            tensor_group: self.mesh.group_of(at, AxisKind::Tensor),
            optimizer_group: if layout.zero { data_group.clone() } else { vec![rank] },
            data_group,
            parameters,
            norm_slots: self.norm_slots,
            runs: self.runs.clone(),
            owned_runs,
            data_nodes: self.data_nodes.clone(),
            train: schedule::train(layout, &spec.actions, at.pipeline, micro_batches.clone()),
            evaluate: schedule::evaluate(layout, at.pipeline, micro_batches),
            data: request.data.clone(),
            resume: request.resume.clone(),
            peer_replica: self.peer_replica(at),
            operation_ms: OPERATION_MS,
            rendezvous_ms: RENDEZVOUS_MS,
        }
    }

    /// The ranks that keep copies of each other: neighbours along the first axis on which no other rank
    /// holds the same. Where every rank has such a twin, or there is one rank only, no copy is needed.
    fn peer_replica(&self, at: Coordinates) -> Option<PeerReplica> {
        if !self.request.spec.keeps_peer_replicas() {
            return None;
        }
        let (before, after) = self.mesh.neighbours(at)?;
        Some(PeerReplica {
            of: self.mesh.rank(before),
            by: self.mesh.rank(after),
            parameters: self.rows(before, &self.stages(before)),
            slice: if self.request.spec.layout.zero { before.data } else { 0 },
        })
    }

    /// The logical tensor shards of a tensor rank.
    fn shards(&self, tensor: u32) -> Range<u32> {
        let each = self.shard_count / self.request.spec.layout.tensor;
        tensor * each..(tensor + 1) * each
    }

    /// The pipeline stages of a rank: every p-th.
    fn stages(&self, at: Coordinates) -> Vec<Stage> {
        let layout = &self.request.spec.layout;
        let (pipeline, count) = (layout.pipeline, layout.stages());
        let rank_of = |stage: u32| self.mesh.rank(Coordinates { pipeline: stage % pipeline, ..at });
        let stage = |index: u32| {
            let layers = self.balance.layers[index as usize].clone();
            Stage {
                index,
                embedding: index == 0,
                head: index + 1 == count,
                previous: index.checked_sub(1).map(rank_of),
                next: (index + 1 < count).then(|| rank_of(index + 1)),
                recompute: vec![Recompute::Nothing; layers.len()],
                layers,
            }
        };
        (at.pipeline..count).step_by(pipeline as usize).map(stage).collect()
    }

    /// The rank's rows of the parameter table, place by place: one for each use of a slice.
    fn rows(&self, at: Coordinates, stages: &[Stage]) -> Vec<ParameterRow> {
        let mut places = Vec::new();
        for stage in stages {
            places.extend(stage.embedding.then_some(Place::Embedding));
            for layer in stage.layers.clone() {
                places.extend((layer == self.bridge()).then_some(Place::Bridge));
                places.push(Place::Layer(layer));
            }
            places.extend(stage.head.then_some(Place::Head));
        }
        let (mut rows, mut held) = (Vec::new(), BTreeSet::new());
        for place in places {
            for &(index, use_of) in self.used_at.get(&place).into_iter().flatten() {
                let (parameter, first_slot) = (&self.table[index], self.first_slots[index]);
                let mut shared: Option<(u32, Vec<u32>, Vec<u32>)> = None;
                for shard in self.shards_of(parameter, at.tensor) {
                    let slice = slice_of(parameter, shard, self.shard_count);
                    let first_here = held.insert((index, slice.ordinal));
                    // Neighbours are often uses of one slice.
                    let known = shared.take_if(|(ordinal, ..)| *ordinal == slice.ordinal);
                    let (_, uses, holders) = known.unwrap_or_else(|| {
                        let (uses, holders) = self.sharing(parameter, &slice, at);
                        (slice.ordinal, uses, holders)
                    });
                    // One of the ranks that hold a slice speaks for it: the first of the first data rank.
                    let speaks = first_here
                        && at.data == 0
                        && holders.first() == Some(&self.mesh.rank(at))
                        && (self.splits(parameter) || at.tensor == 0);
                    let sharers = slice.holders.end - slice.holders.start;
                    let alone = uses.len() < 2;
                    rows.push(ParameterRow {
                        place,
                        use_index: use_of as u32 * sharers + shard - slice.holders.start,
                        uses: if alone { Vec::new() } else { uses.clone() },
                        holders: if alone { Vec::new() } else { holders.clone() },
                        norm_slot: speaks.then_some(first_slot + slice.ordinal),
                        saves: speaks,
                        ..parameter.row(&slice, shard)
                    });
                    shared = Some((slice.ordinal, uses, holders));
                }
            }
        }
        rows
    }

    /// The decoder's first layer, where it follows an encoder; else no parameter lies before it.
    fn bridge(&self) -> u32 {
        self.request.spec.model.encoder_layers
    }

    fn stage_of(&self, layer: u32) -> usize {
        self.balance.layers.iter().position(|layers| layers.contains(&layer)).unwrap_or(0)
    }

    /// Whether a parameter's uses are spread over the tensor ranks: what is replicated is used whole
    /// by each, unless they split the sequence.
    fn splits(&self, parameter: &Parameter) -> bool {
        parameter.split != Split::Replicated || self.request.spec.layout.sequence_parallel
    }

    /// The logical shards whose use of `parameter` a tensor rank computes.
    fn shards_of(&self, parameter: &Parameter, tensor: u32) -> Range<u32> {
        if self.splits(parameter) { self.shards(tensor) } else { 0..self.shard_count }
    }

    /// The rank that brings each use of the slice, in the order in which gradients of uses are added
    /// (place by place, shard by shard), and the ranks that hold the slice.
    fn sharing(&self, parameter: &Parameter, slice: &Slice, at: Coordinates) -> (Vec<u32>, Vec<u32>) {
        let pipeline = self.request.spec.layout.pipeline;
        let each = self.shard_count / self.request.spec.layout.tensor;
        let mut uses = Vec::new();
        for place in &parameter.places {
            let stage = match place {
                Place::Embedding => 0,
                Place::Head => self.balance.layers.len() - 1,
                Place::Bridge => self.stage_of(self.bridge()),
                Place::Layer(layer) => self.stage_of(*layer),
            };
            for shard in slice.holders.clone() {
                let tensor = if self.splits(parameter) { shard / each } else { at.tensor };
                uses.push(self.mesh.rank(Coordinates { pipeline: stage as u32 % pipeline, tensor, ..at }));
            }
        }
        let mut holders = Vec::new();
        for &rank in &uses {
            if !holders.contains(&rank) {
                holders.push(rank);
            }
        }
        (uses, holders)
    }
}
