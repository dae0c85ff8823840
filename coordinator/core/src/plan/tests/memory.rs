//! What ranks hold, and which layers a budget computes again.

use coxswain_types::JobSpec;
use coxswain_types::assignment::Recompute;
use coxswain_types::job::{Block, Corruption, OptimizerKind, Precision, RecomputePolicy, Schedule};
use coxswain_types::model::{Activation, Architecture, Attention, ModelSpec, Positions};
use expect_test::expect;

use super::{Plan, changed};
use crate::plan::Memory;

fn planned(change: impl FnOnce(&mut JobSpec)) -> Plan {
    changed(8, change).unwrap()
}

/// The first rank's memory.
fn memory(change: impl FnOnce(&mut JobSpec)) -> Memory {
    planned(change).memory()[0]
}

fn pipeline(spec: &mut JobSpec, pipeline: u32, micro_batches: u32, schedule: Schedule) {
    (spec.layout.pipeline, spec.layout.schedule) = (pipeline, schedule);
    (spec.train.global_micro_batches, spec.train.gradient_groups) = (micro_batches, 1);
}

#[test]
fn the_first_stage_holds_as_many_micro_batches_as_the_schedule_says() {
    let bytes = |p, m, schedule| memory(|spec| pipeline(spec, p, m, schedule)).activations_bytes;
    let one = bytes(4, 1, Schedule::GPipe);
    let (few, many) = (bytes(4, 4, Schedule::OneFOneB), bytes(4, 40, Schedule::OneFOneB));
    assert_eq!(few, many, "1F1B holds p, not m");
    assert!(bytes(4, 40, Schedule::GPipe) > 9 * one);
    assert!(bytes(4, 40, Schedule::GPipe) > 9 * many, "GPipe holds m");
    // From I to W about as much is held as from F to I: up to p micro-batches' worth, and the gradients beside.
    let last = |schedule| planned(|spec| pipeline(spec, 4, 8, schedule)).memory()[3];
    assert!(last(Schedule::ZbH1).activations_bytes > last(Schedule::OneFOneB).activations_bytes);
    let (zero, plain) = (last(Schedule::ZbH1).activations_bytes, last(Schedule::OneFOneB).activations_bytes);
    assert!(zero < 5 * plain, "{zero} {plain}");
    assert!(last(Schedule::GPipe).activations_bytes > 6 * last(Schedule::OneFOneB).activations_bytes);
    // Interleaving holds about 1 + (p - 1) / (p v) as much on the first rank.
    let plain = bytes(4, 8, Schedule::OneFOneB);
    let interleaved = bytes(4, 8, Schedule::Interleaved { chunks: 2 });
    assert!(interleaved * 10 > plain * 12 && interleaved * 10 < plain * 15, "{interleaved} {plain}");
}

#[test]
fn a_low_precision_halves_activations_and_keeps_masters() {
    let full = memory(|_| ());
    let low = memory(|spec| spec.train.precision = Precision::Bf16);
    assert_eq!(low.gradients_bytes, full.gradients_bytes);
    assert_eq!(low.optimizer_bytes, full.optimizer_bytes);
    assert_eq!(2 * low.weights_bytes, 3 * full.weights_bytes);
    // Statistics stay in fp32, and a weight gradient is made in the low precision before it is added.
    assert!(2 * low.activations_bytes > full.activations_bytes);
    assert!(10 * low.activations_bytes < 7 * full.activations_bytes);
}

#[test]
fn optimizer_state_is_shared_by_data_ranks() {
    let whole = |spec: &mut JobSpec| spec.layout.data = 4;
    let optimizer =
        |plan: &Plan| plan.memory().iter().map(|memory| memory.optimizer_bytes).collect::<Vec<_>>();
    for (kind, vocab) in
        [(OptimizerKind::AdamW, 515), (OptimizerKind::AdamW, 1 << 14), (OptimizerKind::Muon, 515)]
    {
        let plan = |zero: bool| {
            planned(|spec| {
                whole(spec);
                (spec.train.optimizer.kind, spec.model.vocab, spec.layout.zero) = (kind, vocab, zero);
            })
        };
        let (plain, zero) = (optimizer(&plan(false)), optimizer(&plan(true)));
        assert_eq!(zero.iter().sum::<u64>(), plain[0], "each moment is on one rank");
        assert!(plain.iter().all(|bytes| *bytes == plain[0]) && zero.iter().all(|bytes| *bytes < plain[0]));
    }
    let muon = memory(|spec| spec.train.optimizer.kind = OptimizerKind::Muon);
    assert!(muon.optimizer_bytes < memory(|_| ()).optimizer_bytes);
}

#[test]
fn shared_weights_are_held_once_and_have_a_sum_for_each_use() {
    let (own, shared) = (memory(|_| ()), memory(|spec| spec.model.layer_groups = 1));
    assert_eq!(shared.gradients_bytes, own.gradients_bytes);
    assert!(shared.weights_bytes * 2 < own.weights_bytes);
    assert_eq!(shared.optimizer_bytes, 2 * shared.weights_bytes);
    let tied = planned(|spec| spec.model.tied_embeddings = true);
    assert_eq!(planned(|_| ()).parameters() - tied.parameters(), 515 * 64);
}

