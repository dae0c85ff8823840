use expect_test::expect_file;

use super::super::node::JobNode;
use super::super::{resolved_yaml, yaml};
use super::beside::beside;
use super::{JobKey, Sets, all_keys, filled, read};

#[test]
fn the_page_is_what_the_code_says() {
    let page = include_str!("../../../../../docs/job.md");
    expect_file!["../../../../../docs/job.md"].assert_eq(&filled(page));
}

#[test]
fn every_key_says_what_it_means() {
    for key in all_keys() {
        let meaning = key.meaning();
        assert!(!meaning.is_empty() && !meaning.contains("Default"), "{}", key.path);
    }
}

fn at<'a>(node: &'a JobNode, path: &str) -> Option<&'a JobNode> {
    path.split('.').try_fold(node, |node, key| match node {
        JobNode::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
        _ => None,
    })
}

fn tree(text: &str) -> JobNode {
    yaml::read(text).unwrap_or_else(|fault| panic!("{}", fault.message))
}

fn resolved(sets: &[(&str, &str)]) -> JobNode {
    tree(&resolved_yaml(&read(sets).unwrap()).unwrap())
}

/// Numbers are the same whether they are written with a point or without.
fn same(one: &JobNode, other: &JobNode) -> bool {
    let number = |node: &JobNode| match node {
        JobNode::Integer(n) => Some(*n as f64),
        JobNode::Float(x) => Some(*x),
        _ => None,
    };
    match (one, other) {
        (JobNode::List(a), JobNode::List(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        _ => one == other || number(one).is_some_and(|x| number(other) == Some(x)),
    }
}

#[test]
fn a_stated_default_is_what_a_job_gets() {
    // Defaults that are said in words: some values of other keys, and what follows from them.
    let custom: Sets = &[("layout.schedule", "custom"), ("layout.actions", "0F0,0B0")];
    let corrupts: Sets = &[("model.architecture", "encoder-decoder"), ("model.vocab", "600")];
    let in_words: [(&str, Sets, &str); 60] = [
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
        ("train.batch_size", &[("train.batch_size", "8")], "null"),
        ("layout.memory", &[], "null"),
        ("layout.max_tensor", &[], "null"),
        ("layout.keep_exact", &[], "null"),
        ("data.validation", &[("data", "{synthetic: {tokens: 999}}")], "null"),
    ];
    for (path, sets, expected) in in_words {
        let job = resolved(sets);
        let found = at(&job, path).unwrap_or(&JobNode::Null);
        assert!(same(found, &tree(expected)), "{path} with {sets:?}: {found:?}");
    }
    for key in all_keys() {
        let (path, words) = (&key.path, key.default_words());
        assert!(!key.required || words.is_none(), "{path} has to be given, so it has no default");
        let has_row = in_words.iter().any(|(of, ..)| of == path);
        let Some(stated) = key.default() else {
            assert!(key.required || has_row, "{path}: no row for {words:?}");
            continue;
        };
        // A kind alone becomes a map.
        if path == "model.attention" {
            continue;
        }
        let least = resolved(beside(path));
        let found = at(&least, path);
        let stated = tree(&stated.to_string());
        assert!(
            found.is_some_and(|found| same(found, &stated)),
            "{path}: {stated:?} is said, {found:?} is so"
        );
    }
}

/// Whether the minimal job, with what has to stand beside the key, is refused for this value of it.
fn is_refused(path: &str, value: &str) -> bool {
    let synthetic = format!("{{synthetic: {{tokens: {value}}}}}");
    let set = if path == "data.synthetic.tokens" { ("data", synthetic.as_str()) } else { (path, value) };
    let sets: Vec<_> = beside(path).iter().copied().chain([set]).collect();
    let faults = read(&sets).err().map_or(Vec::new(), |error| error.faults().to_vec());
    faults.iter().any(|fault| fault.path.starts_with(path))
}

/// Values within the schema's borders that other keys of the minimal job forbid.
const FORBIDDEN: [&str; 16] = [
    "model.head_dim=1",
    "model.vocab=1",
    "model.relative_max_distance=1",
    "model.head=masked-lm",
    "model.head=pooled",
    "model.rope_scaling.high=1e-9",
    "model.rope_scaling.beta_fast=1e-9",
    "model.attention.rope_dim=1",
    "data.synthetic.tokens=1",
    "layout.chunks=1",
    "layout.pipeline=auto",
    "layout.tensor=auto",
    "layout.data=auto",
    "layout.schedule=auto",
    "layout.sequence_parallel=auto",
    "layout.zero=auto",
];

#[test]
fn the_borders_are_where_the_schema_says() {
    let mut wrong = Vec::new();
    let mut expect = |key: &JobKey, value: String, refused: bool| {
        let set = format!("{}={value}", key.path);
        if is_refused(&key.path, &value) != (refused || FORBIDDEN.contains(&set.as_str())) {
            wrong.push(set);
        }
    };
    for key in all_keys().iter().filter(|key| !key.is_map()) {
        let whole = |keyword| key.bound(keyword).and_then(|bound| bound.as_i64()).map(i128::from);
        let number = |keyword| key.bound(keyword).and_then(serde_json::Value::as_f64);
        for word in key.words() {
            expect(key, word, false);
        }
        if let Some(least) = whole("minimum") {
            expect(key, least.to_string(), false);
            expect(key, (least - 1).to_string(), true);
        }
        if let Some(most) = whole("maximum") {
            expect(key, (most + 1).to_string(), true);
        }
        if let Some(border) = number("exclusiveMinimum") {
            expect(key, format!("{border:?}"), true);
            expect(key, format!("{:?}", border + 1e-9), false);
        }
        if let Some(border) = number("exclusiveMaximum") {
            expect(key, format!("{border:?}"), true);
            expect(key, format!("{:?}", border - 1e-9), false);
        }
        expect(key, "{never: a value}".to_owned(), true);
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// What keys take and refuse beside the schema's borders and words.
#[test]
fn keys_take_what_their_meaning_says() {
    let rows: [(&str, &[&str], &[&str]); 40] = [
        ("name", &["a", "0.b_c-d"], &["''", "A", "-a", "a b", "ä"]),
        ("data.text", &["a", "[a, b]"], &["[]", "''"]),
        ("data.pairs", &["a", "[a, b]"], &["[]", "''"]),
        ("data.classes", &["[neg, pos]"], &["[neg]", "['', pos]"]),
        ("data.labelled", &["a", "[a, b]"], &["[]", "''"]),
        ("data.validation", &["0", "0.49"], &["-0.1", "0.5"]),
        ("train.seed", &["0", "18446744073709551615"], &["-1"]),
        ("train.gradient_groups", &["1"], &["0", "2"]),
        ("train.tensor_shards", &["1", "2", "8"], &["0", "3", "128"]),
        ("train.initial_loss_scale", &["1", "16777216"], &["0", "3", "0.5", "33554432"]),
        (
            "train.recompute",
            &["none", "full", "attention", "ffn", "{budget: 2GiB}", "{budget: 1}"],
            &["some", "{budget: 0}", "{budget: 2GB}", "{budget: 1025TiB}", "{}", "7"],
        ),
        ("train.min_learning_rate", &["0", "3e-4"], &["-1", "4e-4"]),
        ("train.decay_steps", &["0", "180"], &["181"]),
        ("train.warmup_steps", &["0", "200"], &["201"]),
        ("train.betas", &["[0, 0.999]"], &["[0.9, 1]", "[-1, 0.9]"]),
        ("train.start_from", &["a", "../runs/b"], &["''", "[a]"]),
        ("layout.chunks", &["2", "4"], &["1", "5"]),
        ("layout.actions", &["0F0,0B0", "' 0F0 , 0I0,0W0 '"], &["''", "0F0,,0B0", "0F0,1B0", "0F0,0B1", "7"]),
        ("layout.zero", &["0", "1", "true"], &["2", "3", "4", "one"]),
        ("priority", &["-2147483648", "0", "2147483647"], &["-2147483649", "2147483648", "0.5", "high"]),
        ("model.preset", &["gpt2", "t5-small"], &["gpt5", "7", "''"]),
        ("model.rope_theta", &["1.1", "500000"], &["1", "0"]),
        ("model.rope_scaling.factor", &["1", "32.5"], &["0.9", ".inf"]),
        ("model.rope_scaling.low", &["1", "3.9"], &["0"]),
        ("model.rope_scaling.high", &["1.1", "8"], &["1", ".nan"]),
        ("model.rope_scaling.beta_fast", &["1.1"], &["1", "0"]),
        ("model.rope_scaling.beta_slow", &["0.5", "31"], &["0", "-1"]),
        ("model.position_offset", &["0", "1024"], &["-1", "1025"]),
        ("model.relative_buckets", &["4", "128"], &["0", "30", "4100"]),
        ("model.relative_max_distance", &["17", "1048576"], &["16", "1048577"]),
        ("model.biases", &["true", "false", "[qkv]", "[ffn, out, qkv]", "[]"], &["qkv", "[q]", "1"]),
        ("model.attention.global", &["0", "65536"], &["-1", "65537"]),
        ("model.attention.last", &["0", "65536"], &["-1", "65537"]),
        ("model.attention.random", &["0", "65536"], &["-1", "65537"]),
        ("model.attention.rope_dim", &["2", "14"], &["0", "3", "16", "65537"]),
        ("model.token_types", &["0", "1024"], &["-1", "1025"]),
        ("model.head", &["lm"], &["mlm", "pooled", "masked-lm"]),
        ("model.head_activation", &["relu", "gelu", "gelu-tanh", "silu"], &["swiglu", "geglu-tanh", "tanh"]),
        ("model.classes", &["0", "65536"], &["-1", "65537"]),
        ("model.layer_groups", &["1", "4"], &["0", "5"]),
    ];
    for (path, fit, unfit) in rows {
        assert!(!fit.is_empty() && !unfit.is_empty(), "{path}");
        for value in fit {
            assert!(!is_refused(path, value), "{path}: {value}");
        }
        for value in unfit {
            assert!(is_refused(path, value), "{path}: {value}");
        }
    }
}
