//! The table of everything that changes speed and memory: schedules, logical tensor shards, split
//! sequences, ZeRO-1, recomputation, dropout, shared weights, precision, optimizers. Real processes,
//! a small model, and what each row must equal.

use anyhow::{Result, ensure};
use coxswain_tests::Equal::{Bits, Close, Differs, Near};
use coxswain_tests::{Folder, Row, Site, Table};

const FULL: &str = "train.recompute=full";
const ATTENTION: &str = "train.recompute=attention";
const FFN: &str = "train.recompute=ffn";
const GPIPE: &str = "layout.schedule=gpipe";
const ZERO_BUBBLE: &str = "layout.schedule=zb-h1";
const INTERLEAVED: &str = "layout.schedule=interleaved";
const ZERO: &str = "layout.zero=1";
const SEQUENCE: &str = "layout.sequence_parallel=true";
const T4: &str = "train.tensor_shards=4";
const DROP: &str = "train.dropout=0.1";
const DROP_ATTENTION: &str = "train.attention_dropout=0.1";
const TIED: &str = "model.tied_embeddings=true";
const GROUPS: &str = "model.layer_groups=2";
const ONE_GROUP: &str = "model.layer_groups=1";
const BF16: &str = "train.precision=bf16";
const FP16: &str = "train.precision=fp16";
const HUGE_SCALE: &str = "train.initial_loss_scale=16777216";
const SOON: &str = "train.loss_scale_growth_steps=4";
const SMALL_SCALE: &str = "train.initial_loss_scale=1024";
const MUON: &str = "train.optimizer=muon";
const FAST: &str = "train.reduction=fast";
/// A schedule of the user's own: warm-up of two, weight gradients late.
const CUSTOM: &str = "layout.schedule=custom";
const LISTS: &str = "layout.actions=\"0F0,0F1,0F2,0I0,0F3,0I1,0W0,0F4,0I2,0F5,0W1,0I3,0F6,0W2,0I4,0F7,0W3,\
                     0I5,0W4,0I6,0W5,0I7,0W6,0W7\\n1F0,1B0,1F1,1B1,1F2,1B2,1F3,1B3,1F4,1B4,1F5,1B5,1F6,1B6,\
                     1F7,1B7\"";

/// Runs the rows, a few steps each, on workers that take one after the other.
fn hold(rows: &[Row]) -> Result<()> {
    let folder = Folder::new()?;
    let workers = rows.iter().map(|(_, (pipeline, tensor, data), ..)| pipeline * tensor * data).max();
    let site = Site::new(&folder, workers.unwrap_or_default().try_into()?)?;
    let mut table = Table::on(&site, &folder);
    for row in rows {
        table.compare(row.0, &table.job(row).set("train.steps=8"), row.3)?;
    }
    table.end()
}

#[test]
fn schedules_and_recomputation() -> Result<()> {
    hold(&[
        ("one", (1, 1, 1), &[], &[]),
        ("gpipe, pp2", (2, 1, 1), &[GPIPE], &[Bits("one")]),
        ("gpipe, pp4 dp2", (4, 1, 2), &[GPIPE], &[Bits("one")]),
        ("zb-h1, one", (1, 1, 1), &[ZERO_BUBBLE], &[Bits("one")]),
        ("zb-h1, pp4", (4, 1, 1), &[ZERO_BUBBLE], &[Bits("one")]),
        ("zb-h1, pp2 dp3, full", (2, 1, 3), &[ZERO_BUBBLE, FULL], &[Bits("one")]),
        ("interleaved, pp2", (2, 1, 1), &[INTERLEAVED], &[Bits("one")]),
        ("interleaved, pp2 dp3, ffn", (2, 1, 3), &[INTERLEAVED, FFN], &[Bits("one")]),
        ("four chunks on one", (1, 1, 1), &[INTERLEAVED, "layout.chunks=4"], &[Bits("one")]),
        ("custom, pp2", (2, 1, 1), &[CUSTOM, LISTS], &[Bits("one")]),
        ("attention", (1, 1, 1), &[ATTENTION], &[Bits("one")]),
        ("ffn, pp2", (2, 1, 1), &[FFN], &[Bits("one")]),
        ("budget", (1, 1, 1), &["train.recompute={budget: 6MiB}"], &[Bits("one")]),
        ("fast, one", (1, 1, 1), &[FAST], &[Close("one"), Differs("one")]),
        ("fast, dp2", (1, 1, 2), &[FAST], &[Close("one"), Differs("one")]),
        ("fast, pp2 dp2", (2, 1, 2), &[FAST], &[Bits("fast, dp2")]),
    ])
}

