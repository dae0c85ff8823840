//! Many jobs: each comes back from its resolved text, and no text makes the door panic.

use std::path::Path;
use std::time::{Duration, Instant};

use coxswain_types::params::parameter_table;
use proptest::prelude::*;

use super::{LEAST, read_with};
use crate::plan::sketch;
use crate::spec::{JobText, look, resolved_yaml};

proptest! {
    #[test]
    fn a_resolved_job_is_the_same_job(
        (layers, heads_log, head_pairs, kv_log) in (1_u32..9, 0_u32..4, 1_u32..9, 0_u32..4),
        (steps, seed, micro_batches) in (1_u64..10_000, any::<u64>(), 1_u32..33),
        (learning_rate, validation, beta) in (1e-9_f64..10.0, 0.0_f64..0.5, 0.0_f64..1.0),
        threads in proptest::option::of(1_u32..64),
        synthetic in any::<bool>(),
    ) {
        let (heads, kv_heads) = (1 << heads_log, 1 << kv_log.min(heads_log));
        let dim = heads * head_pairs * 2;
        let data = if synthetic { "{synthetic: {tokens: 999}}".to_owned() } else { format!("{{text: [a, 'b: c'], validation: {validation:?}}}") };
        let text = format!(
            "name: p\nmodel: {{layers: {layers}, dim: {dim}, heads: {heads}, kv_heads: {kv_heads}, vocab: 300}}\n\
             data: {data}\n\
             train: {{steps: {steps}, seed: {seed}, sequence: 9, global_micro_batches: {micro_batches}, \
             learning_rate: {learning_rate:?}, betas: [{beta:?}, 0.5], threads: {}}}\n\
             layout: {{pipeline: {layers}, tensor: {heads}}}\n",
            threads.map_or("null".to_owned(), |t| t.to_string()),
        );
        let job = read_with(&text, &[]).unwrap();
        prop_assert_eq!(&job.train.seed, &seed);
        let resolved = resolved_yaml(&job).unwrap();
        prop_assert_eq!(read_with(&resolved, &[]).unwrap(), job);
    }

    #[test]
    fn a_resolved_job_keeps_every_choice(
        tied in any::<bool>(), groups in 1_u32..5, precision in 0_usize..3, scale in 0_u32..25,
        growth in 1_u64..5000, non_finite in 1_u32..1000, dropout in 0.0_f64..1.0, shards in 0_usize..5,
        kept in 0_usize..5, muon in any::<bool>(), rate in 0_usize..4, schedule in 0_usize..5,
        chunks in 2_u32..3, flags in any::<[bool; 4]>(), bytes in 1_u64..1 << 50,
    ) {
        let mut sets = vec![
            ("model.tied_embeddings", tied.to_string()),
            ("model.layer_groups", groups.to_string()),
            ("train.precision", ["fp32", "bf16", "fp16"][precision].to_owned()),
            ("train.non_finite_max", non_finite.to_string()),
            ("train.dropout", format!("{dropout:?}")),
            ("train.attention_dropout", format!("{:?}", dropout / 3.0)),
            ("train.tensor_shards", ["null", "1", "2", "4", "8"][shards].to_owned()),
            ("train.recompute",
                ["none", "full", "attention", "ffn", &format!("{{budget: {bytes}}}")][kept].to_owned()),
            ("train.optimizer", if muon { "muon" } else { "adamw" }.to_owned()),
            ("train.learning_rate_schedule", ["cosine", "linear", "wsd", "constant"][rate].to_owned()),
            ("train.parameter_norms", flags[0].to_string()),
            ("train.reduction", if flags[1] { "fast" } else { "canonical" }.to_owned()),
            ("layout.pipeline", "2".to_owned()),
            ("layout.schedule", ["gpipe", "1f1b", "interleaved", "zb-h1", "custom"][schedule].to_owned()),
            ("layout.sequence_parallel", flags[2].to_string()),
            ("layout.zero", u8::from(flags[3]).to_string()),
        ];
        if precision == 2 {
            sets.push(("train.initial_loss_scale", (1_u64 << scale).to_string()));
            sets.push(("train.loss_scale_growth_steps", growth.to_string()));
        }
        if muon {
            sets.push(("train.momentum", format!("{:?}", dropout / 2.0)));
        }
        if rate == 2 {
            sets.push(("train.decay_steps", (growth % 181).to_string()));
        }
        if schedule == 2 || schedule == 4 {
            sets.push(("layout.chunks", chunks.to_string()));
        }
        if schedule == 4 {
            sets.push(("layout.actions", "\"0F0,2F0,2B0,0B0\\n1F0,3F0,3B0,1B0\"".to_owned()));
        }
        let sets: Vec<_> = sets.iter().map(|(path, value)| (*path, value.as_str())).collect();
        let job = read_with(LEAST, &sets).unwrap();
        let resolved = resolved_yaml(&job).unwrap();
        prop_assert_eq!(read_with(&resolved, &[]).unwrap(), job);
    }

    #[test]
    fn a_model_of_any_parts_is_refused_or_planned_and_comes_back(
        (architecture, positions, attention, activation) in (0_usize..3, 0_usize..10, 0_usize..10, 0_usize..6),
        (biases, head, layers, more) in (0_usize..4, 0_usize..4, 1_u32..5, 1_u32..5),
        (pipeline, tensor, flags) in (1_u32..4, 0_u32..3, any::<[bool; 6]>()),
    ) {
        let flag = |i: usize, one: &'static str, other: &'static str| if flags[i] { one } else { other };
        let mut parts = vec![
            ["architecture: decoder", "architecture: encoder", "architecture: encoder-decoder"][architecture],
            [
                "positions: rope", "rope_theta: 99.5", "rope_scaling: {kind: linear, factor: 2}",
                "rope_scaling: {kind: llama3, factor: 2, original: 32, low: 1.5}",
                "rope_scaling: {kind: yarn, factor: 2, original: 32, beta_fast: 9}",
                "positions: learned, max_positions: 64, position_offset: 2",
                "positions: sinusoidal", "positions: alibi", "positions: relative, relative_buckets: 16",
                "positions: none",
            ][positions],
            [
                "attention: full", "attention: {kind: window, window: 8}",
                "attention: {kind: longformer, window: 8, global: 2, projections: true}",
                "attention: {kind: longformer, window: 8}", "attention: bigbird",
                "attention: {kind: bigbird, block: 8, window: 1, global: 0, random: 2}",
                "attention: linear", "attention: {kind: linear, decay: true}",
                "attention: {kind: compressed, window: 8, block: 4}",
                "attention: {kind: latent, rank: 24, rope_dim: 4}",
            ][attention],
            ["activation: relu", "activation: gelu", "activation: gelu-tanh", "activation: swiglu",
                "activation: geglu", "activation: geglu-tanh"][activation],
            ["biases: true", "biases: false", "biases: [qkv]", "biases: [ffn, out]"][biases],
            ["head: lm", "head: masked-lm", "head: pooled, classes: 3", "head: null"][head],
            flag(0, "norm: rms", "norm: layer, norm_placement: post"),
            flag(1, "kv_heads: 4", "kv_heads: 8"),
            flag(2, "head_dim: 12, attention_scale: 1", "logit_scale: 0.3, qk_norm: true"),
            flag(3, "embedding_dim: 24, embedding_scaled: true", "embedding_norm: true, token_types: 2"),
            flag(4, "tied_embeddings: true", "layer_groups: 1"),
        ];
        let encoder = format!("encoder_layers: {more}");
        if architecture == 2 && flags[5] {
            parts.push(&encoder);
        }
        let text = format!(
            "name: p\nmodel: {{layers: {layers}, dim: 64, heads: 8, vocab: 300, {}}}\n\
             data: {{synthetic: {{tokens: 999}}}}\ntrain: {{steps: 2, sequence: 64}}\n\
             layout: {{pipeline: {pipeline}, tensor: {}}}\n",
            parts.join(", "), 1 << tensor,
        );
        let look = |text: &str| look(&JobText { source: "job.yaml", text, sets: &[], base: Path::new("/") });
        if let Ok(job) = look(&text) {
            prop_assert_eq!(&look(&resolved_yaml(&job).unwrap()).unwrap(), &job);
            let plan = sketch(&job, job.layout.world());
            let plan = plan.map_err(|error| TestCaseError::fail(format!("{text}{error}")))?;
            let whole: u64 = parameter_table(&job.model).iter().map(|row| row.elements()).sum();
            prop_assert_eq!(plan.parameters(), whole);
        }
    }

    #[test]
    fn no_text_makes_the_door_panic(text in "[a-z:\\[\\]{}&*!|>'\" \\n\\t0-9.,#-]{0,80}") {
        let _ = read_with(&text, &[("model.heads", &text)]);
        let _ = read_with(LEAST, &[(&text, "1")]);
    }
}

