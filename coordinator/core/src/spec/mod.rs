//! The one door into the checked world: the text of a job file becomes a [`JobSpec`], or a list of
//! refusals that each name a path, a place in the file, what was found and what is allowed.
//!
//! - [`raw`]: the job file as it is written, with the meaning and the bounds of each key.
//! - `schema`: that as a JSON schema; `reference` (tests only) makes the tables of `docs/job.md` from it.
//! - `forms`: the keys of what comes in several forms (attention, positions).
//! - `values`: the words of the format, and what may be written in two ways.
//! - `yaml`, `node`: text to a tree, and the tree to raw structs. YAML stays inside `yaml`.
//! - [`presets`]: known models by name.
//! - `check`: defaults and limits; all semantic faults are found at once.
//! - `open`: what a job leaves to a plan.
//! - `cluster`: the machines of a cluster file.
//! - `resolved`: a job written out with every default.
//!
//! No file is opened here: whether a text exists is found out by the shell.

mod check;
mod cluster;
mod error;
mod forms;
mod limits;
mod node;
mod open;
pub mod presets;
pub mod raw;
#[cfg(test)]
mod reference;
mod resolved;
mod schema;
mod values;
mod yaml;

use std::path::Path;

use coxswain_types::JobSpec;

use crate::code::ErrorCode;

pub use check::data::is_class_name;
pub use cluster::{cluster, unknown as unknown_device};
pub use error::{SpecError, SpecFault, ValueOrigin};
pub use open::{OpenJob, OpenKeys};
#[cfg(test)]
pub(crate) use reference::page_with;
pub use resolved::{
    SpecDifference, differences, key_values, layout_value, raw_model, raw_yaml, resolved_yaml,
};
pub use schema::schema;

use check::Purpose;
use error::{KeyPath, Refused};

/// A job file is a page of text; a longer one is some other file, and is refused before it is parsed.
const MAX_TEXT_BYTES: usize = 256 << 10;

/// Each of them is looked for among the keys that those before it made.
const MAX_SETS: usize = 1000;

/// The most faults that are reported at once. The text is read again for the place of each, and an author corrects a
/// few at a time.
const MAX_FAULTS: usize = 50;

/// A job as its author gave it.
#[derive(Clone, Copy, Debug)]
pub struct JobText<'a> {
    /// The name of the text in messages, such as `job.yaml`.
    pub source: &'a str,
    /// The YAML text.
    pub text: &'a str,
    /// Values that replace those of the text: a dotted path such as `model.heads`, and YAML.
    pub sets: &'a [(String, String)],
    /// The absolute folder that relative paths of the job start from.
    pub base: &'a Path,
}

/// Reads and checks a job.
///
/// # Errors
/// The first fault of shape (YAML syntax, a key that is unknown, missing or given twice, a value of
/// the wrong type), or else every fault of meaning.
pub fn parse(job: &JobText<'_>) -> Result<JobSpec, SpecError> {
    read(job, Purpose::Train)
}

/// As [`parse`], for a job that is only looked at: its model may be one that cannot be trained yet.
///
/// # Errors
/// As [`parse`].
pub fn look(job: &JobText<'_>) -> Result<JobSpec, SpecError> {
    read(job, Purpose::Look)
}

/// As [`look`], for a job whose layout a plan may choose.
///
/// # Errors
/// As [`parse`], but for `auto`.
pub fn open(job: &JobText<'_>) -> Result<OpenJob, SpecError> {
    read_open(job, Purpose::Look)
}

/// Whether a job file's text has this key at its top.
pub fn has_key(text: &str, key: &str) -> bool {
    yaml::has(text, &KeyPath::from(key))
}

/// A number of bytes as job files write it, such as `24GiB`.
pub fn bytes(text: &str) -> Option<u64> {
    raw::BudgetBytes::read(text).map(|bytes| bytes.0)
}

