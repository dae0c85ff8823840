//! Small files of every format, damaged ones, and their tokenizer.

use proptest::prelude::*;

use super::*;
use coxswain_types::model::{Biases, Positions, RopeScaling};

use crate::tokenizer::Tokenizer;

/// A value of a key.
#[derive(Clone, Debug)]
enum Key {
    Count(u32),
    Number(f32),
    Flag(bool),
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<f32>),
}

/// A file in parts: keys, then tensors with their sizes, formats and bytes.
#[derive(Clone, Debug)]
struct Parts {
    keys: Vec<(String, Key)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

impl Key {
    fn write(&self, out: &mut Vec<u8>) {
        let mut list = |kind: u32, len: usize| {
            out.extend([9_u32.to_le_bytes(), kind.to_le_bytes()].concat());
            out.extend((len as u64).to_le_bytes());
        };
        match self {
            Key::Count(count) => out.extend([4, *count].map(u32::to_le_bytes).concat()),
            Key::Number(x) => out.extend([6, x.to_bits()].map(u32::to_le_bytes).concat()),
            Key::Flag(flag) => out.extend([&7_u32.to_le_bytes()[..], &[u8::from(*flag)]].concat()),
            Key::Text(word) => {
                out.extend(8_u32.to_le_bytes());
                text(out, word);
            }
            Key::Texts(words) => {
                list(8, words.len());
                words.iter().for_each(|word| text(out, word));
            }
            Key::Numbers(numbers) => {
                list(6, numbers.len());
                out.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
            }
        }
    }
}

impl Parts {
    fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3_u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.keys.len() as u64).to_le_bytes());
        for (key, value) in &self.keys {
            text(&mut out, key);
            value.write(&mut out);
        }
        let mut data = Vec::new();
        for (name, sizes, kind, bytes) in &self.tensors {
            text(&mut out, name);
            out.extend((sizes.len() as u32).to_le_bytes());
            sizes.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(kind.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
            data.resize(data.len().next_multiple_of(32), 0);
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(data);
        out
    }

    /// With a key, instead of one of that name if there is one.
    fn with(&self, key: &str, value: Key) -> Parts {
        let mut parts = self.without(key);
        parts.keys.push((key.to_owned(), value));
        parts
    }

    fn without(&self, key: &str) -> Parts {
        let keys = self.keys.iter().filter(|(name, _)| name != key).cloned().collect();
        Parts { keys, ..self.clone() }
    }

    /// With a tensor of fp32 of one dimension.
    fn with_vector(&self, name: &str, values: &[f32]) -> Parts {
        let mut parts = self.clone();
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        parts.tensors.push((name.to_owned(), vec![values.len() as u64], 0, bytes));
        parts
    }

    fn opened(&self) -> Result<Gguf, GgufError> {
        opened(&self.bytes())
    }

    fn refused(&self) -> String {
        self.opened().unwrap_err().to_string()
    }
}

/// Kinds of numbers, each with the bytes of a block of 32.
const KINDS: [(u32, usize); 8] = [(0, 128), (1, 64), (30, 64), (2, 18), (3, 20), (6, 22), (7, 24), (8, 34)];

/// A model of width 32 whose matrices are of one kind: all bytes 1, but scales of 2 and least numbers of -1.
fn file(kind: (u32, usize)) -> Vec<u8> {
    parts(kind).bytes()
}

