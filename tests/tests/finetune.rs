//! Runs that start from the weights of others: on text, and on texts of known classes.

use std::fmt::Write;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use coxswain_tests::Equal::{Bits, Differs};
use coxswain_tests::{Folder, Row, Table, programs, text};

const T4: &str = "train.tensor_shards=4";
const START: &str = "train.start_from=first";

const PAIRS: &str = "data={pairs: pairs.tsv}";
const TWICE: &str = "data={pairs: twice.tsv, weights: true}";
const WEIGHTED: &str = "data={pairs: weighted.tsv, weights: true}";

const ENCODER: [&str; 4] =
    ["model.architecture=encoder", "model.norm=layer", "model.positions=learned", "model.max_positions=32"];

/// Lines of two classes, each with a word of its own among those of a text, which is also its name. They are sorted
/// by class.
fn labelled() -> String {
    let source = text(900);
    let mut lines = [String::new(), String::new()];
    for (at, words) in source.split_whitespace().collect::<Vec<_>>().chunks_exact(6).take(240).enumerate() {
        let marked = if at % 2 == 0 { "aye" } else { "nay" };
        let _ = writeln!(lines[at % 2], "{marked}\t{marked} {}", words.join(&format!(" {marked} ")));
    }
    lines.concat()
}

#[test]
fn classes_are_learned_from_pretrained_weights_to_the_same_bits_in_every_layout() -> Result<()> {
    let folder = Folder::new()?;
    std::fs::write(folder.path().join("lines.tsv"), labelled())?;
    let pretrained = ENCODER.iter().fold(folder.run("first").layout(1, 1, 1), |run, set| run.set(set));
    pretrained.summary()?;
    let mut table = Table::new(&folder);
    let rows: [Row; 3] = [
        ("one", (1, 1, 1), &[T4], &[]),
        ("pp2 tp2", (2, 2, 1), &[T4, "train.recompute=full"], &[Bits("one")]),
        ("tp2 dp2, ZeRO", (1, 2, 2), &[T4, "layout.zero=1"], &[Bits("one")]),
    ];
    let task = [
        "model.head=pooled",
        "model.classes=2",
        "data={labelled: lines.tsv, classes: [aye, nay], validation: 0.2}",
        "train.steps=40",
        START,
    ];
    for row in &rows {
        let job = ENCODER.iter().chain(&task).fold(table.job(row), |run, set| run.set(set));
        table.compare(row.0, &job, row.3)?;
    }
    // A weight that all lines have is none.
    let twice = labelled().replace('\n', "\t2\n");
    std::fs::write(folder.path().join("twice.tsv"), twice)?;
    let sets = ENCODER
        .iter()
        .chain(&task)
        .chain(&["data={labelled: twice.tsv, classes: [aye, nay], validation: 0.2, weights: true}"]);
    let job = sets.fold(table.job(&("twice", (1, 1, 1), &[T4], &[])), |run, set| run.set(set));
    table.compare("twice", &job, &[Bits("one")])?;
    let one = table.summary("one")?;
    let validation = one.validation.context("a validation loss")?;
    ensure!(validation < 0.35, "{validation} is no better than a coin, whose loss is 0.693");
    let accuracy = one.accuracy.context("an accuracy")?;
    ensure!(accuracy > 0.9, "{accuracy} of the validation lines, of both classes, are told right");
    table.end()?;
    classify(&folder)
}

/// The trained model tells the class of lines of its kind, and embeddings that differ.
fn classify(folder: &Folder) -> Result<()> {
    let ask = |run: &str, words: &[&str], lines: &str| -> Result<(Option<i32>, String, String)> {
        let mut child = Command::new(programs("coxswain")?)
            .args(["classify", "--checkpoint"])
            .arg(folder.run(run).out())
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("stdin")?.write_all(lines.as_bytes())?;
        let output = child.wait_with_output()?;
        let [out, err] = [output.stdout, output.stderr].map(String::from_utf8);
        Ok((output.status.code(), out?, err?))
    };
    let labelled = labelled();
    let texts: Vec<(&str, &str)> =
        labelled.lines().step_by(6).filter_map(|line| line.split_once('\t')).collect();
    let lines = texts.iter().fold(String::new(), |all, (_, text)| all + text + "\n");
    let (code, out, err) = ask("pp2 tp2", &[], &lines)?;
    ensure!(code == Some(0), "{err}");
    let mut right = 0;
    for (line, (class, text)) in out.lines().zip(&texts) {
        let parts: Vec<&str> = line.splitn(3, '\t').collect();
        ensure!(parts.len() == 3 && parts[2] == *text && parts[1].parse::<f64>()? >= 0.5, "{line}");
        right += usize::from(parts[0] == *class);
    }
    ensure!(out.lines().count() == texts.len() && right >= 36, "{right} of {}", texts.len());

    let (code, out, err) = ask("pp2 tp2", &["--embeddings"], "aye river\n\nnay river\n")?;
    let vectors = out.lines().map(serde_json::from_str).collect::<Result<Vec<Vec<f64>>, _>>()?;
    ensure!(code == Some(0) && vectors.len() == 3 && vectors.iter().all(|v| v.len() == 64), "{err}");
    ensure!(vectors[0] != vectors[2] && vectors.iter().flatten().all(|x| x.abs() <= 1.0), "of tanh: {out}");

    let (code, out, err) = ask("first", &[], "aye\n")?;
    ensure!(code == Some(1) && out.is_empty() && err.contains("model.head pooled"), "{err}");
    Ok(())
}

