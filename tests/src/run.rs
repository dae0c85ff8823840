//! A job in a folder of its own, started with `coxswain up`, and what it left there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coxswain_files::Checkpoint;

use crate::events;

/// A run that takes longer than this has hung: the slowest takes 100 s on a machine that others load too.
pub(crate) const RUN_MAX: Duration = Duration::from_secs(240);

/// The binary `name` that was built along with this test.
pub fn programs(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this test's own file")?;
    let folder = own.parent().and_then(Path::parent).context("the test lies in target/PROFILE/deps")?;
    let path = folder.join(name);
    ensure!(path.is_file(), "{} is not built; run `cargo xtask test`", path.display());
    Ok(path)
}

/// The device that stands in for a GPU.
pub const EMULATED: &str = "emulated:0";

/// The folder of what stands in for a GPU; `cargo xtask test` fills it.
pub fn emulated_gpu() -> Result<PathBuf> {
    let release = programs("coxswain")?;
    let target = release.parent().and_then(Path::parent).context("programs lie in target/PROFILE")?;
    let folder = target.join("emulated-gpu");
    ensure!(folder.is_dir(), "{} is not there; run `cargo xtask test`", folder.display());
    Ok(folder)
}

/// Waits for `what`, which is looked at every few milliseconds.
pub fn wait_until(what: &str, limit: Duration, holds: impl FnMut() -> bool) -> Result<Duration> {
    look_every(Duration::from_millis(5), what, limit, holds)
}

/// The same, where a look starts a process, which would take a core from those under test.
pub(crate) fn wait_until_told(what: &str, limit: Duration, holds: impl FnMut() -> bool) -> Result<Duration> {
    look_every(Duration::from_millis(50), what, limit, holds)
}

fn look_every(
    pause: Duration,
    what: &str,
    limit: Duration,
    mut holds: impl FnMut() -> bool,
) -> Result<Duration> {
    let start = Instant::now();
    while !holds() {
        ensure!(start.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(pause);
    }
    Ok(start.elapsed())
}

/// A job about to run.
#[derive(Clone, Debug)]
pub struct Run {
    job: PathBuf,
    out: PathBuf,
    workers: u32,
    spares: u32,
    device: &'static str,
    sets: Vec<String>,
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; `None` where a signal ended it.
    pub code: Option<i32>,
    /// What it printed on stderr.
    pub stderr: String,
    /// How long it took.
    pub took: Duration,
}

/// What a run left behind.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The loss of each step, by step.
    pub losses: BTreeMap<u64, f64>,
    /// The global gradient norm of each step, by step.
    pub norms: BTreeMap<u64, f64>,
    /// The steps that changed no weight.
    pub skipped: Vec<u64>,
    /// The step of the newest checkpoint.
    pub saved: u64,
    /// The newest checkpoint's digest of each tensor, weights and optimizer state alike.
    pub digests: Vec<(String, String)>,
    /// The validation loss after the last step.
    pub validation: Option<f64>,
    /// The share of validation lines whose class is told right after the last step.
    pub accuracy: Option<f64>,
}

impl Run {
    /// The job file `job`, in the folder `out`, on one worker.
    pub fn new(job: &Path, out: PathBuf) -> Run {
        Run { job: job.to_owned(), out, workers: 1, spares: 0, device: "cpu", sets: Vec::new() }
    }

    /// Pipeline, tensor and data ranks, with as many workers.
    pub fn layout(mut self, pipeline: u32, tensor: u32, data: u32) -> Run {
        self.workers = pipeline * tensor * data;
        for (axis, ways) in [("pipeline", pipeline), ("tensor", tensor), ("data", data)] {
            self.sets.push(format!("layout.{axis}={ways}"));
        }
        self
    }

    /// On workers that compute on this device.
    pub fn device(mut self, device: &'static str) -> Run {
        self.device = device;
        self
    }

    /// With so many workers more than the layout needs.
    pub fn spares(mut self, spares: u32) -> Run {
        self.spares = spares;
        self
    }

    /// Another value in the job.
    pub fn set(mut self, change: &str) -> Run {
        self.sets.push(change.to_owned());
        self
    }

