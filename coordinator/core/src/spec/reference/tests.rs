use coxswain_types::job::{Corruption, OnLoss, Precision, RecomputePolicy, Reduction};
use coxswain_types::model::{Architecture, Biases, NormKind, NormPlacement};
use expect_test::expect_file;

use super::super::node::Node;
use super::super::raw::{
    ActivationName, AttentionName, BiasNames, HeadName, OptimizerName, Paths, PositionsName,
    RateScheduleName, RawAttention, RawCheckpoint, RawData, RawJob, RawLayout, RawModel, RawRecovery,
    RawRopeScaling, RawSynthetic, RawTrain, RecomputeSetting, RopeScalingName, ScheduleName, ZeroStage,
};
use super::super::{resolved_yaml, yaml};
use super::Allowed::{Count, Words};
use super::{ALLOWED, Key, Limit, MODEL, Sets, allowed, beside, filled, limits, read, sections};

#[test]
fn the_page_is_what_the_code_says() {
    let page = include_str!("../../../../../docs/job.md");
    expect_file!["../../../../../docs/job.md"].assert_eq(&filled(page));
}

/// A job with every key. It is no good job, but no field of the structs can be missing here.
fn whole() -> RawJob {
    RawJob {
        name: String::new(),
        model: model(),
        data: RawData {
            text: Some(Paths::Many(Vec::new())),
            labelled: Some(Paths::Many(Vec::new())),
            classes: Some(Vec::new()),
            pairs: Some(Paths::Many(Vec::new())),
            weights: Some(false),
            validation: Some(0.0),
            synthetic: Some(RawSynthetic { tokens: 0 }),
        },
        train: RawTrain {
            steps: 0,
            seed: Some(0),
            sequence: 0,
            micro_batch_size: Some(0),
            global_micro_batches: Some(0),
            gradient_groups: Some(0),
            threads: Some(0),
            reduction: Some(Reduction::Canonical),
            tensor_shards: Some(0),
            precision: Some(Precision::Fp32),
            initial_loss_scale: Some(0),
            loss_scale_growth_steps: Some(0),
            non_finite_max: Some(0),
            dropout: Some(0.0),
            attention_dropout: Some(0.0),
            recompute: Some(RecomputeSetting(RecomputePolicy::None)),
            optimizer: Some(OptimizerName::AdamW),
            momentum: Some(0.0),
            learning_rate: Some(0.0),
            learning_rate_schedule: Some(RateScheduleName::Wsd),
            min_learning_rate: Some(0.0),
            decay_steps: Some(0),
            warmup_steps: Some(0),
            betas: Some([0.0; 2]),
            eps: Some(0.0),
            weight_decay: Some(0.0),
            clip_norm: Some(0.0),
            validate_every: Some(0),
            parameter_norms: Some(false),
            mask_rate: Some(0.0),
            whole_words: Some(false),
            corruption: Some(Corruption::Spans),
            separate_documents: Some(false),
            start_from: Some(String::new()),
        },
        layout: Some(RawLayout {
            pipeline: Some(0),
            tensor: Some(0),
            data: Some(0),
            schedule: Some(ScheduleName::Custom),
            chunks: Some(0),
            actions: Some(String::new()),
            sequence_parallel: Some(false),
            zero: Some(ZeroStage(0)),
        }),
        checkpoint: Some(RawCheckpoint { every: Some(0), every_minutes: Some(0), keep: Some(0) }),
        recovery: Some(RawRecovery {
            on_loss: Some(OnLoss::Wait),
            peer_replica: Some(false),
            rebalance: Some(false),
        }),
        priority: Some(0),
    }
}

fn model() -> RawModel {
    RawModel {
        preset: Some(String::new()),
        architecture: Some(Architecture::Encoder),
        layers: 0,
        encoder_layers: Some(0),
        dim: 0,
        heads: 0,
        kv_heads: Some(0),
        head_dim: Some(0),
        ffn: Some(0),
        vocab: 0,
        positions: Some(PositionsName::Rope),
        rope_theta: Some(0.0),
        rope_scaling: Some(RawRopeScaling {
            kind: RopeScalingName::Yarn,
            factor: 0.0,
            original: Some(0),
            low: Some(0.0),
            high: Some(0.0),
            beta_fast: Some(0.0),
            beta_slow: Some(0.0),
        }),
        max_positions: Some(0),
        position_offset: Some(0),
        relative_buckets: Some(0),
        relative_max_distance: Some(0),
        norm: Some(NormKind::Rms),
        norm_placement: Some(NormPlacement::Pre),
        norm_eps: Some(0.0),
        activation: Some(ActivationName::Relu),
        biases: Some(BiasNames(Biases::default())),
        attention: Some(RawAttention {
            kind: AttentionName::Full,
            window: Some(0),
            global: Some(0),
            projections: Some(false),
            block: Some(0),
            last: Some(0),
            random: Some(0),
            decay: Some(false),
            rank: Some(0),
            rope_dim: Some(0),
        }),
        attention_scale: Some(0.0),
        embedding_dim: Some(0),
        token_types: Some(0),
        embedding_norm: Some(false),
        embedding_scaled: Some(false),
        head: Some(HeadName::Lm),
        head_activation: Some(ActivationName::Relu),
        classes: Some(0),
        logit_scale: Some(0.0),
        tied_embeddings: Some(false),
        layer_groups: Some(0),
    }
}