#[test]
fn logical_tensor_shards() -> Result<()> {
    hold(&[
        ("plain", (1, 1, 1), &[], &[]),
        ("one", (1, 1, 1), &[T4], &[Close("plain"), Differs("plain")]),
        ("tp2", (1, 2, 1), &[T4], &[Bits("one")]),
        // Four shards share two key/value heads.
        ("tp4", (1, 4, 1), &[T4], &[Bits("one")]),
        ("tp4, full", (1, 4, 1), &[T4, FULL], &[Bits("one")]),
        ("tp2, split sequence", (1, 2, 1), &[T4, SEQUENCE], &[Bits("one")]),
        ("tp4, split sequence", (1, 4, 1), &[T4, SEQUENCE], &[Bits("one")]),
        ("pp2 tp2, split, zb-h1", (2, 2, 1), &[T4, SEQUENCE, ZERO_BUBBLE], &[Bits("one")]),
        ("pp2 tp2 dp2, split, ZeRO", (2, 2, 2), &[T4, SEQUENCE, ZERO, FULL], &[Bits("one")]),
        // Without logical shards, rows of one tensor layout still agree.
        ("bare tp2", (1, 2, 1), &[], &[Close("plain"), Differs("plain")]),
        ("bare tp2, split sequence", (1, 2, 1), &[SEQUENCE], &[Bits("bare tp2")]),
        ("odd, one", (1, 1, 1), &[T4, "model.vocab=333"], &[]),
        ("odd, tp4 dp2", (1, 4, 2), &[T4, "model.vocab=333"], &[Bits("odd, one")]),
    ])
}

#[test]
fn zero_shards_the_optimizer() -> Result<()> {
    let folder = Folder::new()?;
    let mut table = Table::new(&folder);
    // Several norm blocks in a parameter, so that slices cut through parameters.
    const WIDE: &str = "model.ffn=1500";
    let one = table.row(&("one", (1, 1, 1), &[WIDE], &[]))?;
    let dp2 = table.row(&("dp2, ZeRO", (1, 1, 2), &[WIDE, ZERO], &[Bits("one")]))?;
    table.row(&("dp3, ZeRO", (1, 1, 3), &[WIDE, ZERO], &[Bits("one")]))?;
    table.row(&("pp2 dp4, ZeRO", (2, 1, 4), &[WIDE, ZERO], &[Bits("one")]))?;
    for (name, layout, changes, from) in [
        ("ZeRO resumed as one", (1, 1, 1), &[WIDE][..], &dp2),
        ("one resumed as ZeRO", (1, 1, 3), &[WIDE, ZERO][..], &one),
    ] {
        let run = table.job(&(name, layout, changes, &[])).from_checkpoint(from, 10)?;
        table.compare(name, &run, &[Bits("one")])?;
    }
    table.end()?;
    let plain = folder.run("plain").layout(1, 1, 4).set(WIDE).set("model.vocab=2000").set("train.steps=3");
    let sharded = folder
        .run("sharded")
        .layout(1, 1, 4)
        .set(WIDE)
        .set("model.vocab=2000")
        .set("train.steps=3")
        .set(ZERO);
    plain.summary()?;
    sharded.summary()?;
    let (plain, sharded) = (plain.logged("peak_tensor_bytes")?, sharded.logged("peak_tensor_bytes")?);
    println!("optimizer state whole: {plain} bytes at the peak; over four data ranks: {sharded}");
    ensure!(sharded * 10 < plain * 9, "ZeRO-1 saves too little: {sharded} of {plain} bytes");
    Ok(())
}

