//! Messages between neighbouring stages: which rank is at the other end, under which tag, in which shape.

use std::ops::Range;

use coxswain_comm::Axis;
use coxswain_types::job::Lengths;

use crate::model::Context;
use crate::parallel::seat::Seat;

/// Which way a message travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Direction {
    /// Activations, to the next stage.
    Forward,
    /// Their gradient, to the previous stage.
    Backward,
}

/// One end of a message's way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edge {
    /// The rank at the other end.
    pub(super) peer: u32,
    /// The tag: of the edge from a stage to the next one, in one of its directions.
    pub(super) axis: Axis,
}

impl Direction {
    /// How a message comes into a stage; `None` at the ends of the pipeline.
    pub(super) fn into(self, seat: &Seat) -> Option<Edge> {
        self.edge(seat, self == Direction::Forward)
    }

    /// How a message leaves a stage; `None` at the ends of the pipeline.
    pub(super) fn out_of(self, seat: &Seat) -> Option<Edge> {
        self.edge(seat, self == Direction::Backward)
    }

    /// The edge before a stage, or the one behind it.
    fn edge(self, seat: &Seat, before: bool) -> Option<Edge> {
        let (peer, stage) =
            if before { (seat.previous?, seat.index.wrapping_sub(1)) } else { (seat.next?, seat.index) };
        Some(Edge { peer, axis: Axis::Edge { stage, backward: self == Direction::Backward } })
    }

    /// The stage whose messages come into this one; there may be none of that number.
    pub(super) fn source(self, stage: u32) -> u32 {
        match self {
            Direction::Forward => stage.wrapping_sub(1),
            Direction::Backward => stage + 1,
        }
    }

    /// What travels, for people.
    pub(super) fn what(self) -> &'static str {
        match self {
            Direction::Forward => "the activations",
            Direction::Backward => "the gradient",
        }
    }
}

/// The shapes of a step's messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Edges {
    rows: i64,
    dim: i64,
    encoder_layers: u32,
    lengths: Lengths,
    /// Among how many ranks the tokens are split.
    split: i64,
}

impl Edges {
    /// Of micro-batches of so many samples.
    pub(super) fn new(context: &Context, rows: u32, lengths: Lengths) -> Edges {
        Edges {
            rows: rows.into(),
            dim: context.model.dim.into(),
            encoder_layers: context.model.encoder_layers,
            lengths,
            split: if context.sequence_parallel { context.group_size } else { 1 },
        }
    }

    /// The shape of what comes into a stage of these layers, `[b, t, d]`: behind a decoder's tokens are those of its
    /// encoder's output.
    pub(super) fn shape(&self, layers: &Range<u32>, direction: Direction) -> [i64; 3] {
        // The layer that the edge stands before.
        let next = match direction {
            Direction::Forward => layers.start,
            Direction::Backward => layers.end,
        };
        let Lengths { source, target, .. } = self.lengths;
        let tokens = match self.encoder_layers {
            0 => target,
            encoder if next <= encoder => source,
            _ => target + source,
        };
        [self.rows, i64::from(tokens) / self.split, self.dim]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_the_shape_of_the_layer_it_stands_before() {
        let lengths = Lengths { window: 12, source: 8, target: 4 };
        let decoder = Edges { rows: 2, dim: 16, encoder_layers: 0, lengths, split: 1 };
        let both = Edges { encoder_layers: 3, ..decoder };
        let split = Edges { split: 2, ..both };
        use Direction::{Backward, Forward};
        for (edges, layers, direction, tokens) in [
            (decoder, 2..4, Forward, 4),
            (decoder, 2..4, Backward, 4),
            // Up to the last of the encoder its own tokens travel, behind it both.
            (both, 1..3, Forward, 8),
            (both, 1..3, Backward, 8),
            (both, 3..5, Forward, 8),
            (both, 3..5, Backward, 12),
            (both, 4..6, Forward, 12),
            (split, 1..3, Forward, 4),
            (split, 4..6, Forward, 6),
        ] {
            assert_eq!(
                edges.shape(&layers, direction),
                [2, tokens, 16],
                "{edges:?} {layers:?} {direction:?}"
            );
        }
    }
}
