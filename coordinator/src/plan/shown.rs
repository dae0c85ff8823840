//! The plan of a layout that the job has: its ranks, their memory, its schedule.

use std::io;

use anyhow::Context;
use coxswain_core::plan::{Plan, sketch, svg};
use coxswain_files::hf::{Form, HfError};
use coxswain_types::JobSpec;
use serde_json::json;

use super::{PlanArgs, PlanFormat, write_file};
use crate::failure::Failure;
use crate::local::JobInput;
use crate::refusal::JobRefusal;
use crate::{job, models, output, texts};

/// The values of `layout.schedule`.
pub(super) const SCHEDULES: [&str; 5] = ["gpipe", "1f1b", "interleaved", "zb-h1", "custom"];

/// Prints the plan of each schedule that is asked for, or of the job's own.
pub(super) fn print(args: &PlanArgs, job: &JobInput) -> Result<(), Failure> {
    let own = || JobInput {
        sets: job.sets.clone(),
        text: job.text.clone(),
        source: job.source.clone(),
        base: job.base.clone(),
    };
    let variants = if args.schedule.is_empty() {
        vec![own()]
    } else {
        args.schedule.iter().map(|name| scheduled(job, name)).collect()
    };
    let texts = if args.preset.is_some() { None } else { texts::texts(&variants[0].spec()?)? };
    let export = models::form(&checked(&variants[0], args)?)?;
    let plans = variants.iter().map(|job| planned(job, args)).collect::<Result<Vec<_>, _>>()?;
    if let Some(file) = &args.svg {
        let picture = svg(&plans.iter().collect::<Vec<_>>());
        write_file(file, &picture)?;
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
        PlanFormat::Svg => svg(&plans.iter().collect::<Vec<_>>()),
        // Refused before.
        PlanFormat::Html => String::new(),
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
