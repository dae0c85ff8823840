//! 1F1B (arXiv 2104.04473) as a list of actions for each stage, and a forward-only list.
//!
//! A stage first takes in as many micro-batches as there are stages behind it, then alternates one
//! forward with one backward, then drains. No more than `stages - stage` micro-batches are in
//! flight. Forwards and backwards are each in ascending micro-batch order on every stage, so that
//! sends and receives of a pair of ranks match by their order alone.

use std::ops::Range;

use coxswain_types::MicroBatch;
use coxswain_types::schedule::{Action, Kind};

/// The actions of a training step on `stage` of `stages`, over these micro-batches of the step.
pub(super) fn train(stage: u32, stages: u32, micro_batches: Range<u32>) -> Vec<Action> {
    let count = micro_batches.end - micro_batches.start;
    let ahead = (stages - stage - 1).min(count);
    let mut forwards = micro_batches.clone();
    let mut compute: Vec<_> = forwards.by_ref().take(ahead as usize).map(|m| (Kind::Forward, m)).collect();
    for backward in micro_batches {
        compute.extend(forwards.next().map(|m| (Kind::Forward, m)));
        compute.push((Kind::Backward, backward));
    }
    with_messages(stage, stages, &compute)
}

/// The actions of one round of evaluation: forwards only.
pub(super) fn evaluate(stage: u32, stages: u32, micro_batches: Range<u32>) -> Vec<Action> {
    let compute: Vec<_> = micro_batches.map(|m| (Kind::Forward, m)).collect();
    with_messages(stage, stages, &compute)
}

/// Adds the messages: a receive is posted before the compute action that precedes the one that
/// needs it, so that it travels under that compute; a send follows what it sends at once.
fn with_messages(stage: u32, stages: u32, compute: &[(Kind, u32)]) -> Vec<Action> {
    let action = |kind, micro_batch| Action { stage, kind, micro_batch: MicroBatch(micro_batch) };
    let post = |&(kind, micro_batch): &(Kind, u32)| match kind {
        Kind::Forward if stage > 0 => Some(action(Kind::RecvForward, micro_batch)),
        Kind::Backward if stage + 1 < stages => Some(action(Kind::RecvBackward, micro_batch)),
        _ => None,
    };
    let send = |&(kind, micro_batch): &(Kind, u32)| match kind {
        Kind::Forward if stage + 1 < stages => Some(action(Kind::SendForward, micro_batch)),
        Kind::Backward if stage > 0 => Some(action(Kind::SendBackward, micro_batch)),
        _ => None,
    };
    let mut actions: Vec<_> = compute.first().and_then(post).into_iter().collect();
    for (i, now) in compute.iter().enumerate() {
        actions.extend(compute.get(i + 1).and_then(post));
        actions.push(action(now.0, now.1));
        actions.extend(send(now));
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(actions: &[Action]) -> String {
        actions.iter().map(Action::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn lists_read_as_expected() {
        assert_eq!(text(&train(0, 1, 4..6)), "0F4 0B4 0F5 0B5");
        assert_eq!(
            text(&train(0, 2, 0..3)),
            "0F0 0SEND_F0 0RECV_B0 0F1 0SEND_F1 0B0 0RECV_B1 0F2 0SEND_F2 0RECV_B2 0B1 0B2"
        );
        assert_eq!(
            text(&train(1, 2, 0..3)),
            "1RECV_F0 1F0 1RECV_F1 1B0 1SEND_B0 1F1 1RECV_F2 1B1 1SEND_B1 1F2 1B2 1SEND_B2"
        );
        assert_eq!(text(&evaluate(1, 3, 2..4)), "1RECV_F2 1RECV_F3 1F2 1SEND_F2 1F3 1SEND_F3");
    }
}
