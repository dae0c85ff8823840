//! The pipeline schedule: a name with its chunks, or the user's own lists of actions.
//!
//! Whether such lists compute every micro-batch, in an order that ends, is found out by the plan's
//! checker; here they are read, and each action must lie in its rank's reach.

use std::ops::Range;

use coxswain_types::job::{Layout, Schedule, TrainSpec};
use coxswain_types::schedule::Action;

use super::super::limits;
use super::super::raw::{OrAuto, RawLayout, ScheduleName};
use super::Faults;
use crate::code::ErrorCode;

const CHUNKS: &str = "layout.chunks";
const ACTIONS: &str = "layout.actions";

/// The schedule that the layout names.
pub(super) fn schedule(raw: &RawLayout, faults: &mut Faults) -> Schedule {
    let name = raw.schedule.and_then(OrAuto::given).unwrap_or(ScheduleName::OneFOneB);
    if name != ScheduleName::Custom {
        faults.only_with(ACTIONS, raw.actions.is_some(), "layout.schedule custom only");
    }
    if !matches!(name, ScheduleName::Interleaved | ScheduleName::Custom) {
        let with = "layout.schedule interleaved and custom only (the others have one stage on each rank)";
        faults.only_with(CHUNKS, raw.chunks.is_some(), with);
    }
    let mut chunks = |default: u32, least: u32, why: &str| {
        let found = raw.chunks.unwrap_or(default);
        if found < least {
            faults.add(CHUNKS, format!("found {found}; must be {least} or more: {why}"));
        }
        found
    };
    match name {
        ScheduleName::GPipe => Schedule::GPipe,
        ScheduleName::OneFOneB => Schedule::OneFOneB,
        ScheduleName::ZbH1 => Schedule::ZbH1,
        ScheduleName::Interleaved => {
            let why = "with one stage on each rank this is the schedule 1f1b";
            Schedule::Interleaved { chunks: chunks(2, 2, why) }
        }
        ScheduleName::Custom => {
            Schedule::Custom { chunks: chunks(1, 1, "each rank holds at least one stage") }
        }
    }
}

/// The user's own schedule, a list for each pipeline rank. The layout has passed its other checks.
pub(super) fn actions(
    text: Option<&str>,
    layout: &Layout,
    train: &TrainSpec,
    faults: &mut Faults,
) -> Vec<Vec<Action>> {
    if !matches!(layout.schedule, Schedule::Custom { chunks: 1.. }) {
        return Vec::new();
    }
    let Some(text) = text else {
        let how = "give the actions of each pipeline rank on a line of its own, such as `0F0,0F1,0B0,0B1`";
        faults.push(
            ACTIONS,
            ErrorCode::KeyNeeded,
            format!("is missing; layout.schedule custom needs it: {how}"),
        );
        return Vec::new();
    };
    if !check_shares(layout.data, train, faults) {
        return Vec::new();
    }
    // Empty lines part blocks of text and say nothing.
    let lines: Vec<_> = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
    let pipeline = layout.pipeline;
    if lines.len() != pipeline as usize {
        let found = lines.len();
        let must = format!("must be for layout.pipeline ({pipeline}), each on a line of its own");
        faults.add(ACTIONS, format!("found actions for {found} pipeline rank(s); {must}"));
        return Vec::new();
    }
    let items: usize = lines.iter().map(|(_, line)| line.split(',').count()).sum();
    if items > limits::ACTIONS {
        let most = limits::ACTIONS;
        let why = "every assignment carries them all";
        faults.never(ACTIONS, format!("found {items} actions; must be {most} or less ({why})"));
        return Vec::new();
    }
    let micro_batches = train.global_micro_batches / layout.data;
    let mut lists = Vec::new();
    for (rank, (number, line)) in (0..).zip(lines) {
        let stages = Stages { rank, pipeline, all: 0..layout.stages() };
        match read_line(line, &stages, micro_batches) {
            Ok(list) => lists.push(list),
            // One fault a line: those that follow it come of the same mistake.
            Err((item, message)) => {
                faults.never(ACTIONS, format!("line {}, item {item}: {message}", number + 1));
            }
        }
    }
    lists
}

/// Checks that one list serves every data rank.
fn check_shares(data: u32, train: &TrainSpec, faults: &mut Faults) -> bool {
    for (name, found) in
        [("global_micro_batches", train.global_micro_batches), ("gradient_groups", train.gradient_groups)]
    {
        if !found.is_multiple_of(data) {
            let why = "its list is for one number of micro-batches, the same on every data rank";
            let message = format!(
                "found custom; needs a train.{name} that layout.data ({data}) divides, and finds {found}: {why}"
            );
            faults.add("layout.schedule", message);
            return false;
        }
    }
    true
}

/// The stages of one pipeline rank.
struct Stages {
    rank: u32,
    pipeline: u32,
    all: Range<u32>,
}

impl Stages {
    fn hold(&self, stage: u32) -> bool {
        self.all.contains(&stage) && stage % self.pipeline == self.rank
    }

    fn list(&self) -> String {
        let held: Vec<_> =
            self.all.clone().filter(|&stage| self.hold(stage)).map(|s| s.to_string()).collect();
        held.join(", ")
    }
}

/// The actions of a line, or the number of the item that is wrong, from 1, and why.
fn read_line(line: &str, stages: &Stages, micro_batches: u32) -> Result<Vec<Action>, (usize, String)> {
    let mut list = Vec::new();
    for (n, text) in (1..).zip(line.split(',')) {
        let action: Action = text.trim().parse().map_err(|error| (n, format!("{error}")))?;
        if !stages.hold(action.stage) {
            let Stages { rank, .. } = stages;
            let held = stages.list();
            return Err((n, format!("`{action}` is of stage {}; rank {rank} holds {held}", action.stage)));
        }
        let found = action.micro_batch.0;
        if found >= micro_batches {
            let why = format!("a data rank has {micro_batches}, counted from 0");
            return Err((n, format!("`{action}` is of micro-batch {found}; {why}")));
        }
        list.push(action);
    }
    Ok(list)
}