#[test]
fn dropout_is_the_same_everywhere() -> Result<()> {
    hold(&[
        ("none", (1, 1, 1), &[], &[]),
        ("one", (1, 1, 1), &[DROP, DROP_ATTENTION], &[Differs("none")]),
        ("attention only", (1, 1, 1), &[DROP_ATTENTION], &[Differs("none"), Differs("one")]),
        ("full", (1, 1, 1), &[DROP, DROP_ATTENTION, FULL], &[Bits("one")]),
        ("pp2 dp2, attention", (2, 1, 2), &[DROP, DROP_ATTENTION, ATTENTION], &[Bits("one")]),
        ("dp3, zb-h1", (1, 1, 3), &[DROP, DROP_ATTENTION, ZERO_BUBBLE], &[Bits("one")]),
        ("shards", (1, 1, 1), &[DROP, DROP_ATTENTION, T4], &[Close("one")]),
        ("shards, tp4", (1, 4, 1), &[DROP, DROP_ATTENTION, T4, SEQUENCE], &[Bits("shards")]),
    ])
}

#[test]
fn shared_weights() -> Result<()> {
    hold(&[
        ("own", (1, 1, 1), &[], &[]),
        ("tied", (1, 1, 1), &[TIED], &[Differs("own")]),
        ("tied, pp2", (2, 1, 1), &[TIED], &[Bits("tied")]),
        ("tied, pp4 dp2, ZeRO", (4, 1, 2), &[TIED, ZERO], &[Bits("tied")]),
        ("tied, shards", (1, 1, 1), &[TIED, T4], &[Close("tied")]),
        ("tied, shards, pp2 tp2", (2, 2, 1), &[TIED, T4, SEQUENCE], &[Bits("tied, shards")]),
        ("tied, bare tp2", (1, 2, 1), &[TIED], &[Close("tied")]),
        ("groups", (1, 1, 1), &[GROUPS], &[Differs("own")]),
        ("groups, pp2", (2, 1, 1), &[GROUPS], &[Bits("groups")]),
        ("groups, pp4 dp2", (4, 1, 2), &[GROUPS, ZERO, FULL], &[Bits("groups")]),
        // All layers and both ends: three uses and more of a slice, on every stage.
        ("one group, tied", (1, 1, 1), &[ONE_GROUP, TIED], &[]),
        ("one group, tied, pp4", (4, 1, 1), &[ONE_GROUP, TIED, ZERO_BUBBLE], &[Bits("one group, tied")]),
        ("one group, pp3 dp2", (3, 1, 2), &[ONE_GROUP, TIED, ZERO], &[Bits("one group, tied")]),
        ("one group, shards", (1, 1, 1), &[ONE_GROUP, TIED, T4], &[Close("one group, tied")]),
        ("one group, pp2 tp4", (2, 4, 1), &[ONE_GROUP, TIED, T4, SEQUENCE], &[Bits("one group, shards")]),
    ])
}