fn read(job: &JobText<'_>, purpose: Purpose) -> Result<JobSpec, SpecError> {
    let open = read_open(job, purpose)?;
    let Some(path) = open.auto else { return Ok(open.spec) };
    let message =
        "is `auto`, which a plan replaces for a number of workers; `coxswain plan JOB --workers N` shows \
                   its choice, `up --workers N` and `submit --workers N` run it"
            .to_owned();
    let fault = Refused { path: path.into(), code: ErrorCode::LayoutOpen, message };
    Err(SpecError::new(vec![place(job, fault)]))
}

fn read_open(job: &JobText<'_>, purpose: Purpose) -> Result<OpenJob, SpecError> {
    let refuse = |faults: Vec<Refused>| {
        let mut faults: Vec<_> = faults.into_iter().take(MAX_FAULTS).map(|fault| place(job, fault)).collect();
        // As they stand in the file, so that a person corrects them from top to bottom.
        faults.sort_by_key(|fault| match &fault.origin {
            ValueOrigin::File { place, .. } => (0, *place),
            ValueOrigin::Set { .. } => (1, None),
        });
        SpecError::new(faults)
    };
    let sets: usize = job.sets.iter().map(|(path, value)| path.len() + value.len()).sum();
    let bytes = job.text.len() + sets;
    if bytes > MAX_TEXT_BYTES {
        let message = format!("holds {bytes} bytes; a job file has at most {MAX_TEXT_BYTES}");
        return Err(SpecError::new(vec![SpecFault::in_file(
            job.source,
            None,
            "",
            ErrorCode::TextTooLong,
            message,
        )]));
    }
    if job.sets.len() > MAX_SETS {
        let message = format!("{} values replace others (--set); at most {MAX_SETS} may", job.sets.len());
        return Err(SpecError::new(vec![SpecFault::in_file(
            job.source,
            None,
            "",
            ErrorCode::TooManySets,
            message,
        )]));
    }
    let mut tree = yaml::read(job.text).map_err(|fault| {
        let path = fault.path.to_string();
        SpecError::new(vec![SpecFault::in_file(job.source, fault.place, &path, fault.code, fault.message)])
    })?;
    for (path, value) in job.sets {
        let set = || ValueOrigin::Set { path: path.clone(), value: value.clone() };
        let value = yaml::read(value)
            .map_err(|fault| SpecError::from(SpecFault::new(set(), "", fault.code, fault.message)))?;
        tree.set(path, value)
            .map_err(|message| SpecError::from(SpecFault::new(set(), path, ErrorCode::SetPath, message)))?;
    }
    presets::expand(&mut tree).map_err(|message| {
        refuse(vec![Refused { path: "model.preset".into(), code: ErrorCode::PresetUnknown, message }])
    })?;
    let raw: raw::RawJob = node::decode(tree).map_err(|error| refuse(vec![error.refused()]))?;
    let open = open::OpenKeys::of(&raw);
    let auto = raw.layout.as_ref().and_then(raw::RawLayout::first_auto);
    let spec = check::check(raw, job.base, purpose).map_err(refuse)?;
    Ok(OpenJob { spec, open, auto })
}

/// Says where `path` got its value: from the last `--set` above or at it, or from a line of the text; or from the
/// last `--set` below it, where the text has no such key.
fn place(job: &JobText<'_>, fault: Refused) -> SpecFault {
    let Refused { path, code, message } = &fault;
    let sets = || job.sets.iter().rev();
    let set = sets().find(|(set, _)| KeyPath::from(set.as_str()).is_above_or_at(path)).or_else(|| {
        let below = sets().find(|(set, _)| path.is_above_or_at(&KeyPath::from(set.as_str())));
        below.filter(|_| !yaml::has(job.text, path))
    });
    if let Some((set, value)) = set {
        return SpecFault::new(
            ValueOrigin::Set { path: set.clone(), value: value.clone() },
            &path.to_string(),
            *code,
            message.clone(),
        );
    }
    SpecFault::in_file(job.source, yaml::locate(job.text, path), &path.to_string(), *code, message.clone())
}

#[cfg(test)]
mod tests;
