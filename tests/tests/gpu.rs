//! The GPU path on an emulated GPU, whose memory the host cannot touch, with the kernels that a GPU runs compiled for the
//! CPU. It holds layouts, forms of attention and worker failures to the same bits as on the CPU, and its numbers agree
//! with the CPU's up to rounding. docs/gpus.md lists what this cannot show.
#![allow(clippy::print_stdout, reason = "what was left out")]

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coxswain_tests::Equal::{Bits, Close, Near};
use coxswain_tests::{EMULATED, Folder, Site, Table, emulated_gpu, process, programs, skip, wait_until};

const BF16: &str = "train.precision=bf16";
const SHARDS: &str = "train.tensor_shards=2";
const SHORT: Changes =
    &["train.steps=4", "train.validate_every=0", "checkpoint.every=2", "train.global_micro_batches=4"];

/// Changes to the job.
type Changes = &'static [&'static str];

/// A job, and its rows on the emulated GPU: what each is called, its layout, and what it changes beside.
type Form = (Changes, &'static [(&'static str, (u32, u32, u32), Changes)]);

const FORMS: &[Form] = &[
    (
        &[SHARDS],
        &[
            ("one", (1, 1, 1), &[]),
            ("pp2 zb-h1", (2, 1, 1), &["layout.schedule=zb-h1"]),
            ("tp2 pp2", (2, 2, 1), &[]),
            ("tp2 split", (1, 2, 1), &["layout.sequence_parallel=true"]),
            ("dp2 zero, full", (1, 1, 2), &["layout.zero=1", "train.recompute=full"]),
        ],
    ),
    (&[BF16, "train.dropout=0.1"], &[("bf16", (1, 1, 1), &[]), ("bf16 pp2 dp2", (2, 1, 2), &[])]),
    (
        &[
            SHARDS,
            "model={layers: 2, dim: 40, heads: 4, vocab: 333, norm: layer, activation: gelu, biases: true, \
                    positions: learned, max_positions: 32, tied_embeddings: true}",
        ],
        &[("gpt", (1, 1, 1), &[]), ("gpt tp2", (1, 2, 1), &[])],
    ),
    (
        &[
            SHARDS,
            "model.attention={kind: window, window: 9}",
            "train.attention_dropout=0.1",
            "model.positions=alibi",
        ],
        &[("window", (1, 1, 1), &[]), ("window tp2", (1, 2, 1), &[])],
    ),
    (
        &[SHARDS, "model.attention={kind: linear, decay: true}", "train.optimizer=muon"],
        &[("decay", (1, 1, 1), &[]), ("decay tp2", (1, 2, 1), &[])],
    ),
    (
        &[
            "model={architecture: encoder-decoder, layers: 2, dim: 32, heads: 2, vocab: 320, positions: relative}",
        ],
        &[("t5", (1, 1, 1), &[]), ("t5 pp2", (2, 1, 1), &[])],
    ),
];

/// Whether there is no emulated GPU.
#[track_caller]
fn left_out() -> bool {
    let left_out = std::env::var_os("COXSWAIN_NO_EMULATED_GPU").is_some();
    if left_out {
        skip::lacking("the emulated GPU, which goes with the libtorch that the set-up fetches");
    }
    left_out
}

