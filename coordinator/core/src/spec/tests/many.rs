//! Many jobs: each comes back from its resolved text, and no text makes the door panic.

use proptest::prelude::*;

use super::{LEAST, read_with};
use crate::spec::resolved_yaml;

proptest! {
    #[test]
    fn a_resolved_job_is_the_same_job(
        (layers, heads_log, head_pairs, kv_log) in (1_u32..9, 0_u32..4, 1_u32..9, 0_u32..4),
        (steps, seed, micro_batches) in (1_u64..10_000, any::<u64>(), 1_u32..33),
        (learning_rate, held_out, beta) in (1e-9_f64..10.0, 0.0_f64..0.5, 0.0_f64..1.0),
        threads in proptest::option::of(1_u32..64),
        synthetic in any::<bool>(),
    ) {
        let (heads, kv_heads) = (1 << heads_log, 1 << kv_log.min(heads_log));
        let dim = heads * head_pairs * 2;
        let data = if synthetic { "{synthetic: {tokens: 999}}".to_owned() } else { format!("{{text: [a, 'b: c'], held_out: {held_out:?}}}") };
        let text = format!(
            "name: p\nmodel: {{layers: {layers}, dim: {dim}, heads: {heads}, kv_heads: {kv_heads}, vocab: 300}}\n\
             data: {data}\n\
             train: {{steps: {steps}, seed: {seed}, sequence: 9, micro_batches: {micro_batches}, \
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
            ("train.checkpointing",
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
    fn no_text_makes_the_door_panic(text in "[a-z:\\[\\]{}&*!|>'\" \\n\\t0-9.,#-]{0,80}") {
        let _ = read_with(&text, &[("model.heads", &text)]);
        let _ = read_with(LEAST, &[(&text, "1")]);
    }
}
