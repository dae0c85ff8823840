//! The schedules of plans as a picture: a lane for each stage, time from left to right. It needs
//! nothing but a browser.

use std::fmt::Write as _;

use coxswain_types::schedule::Kind;

use super::Plan;
use super::grid::micro_batches;
use super::print::schedule_name;
use super::timeline::{Span, Timeline};

/// Pixels: the width that a step is fitted into, and the bounds of what a unit of time may take, so
/// that a short step does not look coarse and a long one keeps its boxes apart.
const STEP_WIDTH: f64 = 1040.0;
const UNIT_WIDTH: std::ops::RangeInclusive<f64> = 8.0..=36.0;

/// Pixels of the frame around the lanes, of a lane, and between the lanes of two ranks.
const LEFT: f64 = 96.0;
const RIGHT: f64 = 24.0;
const LANE: f64 = 22.0;
const RANK_GAP: f64 = 6.0;
const HEADING: f64 = 58.0;
const AXIS: f64 = 34.0;
const LEGEND: f64 = 34.0;

/// Pixels of a digit of a micro-batch's number; a box that is narrower than its number shows none.
const DIGIT: f64 = 6.2;

const INK: &str = "#24292f";
const DIM: &str = "#57606a";
const IDLE: &str = "#e4e7eb";
const PAPER: &str = "#ffffff";

/// The kinds of boxes: what they are, their fill, and the colour of the number on it.
const KINDS: [(Kind, &str, &str, &str); 4] = [
    (Kind::Forward, "F forward", "#3f72c8", "#ffffff"),
    (Kind::Backward, "B backward", "#3f9a6a", "#ffffff"),
    (Kind::Input, "I backward for the input", "#8fd0a8", "#173525"),
    (Kind::Weight, "W weight gradients", "#f0b95a", "#3d2a05"),
];

/// Draws the plans below each other, along one axis of time. The micro-batches are numbered as in the
/// step.
pub fn svg(plans: &[&Plan]) -> String {
    let timelines: Vec<_> = plans.iter().map(|plan| plan.timeline()).collect();
    let units = timelines.iter().map(Timeline::makespan).fold(1.0, f64::max);
    let unit = (STEP_WIDTH / units).clamp(*UNIT_WIDTH.start(), *UNIT_WIDTH.end());
    let width = (LEFT + unit * units + RIGHT).max(LEFT + 560.0);
    let mut body = String::new();
    let mut top = 8.0;
    for (plan, timeline) in plans.iter().zip(&timelines) {
        top = panel(&mut body, plan, timeline, unit, top);
    }
    let shown =
        |kind: &Kind| timelines.iter().flat_map(|t| t.rows.iter().flatten()).any(|s| s.action.kind == *kind);
    legend(&mut body, &KINDS.iter().filter(|(kind, ..)| shown(kind)).collect::<Vec<_>>(), top);
    let height = top + LEGEND;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"{INK}\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"{PAPER}\"/>\n{body}</svg>\n"
    )
}

// Writing to a String cannot fail, so its results are dropped below.

