//! Known models by name: a preset stands for the keys of `model` that a job leaves out.
//!
//! The models are written in the words of the job file, in `presets/`; their sizes are held to the
//! published integers by this module's tests. What the keys mean is said in [`super::raw`].

use coxswain_types::job::ModelSpec;

use super::error::{SpecError, SpecFault};
use super::node::JobNode;
use super::{JobText, look, yaml};
use crate::code::ErrorCode;

/// Files of presets, with their names in messages.
const FILES: [(&str, &str); 3] = [
    ("presets/decoders.yaml", include_str!("presets/decoders.yaml")),
    ("presets/encoders.yaml", include_str!("presets/encoders.yaml")),
    ("presets/encoder-decoders.yaml", include_str!("presets/encoder-decoders.yaml")),
];

/// Presets that build on each other; more would be a circle.
const DEPTH: usize = 8;

/// The longest sequence of a job that is made around a preset: long enough to be of use, and short
/// enough for its activations not to hide the weights.
const SEQUENCE: u32 = 1024;

/// Gradient groups of a job that does not set them; more are set only where data ranks need them.
const RUNS: u32 = 8;

/// Keys that go with a choice: where a job makes another one, they are not taken from the preset.
const WITH: [(&str, &[&str]); 3] = [
    (
        "positions",
        &[
            "rope_theta",
            "rope_scaling",
            "max_positions",
            "position_offset",
            "relative_buckets",
            "relative_max_distance",
        ],
    ),
    ("architecture", &["encoder_layers", "head", "head_activation", "classes"]),
    ("head", &["head_activation", "classes"]),
];

/// The names of all presets.
pub fn names() -> Vec<String> {
    all().into_iter().map(|(name, _)| name).collect()
}

/// The text of a job around a preset: synthetic tokens, and a layout for `workers` unless the values
/// given beside it say one.
///
/// # Errors
/// An unknown preset, or values of the model that contradict each other.
pub fn job_text(job: &JobText<'_>, name: &str, workers: u32) -> Result<String, SpecError> {
    let (text, sequence) = around(job, name)?;
    let model = smallest(job, name)?.model;
    let chosen = job.sets.iter().any(|(path, _)| path == "layout" || path.starts_with("layout."));
    // A micro-batch for each worker lets any layout of so many have work for all of them.
    let batches = workers.max(1);
    let pipeline = pipeline_ranks(&model, batches);
    let data = batches / pipeline;
    let (runs, layout) = if chosen {
        (batches, String::new())
    } else {
        (data, format!("layout: {{pipeline: {pipeline}, data: {data}}}\n"))
    };
    let runs = if runs > RUNS { format!(", gradient_groups: {runs}") } else { String::new() };
    Ok(format!(
        "{text}train: {{steps: 100, sequence: {sequence}, global_micro_batches: {batches}{runs}}}\n{layout}"
    ))
}

/// The least job around a preset.
fn smallest(job: &JobText<'_>, name: &str) -> Result<coxswain_types::JobSpec, SpecError> {
    if !names().iter().any(|known| known == name) {
        let message = unknown(name, &names());
        return Err(SpecFault::in_file(job.source, None, "", ErrorCode::PresetUnknown, message).into());
    }
    let text = format!(
        "name: {name}\nmodel: {{preset: {name}}}\ndata: {{synthetic: {{tokens: 64}}}}\n\
         train: {{steps: 1, sequence: 4}}\n"
    );
    let of_model = |path: &str| path == "model" || path.starts_with("model.");
    let sets: Vec<_> = job.sets.iter().filter(|(path, _)| of_model(path)).cloned().collect();
    look(&JobText { text: &text, sets: &sets, ..*job })
}

/// What every job around a preset begins with, and the length of its samples.
fn around(job: &JobText<'_>, name: &str) -> Result<(String, u32), SpecError> {
    let longest = smallest(job, name)?.model.positions.longest().unwrap_or(SEQUENCE);
    let data = format!("data: {{synthetic: {{tokens: {}}}}}", 1 << 20);
    Ok((format!("name: {name}\nmodel: {{preset: {name}}}\n{data}\n"), longest.min(SEQUENCE)))
}

