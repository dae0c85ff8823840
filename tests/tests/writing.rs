//! Text from a checkpoint that a pipeline of tensor shards has written.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use coxswain_tests::process::{children, is_alive};
use coxswain_tests::{Folder, SOON, programs, wait_until};

fn generate(words: &[&str]) -> Result<(Option<i32>, String, String)> {
    let output = Command::new(programs("coxswain")?).arg("generate").args(words).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
}

/// A prompt from a file or from stdin is the prompt on the command line.
fn prompts_come_from_files(out: &str, folder: &Folder) -> Result<()> {
    let greedy = ["--checkpoint", out, "--tokens", "5", "--temperature", "0"];
    let wanted = generate(&[&greedy[..], &["--prompt", "the river"]].concat())?.1;
    let path = folder.path().join("prompt.txt");
    std::fs::write(&path, "\u{feff}the river\n")?;
    let file = path.to_string_lossy().into_owned();
    ensure!(generate(&[&greedy[..], &["--prompt-file", &file]].concat())?.1 == wanted, "from a file");
    let mut child = Command::new(programs("coxswain")?)
        .arg("generate")
        .args(greedy)
        .args(["--prompt-file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("stdin")?.write_all(b"the river")?;
    ensure!(child.wait_with_output()?.stdout == wanted.as_bytes(), "from stdin");
    Ok(())
}

/// A reader that leaves ends the writing, and so does the end of `coxswain generate` by whatever signal.
fn writing_ends_with_its_reader_or_its_parent(out: &str) -> Result<()> {
    let begun = |ranks: &[&str]| -> Result<Child> {
        let mut child = Command::new(programs("coxswain")?)
            .args(["generate", "--checkpoint", out, "--tokens", "100000000"])
            .args(ranks)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdout.as_mut().context("stdout")?.read_exact(&mut [0; 40])?;
        Ok(child)
    };
    for ranks in [&[][..], &["--pipeline", "2"]] {
        let mut child = begun(ranks)?;
        drop(child.stdout.take());
        wait_until("the end of writing without a reader", SOON, || !matches!(child.try_wait(), Ok(None)))?;
        let output = child.wait_with_output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && stderr.is_empty(), "{ranks:?}: {}: {stderr}", output.status);
    }
    let mut child = begun(&["--pipeline", "2"])?;
    let workers = children(child.id())?;
    ensure!(workers.len() == 2, "the processes of two ranks: {workers:?}");
    child.kill()?;
    child.wait()?;
    for pid in workers {
        wait_until("the end of a rank whose command is gone", SOON, || !is_alive(pid))?;
    }
    Ok(())
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

    prompts_come_from_files(&out, &folder)?;
    writing_ends_with_its_reader_or_its_parent(&out)?;
    for (words, told) in [
        (["--pipeline", "9"], "--pipeline 9: the checkpoint's model has"),
        (["--tensor", "3"], "--tensor 3: the checkpoint's model has"),
        (["--temperature", "-1"], "must be a number of 0 or more"),
    ] {
        let (code, text, stderr) = generate(&[&["--checkpoint", out.as_str()], &words[..]].concat())?;
        ensure!(code == Some(2) && text.is_empty() && stderr.contains(told), "{words:?}: {code:?} {stderr}");
    }

    // Another tokenizer would turn the same numbers into other words.
    let tokenizer = run.out().join("data/tokenizer.json");
    let text = std::fs::read_to_string(&tokenizer)?;
    std::fs::write(&tokenizer, text.replacen("\"the\"", "\"teh\"", 1) + " ")?;
    let (code, _, stderr) = generate(&greedy)?;
    ensure!(code == Some(1) && stderr.contains("tokenizer"), "exit {code:?}: {stderr}");
    Ok(())
}