/// One plan; returns where the next may start.
fn panel(out: &mut String, plan: &Plan, timeline: &Timeline, unit: f64, top: f64) -> f64 {
    let pipeline = plan.slowest_pipeline();
    let Some(first) = pipeline.first() else { return top };
    let (p, owned) = (pipeline.len(), micro_batches(first));
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{:.1}\" font-size=\"15\" font-weight=\"bold\">{}</text>\n\
         <text x=\"{LEFT}\" y=\"{:.1}\" fill=\"{DIM}\">{p} pipeline {}, {} micro-batches · makespan {}, {} without \
         bubble · bubble {:.1}%</text>",
        top + 20.0,
        schedule_name(first.spec.layout.schedule),
        top + 39.0,
        if p == 1 { "rank" } else { "ranks" },
        owned.end - owned.start,
        timeline.makespan(),
        timeline.ideal(),
        100.0 * timeline.bubble(),
    );
    let mut y = top + HEADING - 8.0;
    let tick = unit / timeline.ticks as f64;
    let length = timeline.end() as f64 * tick;
    for (a, row) in pipeline.iter().zip(&timeline.rows) {
        let lanes = a.stages.len() as f64 * LANE;
        let _ = writeln!(
            out,
            "<rect x=\"{LEFT}\" y=\"{y:.1}\" width=\"{length:.1}\" height=\"{lanes:.1}\" fill=\"{IDLE}\"/>"
        );
        // Where one stage of a rank works its others do not, and none of them is idle.
        for span in row.iter().filter(|_| a.stages.len() > 1) {
            let (x, width) = place(span, tick);
            let _ = write!(
                out,
                "<rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{lanes:.1}\" fill=\"{PAPER}\"/>"
            );
        }
        for stage in &a.stages {
            let _ = writeln!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">stage {}</text>",
                LEFT - 10.0,
                y + LANE / 2.0 + 4.0,
                stage.index
            );
            for span in row.iter().filter(|span| span.action.stage == stage.index) {
                action(out, span, tick, y);
            }
            y += LANE;
        }
        y += RANK_GAP;
    }
    axis(out, timeline.makespan(), unit, y);
    y + AXIS
}

/// Where an action starts, and how wide it is.
fn place(span: &Span, tick: f64) -> (f64, f64) {
    (LEFT + span.start as f64 * tick, (span.end - span.start) as f64 * tick)
}

/// A box as wide as the action takes time, with its micro-batch's number.
fn action(out: &mut String, span: &Span, tick: f64, y: f64) {
    let Some((_, _, fill, ink)) = KINDS.iter().find(|(kind, ..)| *kind == span.action.kind) else { return };
    let (x, width) = place(span, tick);
    let _ = write!(
        out,
        "<rect x=\"{:.2}\" y=\"{:.1}\" width=\"{:.2}\" height=\"{:.1}\" fill=\"{fill}\"><title>{}</title></rect>",
        x + 0.5,
        y + 1.0,
        (width - 1.0).max(0.5),
        LANE - 2.0,
        span.action
    );
    let number = span.action.micro_batch.to_string();
    if DIGIT * number.len() as f64 + 2.0 <= width {
        let _ = write!(
            out,
            "<text x=\"{:.2}\" y=\"{:.1}\" font-size=\"10.5\" text-anchor=\"middle\" fill=\"{ink}\">{number}</text>",
            x + width / 2.0,
            y + LANE / 2.0 + 3.7
        );
    }
    out.push('\n');
}

/// Marks below the lanes, at round numbers of units.
fn axis(out: &mut String, units: f64, unit: f64, y: f64) {
    // Marks stay apart by the width of a number of four digits.
    let step = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
        .into_iter()
        .find(|step| step * unit >= 40.0)
        .unwrap_or(2000.0);
    let mut at = 0.0;
    while at <= units {
        let x = LEFT + at * unit;
        let _ = writeln!(
            out,
            "<path d=\"M{x:.1} {:.1}v5\" stroke=\"{DIM}\"/><text x=\"{x:.1}\" y=\"{:.1}\" font-size=\"10.5\" \
             text-anchor=\"middle\" fill=\"{DIM}\">{at}</text>",
            y - RANK_GAP + 1.0,
            y + 12.0
        );
        at += step;
    }
}

fn legend(out: &mut String, kinds: &[&(Kind, &str, &str, &str)], top: f64) {
    let mut x = LEFT;
    let mut entry = |fill: &str, text: &str| {
        let _ = writeln!(
            out,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"14\" height=\"14\" fill=\"{fill}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\">{text}</text>",
            top + 4.0,
            x + 20.0,
            top + 15.5
        );
        x += 44.0 + 6.4 * text.len() as f64;
    };
    for (_, text, fill, _) in kinds {
        entry(fill, text);
    }
    entry(IDLE, "idle");
}
