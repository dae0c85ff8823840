//! From what a user gave to a checked job.

use std::path::Path;

use coxswain_core::spec::{self, JobText};
use coxswain_types::JobSpec;

use crate::auth::shown;

/// Checks a job; the error is what to tell the user.
pub(crate) fn parse(text: &str, source: &str, base: &Path, sets: &[String]) -> Result<JobSpec, String> {
    let sets = split_sets(sets)?;
    spec::parse(&JobText { source, text, sets: &sets, base }).map_err(|error| error.to_string())
}

/// Checks a job that is planned only: its model may be one that cannot be trained yet.
pub(crate) fn look(text: &str, source: &str, base: &Path, sets: &[String]) -> Result<JobSpec, String> {
    let sets = split_sets(sets)?;
    spec::look(&JobText { source, text, sets: &sets, base }).map_err(|error| error.to_string())
}

/// The text of a job around a known model.
pub(crate) fn around(
    preset: &str,
    workers: Option<u32>,
    source: &str,
    sets: &[String],
) -> Result<String, String> {
    let sets = split_sets(sets)?;
    let ranks = |axis: &str| {
        let set = sets.iter().rev().find(|(path, _)| path.strip_prefix("layout.") == Some(axis));
        set.and_then(|(_, value)| value.parse::<u32>().ok()).unwrap_or(1)
    };
    let of_layout =
        || ["pipeline", "tensor", "data"].map(ranks).iter().fold(1, |n: u32, &m| n.saturating_mul(m));
    let workers = workers.unwrap_or_else(of_layout);
    let job = JobText { source, text: "", sets: &sets, base: Path::new("/") };
    spec::presets::job_text(&job, preset, workers).map_err(|error| error.to_string())
}

fn split_sets(sets: &[String]) -> Result<Vec<(String, String)>, String> {
    sets.iter().map(|set| split_set(set)).collect()
}

fn split_set(set: &str) -> Result<(String, String), String> {
    let (path, value) = set.split_once('=').ok_or_else(|| {
        format!("--set {}: no value; write it as PATH=VALUE, such as --set train.steps=100", shown(set))
    })?;
    Ok((path.trim().to_owned(), value.to_owned()))
}

/// As many workers as the layout needs; another number in `--workers` is refused.
pub(crate) fn workers(spec: &JobSpec, given: Option<u32>) -> Result<u32, String> {
    let layout = &spec.layout;
    let workers = given.unwrap_or(layout.world());
    if layout.world() == workers {
        return Ok(workers);
    }
    Err(format!(
        "--workers {workers}: the layout needs {} (layout.pipeline {} x layout.tensor {} x layout.data {}); leave \
         --workers out, or change the layout",
        layout.world(),
        layout.pipeline,
        layout.tensor,
        layout.data,
    ))
}