#[test]
fn sequence_parallelism_splits_the_residual_stream() {
    let wide = |spec: &mut JobSpec| spec.layout.tensor = 2;
    let whole = memory(wide);
    let sequence_parallel = memory(|spec| {
        wide(spec);
        spec.layout.sequence_parallel = true;
    });
    // Of 8 layers two places each: 64 tokens of 64 numbers, halved.
    let streams = 16 * 4 * 64 * 64 / 2;
    let saved = whole.activations_bytes - sequence_parallel.activations_bytes;
    assert!(saved * 2 > streams && saved < 2 * streams, "{saved} of {streams}");
}

/// The activations of one rank under each way of keeping less.
#[test]
fn recomputing_more_holds_less() {
    let with = |mode| memory(|spec| spec.train.recompute = mode).activations_bytes;
    let none = with(RecomputePolicy::None);
    let attention = with(RecomputePolicy::Selective(Block::Attention));
    let ffn = with(RecomputePolicy::Selective(Block::Ffn));
    let full = with(RecomputePolicy::Full);
    assert!(none > attention && attention > ffn && ffn > full, "{none} {attention} {ffn} {full}");
}

fn recomputed(plan: &Plan, rank: usize) -> Vec<bool> {
    let stages = plan.assignments[rank].stages.iter();
    stages.flat_map(|stage| stage.recompute.iter().map(|mode| *mode == Recompute::Layer)).collect()
}

#[test]
fn a_budget_recomputes_the_fewest_layers_that_fit() {
    let with = |mode| planned(|spec| spec.train.recompute = mode);
    let peak = |plan: &Plan| plan.memory()[0].tensor_bytes();
    let (none, full) = (peak(&with(RecomputePolicy::None)), peak(&with(RecomputePolicy::Full)));
    let budget = |bytes| with(RecomputePolicy::Budget { bytes });
    let count = |plan: &Plan| recomputed(plan, 0).iter().filter(|again| **again).count();
    assert_eq!(count(&budget(none)), 0);
    // The last layer is run backward as soon as it has run forward: keeping it costs nothing at the peak.
    assert_eq!(count(&budget(full)), 7);
    let mut before = 0;
    for bytes in (full..=none).rev().step_by(50_000) {
        let plan = budget(bytes);
        let (count, modes) = (count(&plan), recomputed(&plan, 0));
        assert!(peak(&plan) <= bytes);
        assert!(modes.iter().take(count).all(|again| *again), "the first layers go first: {modes:?}");
        assert!(count >= before, "{bytes}: {count} after {before}");
        before = count;
    }
    assert!(before >= 6);
}

#[test]
fn each_pipeline_rank_fits_by_itself_and_a_tensor_group_together() {
    let least =
        |ranks: &[usize], plan: &Plan| ranks.iter().map(|r| plan.memory()[*r].tensor_bytes()).max().unwrap();
    let layout = |spec: &mut JobSpec| (spec.layout.pipeline, spec.layout.tensor) = (2, 2);
    let none = planned(layout);
    let bytes = least(&[0, 1], &none) - 1;
    let plan = planned(|spec| {
        layout(spec);
        spec.train.recompute = RecomputePolicy::Budget { bytes };
    });
    assert!(least(&[0, 1, 2, 3], &plan) <= bytes);
    assert_eq!(recomputed(&plan, 0), recomputed(&plan, 1));
    assert!(recomputed(&plan, 0)[0], "the first stage is the fuller one");
    assert_eq!(recomputed(&plan, 2), [false; 4]);
    assert!(plan.to_string().contains("recomputes"), "{plan}");
}

#[test]
fn a_budget_that_nothing_meets_names_the_worker() {
    let refused = changed(8, |spec| spec.train.recompute = RecomputePolicy::Budget { bytes: 1 << 20 });
    expect!["worker-0 needs about 10.7 MiB even if every layer is computed again, and train.recompute allows 1.0 MiB; raise the budget, use more pipeline or tensor ranks, set layout.zero to 1, or make train.micro_batch_size smaller"].assert_eq(&refused.unwrap_err().to_string());
}

/// What is kept of a micro-batch follows the parts of the model; `tests/tests/estimates.rs` holds all of it to what
/// tensors take.
#[test]
fn activations_follow_the_parts_of_the_model() {
    let of = |change: fn(&mut ModelSpec)| {
        let memory = memory(|spec| {
            pipeline(spec, 1, 1, Schedule::GPipe);
            change(&mut spec.model);
        });
        memory.activations_bytes
    };
    let plain = of(|_| ());
    // Without a gate there is a map less.
    assert!(of(|model| model.activation = Activation::Relu) < plain);
    // Queries and keys are kept as they were rotated, and not as they were before.
    let tables = plain - of(|model| model.positions = Positions::None);
    assert!(tables < 4 * 64 * 64, "{tables}");
    // A window keeps as much as all keys: no attention keeps its scores. Key/value heads of a group are not copied.
    assert!(of(|model| model.attention = Attention::Window { window: 8 }) <= plain);
    assert!(of(|model| model.embedding.norm = true) > plain, "the stem is counted");
    assert!(of(|model| model.vocab = 5150) > plain + 4 * 64 * 4000, "logits are counted, once");
    assert!(of(|model| model.vocab = 5150) < plain + 4 * 64 * 6000, "logits are counted, once");
    let two = memory(|spec| {
        pipeline(spec, 1, 1, Schedule::GPipe);
        let model = &mut spec.model;
        (model.architecture, model.layers, model.encoder_layers) = (Architecture::EncoderDecoder, 4, 4);
        model.layer_groups = 4;
        spec.train.corruption = Corruption::Infilling;
    });
    assert!(two.activations_bytes > plain, "half of the layers have one more block");
}
