//! Texts that are not a job file, or one that means harm: each is refused by name. What they cost is tested by the
//! shell, which has a clock (`coordinator/tests/costs.rs`).

use std::path::Path;

use proptest::prelude::*;

use crate::spec::{JobText, parse};

const JOB: &str = "
name: demo
model: {layers: 4, dim: 32, heads: 4, kv_heads: 2, ffn: 64, vocab: 300}
data: {text: [a.txt, 'b: c'], validation: 0.1}
train:
  steps: 10
  sequence: 16
  global_micro_batches: 4
  learning_rate: 1.0e-3
  betas: [0.9, 0.95]
layout: {pipeline: 2, schedule: custom, actions: \"0F0,0B0\\n1F0,1B0\"}
checkpoint: {every: 2, keep: 3}
";

/// What the door says.
fn said(text: &str) -> Result<(), String> {
    let job = JobText { source: "job.yaml", text, sets: &[], base: Path::new("/") };
    parse(&job).map(drop).map_err(|error| {
        assert!(!error.faults().is_empty());
        error.to_string()
    })
}

/// Pieces that YAML knows, and others.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => prop::sample::select(vec![
            "&a", "*a", "<<: *a", "!tag", "? ", ": ", "- ", "[", "]", "{", "}", ",", "\n", "\n  ", "|\n", ">\n",
            "'", "\"", "#", "%YAML 1.2\n", "---\n", "...\n", "\t", "\u{feff}", "\0", "\u{2028}", "~", "null", "1e999",
            "-0", "0x", ".inf", ".nan", "99999999999999999999999999999999999999999", "\\x", "\u{10ffff}",
        ]).prop_map(str::to_owned),
        2 => prop::sample::select(JOB.split_inclusive([' ', '\n']).collect::<Vec<_>>()).prop_map(str::to_owned),
        1 => any::<String>(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn no_text_makes_the_door_panic(pieces in prop::collection::vec(piece(), 0..40)) {
        let _ = said(&pieces.concat());
    }

    #[test]
    fn no_change_of_a_job_makes_the_door_panic(
        changes in prop::collection::vec((any::<prop::sample::Index>(), piece(), 0_usize..4), 1..5)
    ) {
        let mut text: Vec<char> = JOB.chars().collect();
        for (at, piece, gone) in changes {
            let at = at.index(text.len());
            let end = (at + gone).min(text.len());
            text.splice(at..end, piece.chars());
        }
        let _ = said(&text.into_iter().collect::<String>());
    }
}

#[test]
fn no_name_of_a_job_names_another_folder() {
    let names = [
        "../x",
        "/etc",
        "a/b",
        "..",
        ".",
        "a\\0b",
        "~",
        "a b",
        "\u{202e}",
        "-x",
        "A",
        "x\u{2215}y",
        "\\u0000",
        "é",
    ];
    let parts = ["..", "a", "/", "\\\\", "%2e", "\u{200b}", "\u{2024}", ":"];
    let walks = (0..200).map(|n: usize| {
        let word = |shift: u32| parts[n.rotate_right(shift) % parts.len()];
        format!("{}{}{}{n}", word(0), word(2), word(1))
    });
    let names: Vec<_> = names.map(str::to_owned).into_iter().chain(walks).collect();
    for name in names {
        let text = JOB.replace("name: demo", &format!("name: \"{name}\""));
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
        let good = name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(plain);
        if !good {
            let refusal = said(&text).expect_err(&name);
            assert!(refusal.contains("name") || refusal.contains("cannot be read"), "{name}: {refusal}");
        }
    }
}
