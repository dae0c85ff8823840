//! How long a step takes on given machines: a pure function from a plan's lists of actions and a [`Machines`] to
//! seconds.
//!
//! - `work`: what each part of the model computes and moves, in FLOPs and bytes.
//! - `seconds`: that on a device, by form: forward, input gradient, weight gradient.
//! - `network`: which links the axes of a layout use, and what sums over them take.
//! - [`predict`]: actions with messages, sums of gradients, update and closing exchange.
//! - `path`: what a step waits for from its start to its end.

mod network;
mod path;
mod seconds;
mod work;

use coxswain_types::Assignment;
use coxswain_types::job::{JobSpec, Precision};
use coxswain_types::schedule::{Action, Kind};
use serde::Serialize;

use super::timeline::{MessageTicks, Timeline, busy, run};
use crate::hardware::{Device, Machines};

use seconds::StageTimes;

pub(super) use network::LayoutNetwork;

pub use path::PathShare;
pub(super) use seconds::{Model, Seconds};

/// What a step is expected to take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Prediction {
    /// All of it, in seconds.
    pub step: f64,
    /// Until the last backward has ended.
    pub compute: f64,
    /// Sums of gradients over data ranks that no backward hides.
    pub reduction: f64,
    /// The exchange that closes the step.
    pub closing: f64,
    /// The optimizer, and the return of what ranks have updated for each other.
    pub update: f64,
    /// The share of the step in which pipeline ranks neither compute nor update, in the mean.
    pub idle: f64,
    /// Seconds that each pipeline rank computes.
    pub busy: Vec<f64>,
    /// Seconds of a pipeline rank, in the mean, that are lost against computing alone.
    pub losses: TimeLosses,
    /// What the step waits for, the longest first.
    pub path: Vec<PathShare>,
    /// Tokens of a step.
    pub tokens: u64,
    /// FLOPs of the model in a step, without what is computed again, and without pairs that the mask hides.
    pub flops: f64,
    /// The share of the peak of all devices that these are.
    pub mfu: f64,
}

impl Prediction {
    /// Tokens a second, over all workers.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.step
    }
}

/// Where the seconds of a step go beside what one device would compute for its share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct TimeLosses {
    /// Waiting for other stages.
    pub idle: f64,
    /// Waiting for sums of tensor ranks.
    pub sums: f64,
    /// Computing again what was not kept.
    pub again: f64,
    /// Waiting for sums of gradients.
    pub reduction: f64,
    /// Updating, and the closing exchange.
    pub update: f64,
}

const NANOS: f64 = 1e9;

fn ticks(seconds: f64) -> u64 {
    (seconds * NANOS).round() as u64
}

/// What a step of these pipeline ranks takes. They are those of one data rank and one tensor index, in order, of the
/// data rank with the most micro-batches.
pub fn predict(pipeline: &[&Assignment], cluster: &Machines) -> Option<Prediction> {
    let spec = &pipeline.first()?.spec;
    let model = Model::new(spec);
    let stages = StageTimes::new(&model, spec, pipeline, cluster)?;
    let network = LayoutNetwork::new(spec, cluster);
    let lists: Vec<&[Action]> = pipeline.iter().map(|a| a.train.as_slice()).collect();
    let chunks = spec.layout.schedule.chunks();
    let costs = |action: &Action| stages.of(action.stage).and_then(|seconds| cost(seconds, action.kind));
    let timeline =
        run(&lists, chunks, costs, |stage, backward| message(&model, spec, &network, stage, backward));
    Some(step(spec, &model, &network, cluster, pipeline, &stages, &timeline))
}

fn cost(seconds: &Seconds, kind: Kind) -> Option<u64> {
    match kind {
        Kind::Forward => Some(ticks(seconds.forward)),
        Kind::Backward => Some(ticks(seconds.backward)),
        Kind::Input => Some(ticks(seconds.input)),
        Kind::Weight => Some(ticks(seconds.weight)),
        Kind::RecvForward | Kind::SendForward | Kind::RecvBackward | Kind::SendBackward => None,
    }
}

/// What travels from a stage to the one after it, or to the one before it.
fn message(
    model: &Model,
    spec: &JobSpec,
    network: &LayoutNetwork<'_>,
    stage: u32,
    backward: bool,
) -> MessageTicks {
    let pipeline = spec.layout.pipeline;
    if pipeline < 2 {
        return MessageTicks::default();
    }
    let to = if backward { stage + pipeline - 1 } else { stage + 1 };
    let link = network.between_stages(stage % pipeline, to % pipeline);
    MessageTicks { latency: ticks(link.latency), wire: ticks(model.stream_bytes / link.bandwidth) }
}

