//! Memory that runs take, on bytes counted by the allocator.

use anyhow::{Result, ensure};
use coxswain_tests::Folder;

#[test]
fn checkpointed_layers_give_the_same_bits_in_less_memory() -> Result<()> {
    let folder = Folder::new()?;
    // Long samples, so that activations are most of the memory.
    let job = |name: &str| {
        [
            "model.layers=8",
            "train.sequence=256",
            "train.micro_batch=4",
            "train.micro_batches=2",
            "train.steps=3",
        ]
        .iter()
        .fold(folder.run(name), |run, set| run.set(set))
    };
    let (none, full) = (job("none"), job("full").set("train.checkpointing=full"));
    let (kept, again) = (none.summary()?, full.summary()?);
    ensure!(kept.bits_differ(&again).is_none(), "{:?}", kept.bits_differ(&again));
    let key = "peak_tensor_bytes";
    let (kept, again) = (none.logged(key)?, full.logged(key)?);
    println!("all kept: {kept} bytes at the peak; computed again: {again}");
    ensure!(again * 2 < kept, "checkpointing saves too little: {again} of {kept} bytes");
    Ok(())
}

#[test]
fn a_stage_of_a_pipeline_and_a_tensor_shard_take_less_than_the_whole() -> Result<()> {
    let folder = Folder::new()?;
    let peak = |name: &str, pipeline, tensor| {
        let run = folder.run(name).layout(pipeline, tensor, 1).set("train.steps=3").set("model.ffn=512");
        run.summary()?;
        run.logged("peak_tensor_bytes")
    };
    let (one, pp2, tp2) = (peak("one", 1, 1)?, peak("pp2", 2, 1)?, peak("tp2", 1, 2)?);
    println!("one {one}, pp2 {pp2}, tp2 {tp2}");
    for (name, split) in [("pp2", pp2), ("tp2", tp2)] {
        ensure!(split * 10 < one * 8, "{name} takes {split} of {one} bytes");
    }
    Ok(())
}
