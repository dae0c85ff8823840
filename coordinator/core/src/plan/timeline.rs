//! Who computes when, in ticks.
//!
//! [`timeline`] has units of time in which a forward of a rank's whole share takes 1, a backward 2, and each of its
//! halves 1, while messages take none: the grid of a printed plan, its picture, its makespan. Real stages differ in
//! weight, so that compares schedules and predicts no seconds; `time` gives [`run`] nanoseconds, and messages that
//! take some.

use coxswain_types::schedule::{Action, Kind};

/// A compute action and its time, in ticks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) action: Action,
    pub(super) start: u64,
    pub(super) end: u64,
    /// Whether it began when a message came, after its rank had been idle.
    pub(super) waited: bool,
}

/// What each pipeline rank of a data rank computes, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Timeline {
    /// For each rank, its compute actions in the order of time.
    pub(super) rows: Vec<Vec<Span>>,
    /// Ticks of a unit of time: a rank's share has as many stages, and a forward of each takes a tick.
    pub(super) ticks: u64,
}

/// What a message takes, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MessageTicks {
    /// Until its first byte is there.
    pub(super) latency: u64,
    /// Until its last byte is, after the first. A link carries one message after the other.
    pub(super) wire: u64,
}

/// Ticks that an action takes; `None` for messages, which take none.
fn cost(kind: Kind) -> Option<u64> {
    match kind {
        Kind::Forward | Kind::Input | Kind::Weight => Some(1),
        Kind::Backward => Some(2),
        Kind::RecvForward | Kind::SendForward | Kind::RecvBackward | Kind::SendBackward => None,
    }
}

/// The timeline of lists of the pipeline ranks of one data rank, in order, with `chunks` stages each.
/// The lists have passed the plan's check; of others the timeline shows what can be done.
pub(super) fn timeline(lists: &[&[Action]], chunks: u32) -> Timeline {
    run(lists, chunks, |action| cost(action.kind), |_, _| MessageTicks::default())
}

/// What stages have made, and when their neighbours have it.
struct Made {
    first: u32,
    count: usize,
    /// For each direction, stage and micro-batch.
    there: Vec<Option<u64>>,
    /// When the link of each direction and stage is free again.
    free: Vec<u64>,
}

impl Made {
    fn new(lists: &[&[Action]], stages: u32) -> Made {
        let batches = || lists.iter().flat_map(|list| list.iter()).map(|action| action.micro_batch.0);
        let first = batches().min().unwrap_or(0);
        let count = batches().max().map_or(0, |last| (last - first) as usize + 1);
        let stages = stages as usize;
        Made { first, count, there: vec![None; 2 * stages * count], free: vec![0; 2 * stages] }
    }

    fn slot(&self, backward: bool, stage: u32, micro_batch: u32) -> usize {
        (2 * stage as usize + usize::from(backward)) * self.count + (micro_batch - self.first) as usize
    }

    fn of(&self, backward: bool, stage: u32, micro_batch: u32) -> Option<u64> {
        self.there.get(self.slot(backward, stage, micro_batch)).copied().flatten()
    }

    fn note(&mut self, backward: bool, action: &Action, end: u64, message: MessageTicks) {
        let link = 2 * action.stage as usize + usize::from(backward);
        let slot = self.slot(backward, action.stage, action.micro_batch.0);
        let (Some(free), Some(there)) = (self.free.get_mut(link), self.there.get_mut(slot)) else { return };
        *free = end.max(*free) + message.wire;
        *there = Some(*free + message.latency);
    }
}

/// The same with actions that take as long as `cost` says, and messages from a stage (forward or backward) that take
/// as long as `message` says.
pub(super) fn run(
    lists: &[&[Action]],
    chunks: u32,
    cost: impl Fn(&Action) -> Option<u64>,
    message: impl Fn(u32, bool) -> MessageTicks,
) -> Timeline {
    let stages = lists.len() as u32 * chunks;
    let mut rows: Vec<Vec<Span>> = vec![Vec::new(); lists.len()];
    let mut next = vec![0; lists.len()];
    let mut made = Made::new(lists, stages);
    loop {
        let mut moved = false;
        for ((list, row), next) in lists.iter().zip(&mut rows).zip(&mut next) {
            while let Some(action) = list.get(*next) {
                if action.stage >= stages {
                    break;
                }
                if let Some(cost) = cost(action) {
                    let backward = action.kind != Kind::Forward;
                    let needs = match action.kind {
                        Kind::Forward => action.stage.checked_sub(1),
                        Kind::Weight => None,
                        _ => Some(action.stage + 1).filter(|stage| *stage < stages),
                    };
                    let ready = needs.map(|stage| made.of(backward, stage, action.micro_batch.0));
                    let ready = match ready {
                        Some(None) => break,
                        Some(Some(end)) => end,
                        None => 0,
                    };
                    let before = row.last().map_or(0, |span| span.end);
                    let start = ready.max(before);
                    row.push(Span { action: *action, start, end: start + cost, waited: ready > before });
                    if action.kind != Kind::Weight {
                        made.note(backward, action, start + cost, message(action.stage, backward));
                    }
                }
                *next += 1;
                moved = true;
            }
        }
        // Every round but the last moves a rank on, so there are no more rounds than actions.
        if !moved {
            break;
        }
    }
    Timeline { rows, ticks: u64::from(chunks).max(1) }
}

