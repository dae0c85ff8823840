//! Raw structs to a [`JobSpec`]: defaults, limits, and what the numbers must be to each other. All
//! faults are gathered, so that one round of corrections is enough.

pub(super) mod data;
mod layout;
mod model;
mod optimizer;
mod schedule;
mod train;

use std::ops::RangeInclusive;
use std::path::Path;

use coxswain_types::JobSpec;
use coxswain_types::job::{CheckpointSpec, RecoverySpec};

use super::error::{KeyPath, Refused};
use super::limits::{self, Limit};
use super::raw::{OrAuto, RawCheckpoint, RawJob, RawLayout};
use crate::code::ErrorCode;

/// The faults found so far.
#[derive(Default)]
pub(super) struct Faults(Vec<Refused>);

impl Faults {
    fn push(&mut self, path: impl Into<KeyPath>, code: ErrorCode, message: String) {
        self.0.push(Refused { path: path.into(), code, message });
    }

    /// A value that does not go with those of other keys.
    pub(super) fn add(&mut self, path: impl Into<KeyPath>, message: String) {
        self.push(path, ErrorCode::ValueConflict, message);
    }

    /// A value that the key never takes.
    pub(super) fn never(&mut self, path: impl Into<KeyPath>, message: String) {
        self.push(path, ErrorCode::ValueRange, message);
    }

    /// Checks a count; says whether later rules may rely on it.
    pub(super) fn count(&mut self, path: &str, found: impl Into<u64>, limit: &Limit) -> bool {
        let checked = limit.check(found.into());
        let fits = checked.is_ok();
        if let Err(message) = checked {
            self.never(path, message);
        }
        fits
    }

    /// Checks a number against a rule that is false for NaN.
    pub(super) fn number(&mut self, path: &str, found: f64, rule: impl Fn(f64) -> bool, must: &str) -> bool {
        let fits = found.is_finite() && rule(found);
        if !fits {
            self.never(path, format!("found {found:?}; must be {must}"));
        }
        fits
    }

    /// A count that has no default where `with` is chosen; 0 where it is missing or wrong.
    pub(super) fn need(&mut self, path: &str, given: Option<u32>, with: &str, limit: &Limit) -> u32 {
        let Some(found) = given else {
            self.push(path, ErrorCode::KeyNeeded, format!("is missing; {with} needs it"));
            return 0;
        };
        if self.count(path, found, limit) { found } else { 0 }
    }

    /// Refuses a key that is given where it has no meaning; `with` says where it has one, and why.
    pub(super) fn only_with(&mut self, path: &str, given: bool, with: &str) {
        if given {
            self.misplaced(path, format!("goes with {with}; leave it out, or set that too"));
        }
    }

    /// A key that is given where it has no meaning.
    fn misplaced(&mut self, path: impl Into<KeyPath>, message: String) {
        self.push(path, ErrorCode::KeyMisplaced, message);
    }
}

/// What a job is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It shall be trained.
    Train,
    /// It shall be looked at: a plan of a model whose head has no data to be trained on.
    Look,
}

/// Makes the job, or tells everything that is wrong with it.
pub(super) fn check(raw: RawJob, base: &Path, purpose: Purpose) -> Result<JobSpec, Vec<Refused>> {
    let mut faults = Faults::default();
    check_name(&raw.name, &mut faults);
    let layout = raw.layout.clone().unwrap_or_default();
    let model = model::model(&raw.model, &mut faults);
    check_limits(&layout, &mut faults);
    let data_ranks = layout.data.and_then(OrAuto::given).unwrap_or(1);
    // A plan that may choose the groups gives each data rank one or more.
    let least_groups = if layout.first_auto().is_some() { data_ranks } else { 1 };
    let mut train = train::train(&raw.train, data_ranks, least_groups, base, &mut faults);
    train.pairs = raw.data.pairs.is_some();
    model::check_training(&model, &raw.train, &train, &mut faults);
    let data = data::data(raw.data, base, &model, &train, &mut faults);
    if let Some(shards) = train.tensor_shards {
        layout::check_shards(shards, &model, &mut faults);
    }
    let (layout, actions) = layout::layout(&layout, &model, &train, &mut faults);
    if purpose == Purpose::Train {
        model::check_classes(&model, data.as_ref(), layout.sequence_parallel, &mut faults);
    }
    let checkpoint = checkpoint(raw.checkpoint.as_ref(), &mut faults);
    let recovery = raw.recovery.unwrap_or_default();
    let recovery = RecoverySpec {
        on_loss: recovery.on_loss.unwrap_or_default(),
        peer_replica: recovery.peer_replica.unwrap_or_default(),
        rebalance: recovery.rebalance.unwrap_or_default(),
    };
    if recovery.peer_replica {
        layout::check_peer_replica(&layout, &train, &mut faults);
    }
    match data {
        Some(data) if faults.0.is_empty() => Ok(JobSpec {
            name: raw.name,
            model,
            data,
            train,
            layout,
            actions,
            checkpoint,
            recovery,
            priority: raw.priority.unwrap_or(0),
        }),
        _ => Err(faults.0),
    }
}

/// What a job's name may begin with.
const NAME_BEGINS: [RangeInclusive<char>; 2] = ['a'..='z', '0'..='9'];

/// What else may follow in it; `-` comes last, since between two others it means a range in a pattern.
const NAME_GOES_ON: [char; 3] = ['.', '_', '-'];

/// The rule of a job's name, as the schema says it.
pub(super) fn name_pattern() -> String {
    let first: String =
        NAME_BEGINS.iter().map(|range| format!("{}-{}", range.start(), range.end())).collect();
    let rest: String = NAME_GOES_ON.iter().collect();
    format!("^[{first}][{first}{rest}]{{0,{}}}$", limits::NAME_LEN - 1)
}

/// What a choice keeps to goes with one only.
fn check_limits(layout: &RawLayout, faults: &mut Faults) {
    if let Some(memory) = layout.memory {
        faults.count("layout.memory", memory.0, &limits::BUDGET);
    }
    if let Some(most) = layout.max_tensor {
        faults.count("layout.max_tensor", most, &limits::WORLD);
    }
    if layout.first_auto().is_some() {
        return;
    }
    let with = "`auto` at some key of layout, which it limits";
    faults.only_with("layout.memory", layout.memory.is_some(), with);
    faults.only_with("layout.max_tensor", layout.max_tensor.is_some(), with);
    faults.only_with("layout.keep_exact", layout.keep_exact.is_some(), with);
}

fn check_name(name: &str, faults: &mut Faults) {
    let first = |c: char| NAME_BEGINS.iter().any(|range| range.contains(&c));
    let rest = |c: char| first(c) || NAME_GOES_ON.contains(&c);
    if name.len() > limits::NAME_LEN || !name.starts_with(first) || !name.chars().all(rest) {
        let most = limits::NAME_LEN;
        let must = "of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or a digit";
        faults.never("name", format!("found `{name}`; must be 1 to {most} {must}: it names folders"));
    }
}

fn checkpoint(raw: Option<&RawCheckpoint>, faults: &mut Faults) -> CheckpointSpec {
    let checkpoint = CheckpointSpec {
        every: raw.and_then(|c| c.every).unwrap_or(0),
        every_minutes: raw.and_then(|c| c.every_minutes).unwrap_or(10),
        keep: raw.and_then(|c| c.keep).unwrap_or(2),
    };
    faults.count("checkpoint.every_minutes", checkpoint.every_minutes, &limits::EVERY_MINUTES);
    faults.count("checkpoint.keep", checkpoint.keep, &limits::KEEP);
    checkpoint
}