/// Puts together what follows the last backward.
fn step(
    spec: &JobSpec,
    model: &Model,
    network: &LayoutNetwork<'_>,
    cluster: &Machines,
    pipeline: &[&Assignment],
    stages: &StageTimes,
    timeline: &Timeline,
) -> Prediction {
    let compute = timeline.end() as f64 / NANOS;
    let mut summed = 0.0_f64;
    let mut update = 0.0_f64;
    let mut updates = Vec::new();
    for (a, row) in pipeline.iter().zip(&timeline.rows) {
        let end = row.last().map_or(0, |span| span.end) as f64 / NANOS;
        // Each layer's sums set out when its last micro-batch is done, while earlier layers still compute.
        let last = stages.of_rank(a).map(|stage| stage.backward).fold(0.0, f64::max);
        let elements = model.elements_of(a);
        let sums = network.gradient_seconds(elements, nodes(a));
        summed = summed.max(end + (sums - last).max(sums / layers(a)));
        let ways = if spec.layout.zero { f64::from(spec.layout.data) } else { 1.0 };
        let precision = spec.train.precision;
        let own = stages.device(a).map_or(0.0, |device| update_seconds(precision, ways, device, elements));
        let back = network.gather_seconds(elements);
        updates.push(own);
        update = update.max(own + back);
    }
    let closing = network.closing_seconds();
    let step = summed.max(compute) + closing + update;
    let busy: Vec<f64> = timeline.rows.iter().map(|row| busy(row) as f64 / NANOS).collect();
    let used: f64 = busy.iter().zip(&updates).map(|(busy, update)| busy + update).sum();
    let ranks = busy.len().max(1) as f64;
    let mean = |of: fn(&Seconds) -> f64| {
        let rank = |a: &Assignment| micro_batches(a) * stages.of_rank(a).map(of).sum::<f64>();
        pipeline.iter().map(|a| rank(a)).sum::<f64>() / ranks
    };
    let losses = TimeLosses {
        idle: compute - busy.iter().sum::<f64>() / ranks,
        sums: mean(|seconds| seconds.sums),
        again: mean(|seconds| seconds.again),
        reduction: (summed - compute).max(0.0),
        update: update + closing,
    };
    let flops = model.flops(spec);
    let world = spec.layout.world();
    Prediction {
        step,
        compute,
        reduction: (summed - compute).max(0.0),
        closing,
        update,
        idle: 1.0 - used / (step * busy.len().max(1) as f64),
        path: path::path(timeline, (summed - compute).max(0.0), closing, update),
        busy,
        losses,
        tokens: tokens(spec),
        flops,
        mfu: flops / (step * peak(cluster, world, spec.train.precision)),
    }
}

/// FLOP/s of the devices of so many ranks, by their data sheets.
fn peak(cluster: &Machines, world: u32, precision: Precision) -> f64 {
    let rate = |rank| cluster.host_of(rank).map_or(0.0, |(_, group)| group.device.peak.of(precision));
    match cluster.hosts.as_slice() {
        [one] => f64::from(world) * one.device.peak.of(precision),
        _ => (0..world).map(rate).sum(),
    }
}

/// Micro-batches of a data rank.
fn micro_batches(a: &Assignment) -> f64 {
    let owned = a.runs.get(a.owned_runs.start as usize..a.owned_runs.end as usize).unwrap_or_default();
    f64::from(owned.iter().map(|run| run.end - run.start).sum::<u32>())
}

/// Layers of a rank.
fn layers(a: &Assignment) -> f64 {
    a.stages.iter().map(|stage| stage.layers.len()).sum::<usize>().max(1) as f64
}

/// Nodes of the gradient tree that a data rank sends.
fn nodes(a: &Assignment) -> usize {
    a.data_nodes.get(a.data_index as usize).map_or(1, Vec::len)
}

/// Tokens of a step that the model reads.
pub(super) fn tokens(spec: &JobSpec) -> u64 {
    let train = &spec.train;
    u64::from(train.global_micro_batches) * u64::from(train.micro_batch_size) * u64::from(train.sequence)
}

/// Bytes that AdamW reads and writes for a weight: the weight and two moments both ways, and its gradient; with a copy
/// in a low precision that is made anew. With ZeRO the moments lie on so many `ways`.
pub(super) fn update_seconds(precision: Precision, ways: f64, device: &Device, elements: f64) -> f64 {
    let low = match precision {
        Precision::Fp32 => 0,
        low => low.bytes(),
    };
    // The norm of the gradients is another pass over them.
    let bytes = 6 * 4 + 2 * 4;
    (elements / ways * bytes as f64 + elements * low as f64) / device.stream()
}

#[cfg(test)]
mod tests;
