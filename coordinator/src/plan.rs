//! `coxswain plan`: who would do what, on which layout, and what it would take. Nothing is started.
//!
//! - `machines`: the devices that are planned for.
//! - `chosen`: a layout that the planner chooses or weighs, with its reasons.
//! - `shown`: the plan of a layout that the job has.

mod chosen;
mod machines;
mod shown;

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use coxswain_core::plan::search::SavedChoice;
use coxswain_core::spec::{self, JobText, OpenJob};

use crate::args::JobFile;
use crate::failure::Failure;
use crate::local::{JobInput, read_job, read_text};
use crate::{job, output};

pub(crate) use chosen::chosen;
pub(crate) use machines::{MachineArgs, read_cluster, this_machine};

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct PlanArgs {
    #[command(subcommand)]
    command: Option<PlanCommand>,
    /// The job file (YAML).
    #[arg(value_name = "JOB.yaml", required_unless_present = "preset", conflicts_with = "preset")]
    job: Option<PathBuf>,
    /// Plan a known model instead of a job file, such as gpt2 or t5-small; docs/job.md lists them, and so
    /// does a wrong name. The job around it has synthetic tokens. With machines (--device, --cluster or --memory) its
    /// layout is chosen; else more workers are pipeline ranks, unless the layout is set.
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Replace a value of the job, such as train.steps=100 (repeatable).
    #[arg(long = "set", value_name = "PATH=VALUE")]
    sets: Vec<String>,
    /// How many workers there would be [default: as many as the layout needs, or as the cluster has].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    workers: Option<u32>,
    #[command(flatten)]
    machines: MachineArgs,
    /// Write the choice into this file, for `up --plan` and `plan diff`.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Look at another schedule than the job's, with its whole grid; several, separated by commas, to
    /// compare them.
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = shown::SCHEDULES)]
    schedule: Vec<String>,
    /// Draw the schedule into this file, from left to right in time.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// How the plan is printed.
    #[arg(long, value_enum, default_value_t = PlanFormat::Text)]
    format: PlanFormat,
}

#[derive(Debug, Subcommand)]
enum PlanCommand {
    /// Compare two plans that `plan -o` wrote: a line for each fact that differs.
    #[command(after_help = "\
Example:
  coxswain plan job.yaml --workers 8 --device a100-80gb -o a.json
  coxswain plan job.yaml --workers 8 --device h100-80gb -o b.json
  coxswain plan diff a.json b.json

Exit codes:
  0  the comparison is printed
  2  bad input, such as a file that is not a plan")]
    Diff {
        /// One plan.
        a: PathBuf,
        /// The other.
        b: PathBuf,
    },
}

/// How a plan is printed.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum PlanFormat {
    /// Tables for people.
    Text,
    /// For programs.
    Json,
    /// The schedule as a picture.
    Svg,
    /// One page with everything, that needs nothing but a browser.
    Html,
}

pub(crate) fn plan(args: &PlanArgs) -> Result<(), Failure> {
    if let Some(PlanCommand::Diff { a, b }) = &args.command {
        return output::write(&read_plan(a)?.diff(&read_plan(b)?));
    }
    let planned = print(args);
    if args.format == PlanFormat::Json
        && let Err(Failure::Refused(refusal)) = &planned
    {
        output::write(&format!("{:#}\n", refusal.to_json()))?;
    }
    planned
}

fn print(args: &PlanArgs) -> Result<(), Failure> {
    let job = job_to_plan(args)?;
    let asked = args.machines.are_given();
    let open = open(&job)?;
    if !asked && open.auto.is_none() {
        if args.output.is_some() || matches!(args.format, PlanFormat::Html) {
            return Err(Failure::Input(
                "--output and --format html are of a plan on given machines; add --device or --cluster"
                    .to_owned(),
            ));
        }
        return shown::print(args, &job);
    }
    if !args.schedule.is_empty() {
        return Err(Failure::Input(
            "--schedule is of a plan without machines; set layout.schedule to weigh one".to_owned(),
        ));
    }
    let cluster = args.machines.cluster(args.workers, &open)?;
    let chosen = chosen(&open, &cluster, args.workers)?;
    chosen.print(args)
}

/// The job, with what it leaves to a plan.
pub(crate) fn open(job: &JobInput) -> Result<OpenJob, Failure> {
    let sets = job::split_sets(&job.sets)?;
    let text = JobText { source: &job.source, text: &job.text, sets: &sets, base: &job.base };
    Ok(spec::open(&text).map_err(crate::refusal::JobRefusal::from)?)
}

/// A plan that `-o` wrote.
pub(crate) fn read_plan(path: &Path) -> Result<SavedChoice, Failure> {
    let named = |why: String| Failure::Input(format!("the plan {} {why}", path.display()));
    let text = read_text(path).map_err(named)?;
    SavedChoice::read(&text).map_err(|error| named(error.to_string()))
}

/// The job file, or a job around the preset.
fn job_to_plan(args: &PlanArgs) -> Result<JobInput, Failure> {
    let mut sets = args.sets.clone();
    let about_layout = |set: &String| set.starts_with("layout=") || set.starts_with("layout.");
    let unsaid = args.machines.are_given() && !sets.iter().any(about_layout);
    let Some(preset) = &args.preset else {
        let job = args.job.clone().unwrap_or_default();
        let mut job = read_job(&JobFile { job, sets })?;
        // Machines are given to find a layout for them.
        if unsaid && !spec::has_key(&job.text, "layout") {
            job.sets.push("layout=auto".to_owned());
        }
        return Ok(job);
    };
    let source = format!("--preset {preset}");
    let text = if unsaid {
        sets.push("layout=auto".to_owned());
        job::around_open(preset, &source, &sets)?
    } else {
        job::around(preset, args.workers, &source, &sets)?
    };
    Ok(JobInput { text, source, base: PathBuf::from("/"), sets })
}

/// Writes a file that the user named.
fn write_file(path: &Path, text: &str) -> Result<(), Failure> {
    Ok(std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))?)
}
