//! `demo`: from nothing to a trained transformer on four workers, two pipeline stages by two tensor
//! shards, measured against gzip and put to writing.
//!
//! The run itself belongs to `coxswain up` and deploy/jobs/demo.yaml; this module fetches, builds,
//! starts, and reads what the run left.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::libtorch;
use crate::repo::Repo;
use crate::run::{capture, cargo, human, run, say, succeeds};
use crate::texts;

/// How the demo runs.
#[derive(clap::Args, Debug)]
pub(crate) struct DemoArgs {
    /// Optimizer steps, where the job file's number takes too long. Such a run need not beat gzip.
    #[arg(long)]
    steps: Option<u64>,
    /// Continue from the last checkpoint in target/demo instead of starting anew.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    libtorch: libtorch::LibtorchChoice,
}

const JOB: &str = "deploy/jobs/demo.yaml";
const WORKERS: &str = "4";
const PROMPT: &str = "Alice was beginning to";
const PASSAGE_TOKENS: &str = "120";

/// Builds the programs, trains the demo's model, and shows what came of it.
///
/// # Errors
/// When a step of it fails, or when the model needs more bits for the validation text than gzip.
pub(crate) fn demo(repo: &Repo, args: &DemoArgs) -> Result<()> {
    let libtorch = libtorch::setup(repo, &args.libtorch)?;
    let texts = texts::texts(repo)?;
    let mut build = cargo();
    build.current_dir(repo.root()).args(["build", "--release", "-p", "coxswain", "-p", "coxswain-worker"]);
    run(libtorch.apply(&mut build))?;

    let folder = repo.target("demo");
    if !args.resume {
        remove(&folder)?;
    }
    let start = Instant::now();
    run(&mut up(repo, args, &folder, &texts))
        .with_context(|| format!("the logs are in {}", folder.display()))?;
    let took = start.elapsed();

    let metrics = folder.join("metrics.jsonl");
    let text =
        fs::read_to_string(&metrics).with_context(|| format!("could not read {}", metrics.display()))?;
    let run_of = DemoMetrics::read(&text).with_context(|| format!("in {}", metrics.display()))?;
    let validation = folder.join("data/validation.txt");
    let gzip = gzip(&validation)?;
    eprintln!("\n{}", report(&run_of, &gzip, took, &folder, newest(&folder.join("checkpoints")).as_deref()));

    say(&format!("a passage that the model goes on with from `{}`:", PROMPT));
    let mut generate = Command::new(repo.binary("coxswain"));
    generate.arg("generate").arg("--checkpoint").arg(&folder);
    run(generate.args(["--prompt", PROMPT, "--tokens", PASSAGE_TOKENS]))?;
    judge(&run_of, &gzip, args.steps.is_some())
}

fn up(repo: &Repo, args: &DemoArgs, folder: &Path, texts: &[PathBuf]) -> Command {
    let texts: Vec<Value> = texts.iter().map(|path| path.to_string_lossy().into()).collect();
    let mut up = Command::new(repo.binary("coxswain"));
    up.arg("up").arg(repo.path(JOB)).args(["--workers", WORKERS, "--out"]).arg(folder);
    up.arg("--set").arg(format!("data.text={}", Value::from(texts)));
    if let Some(steps) = args.steps {
        up.arg("--set").arg(format!("train.steps={steps}"));
    }
    up
}

/// What the demo reads of metrics.jsonl.
#[derive(Debug, PartialEq)]
struct DemoMetrics {
    step: u64,
    loss: f64,
    bits_per_byte: f64,
    training: Duration,
}

impl DemoMetrics {
    fn read(text: &str) -> Result<DemoMetrics> {
        let mut seconds = 0.0;
        let (mut last, mut bits) = (None, None);
        for (index, line) in text.lines().enumerate() {
            let row: Value =
                serde_json::from_str(line).with_context(|| format!("line {} is not JSON", index + 1))?;
            seconds += row["step_seconds"].as_f64().unwrap_or(0.0);
            bits = row["validation"]["bits_per_byte"].as_f64().or(bits);
            last = row["step"].as_u64().zip(row["loss"].as_f64()).or(last);
        }
        let (step, loss) = last.context("no step was recorded")?;
        let bits_per_byte = bits.context("no line has validation.bits_per_byte")?;
        Ok(DemoMetrics { step, loss, bits_per_byte, training: Duration::from_secs_f64(seconds) })
    }
}

/// What gzip makes of the validation text.
struct Gzip {
    /// Which gzip it was.
    program: &'static str,
    bits_per_byte: f64,
    bytes: u64,
}

fn gzip(text: &Path) -> Result<Gzip> {
    let bytes = fs::metadata(text).with_context(|| format!("could not read {}", text.display()))?.len();
    if bytes == 0 {
        bail!("{} is empty; there is nothing to compare on", text.display());
    }
    let (program, packed) = if succeeds(Command::new("gzip").arg("--version")) {
        ("gzip -9", capture(Command::new("gzip").args(["-9", "-n", "-c"]).arg(text))?)
    } else {
        let pack = "import gzip, sys; \
                    sys.stdout.buffer.write(gzip.compress(open(sys.argv[1], 'rb').read(), 9))";
        ("gzip -9 (of Python)", capture(Command::new("python3").args(["-c", pack]).arg(text))?)
    };
    Ok(Gzip { program, bits_per_byte: 8.0 * packed.len() as f64 / bytes as f64, bytes })
}