/// The paths of all values that are no maps, in order.
fn leaves(node: &Node, at: &str, found: &mut Vec<String>) {
    let Node::Map(entries) = node else { return found.push(at.to_owned()) };
    for (name, value) in entries {
        let path = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
        leaves(value, &path, found);
    }
}

fn at<'a>(node: &'a Node, path: &str) -> Option<&'a Node> {
    path.split('.').try_fold(node, |node, key| match node {
        Node::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
        _ => None,
    })
}

fn tree(text: &str) -> Node {
    yaml::read(text).unwrap_or_else(|fault| panic!("{}", fault.message))
}

fn resolved(sets: &[(&str, &str)]) -> Node {
    tree(&resolved_yaml(&read(sets).unwrap()).unwrap())
}

fn all_keys() -> Vec<Key> {
    sections().into_iter().flat_map(|(_, _, keys)| keys).collect()
}

#[test]
fn every_key_is_there_and_has_its_words() {
    let mut known = Vec::new();
    leaves(&tree(&yaml::write(&whole()).unwrap()), "", &mut known);
    let keys = all_keys();
    let mut told: Vec<_> = keys.iter().filter(|key| !key.is_map()).map(|key| key.path.clone()).collect();
    for key in &keys {
        assert!(!key.meaning.is_empty() && !key.meaning.contains("Default"), "{}", key.path);
        assert!(key.is_map() || allowed(&key.path).is_some(), "{}", key.path);
    }
    assert!(ALLOWED.iter().chain(&MODEL).all(|(path, _)| told.iter().any(|key| key == path)));
    let files = format!("1 to {} files", limits::TEXT_FILES);
    assert!(matches!(allowed("data.text"), Some(Words { words, .. }) if *words == files));
    known.sort();
    told.sort();
    assert_eq!(told, known);
}