fn parts(kind: (u32, usize)) -> Parts {
    let model = ModelSpec { tied_embeddings: true, ..ModelSpec::llama(1, 32, 4, 2, 32, 260) };
    let word = |word: &str| Key::Text(word.to_owned());
    let own = Tokenizer::train(&["ab ab"], 257).unwrap().to_bytes();
    let own: serde_json::Value = serde_json::from_slice(&own).unwrap();
    let mut tokens = vec![String::new(); 260];
    for (token, id) in own["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize].clone_from(token);
    }
    tokens[257..].clone_from_slice(&["ab", "xx", "yy"].map(str::to_owned));
    let keys = [
        ("general.architecture", word("llama")),
        ("general.name", word("a small one")),
        ("llama.embedding_length", Key::Count(32)),
        ("llama.attention.head_count", Key::Count(4)),
        ("llama.attention.head_count_kv", Key::Count(2)),
        ("llama.attention.layer_norm_rms_epsilon", Key::Number(1e-5)),
        ("llama.block_count", Key::Count(1)),
        ("llama.feed_forward_length", Key::Count(32)),
        ("tokenizer.ggml.model", word("gpt2")),
        ("tokenizer.ggml.pre", word("gpt-2")),
        ("tokenizer.ggml.eos_token_id", Key::Count(0)),
        ("tokenizer.ggml.tokens", Key::Texts(tokens)),
        ("tokenizer.ggml.merges", Key::Texts(vec!["a b".to_owned()])),
    ];
    let keys = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let tensors = parameter_table(&model).into_iter().map(|parameter| {
        let (number, bytes) = if parameter.shape.len() == 2 { kind } else { (0, 128) };
        let rows = 0..parameter.shape.iter().product::<u64>() / 32;
        let data = rows.flat_map(|row| block(number, bytes, row)).collect();
        (theirs(&parameter.name).unwrap(), parameter.shape.iter().rev().copied().collect(), number, data)
    });
    Parts { keys, tensors: tensors.collect() }
}

/// 32 numbers, of which the first is the row's number where whole numbers are kept.
fn block(kind: u32, bytes: usize, row: u64) -> Vec<u8> {
    let (two, minus_one) = (0x4000_u16.to_le_bytes(), 0xbc00_u16.to_le_bytes());
    match kind {
        0 => (0..32).flat_map(|at| (row as f32 + at as f32 / 64.0).to_le_bytes()).collect(),
        1 | 30 => [two, minus_one].concat().repeat(16),
        3 | 7 => [&two[..], &minus_one, &vec![0x21; bytes - 4]].concat(),
        _ => [&two[..], &vec![0x21; bytes - 2]].concat(),
    }
}

fn opened(bytes: &[u8]) -> Result<Gguf, GgufError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    std::fs::write(&path, bytes).unwrap();
    Gguf::open(&path)
}

#[test]
fn every_format_is_read() {
    let first = |kind: (u32, usize)| {
        let file = opened(&file(kind)).unwrap();
        let row = file.read("model.layers.0.mlp.up_proj.weight", 0, 5, 1).unwrap();
        (row[0], row[1], row[16], row[31])
    };
    // Nibbles of 0x21 are 1, then 2. Bits of 0x21 are set for the 1st and 6th number of each eight.
    let expected = [
        (5.0, 5.0 + 1.0 / 64.0, 5.25, 5.0 + 31.0 / 64.0),
        (2.0, -1.0, 2.0, -1.0),
        (2.0, -0.007_232_666, 2.0, -0.007_232_666),
        (-14.0, -14.0, -12.0, -12.0),
        (1.0, 1.0, 3.0, 3.0),
        (2.0, -30.0, 4.0, -28.0),
        (33.0, 1.0, 35.0, 3.0),
        (66.0, 66.0, 66.0, 66.0),
    ];
    for (kind, expected) in KINDS.into_iter().zip(expected) {
        let found = first(kind);
        if kind.0 == 30 {
            assert_eq!(found.0, 2.0);
            continue;
        }
        assert_eq!(found, expected, "kind {}", kind.0);
    }
}

#[test]
fn rows_of_queries_and_keys_go_back_to_halves() {
    let file = opened(&file(KINDS[0])).unwrap();
    assert_eq!((file.model().head_dim, file.model().tied_embeddings), (8, true));
    let rows = |name: &str| {
        let all = file.read(name, 0, 0, 16).unwrap();
        all.chunks(32).map(|row| row[0] as u64).collect::<Vec<_>>()
    };
    assert_eq!(
        rows("model.layers.0.self_attn.k_proj.weight"),
        [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15]
    );
    assert_eq!(rows("model.layers.0.self_attn.v_proj.weight"), (0..16).collect::<Vec<_>>());
    let part = file.read("model.layers.0.mlp.up_proj.weight", 1, 3, 2).unwrap();
    assert_eq!(part[2..4], [1.0 + 3.0 / 64.0, 1.0 + 4.0 / 64.0]);
    assert!(file.read("model.layers.0.mlp.up_proj.weight", 1, 31, 2).is_err());
    assert!(file.read("model.layers.1.mlp.up_proj.weight", 0, 0, 1).is_err());
}

