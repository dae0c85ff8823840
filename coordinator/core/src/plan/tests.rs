mod memory;
mod schedules;

use std::collections::BTreeMap;
use std::path::Path;

use coxswain_types::job::Schedule;
use coxswain_types::params::parameter_table;
use coxswain_types::schedule::Action;
use coxswain_types::{Assignment, JobSpec};
use expect_test::{Expect, expect};
use proptest::prelude::*;

use super::print::schedule_name;
use super::{Plan, PlanError, encode, sketch};
use crate::spec::{JobText, parse};

/// A small job of 4 layers with a head that weighs less than a layer.
pub(super) fn job(sets: &[(&str, &str)]) -> JobSpec {
    let text = "\
name: tiny
model: {layers: 4, dim: 64, heads: 8, kv_heads: 2, ffn: 192, vocab: 515}
data: {synthetic: {tokens: 10000}}
train: {steps: 20, sequence: 32, micro_batch_size: 2, global_micro_batches: 4, threads: 1}
";
    let sets: Vec<_> = sets.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect();
    parse(&JobText { source: "tiny", text, sets: &sets, base: Path::new("/") }).unwrap()
}

pub(super) fn planned(pipeline: u32, tensor: u32, data: u32, micro_batches: u32) -> Plan {
    let layout = format!("{{pipeline: {pipeline}, tensor: {tensor}, data: {data}}}");
    let micro_batches = micro_batches.to_string();
    let spec = job(&[("layout", &layout), ("train.global_micro_batches", &micro_batches)]);
    sketch(&spec, spec.layout.world()).unwrap()
}

/// The small job with `layers` layers, changed by `change`, on as many workers as it needs.
pub(super) fn changed(layers: u32, change: impl FnOnce(&mut JobSpec)) -> Result<Plan, PlanError> {
    let mut spec = job(&[("model.layers", &layers.to_string())]);
    change(&mut spec);
    sketch(&spec, spec.layout.world())
}

fn printed(pipeline: u32, tensor: u32, data: u32, expected: &Expect) {
    let plan = planned(pipeline, tensor, data, 4).to_string();
    expected.assert_eq(&plan);
}