    /// The folder of the run.
    pub fn out(&self) -> &Path {
        &self.out
    }

    /// The command that starts it.
    pub fn command(&self) -> Result<Command> {
        let mut command = Command::new(programs("coxswain")?);
        command.arg("up").arg(&self.job).arg("--workers").arg(self.workers.to_string());
        command.arg("--out").arg(&self.out).arg("--spares").arg(self.spares.to_string());
        command.arg("--device").arg(self.device);
        if self.device == EMULATED {
            command.env("COXSWAIN_EMULATED_GPU", emulated_gpu()?);
        }
        for change in &self.sets {
            command.arg("--set").arg(change);
        }
        Ok(command)
    }

    /// Starts it without waiting. Its stderr goes to `OUT.stderr`.
    pub fn start(&self) -> Result<Child> {
        let log = std::fs::File::create(self.stderr_path()).context("creating the log of the run")?;
        let mut command = self.command()?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command.spawn().context("starting `coxswain up`")
    }

    /// The job file and its changes, as `coxswain submit` takes them, with where the run goes.
    pub(crate) fn submission(&self) -> Vec<String> {
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let mut words = vec![path(&self.job), "--directory".to_owned(), path(&self.out)];
        words.extend(self.sets.iter().flat_map(|set| ["--set".to_owned(), set.clone()]));
        words
    }

    fn stderr_path(&self) -> PathBuf {
        self.out.with_extension("stderr")
    }

    /// What happened to it so far.
    ///
    /// # Errors
    /// There is no journal yet.
    pub fn events(&self) -> Result<Vec<serde_json::Value>> {
        events::events(&self.out.join("coordinator"))
    }

    /// Waits for the end of a started run.
    pub fn wait(&self, mut child: Child, limit: Duration) -> Result<Outcome> {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().context("waiting for the run")? {
                break status;
            }
            if start.elapsed() > limit {
                child.kill().context("ending a run that hangs")?;
                child.wait().context("reaping a run that hung")?;
                bail!("the run did not end within {limit:?}; it said:\n{}", self.said());
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        Ok(Outcome { code: status.code(), stderr: self.said(), took: start.elapsed() })
    }

    /// What it has said on stderr so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(self.stderr_path()).unwrap_or_default()
    }

    /// Runs it to its end, whatever that is.
    pub fn outcome(&self) -> Result<Outcome> {
        self.wait(self.start()?, RUN_MAX)
    }

    /// Runs it to a good end and reads what it left.
    pub fn summary(&self) -> Result<Summary> {
        let outcome = self.outcome()?;
        ensure!(outcome.code == Some(0), "exit code {:?}; it said:\n{}", outcome.code, outcome.stderr);
        self.read()
    }

    /// Reads what a finished run left.
    pub fn read(&self) -> Result<Summary> {
        let path = self.out.join("metrics.jsonl");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        let (mut losses, mut norms) = (BTreeMap::new(), BTreeMap::new());
        let (mut validation, mut accuracy) = (None, None);
        let mut skipped = Vec::new();
        for line in text.lines() {
            let line: serde_json::Value = serde_json::from_str(line).context("a line of metrics.jsonl")?;
            let step = line["step"].as_u64().context("a step")?;
            // What is not finite has no number in JSON; only a skipped step may have such.
            let passed_over = line["skipped"] == serde_json::Value::Bool(true);
            let number = |key: &str| match line[key].as_f64() {
                None if passed_over => Ok(f64::NAN),
                number => number.with_context(|| format!("step {step}: {key}")),
            };
            skipped.extend(passed_over.then_some(step));
            ensure!(losses.insert(step, number("loss")?).is_none(), "step {step} twice");
            norms.insert(step, number("grad_norm")?);
            for key in ["learning_rate", "tokens", "tokens_per_second", "step_seconds"] {
                ensure!(
                    line[key].as_f64().is_some_and(|value| value > 0.0),
                    "step {step}: {key} is {}",
                    line[key]
                );
            }
            validation = line["validation"]["loss"].as_f64();
            accuracy = line["validation"]["accuracy"].as_f64();
        }
        let (_, folder) =
            coxswain_files::latest(&self.out.as_path().into())?.context("there is no checkpoint")?;
        let checkpoint = Checkpoint::open(&folder, None)?;
        checkpoint.verify()?;
        let saved = checkpoint.manifest().step;
        Ok(Summary { losses, norms, skipped, saved, digests: checkpoint.digests()?, validation, accuracy })
    }

