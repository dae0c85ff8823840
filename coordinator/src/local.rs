//! The commands that need no coordinator and compute or say one thing: `schema`, `generate`, `classify`; and how a job
//! file is read.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context, anyhow};
use clap::Args;
use coxswain_console::parent;
use coxswain_core::plan::sketch;
use coxswain_core::spec;
use coxswain_types::job::{Layout, ModelSpec, OptimizerKind, Precision, Schedule};
use coxswain_types::{Assignment, JobSpec};

use crate::args::JobFile;
use crate::failure::{FAILED, Failure};
use crate::output;
use crate::{job, workers};

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// A run's folder (its newest checkpoint is used) or a checkpoint's.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// What the text starts with.
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    prompt: String,
    /// Take the text that it starts with from this file, or from stdin if it is `-`. One newline at its end does not
    /// count.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    prompt_file: Option<PathBuf>,
    /// How many tokens to write at most; 100, or as many as the model has positions for, where it is not given.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    tokens: Option<u32>,
    /// 0 takes the likeliest token each time; 1 draws as the model says [default: 0.8].
    #[arg(long, value_name = "X", value_parser = temperature, allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Draw from this many of the likeliest tokens; 0 for all [default: 40].
    #[arg(long, value_name = "K", allow_negative_numbers = true)]
    top_k: Option<u32>,
    /// Another seed draws another text [default: 1].
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    seed: Option<u64>,
    /// Cut the layers over so many processes of this machine.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pipeline: u32,
    /// Cut each layer over so many processes.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    tensor: u32,
}

fn temperature(text: &str) -> Result<f64, String> {
    let must = "must be a number of 0 or more; 0 takes the likeliest token each time";
    text.parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0).ok_or_else(|| must.to_owned())
}

/// `coxswain classify`.
#[derive(Debug, Args)]
pub(crate) struct ClassifyArgs {
    /// A run's folder (its newest checkpoint is used) or a checkpoint's.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Print the pooled output instead, a list of numbers in JSON a line.
    #[arg(long)]
    embeddings: bool,
}

/// A job file as it was given.
pub(crate) struct JobInput {
    pub(crate) text: String,
    /// The file's name in messages.
    pub(crate) source: String,
    /// The folder that relative paths start from.
    pub(crate) base: PathBuf,
    pub(crate) sets: Vec<String>,
}

impl JobInput {
    /// The checked job.
    pub(crate) fn spec(&self) -> Result<JobSpec, Failure> {
        Ok(job::parse(&self.text, &self.source, &self.base, &self.sets)?)
    }
}

/// Reads a job file.
pub(crate) fn read_job(args: &JobFile) -> Result<JobInput, Failure> {
    let source = args.job.display().to_string();
    let text = read_text(&args.job).map_err(|why| Failure::Input(format!("the job file {source} {why}")))?;
    let path = std::path::absolute(&args.job).context("the current folder cannot be told")?;
    let base = path.parent().unwrap_or(Path::new("/")).to_owned();
    Ok(JobInput { text, source, base, sets: args.sets.clone() })
}

/// Larger than any valid job file; the parser names the limit.
const MAX_JOB_BYTES: u64 = 1 << 20;

/// The text of a file, without a byte-order mark; the error text follows the file's name.
pub(crate) fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(MAX_JOB_BYTES).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err("is UTF-16 text; convert it first, such as with `iconv -f UTF-16 -t UTF-8`".to_owned());
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        format!("is not valid UTF-8 (invalid byte at offset {})", e.utf8_error().valid_up_to())
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// `coxswain schema`: the schema of job files.
pub(crate) fn schema() -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(spec::schema()).context("the schema as JSON")?;
    output::write(&(text + "\n"))
}

pub(crate) async fn generate(args: GenerateArgs) -> Result<(), Failure> {
    let program = workers::program()?;
    // `--name=value`, since a prompt or a number may start with a dash.
    let option = |name: &str, value: OsString| {
        let mut option = OsString::from(format!("--{name}="));
        option.push(value);
        option
    };
    let mut options: Vec<OsString> =
        vec!["generate".into(), option("checkpoint", args.checkpoint.clone().into())];
    let meet = tempfile::tempdir().context("a folder where the processes meet")?;
    options.push(match &args.prompt_file {
        None => option("prompt", args.prompt.clone().into()),
        Some(file) if file == Path::new("-") => {
            let kept = meet.path().join("prompt");
            let copied =
                fs::File::create(&kept).and_then(|mut kept| io::copy(&mut io::stdin().lock(), &mut kept));
            copied.context("the prompt cannot be read from stdin")?;
            option("prompt-file", kept.into())
        }
        Some(file) => option("prompt-file", file.into()),
    });
    let numbers = [
        ("tokens", args.tokens.map(|n| n.to_string())),
        ("temperature", args.temperature.map(|x| x.to_string())),
        ("top-k", args.top_k.map(|k| k.to_string())),
        ("seed", args.seed.map(|s| s.to_string())),
    ];
    options.extend(numbers.into_iter().filter_map(|(name, value)| Some(option(name, value?.into()))));
    let places = places(&args, meet.path())?;
    let mut children = tokio::task::JoinSet::new();
    for place in places {
        let mut command = tokio::process::Command::new(&program);
        command.args(&options).args(place).args(parent::options()).stdin(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("{} does not start", program.display()))?;
        children.spawn(async move { child.wait().await });
    }
    // The first that fails ends the others, which wait for it: they are killed where this returns.
    while let Some(done) = children.join_next().await {
        let status = done.context("waiting for a process")?.context("waiting for a process")?;
        ended(&program, status)?;
    }
    Ok(())
}

