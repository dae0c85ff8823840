//! What parts of the model take on a device, by form.

use std::collections::BTreeMap;
use std::ops::{Add, AddAssign};

use coxswain_types::Assignment;
use coxswain_types::assignment::{Recompute, Stage};
use coxswain_types::job::{Block, JobSpec, Lengths, Precision};
use coxswain_types::params::Place;

use super::network::LayoutNetwork;
use super::work::{ModelWork, PartWork, elements, work};
use crate::hardware::{Device, Machines};
use crate::plan::partition;

/// Seconds of one micro-batch, by form.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::plan) struct Seconds {
    pub(in crate::plan) forward: f64,
    /// The gradient of the input alone, with what is computed again.
    pub(in crate::plan) input: f64,
    /// The gradients of weights alone.
    pub(in crate::plan) weight: f64,
    /// Both: sums of tensor ranks travel while weight gradients are computed.
    pub(in crate::plan) backward: f64,
    /// Of the forward and the whole backward: waiting for sums of tensor ranks.
    pub(in crate::plan) sums: f64,
    /// Of the backward: computing again.
    pub(in crate::plan) again: f64,
}

impl Seconds {
    /// What a rank computes of a micro-batch, whether its backward is whole or split.
    pub(in crate::plan) fn busy(&self, split: bool) -> f64 {
        self.forward + self.after(split) + if split { self.weight } else { 0.0 }
    }

    /// What the stage before waits for.
    pub(in crate::plan) fn after(&self, split: bool) -> f64 {
        if split { self.input } else { self.backward }
    }
}

impl Add for Seconds {
    type Output = Seconds;

    fn add(self, other: Seconds) -> Seconds {
        Seconds {
            forward: self.forward + other.forward,
            input: self.input + other.input,
            weight: self.weight + other.weight,
            backward: self.backward + other.backward,
            sums: self.sums + other.sums,
            again: self.again + other.again,
        }
    }
}

impl AddAssign for Seconds {
    fn add_assign(&mut self, other: Seconds) {
        *self = *self + other;
    }
}

/// FLOPs of attention's backward for each of its forward: five products, of which scores are made again, for two.
const SCORES_BACKWARD: f64 = 2.5;

/// Bytes of a pass that adds a weight gradient in fp32, for each weight: read and written inside the product in fp32;
/// in a low precision written, read and added after it.
fn accumulated_bytes(precision: Precision) -> f64 {
    match precision {
        Precision::Fp32 => 8.0,
        _ => 12.0,
    }
}

/// Times of one part. `sum` is how long tensor ranks take to add so many bytes.
pub(super) fn seconds(
    work: &PartWork,
    device: &Device,
    precision: Precision,
    sum: impl Fn(f64) -> f64,
) -> Seconds {
    let rate = device.peak.of(precision) * device.product_share;
    let attention = device.peak.of(precision) * device.attention_share;
    let products = (work.products / rate).max(work.product_bytes / device.stream());
    let launches = |seconds: f64| seconds.max(work.kernels * device.launch);
    let sums = if work.summed_bytes > 0.0 { sum(work.summed_bytes) } else { 0.0 };
    let forward = launches(products + work.scores / attention + work.stream_bytes / device.stream());
    let input = launches(
        products + SCORES_BACKWARD * work.scores / attention + 2.0 * work.stream_bytes / device.stream(),
    );
    let weight = products + work.weights * accumulated_bytes(precision) / device.stream();
    Seconds {
        forward: forward + sums,
        input: input + sums,
        weight,
        backward: input + weight.max(sums),
        sums: sums + (sums - weight).max(0.0),
        again: 0.0,
    }
}

/// A job's model as work, with the weights of its places.
#[derive(Clone, Debug)]
pub(in crate::plan) struct Model {
    pub(super) work: ModelWork,
    elements: BTreeMap<Place, f64>,
    /// Bytes of a place of the residual stream on a tensor rank, which stages hand each other.
    pub(super) stream_bytes: f64,
}

impl Model {
    pub(in crate::plan) fn new(spec: &JobSpec) -> Model {
        let elements = elements(spec);
        let lengths = Lengths::of(&spec.model, &spec.train);
        let parts = if spec.layout.sequence_parallel { f64::from(spec.layout.tensor) } else { 1.0 };
        let tokens = f64::from(spec.train.micro_batch_size) * f64::from(lengths.source + lengths.target);
        let stream_bytes = tokens * f64::from(spec.model.dim) * spec.train.precision.bytes() as f64 / parts;
        Model { work: work(spec, &elements), elements, stream_bytes }
    }