fn report(
    run: &DemoMetrics,
    gzip: &Gzip,
    took: Duration,
    folder: &Path,
    checkpoint: Option<&Path>,
) -> String {
    let checkpoint =
        checkpoint.map_or_else(|| "none was found".to_owned(), |path| path.display().to_string());
    format!(
        "trained        {} steps in {} ({} with start, data and checkpoints)\n\
         loss           {:.3} nats per token at the last step\n\
         validation     {:.3} bits per byte by the model, {:.3} by {} ({} bytes)\n\
         checkpoint     {checkpoint}\n\
         metrics        {}\n\
         loss curve     {}\n",
        run.step,
        human(run.training),
        human(took),
        run.loss,
        run.bits_per_byte,
        gzip.bits_per_byte,
        gzip.program,
        gzip.bytes,
        folder.join("metrics.jsonl").display(),
        folder.join("loss.svg").display(),
    )
}

/// The demo must beat gzip; a run that was cut short on purpose need not.
fn judge(run: &DemoMetrics, gzip: &Gzip, shortened: bool) -> Result<()> {
    let (model, gzip) = (run.bits_per_byte, gzip.bits_per_byte);
    // The comparison is written so that a loss that is not a number fails.
    if model < gzip {
        say("the model needs fewer bits for the validation text than gzip");
        Ok(())
    } else if shortened {
        say("the model needs more bits than gzip; this run was shortened by --steps");
        Ok(())
    } else {
        bail!(
            "the model needs {model:.3} bits per byte of the validation text, no fewer than gzip's {gzip:.3}"
        )
    }
}

/// The folder that was changed last: the newest checkpoint.
fn newest(checkpoints: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(checkpoints).ok()?.filter_map(Result::ok);
    let folders = entries.filter(|entry| entry.path().is_dir());
    let newest = folders.max_by_key(|entry| entry.metadata().and_then(|meta| meta.modified()).ok())?;
    Some(newest.path())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove the last demo's {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const METRICS: &str = r#"{"step":1,"loss":7.5,"step_seconds":0.5,"validation":{"loss":7.4,"bits_per_byte":4.0}}
{"step":2,"loss":7.25,"step_seconds":0.75,"validation":{"loss":6.1,"bits_per_byte":3.1}}
{"step":3,"loss":7.0,"step_seconds":0.25}
"#;

    #[test]
    fn the_last_validation_loss_counts() {
        let read = DemoMetrics::read(METRICS).unwrap();
        let training = Duration::from_millis(1_500);
        assert_eq!(read, DemoMetrics { step: 3, loss: 7.0, bits_per_byte: 3.1, training });
        for (text, error) in [
            ("", "no step was recorded"),
            ("{\"step\":1,\"loss\":7.5}", "no line has validation.bits_per_byte"),
            ("{\"step\":1,\"loss\":7.5}\n{\"st", "line 2 is not JSON"),
        ] {
            assert_eq!(DemoMetrics::read(text).unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn the_demo_fails_unless_it_beats_gzip_or_was_shortened() {
        let gzip = Gzip { program: "gzip -9", bits_per_byte: 3.3, bytes: 10 };
        for (bits_per_byte, shortened, good) in [
            (3.2, false, true),
            (3.3, false, false),
            (3.4, false, false),
            (f64::NAN, false, false),
            (3.4, true, true),
        ] {
            let run = DemoMetrics { bits_per_byte, ..DemoMetrics::read(METRICS).unwrap() };
            assert_eq!(judge(&run, &gzip, shortened).is_ok(), good, "{bits_per_byte} {shortened}");
        }
    }

    #[test]
    fn gzip_is_measured_on_the_very_text() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("validation.txt");
        assert!(gzip(&text).is_err());
        fs::write(&text, "").unwrap();
        assert!(gzip(&text).is_err());
        fs::write(&text, "a".repeat(8_000)).unwrap();
        let packed = gzip(&text).unwrap();
        assert_eq!(packed.bytes, 8_000);
        assert!(packed.bits_per_byte > 0.0 && packed.bits_per_byte < 0.1, "{}", packed.bits_per_byte);
    }

    #[test]
    fn the_command_names_the_texts_as_one_list() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("Cargo.toml"), "").unwrap();
        let repo = Repo::find(Some(root.path().to_owned())).unwrap();
        let args = DemoArgs { steps: Some(20), resume: false, libtorch: libtorch::LibtorchChoice::default() };
        let command =
            up(&repo, &args, Path::new("/out"), &[PathBuf::from("/t/a b.txt"), PathBuf::from("/t/c.txt")]);
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
        assert_eq!(words[2..6], ["--workers", "4", "--out", "/out"]);
        assert_eq!(
            words[6..],
            ["--set", r#"data.text=["/t/a b.txt","/t/c.txt"]"#, "--set", "train.steps=20"]
        );
    }
}