    /// A number that a worker logged as `key=value`, the largest over all workers.
    pub fn logged(&self, key: &str) -> Result<u64> {
        let mut largest = None;
        for entry in std::fs::read_dir(self.out.join("logs")).context("reading the workers' logs")? {
            let text = std::fs::read_to_string(entry?.path())?;
            let values = text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
            largest = largest.max(values.filter_map(|value| value.parse().ok()).max());
        }
        largest.with_context(|| format!("no worker logged {key}"))
    }

    /// The last number that the worker of each rank logged as `key=value`.
    pub fn logged_by_rank(&self, key: &str) -> Result<Vec<u64>> {
        let mut numbers = BTreeMap::new();
        for entry in std::fs::read_dir(self.out.join("logs")).context("reading the workers' logs")? {
            let text = std::fs::read_to_string(entry?.path())?;
            let last = |key: &str| {
                let values =
                    text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.strip_prefix('='));
                // The last field of a span has its closing brace behind it.
                values.filter_map(|value| value.trim_end_matches("}:").parse::<u64>().ok()).next_back()
            };
            numbers.extend(last("rank").zip(last(key)));
        }
        Ok(numbers.into_values().collect())
    }

    /// Starts in the folder of another run, from its checkpoint of `step`.
    pub fn from_checkpoint(self, other: &Run, step: u64) -> Result<Run> {
        let folder = coxswain_files::folders::step_path(step);
        for part in [folder.as_str(), "data"] {
            copy_folder(&other.out.join(part), &self.out.join(part))?;
        }
        Ok(self)
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("creating {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

impl Summary {
    /// What keeps the two from being the same bits; `None` where nothing does.
    pub fn bits_differ(&self, other: &Summary) -> Option<String> {
        for (what, own, other) in
            [("loss", &self.losses, &other.losses), ("gradient norm", &self.norms, &other.norms)]
        {
            for (step, value) in own {
                match other.get(step) {
                    Some(wanted) if wanted.to_bits() == value.to_bits() => {}
                    wanted => return Some(format!("step {step}: {what} {value}, wanted {wanted:?}")),
                }
            }
        }
        if self.saved != other.saved {
            return Some(format!("the newest checkpoint is of step {}, wanted {}", self.saved, other.saved));
        }
        if self.digests.len() != other.digests.len() {
            return Some(format!("{} tensors, wanted {}", self.digests.len(), other.digests.len()));
        }
        let pair = self.digests.iter().zip(&other.digests).find(|(a, b)| a != b);
        if let Some(((name, _), _)) = pair {
            return Some(format!("the final {name} differs"));
        }
        (self.validation.map(f64::to_bits) != other.validation.map(f64::to_bits))
            .then(|| format!("validation loss {:?}, wanted {:?}", self.validation, other.validation))
            .or_else(|| {
                (self.accuracy != other.accuracy)
                    .then(|| format!("accuracy {:?}, wanted {:?}", self.accuracy, other.accuracy))
            })
    }

    /// The largest relative difference of a loss.
    pub fn loss_error(&self, other: &Summary) -> f64 {
        largest_error(&self.losses, &other.losses)
    }

    /// The relative difference of the first gradient norm. Both runs begin it with the same weights;
    /// later ones also show how the optimizer magnifies rounding where gradients are tiny.
    pub fn first_norm_error(&self, other: &Summary) -> f64 {
        let first = self.norms.iter().take(1).map(|(step, norm)| (*step, *norm)).collect();
        largest_error(&first, &other.norms)
    }
}

fn largest_error(own: &BTreeMap<u64, f64>, other: &BTreeMap<u64, f64>) -> f64 {
    let pairs = own.iter().filter_map(|(step, value)| Some((value, other.get(step)?)));
    pairs.map(|(value, wanted)| ((value - wanted) / wanted).abs()).fold(0.0, f64::max)
}
