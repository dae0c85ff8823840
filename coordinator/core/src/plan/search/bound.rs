//! The least time that a shape can take, in constant time for each stage.

use std::collections::BTreeMap;
use std::ops::Range;

use coxswain_types::JobSpec;
use coxswain_types::assignment::Recompute;
use coxswain_types::job::{Layout, Lengths, RecomputePolicy, Schedule};

use super::space::LayoutShape;
use super::{LayoutQuestion, Settings};
use crate::hardware::{Device, HostGroup, Machines};
use crate::plan::balance::KEEPS_UP;
use crate::plan::partition;
use crate::plan::time::{LayoutNetwork, Model, Seconds, update_seconds};

/// Times and weights of the layers before each, for a micro-batch on a tensor rank.
#[derive(Clone, Debug)]
struct Prefix {
    seconds: Vec<Seconds>,
    elements: Vec<f64>,
}

/// What bounds share.
pub(super) struct ShapeBounds<'a> {
    question: &'a LayoutQuestion<'a>,
    device: Device,
    /// All links as good as the best.
    ideal: Machines,
    prefixes: BTreeMap<(u32, u32, bool), Prefix>,
    cuts: BTreeMap<u32, Vec<Range<u32>>>,
}

impl<'a> ShapeBounds<'a> {
    pub(super) fn new(question: &'a LayoutQuestion<'a>) -> ShapeBounds<'a> {
        let precision = question.spec.train.precision;
        let devices = question.cluster.hosts.iter().map(|group| &group.device);
        let rate = |device: &&Device| device.peak.of(precision) * device.product_share;
        // The fastest kind, with the fastest memory of any: nothing does better.
        let mut device = devices
            .clone()
            .max_by(|a, b| rate(a).total_cmp(&rate(b)))
            .cloned()
            .unwrap_or_else(|| crate::hardware::devices::KNOWN[0].device());
        for other in devices {
            device.attention_share = device
                .attention_share
                .max(other.peak.of(precision) * other.attention_share / device.peak.of(precision));
            device.launch = device.launch.min(other.launch);
            if other.stream() > device.stream() {
                (device.bandwidth, device.bandwidth_share) = (other.bandwidth, other.bandwidth_share);
            }
        }
        let ideal = ideal(question.cluster, &device);
        ShapeBounds { question, device, ideal, prefixes: BTreeMap::new(), cuts: BTreeMap::new() }
    }

    /// The least seconds of a step.
    pub(super) fn seconds(&mut self, shape: &LayoutShape) -> f64 {
        let stages = shape.pipeline * shape.schedule.chunks();
        let key = (shape.micro_batch_size, shape.tensor, shape.sequence_parallel);
        if !self.prefixes.contains_key(&key) {
            let spec = settings(self.question, shape).apply(self.question.spec);
            self.prefixes.insert(key, prefix(&spec, &self.device, &self.ideal));
        }
        let (model, train) = (&self.question.spec.model, &self.question.spec.train);
        let cut = self.cuts.entry(stages).or_insert_with(|| {
            partition::partition(model, Lengths::of(model, train), &vec![KEEPS_UP; stages as usize])
        });
        let Some(prefix) = self.prefixes.get(&key) else { return 0.0 };
        let sharded = self.question.open.zero || self.question.spec.layout.zero;
        let ways = if sharded { f64::from(shape.data) } else { 1.0 };
        let split = shape.schedule == Schedule::ZbH1;
        let micro_batches = f64::from(shape.micro_batches.div_ceil(shape.data));
        let stage: Vec<Seconds> = cut.iter().map(|layers| prefix.between(layers)).collect();
        let (mut ahead, mut behind, mut most, mut update) = (0.0, 0.0, 0.0_f64, 0.0_f64);
        for rank in 0..shape.pipeline as usize {
            let own = || stage.iter().skip(rank).step_by(shape.pipeline as usize);
            let busy: f64 = own().map(|seconds| seconds.busy(split)).sum();
            most = most.max(ahead + micro_batches * busy + behind);
            let of_rank = cut.iter().skip(rank).step_by(shape.pipeline as usize);
            let elements: f64 = of_rank.map(|layers| prefix.elements_between(layers)).sum();
            update = update.max(update_seconds(train.precision, ways, &self.device, elements));
            if let Some(first) = stage.get(rank) {
                ahead += first.forward;
                // Weight gradients of ranks ahead may fill what the last inputs' leave.
                behind += if split { 0.0 } else { first.backward };
            }
        }
        // Nanoseconds are rounded where actions are simulated.
        (most + update) * (1.0 - 1e-6)
    }
}

