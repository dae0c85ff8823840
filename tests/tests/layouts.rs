//! The table that everything joins: real processes, a small model, and what each layout must equal.
//!
//! Losses of 20 steps, and digests of weights and optimizer state after the last: bit for bit equal
//! to one process for every pipeline and data layout; rows of one tensor layout bit for bit equal
//! to each other and close to one process.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use coxswain_tests::{Folder, Summary};

/// Losses of tensor layouts differ from one process by rounding only.
const TENSOR_TOLERANCE: f64 = 1e-5;
/// So does the gradient norm of the first step; a slice counted twice or not at all shows here.
const NORM_TOLERANCE: f64 = 1e-6;

/// What a row is compared with.
#[derive(Clone, Copy)]
enum Equal {
    /// Bit for bit.
    Bits(&'static str),
    /// Losses within [`TENSOR_TOLERANCE`].
    Close(&'static str),
}
use Equal::{Bits, Close};

/// Name, (pipeline, tensor, data), changes to the job, what it must equal.
type Row = (&'static str, (u32, u32, u32), &'static [&'static str], &'static [Equal]);

const FULL: &str = "train.checkpointing=full";
const ODD: &str = "model.vocab=333";

const TABLE: &[Row] = &[
    ("one again", (1, 1, 1), &[], &[Bits("one")]),
    ("one, full", (1, 1, 1), &[FULL], &[Bits("one")]),
    ("pp2", (2, 1, 1), &[], &[Bits("one")]),
    ("pp2, full", (2, 1, 1), &[FULL], &[Bits("one")]),
    ("pp4", (4, 1, 1), &[], &[Bits("one")]),
    ("pp4, full", (4, 1, 1), &[FULL], &[Bits("one")]),
    ("dp2", (1, 1, 2), &[], &[Bits("one")]),
    ("dp2, full", (1, 1, 2), &[FULL], &[Bits("one")]),
    ("dp3", (1, 1, 3), &[], &[Bits("one")]),
    ("dp4", (1, 1, 4), &[], &[Bits("one")]),
    ("dp4, full", (1, 1, 4), &[FULL], &[Bits("one")]),
    ("pp3 dp2", (3, 1, 2), &[], &[Bits("one")]),
    ("tp2", (1, 2, 1), &[], &[Close("one")]),
    ("tp2, full", (1, 2, 1), &[FULL], &[Bits("tp2")]),
    ("tp4", (1, 4, 1), &[], &[Close("one")]),
    // Four ranks share two key/value heads: copies must not drift apart.
    ("tp4, full", (1, 4, 1), &[FULL], &[Bits("tp4")]),
    ("pp2 tp4", (2, 4, 1), &[], &[Bits("tp4")]),
    ("pp2 tp2", (2, 2, 1), &[], &[Bits("tp2"), Close("one")]),
    ("pp2 tp2, full", (2, 2, 1), &[FULL], &[Bits("tp2")]),
    ("dp2 pp2 tp2", (2, 2, 2), &[], &[Bits("tp2"), Close("one")]),
    ("dp2 pp2 tp2, full", (2, 2, 2), &[FULL], &[Bits("tp2")]),
    // Runs of several micro-batches, of unequal length.
    ("runs 3", (1, 1, 1), &["train.reduction_runs=3"], &[Close("one")]),
    ("runs 3, pp2 dp3", (2, 1, 3), &["train.reduction_runs=3"], &[Bits("runs 3")]),
    // A vocabulary that no tensor layout divides.
    ("odd", (1, 1, 1), &[ODD], &[]),
    ("odd, tp2", (1, 2, 1), &[ODD], &[Close("odd")]),
    ("odd, dp2 tp4", (1, 4, 2), &[ODD], &[Close("odd")]),
];

/// Prints a row as it ends and collects what does not hold.
fn judge(name: &str, verdict: Option<String>, failures: &mut Vec<String>) {
    println!("{name:<24} {}", verdict.as_deref().unwrap_or("holds"));
    failures.extend(verdict.map(|why| format!("{name}: {why}")));
}

fn compare(summary: &Summary, wanted: &Summary, equal: Equal) -> Option<String> {
    match equal {
        Bits(_) => summary.bits_differ(wanted),
        Close(_) => {
            let (loss, norm) = (summary.loss_error(wanted), summary.first_norm_error(wanted));
            let close = loss <= TENSOR_TOLERANCE && norm <= NORM_TOLERANCE;
            (!close).then(|| format!("losses are {loss:e} apart, first gradient norms {norm:e}"))
        }
    }
}

#[test]
fn layouts_change_speed_and_memory_and_never_the_numbers() -> Result<()> {
    let folder = Folder::new()?;
    let mut done: BTreeMap<&str, Summary> = BTreeMap::new();
    let mut failures = Vec::new();

    let one = folder.run("one");
    done.insert("one", one.summary().context("one")?);
    let losses = &done["one"].losses;
    ensure!(losses.len() == 20, "{} losses", losses.len());
    ensure!(losses[&20] < 0.8 * losses[&1], "nothing was learnt: {} to {}", losses[&1], losses[&20]);

    for &(name, (pipeline, tensor, data), changes, equals) in TABLE {
        let run =
            changes.iter().fold(folder.run(name).layout(pipeline, tensor, data), |run, set| run.set(set));
        let summary = run.summary().with_context(|| name.to_owned())?;
        for &equal in equals {
            let (Bits(wanted) | Close(wanted)) = equal;
            judge(name, compare(&summary, &done[wanted], equal), &mut failures);
        }
        done.insert(name, summary);
    }

    // Continuing from the checkpoint of step 10, in the same and in other layouts.
    for (name, (pipeline, tensor, data), equal) in [
        ("resumed", (1, 1, 1), Bits("one")),
        ("resumed as pp2", (2, 1, 1), Bits("one")),
        ("resumed as pp2 dp3", (2, 1, 3), Bits("one")),
        ("resumed as tp2 pp2", (2, 2, 1), Close("one")),
    ] {
        let run = folder.run(name).layout(pipeline, tensor, data).from_checkpoint(&one, 10)?;
        let summary = run.summary().with_context(|| name.to_owned())?;
        ensure!(summary.losses.keys().copied().eq(11..=20), "{name}: steps {:?}", summary.losses.keys());
        judge(name, compare(&summary, &done["one"], equal), &mut failures);
    }
    // From a tensor layout back to one process, and from there to the same tensor layout.
    let tensor = folder.run("tp2");
    for (name, layout, equal) in
        [("tp2 resumed as one", (1, 1, 1), Close("tp2")), ("tp2 resumed as tp2", (1, 2, 1), Bits("tp2"))]
    {
        let run = folder.run(name).layout(layout.0, layout.1, layout.2).from_checkpoint(&tensor, 10)?;
        judge(
            name,
            compare(&run.summary().with_context(|| name.to_owned())?, &done["tp2"], equal),
            &mut failures,
        );
    }

    // Negative controls: the comparisons can fail.
    for (name, change) in [("another seed", "train.seed=2"), ("another sum", "train.reduction_runs=1")] {
        let summary = folder.run(name).set(change).summary().with_context(|| name.to_owned())?;
        ensure!(summary.bits_differ(&done["one"]).is_some(), "{name} has the bits of one process");
        let close = compare(&summary, &done["one"], Close("one")).is_none();
        ensure!(close == (name == "another sum"), "{name}: {:e}", summary.loss_error(&done["one"]));
    }
    ensure!(
        done["tp2"].bits_differ(&done["one"]).is_some(),
        "tensor layouts are not held to bits for nothing"
    );

    ensure!(failures.is_empty(), "{} rows do not hold:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

#[test]
fn a_checkpoint_of_other_conditions_or_with_a_flipped_bit_is_refused() -> Result<()> {
    let folder = Folder::new()?;
    let one = folder.run("one").set("train.steps=10");
    one.summary()?;

    let other = folder.run("other-threads").set("train.threads=2").from_checkpoint(&one, 10)?.outcome()?;
    ensure!(other.code != Some(0) && other.stderr.contains("train.threads"), "{}", other.stderr);

    let other = folder.run("other-model").set("model.ffn=128").from_checkpoint(&one, 10)?.outcome()?;
    ensure!(other.code != Some(0) && other.stderr.contains("another model"), "{}", other.stderr);

    for (name, change, said) in [
        ("other seed", "train.seed=2", "train.seed"),
        ("other length", "train.sequence=16", "train.sequence"),
        ("other share", "data.held_out=0.1", "text"),
    ] {
        let other = folder.run(name).set(change).from_checkpoint(&one, 10)?;
        let tokenizer = std::fs::read(other.out().join("data/tokenizer.json"))?;
        let outcome = other.outcome()?;
        ensure!(outcome.code != Some(0) && outcome.stderr.contains(said), "{name}: {}", outcome.stderr);
        ensure!(
            std::fs::read(other.out().join("data/tokenizer.json"))? == tokenizer,
            "{name}: data was lost"
        );
    }

    let step = coxswain_files::folders::step_path(10);
    let broken = folder.run("broken").from_checkpoint(&one, 10)?;
    let manifest = broken.out().join(&step).join("manifest.json");
    let text = std::fs::read_to_string(&manifest)?;
    std::fs::write(&manifest, text.replace("\"step\": 10", "\"step\": 1O"))?;
    let outcome = broken.outcome()?;
    ensure!(outcome.code != Some(0) && outcome.stderr.contains("manifest.json"), "{}", outcome.stderr);

    let flipped = folder.run("flipped").from_checkpoint(&one, 10)?;
    let shard = std::fs::read_dir(flipped.out().join(&step))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().contains("model-"))
        .context("a shard")?;
    let mut bytes = std::fs::read(&shard)?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&shard, bytes)?;
    let outcome = flipped.outcome()?;
    ensure!(outcome.code != Some(0) && outcome.stderr.contains("model-"), "{}", outcome.stderr);
    Ok(())
}
