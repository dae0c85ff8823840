//! From what a user gave to a checked job.

use std::path::Path;

use coxswain_core::code::ErrorCode;
use coxswain_core::spec::{self, JobText};
use coxswain_types::JobSpec;

use crate::auth::shown;
use crate::refusal::JobRefusal;

/// Checks a job.
pub(crate) fn parse(text: &str, source: &str, base: &Path, sets: &[String]) -> Result<JobSpec, JobRefusal> {
    let sets = split_sets(sets)?;
    Ok(spec::parse(&JobText { source, text, sets: &sets, base })?)
}

/// Checks a job that is planned only: its model may be one that cannot be trained yet.
pub(crate) fn look(text: &str, source: &str, base: &Path, sets: &[String]) -> Result<JobSpec, JobRefusal> {
    let sets = split_sets(sets)?;
    Ok(spec::look(&JobText { source, text, sets: &sets, base })?)
}

/// The text of a job around a known model.
pub(crate) fn around(
    preset: &str,
    workers: Option<u32>,
    source: &str,
    sets: &[String],
) -> Result<String, JobRefusal> {
    let sets = split_sets(sets)?;
    let ranks = |axis: &str| {
        let set = sets.iter().rev().find(|(path, _)| path.strip_prefix("layout.") == Some(axis));
        set.and_then(|(_, value)| value.parse::<u32>().ok()).unwrap_or(1)
    };
    let of_layout =
        || ["pipeline", "tensor", "data"].map(ranks).iter().fold(1, |n: u32, &m| n.saturating_mul(m));
    let workers = workers.unwrap_or_else(of_layout);
    let job = JobText { source, text: "", sets: &sets, base: Path::new("/") };
    Ok(spec::presets::job_text(&job, preset, workers)?)
}

/// The text of a job around a known model, whose layout is chosen.
pub(crate) fn around_open(preset: &str, source: &str, sets: &[String]) -> Result<String, JobRefusal> {
    let sets = split_sets(sets)?;
    let job = JobText { source, text: "", sets: &sets, base: Path::new("/") };
    Ok(spec::presets::open_job_text(&job, preset)?)
}

pub(crate) fn split_sets(sets: &[String]) -> Result<Vec<(String, String)>, JobRefusal> {
    sets.iter().map(|set| split_set(set)).collect()
}

fn split_set(set: &str) -> Result<(String, String), JobRefusal> {
    let (path, value) = set.split_once('=').ok_or_else(|| {
        let must = "write it as PATH=VALUE, such as --set train.steps=100";
        JobRefusal::new(ErrorCode::SetPath, format!("--set {}: no value; {must}", shown(set)))
    })?;
    Ok((path.trim().to_owned(), value.to_owned()))
}

/// As many workers as the layout needs; another number in `--workers` is refused.
pub(crate) fn workers(spec: &JobSpec, given: Option<u32>) -> Result<u32, JobRefusal> {
    let layout = &spec.layout;
    let workers = given.unwrap_or(layout.world());
    if layout.world() == workers {
        return Ok(workers);
    }
    let message = format!(
        "--workers {workers}: the layout needs {} (layout.pipeline {} x layout.tensor {} x layout.data {}); leave \
         --workers out, or change the layout",
        layout.world(),
        layout.pipeline,
        layout.tensor,
        layout.data,
    );
    Err(JobRefusal::new(ErrorCode::WorkersWrong, message))
}