impl Timeline {
    /// Ticks until the last action has ended.
    pub(super) fn end(&self) -> u64 {
        self.rows.iter().filter_map(|row| row.last()).map(|span| span.end).max().unwrap_or(0)
    }

    /// Units of time of the whole step.
    pub(super) fn makespan(&self) -> f64 {
        self.end() as f64 / self.ticks as f64
    }

    /// Units of time that the busiest rank computes: the step could not be shorter.
    pub(super) fn ideal(&self) -> f64 {
        self.rows.iter().map(|row| busy(row)).max().unwrap_or(0) as f64 / self.ticks as f64
    }

    /// The share of time that ranks are idle, in `0..1`.
    pub(super) fn bubble(&self) -> f64 {
        let whole = self.end() * self.rows.len() as u64;
        let busy: u64 = self.rows.iter().map(|row| busy(row)).sum();
        if whole == 0 { 0.0 } else { (whole - busy) as f64 / whole as f64 }
    }
}

pub(super) fn busy(row: &[Span]) -> u64 {
    row.iter().map(|span| span.end - span.start).sum()
}

#[cfg(test)]
mod tests {
    use coxswain_types::job::{Layout, Schedule};

    use super::*;
    use crate::plan::schedule::train;

    fn times(pipeline: u32, micro_batches: u32, schedule: Schedule) -> Timeline {
        let layout = Layout { pipeline, tensor: 1, data: 1, schedule, sequence_parallel: false, zero: false };
        let lists: Vec<_> = (0..pipeline).map(|rank| train(&layout, &[], rank, 0..micro_batches)).collect();
        timeline(&lists.iter().map(Vec::as_slice).collect::<Vec<_>>(), schedule.chunks())
    }

    #[test]
    fn makespans_are_those_of_the_papers() {
        let two = Schedule::Interleaved { chunks: 2 };
        let four = Schedule::Interleaved { chunks: 4 };
        for (p, m, plain, v2, v4, zero_bubble) in [
            (2, 4, 15.0, 13.5, 12.75, 13.0),
            (4, 4, 21.0, 16.5, 14.25, 15.0),
            (4, 8, 33.0, 28.5, 26.25, 27.0),
            (4, 16, 57.0, 52.5, 50.25, 51.0),
            (8, 16, 69.0, 58.5, 53.25, 55.0),
            (8, 32, 117.0, 106.5, 101.25, 103.0),
        ] {
            let found = |schedule| times(p, m, schedule).makespan();
            assert_eq!(found(Schedule::GPipe), plain, "GPipe {p} {m}");
            assert_eq!(found(Schedule::OneFOneB), plain, "1F1B {p} {m}");
            assert_eq!(found(two), v2, "interleaved {p} {m}");
            assert_eq!(found(four), v4, "interleaved {p} {m}");
            assert_eq!(found(Schedule::ZbH1), zero_bubble, "ZB-H1 {p} {m}");
        }
    }

    #[test]
    fn bubbles_follow_their_formulas() {
        for p in 1..=5_u32 {
            for m in 1..=9_u32 {
                for schedule in [Schedule::GPipe, Schedule::OneFOneB] {
                    let known = f64::from(p - 1) / f64::from(m + p - 1);
                    let found = times(p, m, schedule).bubble();
                    assert!((found - known).abs() < 1e-12, "{schedule:?} {p} {m}: {found} {known}");
                }
                for v in 2..=4_u32 {
                    let found = times(p, p * m, Schedule::Interleaved { chunks: v });
                    let known = f64::from(3 * p * m) + f64::from(3 * (p - 1)) / f64::from(v);
                    assert!((found.makespan() - known).abs() < 1e-9, "{v} {p} {m}: {found:?} {known}");
                }
                if m >= p {
                    let found = times(p, m, Schedule::ZbH1).makespan();
                    assert_eq!(found, f64::from(3 * m + p - 1), "ZB-H1 {p} {m}");
                }
            }
        }
    }
}