#[test]
fn one_worker() {
    printed(
        1,
        1,
        1,
        &expect![[r#"
            job tiny · generation 1 · pipeline 1 x tensor 1 x data 1 · 1 worker · 1 thread each
            4 layers · 4 micro-batches of 2 x 32 tokens · 4 gradient groups · 256 tokens a step
            rank  data  pipeline  tensor  worker    holds                   params  peak tensors
               0     0         0       0  worker-0  embed layers 0..4 head  254.9K       7.1 MiB

            memory of  weights  gradients  optimizer  activations  tensors            resident
            rank 0     1.0 MiB    2.9 MiB    1.9 MiB      1.3 MiB  7.1 MiB  137 MiB to 397 MiB
            tensors are counted; the runtime (program, libtorch, its scratch) adds 130 MiB to 390 MiB of resident memory

            1F1B: micro-batches 0..4; makespan 12 units of time, 12 without bubble; bubble 0%; a column is a unit
            pipeline 0  F0 B0─── F1 B1─── F2 B2─── F3 B3───
        "#]],
    );
}

#[test]
fn two_stages() {
    printed(
        2,
        1,
        1,
        &expect![[r#"
            job tiny · generation 1 · pipeline 2 x tensor 1 x data 1 · 2 workers · 1 thread each
            4 layers · 4 micro-batches of 2 x 32 tokens · 4 gradient groups · 256 tokens a step
            rank  data  pipeline  tensor  worker    holds              params  peak tensors
               0     0         0       0  worker-0  embed layers 0..2  127.4K       4.2 MiB
               1     0         1       0  worker-1  layers 2..4 head   127.5K       3.7 MiB

            memory of  weights  gradients  optimizer  activations  tensors            resident
            rank 0     0.5 MiB    1.5 MiB    1.0 MiB      1.3 MiB  4.2 MiB  134 MiB to 394 MiB
            rank 1     0.5 MiB    1.5 MiB    1.0 MiB      0.7 MiB  3.7 MiB  133 MiB to 393 MiB
            tensors are counted; the runtime (program, libtorch, its scratch) adds 130 MiB to 390 MiB of resident memory

            1F1B: micro-batches 0..4; makespan 15 units of time, 12 without bubble; bubble 20%; a column is a unit
            pipeline 0  F0 F1 ·  ·  B0─── F2 B1─── F3 B2─── ·  B3───
            pipeline 1  ·  F0 B0─── F1 B1─── F2 B2─── F3 B3─── ·  ·
        "#]],
    );
}

#[test]
fn two_tensor_ranks() {
    printed(
        1,
        2,
        1,
        &expect![[r#"
            job tiny · generation 1 · pipeline 1 x tensor 2 x data 1 · 2 workers · 1 thread each
            4 layers · 4 micro-batches of 2 x 32 tokens · 4 gradient groups · 256 tokens a step
            rank  data  pipeline  tensor  worker    holds                   params  peak tensors
               0     0         0       0  worker-0  embed layers 0..4 head  127.7K       3.7 MiB
               1     0         0       1  worker-1  embed layers 0..4 head  127.8K       3.7 MiB

            memory of  weights  gradients  optimizer  activations  tensors            resident
            rank 0     0.5 MiB    1.5 MiB    1.0 MiB      0.8 MiB  3.7 MiB  133 MiB to 393 MiB
            rank 1     0.5 MiB    1.5 MiB    1.0 MiB      0.8 MiB  3.7 MiB  133 MiB to 393 MiB
            tensors are counted; the runtime (program, libtorch, its scratch) adds 130 MiB to 390 MiB of resident memory

            1F1B: micro-batches 0..4; makespan 12 units of time, 12 without bubble; bubble 0%; a column is a unit
            pipeline 0  F0 B0─── F1 B1─── F2 B2─── F3 B3───
        "#]],
    );
}

#[test]
fn two_of_each() {
    printed(
        2,
        2,
        2,
        &expect![[r#"
            job tiny · generation 1 · pipeline 2 x tensor 2 x data 2 · 8 workers · 1 thread each
            4 layers · 4 micro-batches of 2 x 32 tokens · 4 gradient groups · 256 tokens a step
            rank  data  pipeline  tensor  worker    holds              params  peak tensors
               0     0         0       0  worker-0  embed layers 0..2   63.8K       2.0 MiB
               1     0         0       1  worker-1  embed layers 0..2   63.9K       2.0 MiB
               2     0         1       0  worker-2  layers 2..4 head    63.9K       1.7 MiB
               3     0         1       1  worker-3  layers 2..4 head    63.9K       1.7 MiB
               4     1         0       0  worker-4  embed layers 0..2   63.8K       2.0 MiB
               5     1         0       1  worker-5  embed layers 0..2   63.9K       2.0 MiB
               6     1         1       0  worker-6  layers 2..4 head    63.9K       1.7 MiB
               7     1         1       1  worker-7  layers 2..4 head    63.9K       1.7 MiB

            memory of  weights  gradients  optimizer  activations  tensors            resident
            rank 0     0.2 MiB    0.5 MiB    0.5 MiB      0.8 MiB  2.0 MiB  132 MiB to 392 MiB
            rank 1     0.2 MiB    0.5 MiB    0.5 MiB      0.8 MiB  2.0 MiB  132 MiB to 392 MiB
            rank 2     0.2 MiB    0.5 MiB    0.5 MiB      0.5 MiB  1.7 MiB  131 MiB to 391 MiB
            rank 3     0.2 MiB    0.5 MiB    0.5 MiB      0.5 MiB  1.7 MiB  131 MiB to 391 MiB
            rank 4     0.2 MiB    0.5 MiB    0.5 MiB      0.8 MiB  2.0 MiB  132 MiB to 392 MiB
            rank 5     0.2 MiB    0.5 MiB    0.5 MiB      0.8 MiB  2.0 MiB  132 MiB to 392 MiB
            rank 6     0.2 MiB    0.5 MiB    0.5 MiB      0.5 MiB  1.7 MiB  131 MiB to 391 MiB
            rank 7     0.2 MiB    0.5 MiB    0.5 MiB      0.5 MiB  1.7 MiB  131 MiB to 391 MiB
            tensors are counted; the runtime (program, libtorch, its scratch) adds 130 MiB to 390 MiB of resident memory

            1F1B: data rank 0 of 2, micro-batches 0..2; makespan 9 units of time, 6 without bubble; bubble 33%; a column is a unit
            pipeline 0  F0 F1 ·  ·  B0─── ·  B1───
            pipeline 1  ·  F0 B0─── F1 B1─── ·  ·
        "#]],
    );
}

#[test]
fn four_stages_of_a_long_step_with_a_spare() {
    let spec =
        job(&[("layout.pipeline", "4"), ("train.global_micro_batches", "24"), ("train.recompute", "full")]);
    expect![[r#"
        job tiny · generation 1 · pipeline 4 x tensor 1 x data 1 · 4 workers · 1 thread each
        4 layers · 24 micro-batches of 2 x 32 tokens · 8 gradient groups · 1536 tokens a step
        rank  data  pipeline  tensor  worker    holds              recomputes    params  peak tensors
           0     0         0       0  worker-0  embed layers 0..1  1 of 1 layer   80.2K       2.7 MiB
           1     0         1       0  worker-1  layers 1..2        1 of 1 layer   47.2K       1.8 MiB
           2     0         2       0  worker-2  layers 2..3        1 of 1 layer   47.2K       1.8 MiB
           3     0         3       0  worker-3  layers 3..4 head   1 of 1 layer   80.3K       2.6 MiB

        memory of  weights  gradients  optimizer  activations  tensors            resident
        rank 0     0.3 MiB    1.2 MiB    0.6 MiB      0.6 MiB  2.7 MiB  132 MiB to 392 MiB
        rank 1     0.2 MiB    0.7 MiB    0.4 MiB      0.6 MiB  1.8 MiB  131 MiB to 391 MiB
        rank 2     0.2 MiB    0.7 MiB    0.4 MiB      0.5 MiB  1.8 MiB  131 MiB to 391 MiB
        rank 3     0.3 MiB    1.2 MiB    0.6 MiB      0.5 MiB  2.6 MiB  132 MiB to 392 MiB
        tensors are counted; the runtime (program, libtorch, its scratch) adds 130 MiB to 390 MiB of resident memory
        spare: worker-4 (every rank is taken)

        1F1B: micro-batches 0..24; makespan 81 units of time, 72 without bubble; bubble 11%; a column is a unit
        pipeline 0  F0  F1  F2  F3  ·   ·   ·   ·   ·   ·   B0───── F4  B1───── F5  B2───── F6  B3───── F7  B4───── … 57 more
        pipeline 1  ·   F0  F1  F2  ·   ·   ·   ·   B0───── F3  B1───── F4  B2───── F5  B3───── F6  B4───── F7  B5── … 57 more
        pipeline 2  ·   ·   F0  F1  ·   ·   B0───── F2  B1───── F3  B2───── F4  B3───── F5  B4───── F6  B5───── F7 … 57 more
        pipeline 3  ·   ·   ·   F0  B0───── F1  B1───── F2  B2───── F3  B3───── F4  B4───── F5  B5───── F6  B6───── … 57 more
    "#]].assert_eq(&sketch(&spec, 5).unwrap().to_string());
    // As much of the grid as fits on a screen.
    let plan = format!("{:60}", sketch(&spec, 5).unwrap());
    let rows: Vec<_> = plan.lines().filter(|line| line.starts_with("pipeline ")).collect();
    assert!(
        rows.iter().all(|row| row.ends_with(" more") && (50..=60).contains(&row.chars().count())),
        "{plan}"
    );
}

#[test]
fn the_lists_of_a_middle_stage() {
    let plan = planned(3, 1, 1, 4);
    let text = |list: &[Action]| list.iter().map(Action::to_string).collect::<Vec<_>>().join(" ");
    expect!["1RECV_F0 1RECV_F1 1F0 1SEND_F0 1RECV_B0 1F1 1SEND_F1 1RECV_F2 1B0 1SEND_B0 1RECV_B1 1F2 1SEND_F2 1RECV_F3 1B1 1SEND_B1 1RECV_B2 1F3 1SEND_F3 1RECV_B3 1B2 1SEND_B2 1B3 1SEND_B3"].assert_eq(&text(&plan.assignments[1].train));
    expect!["1RECV_F0 1RECV_F1 1F0 1SEND_F0 1RECV_F2 1F1 1SEND_F1 1RECV_F3 1F2 1SEND_F2 1F3 1SEND_F3"]
        .assert_eq(&text(&plan.assignments[1].evaluate));
}

#[test]
fn json_has_the_facts_of_the_print() {
    let json = planned(2, 1, 1, 2).to_json().unwrap();
    expect![[r#"
        {
          "bubble": 0.3333333333333333,
          "generation": 1,
          "job": "tiny",
          "layout": {
            "data": 1,
            "pipeline": 2,
            "schedule": "1f1b",
            "sequence_parallel": false,
            "tensor": 1,
            "zero": false
          },
          "makespan": 9.0,
          "parameters": 254912,
          "precision": "fp32",
          "ranks": [
            {
              "data": 0,
              "holds": "embed layers 0..2",
              "memory": {
                "activations_bytes": 1356800,
                "copies_bytes": 0,
                "gradients_bytes": 1019392,
                "optimizer_bytes": 1019392,
                "weights_bytes": 509696
              },
              "micro_batches": [
                0,
                2
              ],
              "parameters": 127424,
              "pipeline": 0,
              "rank": 0,
              "resident_bytes": [
                140220160,
                412849920
              ],
              "runtime_bytes": [
                136314880,
                408944640
              ],
              "stages": [
                {
                  "embedding": true,
                  "head": false,
                  "index": 0,
                  "layers": {
                    "end": 2,
                    "start": 0
                  },
                  "next": 1,
                  "previous": null,
                  "recompute": [
                    "nothing",
                    "nothing"
                  ]
                }
              ],
              "tensor": 0,
              "tensor_bytes": 3905280,
              "train": [
                "0F0",
                "0SEND_F0",
                "0RECV_B0",
                "0F1",
                "0SEND_F1",
                "0RECV_B1",
                "0B0",
                "0B1"
              ],
              "worker": "worker-0"
            },
            {
              "data": 0,
              "holds": "layers 2..4 head",
              "memory": {
                "activations_bytes": 779008,
                "copies_bytes": 0,
                "gradients_bytes": 1019904,
                "optimizer_bytes": 1019904,
                "weights_bytes": 509952
              },
              "micro_batches": [
                0,
                2
              ],
              "parameters": 127488,
              "pipeline": 1,
              "rank": 1,
              "resident_bytes": [
                139643648,
                412273408
              ],
              "runtime_bytes": [
                136314880,
                408944640
              ],
              "stages": [
                {
                  "embedding": false,
                  "head": true,
                  "index": 1,
                  "layers": {
                    "end": 4,
                    "start": 2
                  },
                  "next": null,
                  "previous": 0,
                  "recompute": [
                    "nothing",
                    "nothing"
                  ]
                }
              ],
              "tensor": 0,
              "tensor_bytes": 3328768,
              "train": [
                "1RECV_F0",
                "1F0",
                "1RECV_F1",
                "1B0",
                "1SEND_B0",
                "1F1",
                "1B1",
                "1SEND_B1"
              ],
              "worker": "worker-1"
            }
          ],
          "schedule": "1F1B",
          "spares": [],
          "threads": 1
        }"#]]
    .assert_eq(&format!("{json:#}"));
}

#[test]
fn parameters_are_counted_once_whatever_the_layout() {
    let whole: u64 = parameter_table(&job(&[]).model).iter().map(|p| p.elements()).sum();
    for (pipeline, tensor, data) in [(1, 1, 1), (2, 1, 1), (1, 8, 1), (1, 1, 4), (2, 2, 2), (4, 4, 2)] {
        assert_eq!(planned(pipeline, tensor, data, 8).parameters(), whole, "{pipeline} {tensor} {data}");
    }
}

#[test]
fn key_and_value_heads_are_summed_over_the_ranks_that_share_them() {
    let plan = planned(2, 4, 2, 4);
    let uses = |rank: usize, name: &str| {
        let row = plan.assignments[rank].parameters.iter().find(|row| row.name.contains(name));
        row.unwrap().uses.clone()
    };
    // Rank 14 is data rank 1, stage 1, tensor rank 2: it shares key/value head 1 with rank 15.
    assert_eq!(uses(14, "k_proj"), [14, 15]);
    assert_eq!(uses(15, "v_proj"), [14, 15]);
    assert_eq!(uses(14, "q_proj"), [0_u32; 0]);
    // Norms are replicated: what is added up for one lies on the rank itself.
    assert!(uses(14, "input_layernorm").iter().all(|rank| *rank == 14));
}

#[test]
fn too_few_workers_are_told_with_the_layout() {
    let spec = job(&[("layout", "{pipeline: 2, tensor: 2}")]);
    let told = sketch(&spec, 1).unwrap_err();
    expect![
        "needs 4 workers (pipeline 2 x tensor 2 x data 1), 1 is here; start more, or make layout smaller"
    ]
    .assert_eq(&told.to_string());
}

#[test]
fn a_job_that_no_check_has_seen_is_refused_instead_of_planned() {
    let changes: [fn(&mut JobSpec); 8] = [
        |job| job.layout.pipeline = 5,
        |job| job.layout.pipeline = 0,
        |job| job.layout.tensor = 3,
        |job| job.layout.data = 5,
        |job| job.model.heads = 0,
        |job| job.model.kv_heads = 3,
        |job| job.train.gradient_groups = 9,
        |job| job.train.global_micro_batches = 0,
    ];
    for (i, change) in changes.iter().enumerate() {
        let mut spec = job(&[]);
        change(&mut spec);
        assert!(matches!(sketch(&spec, 64), Err(PlanError::Unchecked(_))), "change {i}");
    }
    let mut spec = job(&[]);
    spec.train.optimizer.eps = f64::NAN;
    assert_eq!(sketch(&spec, 1), Err(PlanError::Encoding(0)));
}

#[test]
fn a_digest_is_the_hash_of_the_text_and_changes_with_it() {
    let plan = planned(2, 1, 1, 2);
    let (json, digest) = encode(&plan.assignments[0]);
    assert_eq!(digest, blake3::hash(json.as_bytes()).to_hex().as_str());
    assert_eq!(serde_json::from_str::<Assignment>(&json).unwrap(), plan.assignments[0]);
    let mut other = plan.assignments[0].clone();
    other.generation.0 += 1;
    assert_ne!(encode(&other).1, digest);
}

/// Each slice of each parameter is saved once and has one slot.
fn check_rows(plan: &Plan) {
    let first = &plan.assignments[0];
    let mut slots = vec![0; first.norm_slots as usize];
    let mut saved: BTreeMap<&str, u64> = BTreeMap::new();
    for a in &plan.assignments {
        for row in &a.parameters {
            assert_eq!(row.saves, row.norm_slot.is_some());
            if let Some(slot) = row.norm_slot {
                slots[slot as usize] += 1;
                *saved.entry(&row.name).or_default() += row.elements();
            }
        }
    }
    assert!(slots.iter().all(|n| *n == 1), "{slots:?}");
    for parameter in parameter_table(&first.spec.model) {
        assert_eq!(saved.remove(parameter.name.as_str()), Some(parameter.elements()), "{}", parameter.name);
    }
    assert!(saved.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_layout_that_the_door_lets_in_has_a_plan(
        (pipeline, tensor_log, data, micro_batches) in (1_u32..=4, 0_u32..4, 1_u32..=6, 1_u32..=20),
        (schedule, shards_log) in (0_usize..5, 0_u32..4),
        (tied, zero, sequence_parallel, groups) in (any::<bool>(), any::<bool>(), any::<bool>(), 1_u32..=8),
        spares in 0_u32..3,
    ) {
        let data = data.min(micro_batches);
        let layout = format!("{{pipeline: {pipeline}, tensor: {}, data: {data}}}", 1 << tensor_log);
        let micro_batches = micro_batches.to_string();
        let sets = [("layout", layout.as_str()), ("train.global_micro_batches", &micro_batches), ("model.layers", "8")];
        let mut spec = job(&sets);
        let interleaved = Schedule::Interleaved { chunks: 2 };
        let schedules =
            [Schedule::OneFOneB, Schedule::GPipe, Schedule::ZbH1, interleaved, Schedule::OneFOneB];
        spec.layout.schedule = schedules[schedule];
        (spec.layout.zero, spec.layout.sequence_parallel) = (zero, sequence_parallel);
        (spec.model.tied_embeddings, spec.model.layer_groups) = (tied, groups);
        // The last of the schedules goes without a number of shards of its own.
        spec.train.tensor_shards = (schedule < 4).then_some(1 << tensor_log.max(shards_log));
        let plan = sketch(&spec, spec.layout.world() + spares).unwrap();
        check_rows(&plan);
        prop_assert_eq!(plan.spares.len(), spares as usize);
        prop_assert_eq!(&plan, &sketch(&spec, spec.layout.world() + spares).unwrap());
        let whole: u64 = parameter_table(&spec.model).iter().map(|p| p.elements()).sum();
        prop_assert_eq!(plan.parameters(), whole);
        prop_assert!(plan.to_string().contains(&schedule_name(spec.layout.schedule)));
    }
}