#[test]
fn precisions() -> Result<()> {
    hold(&[
        ("fp32", (1, 1, 1), &[], &[]),
        ("bf16", (1, 1, 1), &[BF16], &[Near("fp32"), Differs("fp32")]),
        ("bf16, pp2 dp2, full", (2, 1, 2), &[BF16, FULL], &[Bits("bf16")]),
        ("bf16, pp4, zb-h1", (4, 1, 1), &[BF16, ZERO_BUBBLE], &[Bits("bf16")]),
        ("bf16, dp3, ZeRO, tied", (1, 1, 3), &[BF16, ZERO, TIED], &[]),
        ("bf16, pp2, tied", (2, 1, 1), &[BF16, TIED], &[Bits("bf16, dp3, ZeRO, tied")]),
        ("bf16, tp2", (1, 2, 1), &[BF16, SEQUENCE], &[Near("bf16")]),
        ("bf16, shards", (1, 1, 1), &[BF16, T4], &[Near("bf16")]),
        ("bf16, shards, tp4", (1, 4, 1), &[BF16, T4, SEQUENCE], &[Bits("bf16, shards")]),
        ("fp16", (1, 1, 1), &[FP16, SMALL_SCALE], &[Near("fp32")]),
        ("fp16, pp2 dp2", (2, 1, 2), &[FP16, SMALL_SCALE], &[Bits("fp16")]),
        ("fp16, dropout", (1, 1, 1), &[FP16, SMALL_SCALE, DROP, DROP_ATTENTION], &[]),
        (
            "fp16, dropout, pp2",
            (2, 1, 1),
            &[FP16, SMALL_SCALE, DROP, DROP_ATTENTION, FULL],
            &[Bits("fp16, dropout")],
        ),
    ])
}

#[test]
fn a_step_that_overflows_is_skipped_by_all_ranks_or_by_none() -> Result<()> {
    let folder = Folder::new()?;
    let mut table = Table::new(&folder);
    // The scale is far too large at first, and grows again soon.
    let large: &'static [&'static str] = &[FP16, HUGE_SCALE, SOON];
    let sharded: &'static [&'static str] = &[FP16, HUGE_SCALE, SOON, ZERO];
    let one = table.row(&("one", (1, 1, 1), large, &[]))?;
    table.row(&("pp2 dp2, ZeRO", (2, 1, 2), sharded, &[Bits("one")]))?;
    let skipped = table.summary("one")?.skipped.clone();
    ensure!(skipped.contains(&1) && skipped.len() < 15, "skipped: {skipped:?}");
    // The scale and the count of good steps are in the checkpoint.
    let run = table.job(&("resumed", (1, 1, 2), large, &[])).from_checkpoint(&one, 10)?;
    table.compare("resumed", &run, &[Bits("one")])?;
    table.end()
}

#[test]
fn what_is_not_finite_never_reaches_the_weights_and_is_named() -> Result<()> {
    let folder = Folder::new()?;
    // A rate that throws the weights away at the second step.
    for (name, layout) in [("one", (1, 1, 1)), ("pp2 dp2", (2, 1, 2))] {
        let run = folder.run(name).layout(layout.0, layout.1, layout.2);
        let run =
            run.set("train.learning_rate=1e30").set("train.warmup_steps=0").set("train.non_finite_max=3");
        let outcome = run.outcome()?;
        ensure!(outcome.code == Some(1), "exit code {:?}", outcome.code);
        for said in
            ["step 4", "3 steps in a row", "the gradient of model.norm.weight at the head, in micro-batch 0"]
        {
            ensure!(outcome.stderr.contains(said), "{name} does not say `{said}`:\n{}", outcome.stderr);
        }
    }
    Ok(())
}

#[test]
fn muon() -> Result<()> {
    hold(&[
        ("adamw", (1, 1, 1), &[], &[]),
        ("muon", (1, 1, 1), &[MUON], &[Differs("adamw")]),
        ("muon, pp2 dp2", (2, 1, 2), &[MUON], &[Bits("muon")]),
        ("muon, dp3, ZeRO", (1, 1, 3), &[MUON, ZERO], &[Bits("muon")]),
        ("muon, groups, pp2", (2, 1, 1), &[MUON, GROUPS, TIED], &[]),
        ("muon, groups, dp2", (1, 1, 2), &[MUON, GROUPS, TIED, ZERO], &[Bits("muon, groups, pp2")]),
        ("muon, shards", (1, 1, 1), &[MUON, T4], &[Close("muon")]),
        ("muon, shards, tp4", (1, 4, 1), &[MUON, T4], &[Bits("muon, shards")]),
        ("muon, shards, tp2 dp2", (1, 2, 2), &[MUON, T4, ZERO], &[Bits("muon, shards")]),
    ])
}