/// Numbers are the same whether they are written with a point or without.
fn same(one: &Node, other: &Node) -> bool {
    let number = |node: &Node| match node {
        Node::Integer(n) => Some(*n as f64),
        Node::Float(x) => Some(*x),
        _ => None,
    };
    match (one, other) {
        (Node::List(a), Node::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        _ => one == other || number(one).is_some_and(|x| number(other) == Some(x)),
    }
}

#[test]
fn a_stated_default_is_what_a_job_gets() {
    // Defaults that are said in words: some values of other keys, and what follows from them.
    let custom: Sets = &[("layout.schedule", "custom"), ("layout.actions", "0F0,0B0")];
    let corrupts: Sets = &[("model.architecture", "encoder-decoder"), ("model.vocab", "600")];
    let in_words: [(&str, Sets, &str); 56] = [
        ("train.mask_rate", corrupts, "0.15"),
        ("train.corruption", corrupts, "spans"),
        ("train.corruption", &[], "null"),
        ("train.start_from", &[], "null"),
        ("data.labelled", &[], "null"),
        ("data.pairs", &[], "null"),
        ("data.weights", &[], "null"),
        ("model.layer_groups", &[], "4"),
        ("model.layer_groups", &[("model.layers", "3")], "3"),
        ("model.preset", &[], "null"),
        ("model.encoder_layers", &[("model.architecture", "encoder-decoder")], "4"),
        ("model.encoder_layers", &[], "null"),
        ("model.head_dim", &[], "16"),
        ("model.head_dim", &[("model.heads", "4")], "32"),
        ("model.ffn", &[("model.activation", "gelu")], "512"),
        ("model.rope_scaling", &[], "null"),
        ("model.rope_theta", &[("model.positions", "none")], "null"),
        ("model.rope_scaling.original", beside("model.rope_scaling.low"), "8192"),
        ("model.max_positions", &[], "null"),
        ("model.attention", &[], "{kind: full}"),
        ("model.attention.window", &[("model.attention", "bigbird")], "3"),
        ("model.attention.window", &[], "null"),
        ("model.attention.rank", &[], "null"),
        ("model.attention.rope_dim", &[], "null"),
        ("model.attention_scale", &[], "0.25"),
        ("model.attention_scale", &[("model.head_dim", "64")], "0.125"),
        ("model.embedding_dim", &[], "128"),
        ("model.head", &[], "lm"),
        ("model.head", &[("model.architecture", "encoder"), ("model.vocab", "600")], "masked-lm"),
        ("model.head_activation", &[("model.architecture", "encoder"), ("model.vocab", "600")], "silu"),
        ("model.head_activation", &[], "null"),
        ("train.tensor_shards", &[("layout.tensor", "2")], "null"),
        ("train.decay_steps", &[("train.learning_rate_schedule", "wsd")], "20"),
        ("train.decay_steps", &[("train.learning_rate_schedule", "wsd"), ("train.steps", "5")], "1"),
        ("train.decay_steps", &[("train.learning_rate_schedule", "wsd"), ("train.warmup_steps", "199")], "1"),
        ("layout.chunks", &[("layout.schedule", "interleaved")], "2"),
        ("layout.chunks", custom, "1"),
        ("layout.actions", &[], "null"),
        ("model.kv_heads", &[], "8"),
        ("model.kv_heads", &[("model.heads", "16")], "16"),
        ("model.ffn", &[], "384"),
        ("model.ffn", &[("model.dim", "192")], "512"),
        ("model.ffn", &[("model.dim", "208")], "576"),
        ("train.gradient_groups", &[("train.global_micro_batches", "5")], "5"),
        ("train.gradient_groups", &[("train.global_micro_batches", "50")], "8"),
        ("train.threads", &[], "null"),
        ("train.min_learning_rate", &[("train.learning_rate", "0.5")], "0.05"),
        ("train.warmup_steps", &[], "20"),
        ("train.warmup_steps", &[("train.steps", "5000")], "100"),
        (
            "layout",
            &[],
            "{pipeline: 1, tensor: 1, data: 1, schedule: 1f1b, sequence_parallel: false, zero: 0}",
        ),
        ("checkpoint", &[], "{every: 0, every_minutes: 10, keep: 2}"),
        ("recovery", &[], "{on_loss: wait, peer_replica: false, rebalance: false}"),
        ("data.text", &[("data", "{synthetic: {tokens: 999}}")], "null"),
        ("data.synthetic", &[], "null"),
        ("data.classes", &[], "null"),
        ("data.validation", &[("data", "{synthetic: {tokens: 999}}")], "null"),
    ];
    for (path, sets, expected) in in_words {
        let job = resolved(sets);
        let found = at(&job, path).unwrap_or(&Node::Null);
        assert!(same(found, &tree(expected)), "{path} with {sets:?}: {found:?}");
    }
    for Key { path, default, optional, .. } in all_keys() {
        assert!(optional || default.is_none(), "{path} has to be given, so its default is none");
        let value = default.map(|text| tree(text.trim_matches('`')));
        let is_word = |text: &str| matches!(allowed(&path), Some(Words { fit, .. }) if fit.contains(&text));
        match value {
            Some(Node::Text(text)) if !is_word(&text) => {
                assert!(in_words.iter().any(|(of, ..)| *of == path), "{path}: no row for `{text}`");
            }
            Some(value) => {
                let least = resolved(beside(&path));
                let found = at(&least, &path);
                assert!(
                    found.is_some_and(|found| same(found, &value)),
                    "{path}: {value:?} is said, {found:?} is so"
                );
            }
            None => assert!(!optional || in_words.iter().any(|(of, ..)| *of == path), "{path}"),
        }
    }
}

#[test]
fn the_borders_are_where_they_are_said_to_be() {
    let refused_at = |path: &str, value: &str| {
        let synthetic = format!("{{synthetic: {{tokens: {value}}}}}");
        let set = if path == "data.synthetic.tokens" { ("data", synthetic.as_str()) } else { (path, value) };
        let sets: Vec<_> = beside(path).iter().copied().chain([set]).collect();
        let faults = read(&sets).err().map_or(Vec::new(), |error| error.faults().to_vec());
        faults.iter().any(|fault| fault.path.starts_with(path))
    };
    for key in all_keys() {
        let path = &key.path;
        match allowed(path) {
            Some(Count(Limit { least, most, .. })) => {
                assert!(refused_at(path, &(i128::from(*least) - 1).to_string()), "{path}");
                assert!(refused_at(path, &(i128::from(*most) + 1).to_string()), "{path}");
            }
            Some(Words { fit, unfit, .. }) => {
                assert!(!fit.is_empty() && !unfit.is_empty(), "{path}");
                assert!(fit.iter().all(|value| !refused_at(path, value)), "{path}");
                assert!(unfit.iter().all(|value| refused_at(path, value)), "{path}");
            }
            None => assert!(key.is_map(), "{path}"),
        }
    }
}