#[test]
fn the_tokenizer_comes_along() {
    let file = opened(&file(KINDS[0])).unwrap();
    let tokenizer = Tokenizer::from_elsewhere(file.tokenizer_json().as_bytes()).unwrap();
    let ids = tokenizer.encode("abc ab").unwrap();
    assert_eq!((ids[0], tokenizer.decode(&ids)), (257, "abc ab".to_owned()));
    assert_eq!(file.framing(), &Framing::default());
}

/// Tokenizers as files keep them, and what the libraries that they are of make of texts (tests/parity/tokens.py).
fn known() -> serde_json::Value {
    let all = include_str!("../../../../tests/parity/tokens.json");
    serde_json::from_str::<serde_json::Value>(all).unwrap()["gguf"].take()
}

/// The file with a tokenizer of `known`, of a model that is large enough for it.
fn with_tokenizer(of: &serde_json::Value) -> Parts {
    let texts = |key: &str| {
        let list = of[key].as_array().unwrap().iter();
        Key::Texts(list.map(|text| text.as_str().unwrap().to_owned()).collect())
    };
    let numbers = |key: &str| {
        Key::Numbers(of[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect())
    };
    let mut parts = parts(KINDS[7]);
    for key in ["pre", "merges", "eos_token_id"] {
        parts = parts.without(&format!("tokenizer.ggml.{key}"));
    }
    for (key, value) in of.as_object().unwrap() {
        let name = format!("tokenizer.ggml.{key}");
        match key.as_str() {
            "tokens" | "merges" => parts = parts.with(&name, texts(key)),
            "scores" | "token_type" => parts = parts.with(&name, numbers(key)),
            "model" => parts = parts.with(&name, Key::Text(value.as_str().unwrap().to_owned())),
            "cases" | "cuts" => {}
            _ => parts = parts.with(&name, Key::Count(value.as_u64().unwrap() as u32)),
        }
    }
    let table = parts.tensors.iter_mut().find(|tensor| tensor.0 == "token_embd.weight").unwrap();
    let rows = of["tokens"].as_array().unwrap().len();
    table.1[1] = rows as u64;
    table.3 = vec![1; rows * 34];
    parts
}

fn expect_known(file: &Gguf, cases: &serde_json::Value, what: &str) {
    let tokenizer = Tokenizer::from_elsewhere(file.tokenizer_json().as_bytes()).unwrap();
    for case in cases.as_array().unwrap() {
        let (text, wanted) = (case[0].as_str().unwrap(), &case[1]);
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(serde_json::json!(ids), *wanted, "{what}: {text:?}");
        // qwen2 brings text into form C, and sentencepiece writes blanks as a letter that a text may have.
        if what != "qwen2" {
            let blank = if what == "llama" { " " } else { "\u{2581}" };
            assert_eq!(tokenizer.decode(&ids), text.replace('\u{2581}', blank), "{what}");
        }
    }
}

#[test]
fn tokenizers_are_those_of_the_libraries() {
    let known = known();
    let pieces = with_tokenizer(&known["llama"]).opened().unwrap();
    expect_known(&pieces, &known["llama"]["cases"], "llama");
    assert_eq!((&pieces.framing().begin[..], pieces.framing().end), (&[1][..], 2));
    let (frame, control) = {
        let tokenizer = Tokenizer::from_elsewhere(pieces.tokenizer_json().as_bytes()).unwrap();
        (tokenizer.frame().unwrap(), tokenizer.for_prompts().encode("a</s>").unwrap())
    };
    assert_eq!(frame, (vec![1], vec![]));
    assert_eq!(control.last(), Some(&2), "a prompt may say a control token");

    for (name, cases) in known["gpt2"]["cuts"].as_object().unwrap() {
        let parts = with_tokenizer(&known["gpt2"]).with("tokenizer.ggml.pre", Key::Text(name.clone()));
        let file = parts.opened().unwrap();
        expect_known(&file, cases, name);
        let begins = ["llama-bpe", "tekken"].contains(&name.as_str());
        assert_eq!(file.framing().begin, if begins { vec![0] } else { Vec::new() }, "{name}");
        // `<|endoftext|>` ends a text, and generation stops at the file's own end too.
        assert_eq!((file.framing().end, &file.framing().stops[..]), (0, &[1][..]), "{name}");
    }
}

#[test]
fn scaled_positions_are_followed_in_every_spelling() {
    let scaling = |parts: &Parts| match parts.opened().unwrap().model().positions {
        Positions::Rope { scaling, .. } => scaling,
        other => panic!("{other:?}"),
    };
    let plain = parts(KINDS[0]);
    let text = |word: &str| Key::Text(word.to_owned());
    let linear = RopeScaling::Linear { factor: 4.0 };
    assert_eq!(scaling(&plain), RopeScaling::None);
    assert_eq!(scaling(&plain.with("llama.rope.scale_linear", Key::Number(4.0))), linear);
    let factor = plain.with("llama.rope.scaling.factor", Key::Number(4.0));
    assert_eq!(scaling(&factor), linear);
    assert_eq!(scaling(&factor.with("llama.rope.scaling.type", text("linear"))), linear);
    let yarn = factor.with("llama.rope.scaling.type", text("yarn"));
    let told = yarn.refused();
    assert!(told.contains("llama.rope.scaling.original_context_length is missing"), "{told}");
    let yarn = yarn.with("llama.rope.scaling.original_context_length", Key::Count(64));
    assert_eq!(
        scaling(&yarn),
        RopeScaling::Yarn { factor: 4.0, beta_fast: 32.0, beta_slow: 1.0, original: 64 }
    );
    // LLaMA 3's factors, of a base of 500,000 and heads of 8.
    let plain = plain.with("llama.rope.freq_base", Key::Number(5e5));
    let factors = [1.0, 1.0, 2.694_531, 8.0];
    let found = scaling(&plain.with_vector("rope_freqs.weight", &factors));
    assert_eq!(found, RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 });
    let told = plain.with_vector("rope_freqs.weight", &[1.0, 2.0, 4.0, 8.0]).refused();
    assert!(told.contains("rope_freqs.weight is not that of LLaMA 3"), "{told}");
}

