//! Small files of every format, damaged ones, and their tokenizer.

use proptest::prelude::*;

use super::*;
use crate::tokenizer::Tokenizer;

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn count(out: &mut Vec<u8>, key: &str, value: u32) {
    text(out, key);
    out.extend(4_u32.to_le_bytes());
    out.extend(value.to_le_bytes());
}

fn word(out: &mut Vec<u8>, key: &str, value: &str) {
    text(out, key);
    out.extend(8_u32.to_le_bytes());
    text(out, value);
}

fn words(out: &mut Vec<u8>, key: &str, values: &[String]) {
    text(out, key);
    out.extend([9_u32.to_le_bytes(), 8_u32.to_le_bytes()].concat());
    out.extend((values.len() as u64).to_le_bytes());
    values.iter().for_each(|value| text(out, value));
}

/// Kinds of numbers, each with the bytes of a block of 32.
const KINDS: [(u32, usize); 8] = [(0, 128), (1, 64), (30, 64), (2, 18), (3, 20), (6, 22), (7, 24), (8, 34)];

/// A model of width 32 whose matrices are of one kind: all bytes 1, but scales of 2 and least numbers of -1.
fn file(kind: (u32, usize)) -> Vec<u8> {
    let model = ModelSpec { tied_embeddings: true, ..ModelSpec::llama(1, 32, 4, 2, 32, 260) };
    let table = parameter_table(&model);
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((table.len() as u64).to_le_bytes());
    out.extend(9_u64.to_le_bytes());
    word(&mut out, "general.architecture", "llama");
    count(&mut out, "llama.embedding_length", 32);
    count(&mut out, "llama.attention.head_count", 4);
    count(&mut out, "llama.attention.head_count_kv", 2);
    count(&mut out, "llama.block_count", 1);
    count(&mut out, "llama.feed_forward_length", 32);
    word(&mut out, "tokenizer.ggml.model", "gpt2");
    let own = Tokenizer::train(&["ab ab"], 257).unwrap().to_bytes();
    let own: serde_json::Value = serde_json::from_slice(&own).unwrap();
    let mut tokens = vec![String::new(); 260];
    for (token, id) in own["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize].clone_from(token);
    }
    for (at, token) in ["ab", "x", "y"].iter().enumerate() {
        tokens[257 + at] = format!("{token}{token}{at}");
    }
    tokens[257] = "ab".to_owned();
    words(&mut out, "tokenizer.ggml.tokens", &tokens);
    words(&mut out, "tokenizer.ggml.merges", &["a b".to_owned()]);
    let (mut data, mut infos) = (Vec::new(), Vec::new());
    for parameter in &table {
        let matrix = parameter.shape.len() == 2;
        let (number, bytes) = if matrix { kind } else { (0, 128) };
        text(&mut infos, &theirs(&parameter.name).unwrap());
        infos.extend((parameter.shape.len() as u32).to_le_bytes());
        parameter.shape.iter().rev().for_each(|n| infos.extend(n.to_le_bytes()));
        infos.extend(number.to_le_bytes());
        infos.extend((data.len() as u64).to_le_bytes());
        for row in 0..parameter.shape.iter().product::<u64>() / 32 {
            data.extend(block(number, bytes, row));
        }
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.extend(infos);
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
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
    let tokenizer = Tokenizer::from_elsewhere(file.tokenizer_json().unwrap().as_bytes()).unwrap();
    let ids = tokenizer.encode("abc ab").unwrap();
    assert_eq!((ids[0], tokenizer.decode(&ids)), (257, "abc ab".to_owned()));
    assert_eq!(file.end_of_text(), Some(0));
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
        ("llama", "mamba", "a model of the kind `mamba`; `llama` can be read"),
        ("blk.0.attn_q", "blk.0.attn_x", "blk.0.attn_q.weight is not there"),
        ("llama.block_count", "llama.block_kount", "llama.block_count is missing"),
    ] {
        let error = with(needle, other);
        assert!(error.contains(told), "{error}");
    }
    assert!(opened(&good[..good.len() - 40]).unwrap_err().to_string().contains("does not lie in the file"));
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
            let _ = file.tokenizer_json();
        }
    }
}