/// Lines go straight to the program that has libtorch, and its answers to whoever reads.
pub(crate) async fn classify(args: ClassifyArgs) -> Result<(), Failure> {
    let program = workers::program()?;
    let mut command = tokio::process::Command::new(&program);
    command
        .arg("classify")
        .args(parent::options())
        .arg("--checkpoint")
        .arg(&args.checkpoint)
        .kill_on_drop(true);
    command.args(args.embeddings.then_some("--embeddings"));
    let status = command.status().await.with_context(|| format!("{} does not start", program.display()))?;
    ended(&program, status)
}

/// What a process says by how it ends; why it failed it has said itself.
fn ended(program: &Path, status: ExitStatus) -> Result<(), Failure> {
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Failure::Said(u8::try_from(code).unwrap_or(FAILED))),
        None => Err(anyhow!("{} ended by {status}", program.display()).into()),
    }
}

/// Refuses a split that the model does not allow.
fn check_cut(args: &GenerateArgs, model: &ModelSpec) -> Result<(), String> {
    let layers = model.all_layers();
    if args.pipeline > layers {
        return Err(format!(
            "--pipeline {}: the checkpoint's model has {layers} layers, and each process takes one or more; give \
             --pipeline 1 to {layers}",
            args.pipeline
        ));
    }
    let fits = |ways: u32| {
        let (heads, kv_heads) = (model.heads, model.kv_heads);
        let shares = kv_heads.is_multiple_of(ways) || ways.is_multiple_of(kv_heads.max(1));
        heads.is_multiple_of(ways) && shares && ways <= model.ffn && ways <= model.vocab
    };
    if fits(args.tensor) {
        return Ok(());
    }
    let allowed: Vec<_> = (1..=64).filter(|ways| fits(*ways)).map(|ways| ways.to_string()).collect();
    Err(format!(
        "--tensor {}: the checkpoint's model has {} heads and {} key/value heads, which every process takes equally \
         many of; give --tensor {}",
        args.tensor,
        model.heads,
        model.kv_heads,
        allowed.join(" or ")
    ))
}

/// What each process is told of its part: nothing, where there is one.
fn places(args: &GenerateArgs, meet: &Path) -> Result<Vec<Vec<OsString>>, Failure> {
    let layout = Layout {
        pipeline: args.pipeline,
        tensor: args.tensor,
        data: 1,
        schedule: Schedule::OneFOneB,
        sequence_parallel: false,
        zero: false,
    };
    if layout.world() == 1 {
        return Ok(vec![Vec::new()]);
    }
    let found = coxswain_files::folders::locate(&args.checkpoint).map_err(anyhow::Error::from)?;
    let (_, folder) = found.ok_or_else(|| {
        Failure::Input(format!("{} has no committed checkpoint", args.checkpoint.display()))
    })?;
    let mut spec = coxswain_files::Manifest::read(&folder, None).map_err(anyhow::Error::from)?.spec;
    check_cut(args, &spec.model).map_err(Failure::Input)?;
    (spec.layout, spec.actions) = (layout, Vec::new());
    (spec.train.tensor_shards, spec.train.precision) = (None, Precision::Fp32);
    spec.train.optimizer.kind = OptimizerKind::AdamW;
    // One sample at a time, of one micro-batch: what a plan of training asks for beside.
    (spec.train.micro_batch_size, spec.train.global_micro_batches, spec.train.gradient_groups) = (1, 1, 1);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    spec.train.threads = Some((cores / layout.world()).max(1));
    let plan = sketch(&spec, layout.world()).map_err(|error| Failure::Input(error.to_string()))?;
    let place = |a: &Assignment| -> Result<Vec<OsString>, Failure> {
        let path = meet.join(format!("rank-{}.json", a.rank.0));
        let json = serde_json::to_vec(a).context("an assignment as JSON")?;
        fs::write(&path, json).with_context(|| format!("writing {}", path.display()))?;
        Ok(vec!["--assignment".into(), path.into(), "--meet".into(), meet.into()])
    };
    plan.assignments.iter().map(place).collect()
}