#[expect(clippy::disallowed_methods, reason = "the test measures how long the core takes")]
fn now() -> Instant {
    Instant::now()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Each number is drawn by its size, up to the most that its key takes.
    #[test]
    fn a_job_of_any_size_is_refused_or_planned_within_a_time(
        (layers, heads, shards, micro_batches) in (0_u32..=10, 0_u32..=10, 0_u32..=6, 0_u32..=12),
        (pipeline, tensor, data, chunks) in (0_u32..=6, 0_u32..=6, 0_u32..=6, 1_u32..=4),
        (schedule, recompute, flags) in (0_usize..4, 0_usize..3, any::<[bool; 3]>()),
    ) {
        let schedule = ["schedule: 1f1b", "schedule: gpipe", "schedule: zb-h1", "schedule: interleaved"][schedule];
        let chunks = if schedule.ends_with("interleaved") { format!(", chunks: {}", 1 << chunks) } else { String::new() };
        let recompute = ["none", "full", "{budget: 3GiB}"][recompute];
        let runs = 1 << micro_batches.min(data.max(3));
        let text = format!(
            "name: p\nmodel: {{layers: {}, dim: {}, heads: {}, vocab: 2000, tied_embeddings: {}}}\n\
             data: {{synthetic: {{tokens: 9999999}}}}\n\
             train: {{steps: 2, sequence: 16, global_micro_batches: {}, gradient_groups: {runs}, tensor_shards: {}, \
             recompute: {recompute}}}\n\
             layout: {{pipeline: {}, tensor: {}, data: {}, sequence_parallel: {}, zero: {}, {schedule}{chunks}}}\n",
            1 << layers, 4 << heads, 1 << heads, flags[0], 1 << micro_batches, 1 << shards,
            1 << pipeline, 1 << tensor, 1 << data, flags[1], u8::from(flags[2]),
        );
        let began = now();
        let planned = look(&JobText { source: "job.yaml", text: &text, sets: &[], base: Path::new("/") })
            .map(|job| sketch(&job, job.layout.world()).map(|plan| plan.assignments.len()));
        // Some ten times as long as the bound on a plan, since cores are shared and builds differ.
        prop_assert!(began.elapsed() < Duration::from_secs(100), "{text}{planned:?}");
    }
}