/// The plainest settings of a shape, with what takes the least time.
pub(super) fn settings(question: &LayoutQuestion<'_>, shape: &LayoutShape) -> Settings {
    let open = &question.open;
    let mut settings = Settings::of(question.spec);
    settings.layout = Layout {
        pipeline: shape.pipeline,
        tensor: shape.tensor,
        data: shape.data,
        schedule: shape.schedule,
        sequence_parallel: shape.sequence_parallel,
        zero: if open.zero { shape.data > 1 } else { question.spec.layout.zero },
    };
    settings.micro_batch_size = shape.micro_batch_size;
    settings.global_micro_batches = shape.micro_batches;
    if open.tensor_shards {
        settings.tensor_shards = (shape.tensor > 1 && shape.tensor.is_power_of_two()).then_some(shape.tensor);
    }
    if open.recompute {
        settings.recompute = RecomputePolicy::None;
    }
    settings
}

/// The same cluster with the best device and the best link everywhere.
fn ideal(cluster: &Machines, device: &Device) -> Machines {
    let links = || cluster.hosts.iter().map(|group| group.inside).chain([cluster.between]);
    let mut best = cluster.between;
    for link in links() {
        best.bandwidth = best.bandwidth.max(link.bandwidth);
        best.latency = best.latency.min(link.latency);
    }
    let hosts =
        cluster.hosts.iter().map(|group| HostGroup { device: device.clone(), inside: best, ..group.clone() });
    Machines { hosts: hosts.collect(), between: best }
}

fn prefix(spec: &JobSpec, device: &Device, ideal: &Machines) -> Prefix {
    let model = Model::new(spec);
    let network = LayoutNetwork::new(spec, ideal);
    // A budget may leave all layers as they are.
    let mode = match spec.train.recompute {
        RecomputePolicy::None | RecomputePolicy::Budget { .. } => Recompute::Nothing,
        RecomputePolicy::Full => Recompute::Layer,
        RecomputePolicy::Selective(block) => Recompute::Block(block),
    };
    let (mut seconds, mut elements) = (vec![Seconds::default()], vec![0.0]);
    for layer in 0..spec.model.all_layers() {
        let layers = layer..layer + 1;
        let before = (seconds.last().copied().unwrap_or_default(), elements.last().copied().unwrap_or(0.0));
        seconds.push(before.0 + model.stage(spec, &layers, |_| mode, device, &network));
        elements.push(before.1 + model.elements_between(&layers));
    }
    Prefix { seconds, elements }
}

impl Prefix {
    fn between(&self, layers: &Range<u32>) -> Seconds {
        let at = |index: u32| self.seconds.get(index as usize).copied().unwrap_or_default();
        let (start, end) = (at(layers.start), at(layers.end));
        Seconds {
            forward: end.forward - start.forward,
            input: end.input - start.input,
            weight: end.weight - start.weight,
            backward: end.backward - start.backward,
            sums: end.sums - start.sums,
            again: end.again - start.again,
        }
    }

    fn elements_between(&self, layers: &Range<u32>) -> f64 {
        let at = |index: u32| self.elements.get(index as usize).copied().unwrap_or(0.0);
        at(layers.end) - at(layers.start)
    }
}
