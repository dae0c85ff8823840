//! The commands that need no coordinator: `plan`, `generate`; and how a job file is read.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, anyhow};
use clap::{Args, ValueEnum};
use coxswain_core::plan::sketch;
use coxswain_types::JobSpec;

use crate::cli::{FAILED, Failure, JobFile};
use crate::output;
use crate::{job, workers};

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    job: JobFile,
    /// How many workers there would be.
    #[arg(long, value_name = "N")]
    workers: u32,
    /// How the plan is printed.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// How a plan is printed.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// Tables for people.
    Text,
    /// For programs.
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct Generate {
    /// A run's folder (its newest checkpoint is used) or a checkpoint's.
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// What the text starts with.
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true)]
    prompt: String,
    /// How many tokens to write.
    #[arg(long, value_name = "N")]
    tokens: Option<u32>,
    /// 0 takes the likeliest token each time; 1 draws as the model says.
    #[arg(long, value_name = "X")]
    temperature: Option<f64>,
    /// Draw from this many of the likeliest tokens; 0 for all.
    #[arg(long, value_name = "K")]
    top_k: Option<u32>,
    /// Another seed draws another text.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
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
        job::parse(&self.text, &self.source, &self.base, &self.sets).map_err(Failure::Input)
    }
}

/// Reads a job file.
pub(crate) fn read_job(args: &JobFile) -> Result<JobInput, Failure> {
    let source = args.job.display().to_string();
    let text = fs::read_to_string(&args.job)
        .map_err(|error| Failure::Input(format!("the job file {source} cannot be read: {error}")))?;
    let path = std::path::absolute(&args.job).context("the current folder cannot be told")?;
    let base = path.parent().unwrap_or(Path::new("/")).to_owned();
    Ok(JobInput { text, source, base, sets: args.sets.clone() })
}

pub(crate) fn plan(args: &PlanArgs) -> Result<(), Failure> {
    let spec = read_job(&args.job)?.spec()?;
    job::check_workers(&spec, args.workers).map_err(Failure::Input)?;
    let plan = sketch(&spec, args.workers).map_err(|error| Failure::Input(error.to_string()))?;
    match args.format {
        Format::Text => output::write(&plan.to_string()),
        Format::Json => {
            let json = plan.to_json().context("the plan as JSON")?;
            output::write(&format!("{json:#}\n"))
        }
    }
    .map(drop)
}

pub(crate) async fn generate(args: Generate) -> Result<(), Failure> {
    let program = workers::program()?;
    // `--name=value`, since a prompt or a number may start with a dash.
    let option = |name: &str, value: OsString| {
        let mut option = OsString::from(format!("--{name}="));
        option.push(value);
        option
    };
    let mut options: Vec<OsString> = vec![
        "generate".into(),
        option("checkpoint", args.checkpoint.into()),
        option("prompt", args.prompt.into()),
    ];
    let numbers = [
        ("tokens", args.tokens.map(|n| n.to_string())),
        ("temperature", args.temperature.map(|x| x.to_string())),
        ("top-k", args.top_k.map(|k| k.to_string())),
        ("seed", args.seed.map(|s| s.to_string())),
    ];
    options.extend(numbers.into_iter().filter_map(|(name, value)| Some(option(name, value?.into()))));
    let mut command = tokio::process::Command::new(&program);
    command.args(options).stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    let status = command.status().await.with_context(|| format!("{} does not start", program.display()))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Failure::Said(u8::try_from(code).unwrap_or(FAILED))),
        None => Err(anyhow!("{} ended by {status}", program.display()).into()),
    }
}