#[test]
fn biases_are_read_and_rotated_back() {
    let number = |from: usize, len: usize| (from..from + len).map(|i| i as f32).collect::<Vec<_>>();
    let mut biased = parts(KINDS[0]);
    for (name, len) in [("attn_q", 32), ("attn_k", 16), ("attn_v", 16)] {
        biased = biased.with_vector(&format!("blk.0.{name}.bias"), &number(0, len));
    }
    let file = biased.opened().unwrap();
    assert_eq!(file.model().biases, Biases { qkv: true, out: false, ffn: false });
    let read = |name: &str| file.read(&format!("model.layers.0.self_attn.{name}.bias"), 0, 4, 6).unwrap();
    assert_eq!(read("v_proj"), [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    assert_eq!(read("k_proj"), [1.0, 3.0, 5.0, 7.0, 8.0, 10.0]);
    // Of qwen2 nothing lies in pairs.
    let mut qwen2 = biased.clone();
    for (key, value) in &mut qwen2.keys {
        *key = key.replace("llama.", "qwen2.");
        if key == "general.architecture" {
            *value = Key::Text("qwen2".to_owned());
        }
    }
    let file = qwen2.opened().unwrap();
    let keys = file.read("model.layers.0.self_attn.k_proj.bias", 0, 4, 6).unwrap();
    assert_eq!(keys, [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]);
    // Qwen3 norms the heads of queries and keys.
    let mut qwen3 = biased.clone();
    for (key, value) in &mut qwen3.keys {
        *key = key.replace("llama.", "qwen3.");
        if key == "general.architecture" {
            *value = Key::Text("qwen3".to_owned());
        }
    }
    // Of a kind whose rows lie in pairs nothing says how these lie.
    let paired = biased.with_vector("blk.0.attn_q_norm.weight", &number(1, 8)).refused();
    assert!(paired.contains("no norms of query heads"), "{paired}");
    let queries = qwen3.with_vector("blk.0.attn_q_norm.weight", &number(1, 8));
    let refused = queries.refused();
    assert!(refused.contains("blk.0.attn_k_norm.weight"), "{refused}");
    let file = queries.with_vector("blk.0.attn_k_norm.weight", &number(20, 8)).opened().unwrap();
    assert!(file.model().norm.qk_norm);
    let norm =
        |part: &str| file.read(&format!("model.layers.0.self_attn.{part}_norm.weight"), 0, 2, 3).unwrap();
    assert_eq!((norm("q"), norm("k")), (vec![3.0, 4.0, 5.0], vec![22.0, 23.0, 24.0]));
}

#[test]
fn what_is_not_followed_is_named() {
    let plain = parts(KINDS[0]);
    let text = |word: &str| Key::Text(word.to_owned());
    for (key, value, told) in [
        ("llama.logit_scale", Key::Number(2.0), "unsupported key llama.logit_scale"),
        ("llama.attention.sliding_window", Key::Count(8), "llama.attention.sliding_window"),
        (
            "llama.block_count",
            Key::Count(u32::MAX),
            "llama.block_count: found 4294967295; must be 1024 or less",
        ),
        (
            "llama.embedding_length",
            Key::Count(u32::MAX),
            "llama.embedding_length: found 4294967295; must be 65536",
        ),
        ("llama.feed_forward_length", Key::Count(u32::MAX), "llama.feed_forward_length: found 4294967295"),
        (
            "llama.attention.head_count",
            Key::Count(0),
            "llama.attention.head_count: found 0; must be 1 or more",
        ),
        ("llama.attention.key_length", Key::Count(1 << 20), "model.head_dim: found 1048576; must be 65536"),
        ("llama.expert_count", Key::Count(8), "llama.expert_count is 8, and this program follows 0"),
        ("llama.attention.value_length", Key::Count(4), "llama.attention.value_length is 4"),
        ("llama.rope.dimension_count", Key::Count(4), "llama.rope.dimension_count is 4"),
        ("llama.rope.scaling.type", text("longrope"), "scaled as `longrope`"),
        ("llama.rope.freq_base", text("10000"), "llama.rope.freq_base must be a finite number"),
        ("llama.vocab_size", Key::Count(259), "llama.vocab_size is 259"),
        ("general.type", text("adapter"), "it holds no model but one `adapter`"),
        ("split.count", Key::Count(2), "it is one of 2 files"),
        ("tokenizer.ggml.precompiled_charsmap", Key::Count(0), "tokenizer.ggml.precompiled_charsmap"),
        ("tokenizer.ggml.pre", text("dbrx"), "by the rules of `dbrx`; must be one of gpt-2, phi-2, smollm"),
        ("tokenizer.ggml.model", text("t5"), "of the kind `t5`; gpt2 and llama can be read"),
        ("tokenizer.ggml.eos_token_id", Key::Count(260), "eos_token_id is 260, and there are 260 tokens"),
        ("tokenizer.ggml.add_bos_token", Key::Flag(true), "add_bos_token adds a token that it lacks"),
        ("tokenizer.ggml.add_space_prefix", Key::Flag(true), "add_space_prefix is 1"),
        ("tokenizer.ggml.token_type", Key::Numbers(vec![1.0]), "token_type must be 260 numbers"),
        (
            "tokenizer.ggml.tokens",
            Key::Texts(vec!["a".to_owned(); 2]),
            r#"two of its tokens are spelled "a""#,
        ),
    ] {
        let found = plain.with(key, value).refused();
        assert!(found.contains(told), "{key}: {found}");
    }
    let told = plain.without("tokenizer.ggml.pre").refused();
    assert!(told.contains("tokenizer.ggml.pre (how text is cut) is missing"), "{told}");
    for name in ["blk.0.attn_output.scale", "blk.1.attn_norm.weight", "output.bias", "blk.0.attn_k.bias"] {
        let told = plain.with_vector(name, &[0.0; 32]).refused();
        assert!(told.contains(&format!("unexpected tensor {name}")), "{told}");
    }
    let mut twice = plain.clone();
    twice.keys.extend(plain.keys.last().cloned());
    assert!(twice.refused().contains("the key tokenizer.ggml.merges twice"));
    let mut twice = plain.clone();
    twice.tensors.extend(plain.tensors.last().cloned());
    assert!(twice.refused().contains("twice"));
}

#[test]
fn what_is_no_model_of_ours_is_told() {
    let good = file(KINDS[3]);
    let place = |needle: &str| good.windows(needle.len()).position(|part| part == needle.as_bytes()).unwrap();
    let with = |needle: &str, other: &str| {
        let mut bytes = good.clone();
        let at = place(needle);
        bytes[at..at + other.len()].copy_from_slice(other.as_bytes());
        opened(&bytes).unwrap_err().to_string()
    };
    for (needle, other, told) in [
        ("GGUF", "GGML", "does not begin as a GGUF file does"),
        ("llama", "mamba", "a model of the kind `mamba`; must be one of llama, qwen2, qwen3"),
        ("blk.0.attn_q", "blk.0.attn_x", "blk.0.attn_q.weight is not there"),
        ("llama.block_count", "llama.block_kount", "llama.block_count is missing"),
    ] {
        let error = with(needle, other);
        assert!(error.contains(told), "{error}");
    }
    assert!(opened(&good[..good.len() - 40]).unwrap_err().to_string().contains("does not lie in the file"));
    // A size in bytes that wraps around would lie in any file.
    let mut large = parts(KINDS[0]);
    large.tensors[0].1 = vec![1 << 62, 1];
    assert!(large.refused().contains("does not lie in the file"), "{}", large.refused());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// No key may be given in vain: with another value the file is another model, or it is refused.
    #[test]
    fn every_key_counts(
        which in any::<prop::sample::Index>(),
        value in prop_oneof![
            any::<u32>().prop_map(Key::Count),
            (0_u32..70).prop_map(Key::Count),
            any::<f32>().prop_map(Key::Number),
            any::<bool>().prop_map(Key::Flag),
            "[a-z]{1,5}".prop_map(Key::Text),
            Just(Key::Texts(vec!["a".to_owned()])),
            Just(Key::Numbers(vec![1.0; 260])),
        ],
        renamed in any::<bool>(),
    ) {
        let plain = full();
        let (key, old) = &plain.keys[which.index(plain.keys.len())];
        let said = |parts: &Parts| {
            let file = parts.opened().ok()?;
            let rows = file.read("model.layers.0.self_attn.q_proj.weight", 0, 0, 1).unwrap();
            Some((format!("{:?}", file.model), format!("{:?}", file.framing), file.tokenizer_json, rows))
        };
        let changed = match renamed {
            true => plain.without(key).with(&format!("{key}x"), old.clone()),
            false => plain.with(key, value.clone()),
        };
        let new = said(&changed);
        let same_value = !renamed && format!("{old:?}") == format!("{value:?}");
        // Whole numbers are numbers in any type.
        let number = |key: &Key| match key {
            Key::Count(n) => Some(f64::from(*n)),
            Key::Number(x) => Some(f64::from(*x)),
            Key::Flag(flag) => Some(f64::from(u8::from(*flag))),
            _ => None,
        };
        let equal = number(old).is_some() && number(old) == number(&value);
        prop_assert!(
            new.is_none() || new != said(&plain) || same_value || (equal && !renamed) || changes_nothing(key),
            "{key} = {value:?} (renamed: {renamed}) changes nothing"
        );
    }
}

/// A file that gives every key which is followed, with values that are not the defaults.
fn full() -> Parts {
    let types = (0..260).map(|id| if id < 258 { 1.0 } else { 3.0 });
    let keys = [
        ("llama.context_length", Key::Count(64)),
        ("llama.rope.freq_base", Key::Number(5e5)),
        ("llama.rope.scaling.type", Key::Text("yarn".to_owned())),
        ("llama.rope.scaling.factor", Key::Number(4.0)),
        ("llama.rope.scaling.original_context_length", Key::Count(32)),
        ("llama.vocab_size", Key::Count(260)),
        ("tokenizer.ggml.token_type", Key::Numbers(types.collect())),
        ("tokenizer.ggml.bos_token_id", Key::Count(258)),
        ("tokenizer.ggml.eos_token_id", Key::Count(259)),
        ("tokenizer.ggml.eot_token_id", Key::Count(258)),
        ("tokenizer.ggml.padding_token_id", Key::Count(257)),
        ("tokenizer.ggml.add_bos_token", Key::Flag(true)),
        ("tokenizer.ggml.add_eos_token", Key::Flag(true)),
    ];
    keys.into_iter().fold(parts(KINDS[0]), |parts, (key, value)| parts.with(key, value))
}

proptest! {
    #[test]
    fn no_bytes_make_reading_panic(changes in prop::collection::vec((0_usize..9000, any::<u8>()), 1..4), cut in 0_usize..3) {
        let mut bytes = file(KINDS[4]);
        for (at, byte) in changes {
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
        }
        bytes.truncate(bytes.len() - cut * 1000);
        if let Ok(file) = opened(&bytes) {
            for parameter in parameter_table(file.model()) {
                let _ = file.read(&parameter.name, 0, 0, parameter.shape[0]);
            }
        }
    }
}
