//! The schedule of a plan as a grid of text: a row for each pipeline rank, a column for each unit of time.

use std::fmt::Write as _;
use std::ops::Range;

use coxswain_types::Assignment;
use coxswain_types::schedule::{Action, Kind};

use super::Plan;
use super::print::schedule_name;
use super::timeline::{Span, Timeline, timeline};

impl Plan {
    /// The pipeline ranks of the data rank with the most micro-batches: it sets the pace.
    pub(super) fn slowest_pipeline(&self) -> Vec<&Assignment> {
        let forwards = |a: &Assignment| a.train.iter().filter(|action| action.kind == Kind::Forward).count();
        let slowest = self.assignments.iter().rev().max_by_key(|a| forwards(a)).map_or(0, |a| a.data_index);
        let on_it = |a: &&Assignment| a.data_index == slowest && a.tensor_index == 0;
        self.assignments.iter().filter(on_it).collect()
    }

    /// When they compute what.
    pub(super) fn timeline(&self) -> Timeline {
        let pipeline = self.slowest_pipeline();
        let lists: Vec<_> = pipeline.iter().map(|a| a.train.as_slice()).collect();
        timeline(&lists, pipeline.first().map_or(1, |a| a.spec.layout.schedule.chunks()))
    }

    /// The share of time that pipeline ranks are idle, in `0..1`, where a rank's forward takes one unit
    /// of time and its backward two: (p - 1) / (m + p - 1) under 1F1B, for p ranks and m micro-batches
    /// of a data rank.
    pub fn bubble(&self) -> f64 {
        self.timeline().bubble()
    }

    /// How many such units of time a step takes.
    pub fn makespan(&self) -> f64 {
        self.timeline().makespan()
    }

    /// The schedule's name, what it costs, and the grid, whose rows are cut to `width` characters.
    pub fn grid(&self, width: Option<usize>) -> String {
        let pipeline = self.slowest_pipeline();
        let Some(first) = pipeline.first() else { return String::new() };
        let timeline = self.timeline();
        let mut out = format!("{}\n", caption(first, &timeline));
        // A cell names its stage only where a rank has several.
        let several = first.stages.len() > 1;
        let cell = rows_cell(&timeline, several);
        // Writing to a String cannot fail.
        for (a, row) in pipeline.iter().zip(&timeline.rows) {
            let line = line(row, timeline.end(), cell, several);
            let _ = write!(out, "pipeline {:<2} ", a.pipeline_index);
            let columns = width.map_or(usize::MAX, |width| width / (cell + 1));
            match (timeline.end() as usize).checked_sub(columns) {
                Some(more) if more > 0 => {
                    let shown: String = line.chars().take(columns * (cell + 1)).collect();
                    let _ = writeln!(out, "{} … {more} more", shown.trim_end());
                }
                _ => {
                    let _ = writeln!(out, "{}", line.trim_end());
                }
            }
        }
        out
    }
}

/// What is shown: the schedule, whose micro-batches, the makespan and the bubble.
pub(super) fn caption(first: &Assignment, timeline: &Timeline) -> String {
    let Range { start, end } = micro_batches(first);
    let ranks = first.data_group.len();
    let whose =
        if ranks > 1 { format!("data rank {} of {ranks}, ", first.data_index) } else { String::new() };
    let column = if timeline.ticks == 1 { String::new() } else { format!("1/{} of ", timeline.ticks) };
    format!(
        "{}: {whose}micro-batches {start}..{end}; makespan {} units of time, {} without bubble; bubble {:.0}%; \
         a column is {column}a unit",
        schedule_name(first.spec.layout.schedule),
        timeline.makespan(),
        timeline.ideal(),
        100.0 * timeline.bubble(),
    )
}

/// The micro-batches of a rank.
pub(super) fn micro_batches(a: &Assignment) -> Range<u32> {
    let owned = a.runs.get(a.owned_runs.start as usize..a.owned_runs.end as usize).unwrap_or_default();
    owned.first().map_or(0, |run| run.start)..owned.last().map_or(0, |run| run.end)
}

/// `F3`, or `2F3` where a rank has several stages.
fn short(action: &Action, several: bool) -> String {
    let text = action.to_string();
    if several { text } else { text.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned() }
}

/// Characters of a column.
fn rows_cell(timeline: &Timeline, several: bool) -> usize {
    let actions = timeline.rows.iter().flatten();
    actions.map(|span| short(&span.action, several).len()).max().unwrap_or(1)
}

/// A rank's row: each action as wide as it takes time, a dot for each unit of idling.
fn line(row: &[Span], end: u64, cell: usize, several: bool) -> String {
    let mut line = String::new();
    let idle = |line: &mut String, columns: u64| {
        for _ in 0..columns {
            let _ = write!(line, "{:<cell$} ", "·");
        }
    };
    let mut now = 0;
    for span in row {
        idle(&mut line, span.start - now);
        let width = (span.end - span.start) as usize * (cell + 1) - 1;
        let text = short(&span.action, several);
        // A backward fills the second of its columns with a line, so that it does not look like idling.
        let fill =
            if width > cell { "─".repeat(width - text.len()) } else { " ".repeat(width - text.len()) };
        let _ = write!(line, "{text}{fill} ");
        now = span.end;
    }
    idle(&mut line, end - now);
    line
}
