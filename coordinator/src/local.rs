//! The commands that need no coordinator: `schema`, `plan`, `generate`, `classify`; and how a job file is read.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use coxswain_console::parent;
use coxswain_core::plan::{Plan, sketch, svg};
use coxswain_core::spec;
use coxswain_files::hf::{Form, HfError};
use coxswain_types::job::{Layout, ModelSpec, OptimizerKind, Precision, Schedule};
use coxswain_types::{Assignment, JobSpec};
use serde_json::json;

use crate::args::JobFile;
use crate::failure::{FAILED, Failure};
use crate::output;
use crate::refusal::JobRefusal;
use crate::{job, models, texts, workers};

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    /// The job file (YAML).
    #[arg(value_name = "JOB.yaml", required_unless_present = "preset", conflicts_with = "preset")]
    job: Option<PathBuf>,
    /// Plan a known model instead of a job file, such as gpt2 or t5-small; docs/job.md lists them, and so
    /// does a wrong name. The job around it has synthetic tokens, and more workers are pipeline ranks
    /// unless the layout is set.
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Replace a value of the job, such as train.steps=100 (repeatable).
    #[arg(long = "set", value_name = "PATH=VALUE")]
    sets: Vec<String>,
    /// How many workers there would be [default: as many as the layout needs].
    #[arg(long, value_name = "N")]
    workers: Option<u32>,
    /// Look at another schedule than the job's, with its whole grid; several, separated by commas, to
    /// compare them.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = SCHEDULES)]
    schedule: Vec<String>,
    /// Draw the schedule into this file, from left to right in time.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// How the plan is printed.
    #[arg(long, value_enum, default_value_t = PlanFormat::Text)]
    format: PlanFormat,
}

/// The values of `layout.schedule`.
const SCHEDULES: [&str; 5] = ["gpipe", "1f1b", "interleaved", "zb-h1", "custom"];

/// How a plan is printed.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum PlanFormat {
    /// Tables for people.
    Text,
    /// For programs.
    Json,
}

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
fn read_text(path: &Path) -> Result<String, String> {
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

pub(crate) fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let planned = print_plan(args);
    if args.format == PlanFormat::Json
        && let Err(Failure::Refused(refusal)) = &planned
    {
        output::write(&format!("{:#}\n", refusal.to_json()))?;
    }
    planned
}

fn print_plan(args: &PlanArgs) -> Result<(), Failure> {
    let job = job_to_plan(args)?;
    let variants = if args.schedule.is_empty() {
        vec![job]
    } else {
        args.schedule.iter().map(|name| scheduled(&job, name)).collect()
    };
    let texts = if args.preset.is_some() { None } else { texts::texts(&variants[0].spec()?)? };
    let export = models::form(&checked(&variants[0], args)?)?;
    let plans = variants.iter().map(|job| planned(job, args)).collect::<Result<Vec<_>, _>>()?;
    if let Some(file) = &args.svg {
        let picture = svg(&plans.iter().collect::<Vec<_>>());
        fs::write(file, picture).with_context(|| format!("{} cannot be written", file.display()))?;
    }
    let told = texts.map_or(String::new(), |texts| format!("data: {texts}\n")) + &exported(&export);
    let text = match args.format {
        PlanFormat::Text if args.schedule.is_empty() => {
            let screen = coxswain_console::width(&io::stdout());
            let text =
                |plan: &Plan| screen.map_or_else(|| plan.to_string(), |screen| format!("{plan:screen$}"));
            plans.iter().map(text).collect::<String>() + &told
        }
        PlanFormat::Text => {
            plans.iter().map(|plan| format!("{plan:#}")).collect::<Vec<_>>().join("\n") + &told
        }
        PlanFormat::Json => {
            let objects = plans.iter().map(Plan::to_json).collect::<Result<Vec<_>, _>>();
            let mut objects = objects.context("the plan as JSON")?;
            for object in &mut objects {
                if let Some(texts) = texts {
                    object["data"] = texts.to_json();
                }
                object["export"] = export_json(&export);
            }
            // One plan is an object, several are a list.
            let json = if objects.len() == 1 { objects.remove(0) } else { objects.into() };
            format!("{json:#}\n")
        }
    };
    output::write(&text)
}

/// The job with another schedule. What only the job's own schedule takes is left out.
fn scheduled(job: &JobInput, schedule: &str) -> JobInput {
    let mut sets = job.sets.clone();
    sets.push(format!("layout.schedule={schedule}"));
    if schedule != "custom" {
        sets.push("layout.actions=null".to_owned());
        if schedule != "interleaved" {
            sets.push("layout.chunks=null".to_owned());
        }
    }
    JobInput { text: job.text.clone(), source: job.source.clone(), base: job.base.clone(), sets }
}

/// The job file, or a job around the preset.
fn job_to_plan(args: &PlanArgs) -> Result<JobInput, Failure> {
    let sets = args.sets.clone();
    let Some(preset) = &args.preset else {
        let job = args.job.clone().unwrap_or_default();
        return read_job(&JobFile { job, sets });
    };
    let source = format!("--preset {preset}");
    let text = job::around(preset, args.workers, &source, &sets)?;
    Ok(JobInput { text, source, base: PathBuf::from("/"), sets })
}

/// The line of a plan that says what `export` will write.
fn exported(form: &Result<Form, HfError>) -> String {
    match form {
        Ok(form) => {
            let caveats: String = form.caveats.iter().map(|caveat| format!("; {caveat}")).collect();
            format!("export: {} ({}){caveats}\n", form.family, form.class)
        }
        Err(error) => format!("export: none; {error}\n"),
    }
}

fn export_json(form: &Result<Form, HfError>) -> serde_json::Value {
    match form {
        Ok(form) => json!({"family": form.family, "class": form.class, "caveats": form.caveats}),
        Err(error) => json!({"family": null, "why": error.to_string()}),
    }
}

fn checked(job: &JobInput, args: &PlanArgs) -> Result<JobSpec, Failure> {
    match args.preset {
        Some(_) => Ok(job::look(&job.text, &job.source, &job.base, &job.sets)?),
        None => job.spec(),
    }
}

fn planned(job: &JobInput, args: &PlanArgs) -> Result<Plan, Failure> {
    let spec = checked(job, args)?;
    let workers = job::workers(&spec, args.workers)?;
    Ok(sketch(&spec, workers).map_err(JobRefusal::from)?)
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
