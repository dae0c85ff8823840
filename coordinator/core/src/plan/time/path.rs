//! The critical path: what a step waits for from its start to its end, told by stage.

use serde::Serialize;

use crate::plan::timeline::Timeline;

/// A part of the critical path.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PathShare {
    /// What is waited for, such as `stage 3`.
    pub what: String,
    /// How long, in seconds.
    pub seconds: f64,
}

/// Goes back from the last action to the first: to the one before on its rank, or where that had ended and a message
/// was missing, to who sent it. The longest part comes first.
pub(super) fn path(timeline: &Timeline, reduction: f64, closing: f64, update: f64) -> Vec<PathShare> {
    let mut stages = std::collections::BTreeMap::<u32, u64>::new();
    let mut messages = 0;
    let last = timeline.rows.iter().enumerate().max_by_key(|(_, row)| row.last().map_or(0, |span| span.end));
    let mut here = last.and_then(|(rank, row)| row.len().checked_sub(1).map(|at| (rank, at)));
    while let Some((rank, at)) = here {
        let Some(span) = timeline.rows.get(rank).and_then(|row| row.get(at)) else { break };
        *stages.entry(span.action.stage).or_default() += span.end - span.start;
        here = if span.waited {
            let sender = sender(timeline, rank, at);
            if let Some((rank, at)) = sender {
                messages += span.start - timeline.rows[rank][at].end;
            }
            sender
        } else {
            at.checked_sub(1).map(|at| (rank, at))
        };
    }
    let seconds = |ticks: u64| ticks as f64 / super::NANOS;
    let mut shares: Vec<PathShare> = stages
        .into_iter()
        .map(|(stage, ticks)| PathShare { what: format!("stage {stage}"), seconds: seconds(ticks) })
        .collect();
    let mut add = |what: &str, seconds: f64| {
        if seconds > 0.0 {
            shares.push(PathShare { what: what.to_owned(), seconds });
        }
    };
    add("messages between stages", seconds(messages));
    add("sums of gradients", reduction);
    add("the closing exchange", closing);
    add("the update", update);
    shares.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    shares
}

/// Where the action ran whose message this one waited for.
fn sender(timeline: &Timeline, rank: usize, at: usize) -> Option<(usize, usize)> {
    use coxswain_types::schedule::Kind;
    let action = timeline.rows.get(rank)?.get(at)?.action;
    let forward = action.kind == Kind::Forward;
    let stage = if forward { action.stage.checked_sub(1)? } else { action.stage + 1 };
    let from = stage as usize % timeline.rows.len();
    let made = |kind: Kind| {
        if forward { kind == Kind::Forward } else { matches!(kind, Kind::Backward | Kind::Input) }
    };
    let sent = |other: &coxswain_types::schedule::Action| {
        other.stage == stage && other.micro_batch == action.micro_batch && made(other.kind)
    };
    let position = timeline.rows.get(from)?.iter().position(|span| sent(&span.action))?;
    Some((from, position))
}
