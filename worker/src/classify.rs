//! `classify`: what a model with a pooled head tells of each line of stdin.

use std::io::{BufRead, BufWriter, Write};

use anyhow::{Context, Result, ensure};
use coxswain_engine::generate::{Classifier, Told};

use crate::args::Classify;
use crate::write::locate;

pub(crate) fn run(args: &Classify) -> Result<()> {
    coxswain_native::memory::install();
    let (run, folder) = locate(&args.checkpoint)?;
    let classifier =
        Classifier::load(&run, &folder).with_context(|| format!("loading the checkpoint {folder}"))?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for (number, line) in (1..).zip(std::io::stdin().lock().lines()) {
        let text = line.with_context(|| format!("line {number} of stdin"))?;
        let told = classifier.read(&text).with_context(|| format!("line {number} of stdin"))?;
        let answer = if args.embeddings { embedding(&told)? } else { class(&classifier, &told, &text)? };
        // Whoever asks line by line gets each answer at once.
        match writeln!(out, "{answer}").and_then(|()| out.flush()) {
            // Whoever reads may stop reading.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            result => result.context("writing to stdout")?,
        }
    }
    Ok(())
}

/// The likeliest class, its probability and the text: but for the probability, a line of `data.labelled`.
fn class(classifier: &Classifier, told: &Told, text: &str) -> Result<String> {
    ensure!(
        !told.probabilities.is_empty(),
        "the checkpoint's head has no classes; --embeddings prints its pooled output"
    );
    let class = told.class().context("the model computes numbers that are not finite")?;
    Ok(format!("{}\t{:.4}\t{text}", classifier.name(class), told.probabilities[class]))
}

fn embedding(told: &Told) -> Result<String> {
    ensure!(told.embedding.iter().all(|x| x.is_finite()), "the model computes numbers that are not finite");
    serde_json::to_string(&told.embedding).context("an embedding as JSON")
}
