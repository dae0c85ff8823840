//! How many ways the work is split, and what the axes ask of the model and of the training.

use coxswain_types::job::{Layout, Lengths, ModelSpec, OptimizerKind, Reduction, Schedule, TrainSpec};
use coxswain_types::schedule::Action;

use super::super::limits::{self, Limit};
use super::super::raw::{OrAuto, RawLayout, ZeroStage};
use super::Faults;
use super::schedule;

/// The layout, and the user's own schedule if there is one.
pub(super) fn layout(
    raw: &RawLayout,
    model: &ModelSpec,
    train: &TrainSpec,
    faults: &mut Faults,
) -> (Layout, Vec<Vec<Action>>) {
    let value = |given: Option<OrAuto<u32>>| given.and_then(OrAuto::given).unwrap_or(1);
    let layout = Layout {
        pipeline: value(raw.pipeline),
        tensor: value(raw.tensor),
        data: value(raw.data),
        schedule: schedule::schedule(raw, faults),
        sequence_parallel: raw.sequence_parallel.and_then(OrAuto::given).unwrap_or(false),
        zero: zero(raw.zero.and_then(OrAuto::given), faults),
    };
    let Layout { pipeline, tensor, data, .. } = layout;
    let pipeline_fits = faults.count("layout.pipeline", pipeline, &limits::WORLD);
    let tensor_fits = faults.count("layout.tensor", tensor, &limits::WORLD);
    let data_fits = faults.count("layout.data", data, &limits::WORLD);
    if pipeline_fits && tensor_fits && data_fits {
        check_world(&layout, faults);
    }
    let stages_fit = pipeline_fits && model.layers > 0 && check_stages(&layout, model, faults);
    if tensor_fits {
        check_tensor_ranks(&layout, model, train, faults);
    }
    let data_fits = data_fits && train.global_micro_batches > 0 && check_data(data, train, faults);
    let actions = if stages_fit && data_fits {
        schedule::actions(raw.actions.as_deref(), &layout, train, faults)
    } else {
        Vec::new()
    };
    (layout, actions)
}

fn check_world(layout: &Layout, faults: &mut Faults) {
    let Layout { pipeline, tensor, data, .. } = *layout;
    let workers = [pipeline, tensor, data].iter().fold(1_u64, |n, &m| n.saturating_mul(u64::from(m)));
    let Limit { most, reason, .. } = limits::WORLD;
    if workers > most {
        let product = format!("pipeline {pipeline} x tensor {tensor} x data {data}");
        faults
            .add("layout", format!("needs {workers} workers ({product}); must be {most} or less ({reason})"));
    }
}

fn check_stages(layout: &Layout, model: &ModelSpec, faults: &mut Faults) -> bool {
    let layers = model.all_layers();
    let named = if model.encoder_layers > 0 { "model.layers + model.encoder_layers" } else { "model.layers" };
    let (pipeline, chunks) = (layout.pipeline, layout.schedule.chunks());
    let each = "each stage holds at least one";
    if pipeline > layers {
        let message =
            format!("found {pipeline}, more stages than layers; must be at most {named} ({layers}): {each}");
        faults.add("layout.pipeline", message);
        return false;
    }
    let stages = u64::from(pipeline) * u64::from(chunks);
    if stages > u64::from(layers) {
        let most = layers / pipeline.max(1);
        let found = format!("{chunks} on each of {pipeline} pipeline ranks make {stages} stages");
        let interleaved = matches!(layout.schedule, Schedule::Interleaved { .. });
        let must = if interleaved && most < 2 {
            "this schedule has at least 2, so take fewer pipeline ranks or another schedule".to_owned()
        } else {
            format!("must be at most {most}")
        };
        faults.add("layout.chunks", format!("{found}, more than {named} ({layers}); {must}: {each}"));
        return false;
    }
    true
}

/// Checks what every tensor rank, or every logical tensor shard (`each`), needs of the model.
fn check_split(path: &str, each: &str, ways: u32, model: &ModelSpec, faults: &mut Faults) {
    let ModelSpec { heads, kv_heads, ffn, vocab, .. } = *model;
    let mut refuse = |must: String| faults.add(path, format!("found {ways}; {must}"));
    if heads > 0 && !heads.is_multiple_of(ways) {
        let why = format!("a head is never split, and every {each} has as many");
        refuse(format!("must divide model.heads ({heads}): {why}"));
    } else if heads > 0 && kv_heads > 0 {
        // Where tensor ranks are more than key/value heads, each head is held by equally many ranks.
        if !kv_heads.is_multiple_of(ways) && !ways.is_multiple_of(kv_heads) {
            let must = format!("must divide model.kv_heads ({kv_heads}) or be a multiple of it");
            refuse(format!("{must}: {each}s hold equally many, or share one"));
        }
    }
    if ffn > 0 && ways > ffn {
        refuse(format!("must be at most model.ffn ({ffn}): each {each} holds at least one column"));
    }
    if vocab > 0 && ways > vocab {
        refuse(format!("must be at most model.vocab ({vocab}): each {each} holds at least one token"));
    }
}