/// Samples of a step of a job whose layout is chosen, unless it is set.
const BATCH: u32 = 256;

/// The text of a job around a preset whose layout, and size of micro-batches, are chosen: synthetic tokens in bf16.
///
/// # Errors
/// As [`job_text`].
pub fn open_job_text(job: &JobText<'_>, name: &str) -> Result<String, SpecError> {
    let (text, sequence) = around(job, name)?;
    let said = |key: &str| job.sets.iter().any(|(path, _)| path.strip_prefix("train.") == Some(key));
    let batch = if said("global_micro_batches") { String::new() } else { format!(", batch_size: {BATCH}") };
    Ok(format!("{text}train: {{steps: 1000, precision: bf16, sequence: {sequence}{batch}}}\n"))
}

/// As many as the layers allow; the other workers are data ranks.
fn pipeline_ranks(model: &ModelSpec, workers: u32) -> u32 {
    let fits = |pipeline: &u32| workers.is_multiple_of(*pipeline);
    (1..=model.all_layers().min(workers)).rev().find(fits).unwrap_or(1)
}

/// Puts the values of a job's preset at the keys of its model that are left out.
pub(super) fn expand(job: &mut JobNode) -> Result<(), String> {
    let JobNode::Map(entries) = job else { return Ok(()) };
    let Some((_, JobNode::Map(model))) = entries.iter_mut().find(|(key, _)| key == "model") else {
        return Ok(());
    };
    let Some(JobNode::Text(name)) = value(model, "preset").cloned() else { return Ok(()) };
    let preset = preset(&name, &all(), DEPTH)?;
    merge(model, &preset);
    Ok(())
}

/// The keys of a preset, with those of the preset that it builds on.
fn preset(name: &str, presets: &[(String, Vec<(String, JobNode)>)], depth: usize) -> Result<Entries, String> {
    let Some((_, keys)) = presets.iter().find(|(of, _)| of == name) else {
        let known: Vec<_> = presets.iter().map(|(name, _)| name.clone()).collect();
        return Err(unknown(name, &known));
    };
    let mut keys = keys.clone();
    match value(&keys, "preset").cloned() {
        Some(JobNode::Text(below)) if depth > 0 => merge(&mut keys, &preset(&below, presets, depth - 1)?),
        Some(_) => return Err(format!("the preset `{name}` builds on itself; please report this")),
        None => {}
    }
    Ok(keys)
}

fn unknown(name: &str, known: &[String]) -> String {
    format!("found `{name}`, which is not a preset; must be one of {}", known.join(", "))
}

/// A map's keys with their values.
type Entries = Vec<(String, JobNode)>;

fn value<'a>(entries: &'a [(String, JobNode)], key: &str) -> Option<&'a JobNode> {
    entries.iter().find(|(of, _)| of == key).map(|(_, value)| value)
}

fn merge(given: &mut Entries, preset: &Entries) {
    let chosen: Vec<&str> = WITH
        .iter()
        .filter(|(choice, _)| value(given, choice).is_some_and(|own| Some(own) != value(preset, choice)))
        .flat_map(|(_, keys)| keys.iter().copied())
        .collect();
    for (key, value_below) in preset {
        if value(given, key).is_none() && !chosen.contains(&key.as_str()) {
            given.push((key.clone(), value_below.clone()));
        }
    }
}

/// All presets, in the order of the files. The files are part of the program, and a test reads them.
fn all() -> Vec<(String, Entries)> {
    let maps = FILES.iter().filter_map(|(_, text)| match yaml::read(text) {
        Ok(JobNode::Map(entries)) => Some(entries),
        _ => None,
    });
    let models = maps.flatten().filter_map(|(name, keys)| match keys {
        JobNode::Map(keys) => Some((name, keys)),
        _ => None,
    });
    models.collect()
}

#[cfg(test)]
mod tests;