    /// Weights of these layers on a tensor rank, with what stands before the first and after the last.
    pub(in crate::plan) fn elements_between(&self, layers: &std::ops::Range<u32>) -> f64 {
        let count = self.work.layers.len() as u32;
        let inside = |place: &Place| match place {
            Place::Embedding => layers.start == 0,
            Place::Layer(layer) => layers.contains(layer),
            Place::Bridge => false,
            Place::Head => layers.end == count,
        };
        self.elements.iter().filter(|(place, _)| inside(place)).map(|(_, elements)| elements).sum()
    }

    /// Weights of a rank.
    pub(super) fn elements_of(&self, a: &Assignment) -> f64 {
        a.stages.iter().map(|stage| self.elements_between(&stage.layers)).sum()
    }

    /// FLOPs of a step: a backward takes twice as many as its forward.
    pub(super) fn flops(&self, spec: &JobSpec) -> f64 {
        let lengths = Lengths::of(&spec.model, &spec.train);
        let samples = f64::from(spec.train.global_micro_batches) * f64::from(spec.train.micro_batch_size);
        let layers = 0..spec.model.all_layers();
        3.0 * samples * partition::loads(&spec.model, lengths, &[layers]).into_iter().sum::<u64>() as f64
    }

    /// What layers take on a device, with what stands before the first and after the last.
    pub(in crate::plan) fn stage(
        &self,
        spec: &JobSpec,
        layers: &std::ops::Range<u32>,
        recompute: impl Fn(usize) -> Recompute,
        device: &Device,
        network: &LayoutNetwork<'_>,
    ) -> Seconds {
        let precision = spec.train.precision;
        let of = |work: &PartWork| seconds(work, device, precision, |bytes| network.tensor_seconds(bytes));
        let mut sum = Seconds::default();
        if layers.start == 0 {
            sum += of(&self.work.embedding);
        }
        if spec.model.encoder_layers > 0 && layers.contains(&spec.model.encoder_layers) {
            sum += of(&self.work.bridge);
        }
        for (at, layer) in layers.clone().enumerate() {
            let Some(blocks) = self.work.layers.get(layer as usize) else { continue };
            let [attention, ffn] = blocks.each_ref().map(of);
            sum += attention + ffn;
            let again = match recompute(at) {
                Recompute::Nothing => 0.0,
                Recompute::Layer => attention.forward + ffn.forward,
                Recompute::Block(Block::Attention) => attention.forward,
                Recompute::Block(Block::Ffn) => ffn.forward,
            };
            sum.input += again;
            sum.backward += again;
            sum.again += again;
        }
        if layers.end as usize == self.work.layers.len() {
            sum += of(&self.work.head);
        }
        sum
    }
}

/// The stages of a pipeline, on the slowest device that each of them has.
#[derive(Clone, Debug)]
pub(super) struct StageTimes<'a> {
    seconds: Vec<Seconds>,
    devices: Vec<&'a Device>,
}

impl<'a> StageTimes<'a> {
    pub(super) fn new(
        model: &Model,
        spec: &JobSpec,
        pipeline: &[&Assignment],
        cluster: &'a Machines,
    ) -> Option<StageTimes<'a>> {
        let network = LayoutNetwork::new(spec, cluster);
        let precision = spec.train.precision;
        let mut seconds = vec![Seconds::default(); spec.layout.stages() as usize];
        let mut devices = Vec::new();
        for a in pipeline {
            let device = network.slowest(a.pipeline_index, precision)?;
            devices.push(device);
            for stage in &a.stages {
                let modes = |at: usize| stage.recompute.get(at).copied().unwrap_or(Recompute::Nothing);
                let taken = model.stage(spec, &stage.layers, modes, device, &network);
                *seconds.get_mut(stage.index as usize)? = taken;
            }
        }
        Some(StageTimes { seconds, devices })
    }

    pub(super) fn of(&self, stage: u32) -> Option<&Seconds> {
        self.seconds.get(stage as usize)
    }

    /// Those of a rank.
    pub(super) fn of_rank(&self, a: &Assignment) -> impl Iterator<Item = &Seconds> {
        let index = |stage: &Stage| self.seconds.get(stage.index as usize);
        a.stages.iter().filter_map(index)
    }

    pub(super) fn device(&self, a: &Assignment) -> Option<&Device> {
        self.devices.get(a.pipeline_index as usize).copied()
    }
}
