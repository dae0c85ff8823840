//! The table that everything joins: real processes, a small model, and what each layout must equal.
//!
//! Losses of 20 steps, and digests of weights and optimizer state after the last: bit for bit equal
//! to one process for every pipeline and data layout; rows of one tensor layout bit for bit equal
//! to each other and close to one process.

use anyhow::{Context, Result, ensure};
use coxswain_tests::Equal::{Bits, Close, Differs};
use coxswain_tests::{Folder, Row, Site, Table};

const FULL: &str = "train.recompute=full";
const ODD: &str = "model.vocab=333";

const TABLE: &[Row] = &[
    ("one", (1, 1, 1), &[], &[]),
    ("one again", (1, 1, 1), &[], &[Bits("one")]),
    // An evaluation leaves the training alone.
    ("evaluated at the end only", (1, 1, 1), &["train.validate_every=0"], &[Bits("one")]),
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
    ("tp2", (1, 2, 1), &[], &[Close("one"), Differs("one")]),
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
    ("runs 3", (1, 1, 1), &["train.gradient_groups=3"], &[Close("one")]),
    ("runs 3, pp2 dp3", (2, 1, 3), &["train.gradient_groups=3"], &[Bits("runs 3")]),
    // A vocabulary that no tensor layout divides.
    ("odd", (1, 1, 1), &[ODD], &[]),
    ("odd, tp2", (1, 2, 1), &[ODD], &[Close("odd")]),
    ("odd, dp2 tp4", (1, 4, 2), &[ODD], &[Close("odd")]),
];

#[test]
fn layouts_change_speed_and_memory_and_never_the_numbers() -> Result<()> {
    let folder = Folder::new()?;
    let site = Site::new(&folder, 8)?;
    let mut table = Table::on(&site, &folder);
    for row in TABLE {
        table.row(row)?;
    }
    let losses = &table.summary("one")?.losses;
    ensure!(losses.len() == 20, "{} losses", losses.len());
    ensure!(losses[&20] < 0.8 * losses[&1], "nothing was learnt: {} to {}", losses[&1], losses[&20]);

    // What `coxswain up` starts and ends by itself.
    let mut table = table.under_up();
    table.row(&("pp2 tp2, under up", (2, 2, 1), &[], &[Bits("tp2")]))?;

    // Continuing from the checkpoint of step 10, in the same and in other layouts.
    let (one, tensor) = (folder.run("one"), folder.run("tp2"));
    for (name, layout, from, equal) in [
        ("resumed", (1, 1, 1), &one, Bits("one")),
        ("resumed as pp2", (2, 1, 1), &one, Bits("one")),
        ("resumed as pp2 dp3", (2, 1, 3), &one, Bits("one")),
        ("resumed as tp2 pp2", (2, 2, 1), &one, Close("one")),
        // From a tensor layout back to one process, and to the same tensor layout.
        ("tp2 resumed as one", (1, 1, 1), &tensor, Close("tp2")),
        ("tp2 resumed as tp2", (1, 2, 1), &tensor, Bits("tp2")),
    ] {
        let run = table.job(&(name, layout, &[], &[])).from_checkpoint(from, 10)?;
        table.compare(name, &run, &[equal])?;
        let steps: Vec<_> = table.summary(name)?.losses.keys().copied().collect();
        ensure!(steps == (11..=20).collect::<Vec<_>>(), "{name}: steps {steps:?}");
    }

    // Negative controls: the comparisons can fail.
    table.row(&("another seed", (1, 1, 1), &["train.seed=2"], &[Differs("one")]))?;
    let (seed, one) = (table.summary("another seed")?, table.summary("one")?);
    ensure!(seed.loss_error(one) > 1e-3, "another seed has the losses of one process");
    table.row(&("another sum", (1, 1, 1), &["train.gradient_groups=1"], &[Differs("one"), Close("one")]))?;
    table.end()
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
        ("other share", "data.validation=0.1", "text"),
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