/// Checks `train.tensor_shards` against the model.
pub(super) fn check_shards(shards: u32, model: &ModelSpec, faults: &mut Faults) {
    let path = "train.tensor_shards";
    if !faults.count(path, shards, &limits::TENSOR_SHARDS) {
        return;
    }
    if !shards.is_power_of_two() {
        let (near, why) = (shards.next_power_of_two(), "their sums are added in a binary tree");
        faults.never(path, format!("found {shards}; must be a power of two such as {near}: {why}"));
        return;
    }
    check_split(path, "shard", shards, model, faults);
}

fn check_tensor_ranks(layout: &Layout, model: &ModelSpec, train: &TrainSpec, faults: &mut Faults) {
    let tensor = layout.tensor;
    check_split("layout.tensor", "rank", tensor, model, faults);
    let shards = train.shards(tensor);
    if shards == 0 {
        return;
    }
    if !shards.is_multiple_of(tensor) {
        let why = "a rank owns whole shards, and every rank has as many";
        let must = format!("must divide train.tensor_shards ({shards}): {why}");
        faults.add("layout.tensor", format!("found {tensor}; {must}"));
        return;
    }
    if train.optimizer.kind == OptimizerKind::Muon && !model.ffn.is_multiple_of(shards) {
        let ffn = model.ffn;
        let why = "muon gathers whole matrices from tensor ranks, whose slices are as large";
        faults
            .add("layout.tensor", format!("needs a model.ffn that {shards} divides, and finds {ffn}: {why}"));
    }
    let sequence = train.sequence;
    let decoded = Lengths::of(model, train).target;
    if layout.sequence_parallel && sequence.is_multiple_of(shards) && !decoded.is_multiple_of(shards) {
        let why = "every shard of the sequence is as long";
        let message =
            format!("needs {shards} to divide the {decoded} tokens of the decoder: {why}; leave it out");
        faults.add("layout.sequence_parallel", message);
    }
    if layout.sequence_parallel && !sequence.is_multiple_of(shards) {
        let of = if train.tensor_shards.is_some() { "train.tensor_shards" } else { "layout.tensor" };
        let message = format!(
            "needs a train.sequence that {of} ({shards}) divides, and finds {sequence}: every shard of the \
             sequence is as long; leave it out, or make the sequence a multiple of {shards}"
        );
        faults.add("layout.sequence_parallel", message);
    }
}

fn check_data(data: u32, train: &TrainSpec, faults: &mut Faults) -> bool {
    let (micro_batches, runs) = (train.global_micro_batches, train.gradient_groups);
    if data > micro_batches {
        let why = "each data rank needs at least one micro-batch of the step";
        let must = format!("must be at most train.global_micro_batches ({micro_batches}): {why}");
        faults.add("layout.data", format!("found {data}, more data ranks than micro-batches; {must}"));
        return false;
    }
    if train.reduction == Reduction::Canonical && runs > 0 && data > runs {
        let why = "a data rank owns whole groups";
        let must = format!("must be at most train.gradient_groups ({runs}): {why}");
        let hint = format!("train.gradient_groups may be raised to {micro_batches}");
        faults.add("layout.data", format!("found {data}; {must} ({hint})"));
        return false;
    }
    runs > 0
}

/// A copy takes the steps of what it copies, for which its tensor group has to be of the same make.
pub(super) fn check_peer_replica(layout: &Layout, train: &TrainSpec, faults: &mut Faults) {
    let along_tensor = layout.data == 1 && layout.pipeline == 1 && layout.tensor > 1;
    if along_tensor && train.optimizer.kind == OptimizerKind::Muon {
        let why = "muon needs whole matrices, and each tensor rank would copy another part of them";
        faults.add("recovery.peer_replica", format!("needs pipeline ranks, or ZeRO and data ranks: {why}"));
    }
}

fn zero(stage: Option<ZeroStage>, faults: &mut Faults) -> bool {
    let ZeroStage(stage) = stage.unwrap_or(ZeroStage(0));
    let gradients = "gradients are needed whole until the root of the gradient tree is known";
    let refuse = match stage {
        0 | 1 => return stage == 1,
        2 => format!("shards gradients too, which this version does not do ({gradients})"),
        3 => format!(
            "shards gradients and parameters too, which this version does not do ({gradients}, and a rank keeps \
             the parameters of its layers whole)"
        ),
        _ => {
            faults.never("layout.zero", format!("found {stage}; must be 0 or 1"));
            return false;
        }
    };
    faults.never("layout.zero", format!("found {stage}, which {refuse}; 1 shards the optimizer's state"));
    false
}