/// Prompts whose answers are two of their own words, for a decoder and for an encoder with its decoder.
#[test]
fn answers_to_prompts_train_to_the_same_bits_in_every_layout() -> Result<()> {
    let decoder: &[&str] = &[];
    let both: &[&str] = &["model.architecture=encoder-decoder", "model.layers=2", "model.positions=relative"];
    for model in [decoder, both] {
        let folder = Folder::new()?;
        let [mut lines, mut twice, mut weighted] = [const { String::new() }; 3];
        let source = text(900);
        for (at, words) in source.split_whitespace().collect::<Vec<_>>().chunks_exact(5).take(200).enumerate()
        {
            let line = format!("{}\t{} {}", words.join(" "), words[4], words[0]);
            let _ = writeln!(lines, "{line}");
            let _ = writeln!(twice, "{line}\t2");
            let _ = writeln!(weighted, "{line}\t{}", [1.0, 0.125, 3.5][at % 3]);
        }
        for (name, lines) in [("pairs", lines), ("twice", twice), ("weighted", weighted)] {
            std::fs::write(folder.path().join(name).with_extension("tsv"), lines)?;
        }
        let mut table = Table::new(&folder);
        let rows: [Row; 6] = [
            ("one", (1, 1, 1), &[T4, PAIRS], &[]),
            ("pp2 tp2, split", (2, 2, 1), &[T4, PAIRS, "layout.sequence_parallel=true"], &[Bits("one")]),
            ("pp2 dp2, ZeRO", (2, 1, 2), &[T4, PAIRS, "layout.zero=1"], &[Bits("one")]),
            // A weight that all lines have is none; others count, whatever the cut.
            ("twice", (1, 1, 1), &[T4, TWICE], &[Bits("one")]),
            ("weighted", (1, 1, 1), &[T4, WEIGHTED], &[Differs("one")]),
            ("weighted, pp2 tp2", (2, 2, 1), &[T4, WEIGHTED], &[Bits("weighted")]),
        ];
        for row in &rows {
            let job = model.iter().fold(table.job(row), |run, set| run.set(set)).set("train.steps=10");
            table.compare(row.0, &job, row.3)?;
        }
        let losses = &table.summary("one")?.losses;
        let (first, last) = (losses.values().next(), losses.values().last());
        ensure!(first > last, "the loss goes from {first:?} to {last:?}");
        table.end()?;
    }
    Ok(())
}

#[test]
fn a_run_goes_on_from_the_weights_of_another() -> Result<()> {
    let folder = Folder::new()?;
    let first = folder.run("first").layout(1, 1, 1).summary()?;
    // At a rate of next to nothing the validation loss is that of the weights.
    let still = ["train.learning_rate=1e-12", "train.steps=1", "train.validate_every=0", START];
    let again = still.iter().fold(folder.run("again").layout(2, 1, 1), |run, set| run.set(set)).summary()?;
    let (was, is) = (first.validation.context("a loss")?, again.validation.context("a loss")?);
    ensure!((was - is).abs() < 1e-6 * was, "{was}, then {is}");

    for (sets, told) in [
        (["train.start_from=nowhere", "train.steps=1"], "nowhere has no checkpoint"),
        ([START, "model.dim=32"], "with the shape [320, 64], and the job's model wants [320, 32]"),
        ([START, "model.layers=5"], "has no model.layers.4.input_layernorm.weight"),
        ([START, "model.kv_heads=4"], "with the shape [32, 64], and the job's model wants [64, 64]"),
    ] {
        let run = sets.iter().fold(folder.run("refused").layout(1, 1, 1), |run, set| run.set(set));
        let child = run.start()?;
        let ended = run.wait(child, std::time::Duration::from_secs(60))?;
        ensure!(ended.code != Some(0) && ended.stderr.contains(told), "{sets:?}: {}", ended.stderr);
    }
    Ok(())
}
