//! Text from a checkpoint that a pipeline of tensor shards has written.

use std::process::Command;

use anyhow::{Result, ensure};
use coxswain_tests::{Folder, programs};

fn generate(words: &[&str]) -> Result<(Option<i32>, String, String)> {
    let output = Command::new(programs("coxswain")?).arg("generate").args(words).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

#[test]
fn a_trained_model_writes_words_it_has_read() -> Result<()> {
    let folder = Folder::new()?;
    let run = folder.run("pp2 tp2").layout(2, 2, 1).set("train.steps=60").set("checkpoint.every=0");
    run.summary()?;
    let out = run.out().to_string_lossy().into_owned();
    let greedy = ["--checkpoint", &out, "--prompt", "the river", "--tokens", "40", "--temperature", "0"];

    let (code, text, stderr) = generate(&greedy)?;
    ensure!(code == Some(0), "{stderr}");
    println!("{text}");
    ensure!(text.starts_with("the river"), "the prompt comes first: {text}");
    let known = coxswain_tests::text(900);
    let words: Vec<_> = text.split_whitespace().skip(2).map(|word| word.trim_end_matches('.')).collect();
    // The last word may be cut off by the number of tokens.
    let whole = &words[..words.len().saturating_sub(1)];
    ensure!(whole.len() >= 10, "too few words: {text}");
    let read =
        whole.iter().filter(|word| known.split_whitespace().any(|w| w.trim_end_matches('.') == **word));
    ensure!(read.count() * 10 >= whole.len() * 9, "words that were never read: {text}");

    ensure!(generate(&greedy)?.1 == text, "the likeliest text is one text");
    let drawn = |seed: &'static str| {
        generate(&["--checkpoint", &out, "--prompt", "the river", "--tokens", "40", "--seed", seed])
    };
    ensure!(drawn("7")?.1 == drawn("7")?.1, "one seed, one text");
    ensure!(drawn("7")?.1 != drawn("8")?.1, "two seeds, two texts");
    for prompt in [&[][..], &["--prompt", "-- dashes"], &["--prompt", "b\u{e4}r \u{1f43b}"]] {
        let (code, _, stderr) =
            generate(&[&["--checkpoint", out.as_str(), "--tokens", "5"], prompt].concat())?;
        ensure!(code == Some(0), "{prompt:?}: exit {code:?}: {stderr}");
    }

    // Another tokenizer would turn the same numbers into other words.
    let tokenizer = run.out().join("data/tokenizer.json");
    let text = std::fs::read_to_string(&tokenizer)?;
    std::fs::write(&tokenizer, text.replacen("\"the\"", "\"teh\"", 1) + " ")?;
    let (code, _, stderr) = generate(&greedy)?;
    ensure!(code == Some(1) && stderr.contains("tokenizer"), "exit {code:?}: {stderr}");
    Ok(())
}