#[test]
fn layouts_change_no_bit_on_the_emulated_gpu_and_all_is_close_to_the_cpu() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let (folder, at_cpu) = (Folder::new()?, Folder::new()?);
    let (host, site) = (Site::new(&at_cpu, 1)?, Site::on(&folder, 4, EMULATED)?);
    let mut table = Table::on(&site, &folder);
    let job = |name: &str, (pipeline, tensor, data): (u32, u32, u32), changes: &[&[&str]]| {
        let run = folder.run(name).layout(pipeline, tensor, data);
        SHORT.iter().chain(changes.iter().copied().flatten()).fold(run, |run, set| run.set(set))
    };
    for (changes, rows) in FORMS {
        let ((name, layout, more), others) = rows.split_first().context("a form has a row")?;
        let reference = job(&format!("{name} on the CPU"), (1, 1, 1), &[changes]);
        table.add("cpu", host.summary(&reference)?);
        let close = if changes.contains(&BF16) { Near("cpu") } else { Close("cpu") };
        table.compare(name, &job(name, *layout, &[changes, more]), &[close])?;
        for (other, layout, more) in others {
            table.compare(other, &job(other, *layout, &[changes, more]), &[Bits(name)])?;
        }
    }
    // From the checkpoint of a GPU, in another layout.
    let resumed = job("resumed", (2, 1, 1), &[&[SHARDS]]);
    table.compare("resumed", &resumed.from_checkpoint(&folder.run("one"), 2)?, &[Bits("one")])?;
    table.end()
}

#[test]
fn a_worker_that_is_lost_on_the_emulated_gpu_changes_no_bit() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    let folder = Folder::new()?;
    let job = |name: &str| {
        let run = folder.run(name).layout(1, 2, 1).device(EMULATED).set("train.steps=24");
        run.set("train.global_micro_batches=4").set("train.validate_every=0").set("checkpoint.every=3")
    };
    let calm = job("calm").summary()?;
    let struck = job("struck");
    let child = struck.start()?;
    let metrics = struck.out().join("metrics.jsonl");
    wait_until("step 5", Duration::from_secs(60), || process::lines(&metrics) >= 5)?;
    let workers = process::children(child.id())?;
    process::signal(*workers.last().context("`up` has no workers")?, "KILL")?;
    ensure!(process::lines(&metrics) < 24, "the run was over before a worker was lost");
    let outcome = struck.wait(child, Duration::from_secs(120))?;
    ensure!(outcome.code == Some(0), "{}", outcome.stderr);
    let formed = struck.events()?.iter().filter(|event| event["kind"] == "formed").count();
    ensure!(formed > 1, "the ranks formed {formed} times");
    let differs = struck.read()?.bits_differ(&calm);
    ensure!(differs.is_none(), "{}", differs.unwrap_or_default());
    Ok(())
}

#[test]
fn every_kernel_holds_to_double_precision_in_either_order_of_threads() -> Result<()> {
    if left_out() {
        return Ok(());
    }
    for program in ["kernels", "attention", "emulation"] {
        let path = emulated_gpu()?.join(program);
        let mut command = Command::new(&path);
        command.arg(emulated_gpu()?).stdin(Stdio::null());
        let output = command.output().with_context(|| format!("starting {}", path.display()))?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{program}: {said}{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

#[test]
fn a_gpu_that_is_not_there_is_told_with_what_to_do() -> Result<()> {
    let tell = |device: &str, set: &[(&str, &str)]| -> Result<(Option<i32>, String)> {
        let mut worker = Command::new(programs("coxswain-worker")?);
        worker.args(["--device", device, "--coordinator", "127.0.0.1:1"]);
        for name in ["COXSWAIN_EMULATED_GPU", "COXSWAIN_GPU", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"] {
            worker.env_remove(name);
        }
        let output = worker.envs(set.iter().copied()).stdin(Stdio::null()).output()?;
        Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
    };
    for (device, set, code, said) in [
        ("tpu", &[][..], 2, "unknown device; must be cpu, cuda or cuda:N"),
        ("cuda:x", &[], 2, "is not a GPU number"),
        ("cuda:0", &[], 1, "that libtorch is for CPUs; start this worker with LD_LIBRARY_PATH"),
        ("cuda:3", &[("CUDA_VISIBLE_DEVICES", "4,5")], 1, "leaves 2 GPUs to this worker"),
        ("emulated:0", &[], 1, "COXSWAIN_EMULATED_GPU is not set"),
    ] {
        // With the libtorch of GPUs another thing is missing first.
        if device == "cuda:0" && left_out() {
            continue;
        }
        let found = tell(device, set)?;
        ensure!(found.0 == Some(code) && found.1.contains(said), "{device}: {found:?}");
    }
    Ok(())
}
