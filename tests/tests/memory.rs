//! Memory that runs take, on bytes counted by the allocator.
#![allow(clippy::print_stdout, reason = "what was measured")]

use anyhow::{Result, ensure};
use coxswain_tests::{Folder, Run, Summary};

const PEAK: &str = "peak_tensor_bytes";

/// Long samples, so that activations are most of the memory.
fn long(folder: &Folder, name: &str) -> Run {
    let sets = ["model.layers=8", "train.sequence=256", "train.micro_batch_size=4", "train.steps=3"];
    sets.iter().fold(folder.run(name), |run, set| run.set(set))
}

fn measured(run: &Run) -> Result<(Summary, u64)> {
    let summary = run.summary()?;
    let peak = run.logged(PEAK)?;
    println!("{}: {peak} bytes at the peak", run.out().display());
    Ok((summary, peak))
}

#[test]
fn layers_computed_again_give_the_same_bits_in_less_memory() -> Result<()> {
    let folder = Folder::new()?;
    let job = |name: &str, recompute: &str| {
        let set = format!("train.recompute={recompute}");
        long(&folder, name).set("train.global_micro_batches=2").set(&set)
    };
    let (all, none) = measured(&job("none", "none"))?;
    let (other, full) = measured(&job("full", "full"))?;
    ensure!(all.bits_differ(&other).is_none(), "{:?}", all.bits_differ(&other));
    ensure!(full * 2 < none, "recomputing all layers saves too little: {full} of {none} bytes");
    for block in ["attention", "ffn"] {
        let (other, peak) = measured(&job(block, block))?;
        ensure!(all.bits_differ(&other).is_none(), "{block}: {:?}", all.bits_differ(&other));
        ensure!(full < peak && peak * 10 < none * 9, "{block}: {peak} of {none} bytes");
    }
    // A budget is kept, on counted bytes, and not by computing everything again.
    let budget = (none + full) / 2;
    let (other, peak) = measured(&job("budget", &format!("{{budget: {budget}}}")))?;
    ensure!(all.bits_differ(&other).is_none(), "budget: {:?}", all.bits_differ(&other));
    ensure!(peak <= budget && peak > full, "{peak} bytes where {budget} are allowed and {full} are least");
    Ok(())
}

#[test]
fn the_first_stage_of_1f1b_holds_as_many_micro_batches_as_there_are_stages() -> Result<()> {
    let folder = Folder::new()?;
    let peak = |name: &str, schedule: &str, micro_batches: u32| {
        let run = long(&folder, name).layout(4, 1, 1).set("train.gradient_groups=1");
        let run = run.set(&format!("layout.schedule={schedule}"));
        measured(&run.set(&format!("train.global_micro_batches={micro_batches}"))).map(|(_, peak)| peak)
    };
    let (few, many) = (peak("1f1b 4", "1f1b", 4)?, peak("1f1b 16", "1f1b", 16)?);
    ensure!(many * 100 <= few * 105, "{many} bytes for 16 micro-batches, {few} for 4");
    // The control: a schedule that holds all of them.
    let all = peak("gpipe 16", "gpipe", 16)?;
    ensure!(all > 2 * many, "gpipe holds {all} bytes, 1F1B {many}");
    Ok(())
}

#[test]
fn a_stage_of_a_pipeline_and_a_tensor_shard_take_less_than_the_whole() -> Result<()> {
    let folder = Folder::new()?;
    let peak = |name: &str, pipeline, tensor| {
        let run = folder.run(name).layout(pipeline, tensor, 1).set("train.steps=3").set("model.ffn=512");
        run.summary()?;
        run.logged(PEAK)
    };
    let (one, pp2, tp2) = (peak("one", 1, 1)?, peak("pp2", 2, 1)?, peak("tp2", 1, 2)?);
    println!("one {one}, pp2 {pp2}, tp2 {tp2}");
    for (name, split) in [("pp2", pp2), ("tp2", tp2)] {
        ensure!(split * 10 < one * 8, "{name} takes {split} of {one} bytes");
    }
    Ok(())
}
