//! What a training step holds beside weights, gradients and the optimizer's state, in bytes, by walking a
//! rank's list of actions. [`parts`] says what each part of a stage keeps and takes.

use std::collections::{BTreeMap, BTreeSet};

use coxswain_types::Assignment;
use coxswain_types::assignment::{Recompute, Stage};
use coxswain_types::job::{Block, Lengths};
use coxswain_types::params::Place;
use coxswain_types::schedule::{Action, Kind};

use super::reduction::Arriving;

mod attention;
mod parts;
mod sizes;

use parts::PartBytes;
use sizes::Sizes;

/// What a stage holds of one micro-batch.
#[derive(Debug)]
struct StageBytes {
    /// Its input, where it makes that itself or receives it from another rank; the receive makes room for it.
    input: u64,
    /// Whether the input arrives by a message.
    receives: bool,
    /// A place of the residual stream at its end.
    output: u64,
    /// The tokens and their targets.
    tokens: u64,
    /// Its parts in order, each with its place and whether it is computed again.
    parts: Vec<(Place, PartBytes, bool)>,
}

impl StageBytes {
    fn of(a: &Assignment, stage: &Stage) -> StageBytes {
        let sizes = Sizes::of(a);
        let elsewhere = |rank: Option<u32>| rank.is_some_and(|rank| rank != a.rank.0);
        let first = stage.layers.start;
        let mut parts: Vec<(Place, PartBytes, bool)> = Vec::new();
        let mut input = if elsewhere(stage.previous) { sizes.stream_after(first) } else { 0 };
        if stage.embedding {
            let stem = sizes.stem(false);
            input = stem.as_ref().map_or(sizes.stream(first), |_| sizes.looked_up(false));
            parts.extend(stem.map(|stem| (Place::Embedding, stem, false)));
        }
        for (layer, recompute) in stage.layers.clone().zip(&stage.recompute) {
            if layer == a.spec.model.encoder_layers && layer > 0 {
                parts.push((Place::Bridge, sizes.bridge(), false));
            }
            let place = Place::Layer(layer);
            match recompute {
                Recompute::Nothing => parts.push((place, sizes.layer(layer), false)),
                Recompute::Layer => parts.push((place, sizes.layer(layer), true)),
                Recompute::Block(block) => {
                    let [one, other] = sizes.blocks(layer);
                    parts.push((place, one, *block == Block::Attention));
                    parts.push((place, other, *block == Block::Ffn));
                }
            }
        }
        if stage.head {
            parts.push((Place::Head, sizes.head(), false));
        }
        let lengths = Lengths::of(&a.spec.model, &a.spec.train);
        StageBytes {
            input,
            receives: elsewhere(stage.previous),
            output: if stage.head { 0 } else { sizes.stream_after(stage.layers.end) },
            tokens: 8
                * u64::from(a.spec.train.micro_batch_size)
                * u64::from(lengths.source + 2 * lengths.target),
            parts,
        }
    }

    /// What a forward leaves until its backward.
    fn kept(&self) -> u64 {
        let parts = self.parts.iter().map(|(_, part, again)| if *again { part.output } else { part.kept() });
        self.tokens + parts.sum::<u64>()
    }
}

/// The most bytes at once of a training step. `arriving` says what data ranks send each other of a place's
/// gradients when its last micro-batch is done.
pub(super) fn peak(a: &Assignment, arriving: &Arriving) -> u64 {
    let stages: BTreeMap<u32, StageBytes> =
        a.stages.iter().map(|stage| (stage.index, StageBytes::of(a, stage))).collect();
    let mut walk = Walk { arriving, live: tables(a), peak: 0 };
    walk.rise(0);
    let last = a.train.iter().map(|action| action.micro_batch).max();
    for action in &a.train {
        let Some(held) = stages.get(&action.stage) else { continue };
        walk.action(action, held, last == Some(action.micro_batch));
    }
    walk.peak
}

/// Tables that stay: of rotary positions.
fn tables(a: &Assignment) -> u64 {
    let (model, lengths) = (&a.spec.model, Lengths::of(&a.spec.model, &a.spec.train));
    let rotated = model.attention.rotated(model.head_dim);
    model.positions.table_bytes(rotated, lengths.source.max(lengths.target))
}

struct Walk<'a> {
    arriving: &'a Arriving,
    live: u64,
    peak: u64,
}

impl Walk<'_> {
    /// Notes that so much more is held for a moment.
    fn rise(&mut self, more: u64) {
        self.peak = self.peak.max(self.live + more);
    }

    fn free(&mut self, bytes: u64) {
        self.live = self.live.saturating_sub(bytes);
    }

    fn action(&mut self, action: &Action, held: &StageBytes, last: bool) {
        match action.kind {
            Kind::RecvForward => self.live += held.input,
            Kind::RecvBackward => self.live += held.output,
            Kind::SendForward => {}
            Kind::Forward => {
                if !held.receives {
                    self.live += held.input;
                }
                let most = held.parts.iter().map(|(_, part, _)| part.forward).max().unwrap_or(0);
                self.live += held.kept();
                self.rise(most);
            }
            Kind::Backward | Kind::Input => self.backward(action, held, last),
            // The gradient of the input has left.
            Kind::SendBackward => self.free(held.input),
            Kind::Weight => {
                self.rise(held.parts.iter().map(|(_, part, _)| part.low_copy).max().unwrap_or(0));
                self.free(held.parts.iter().map(|(_, part, _)| part.deferred).sum::<u64>() + held.tokens);
                let places: BTreeSet<Place> = held.parts.iter().map(|(place, ..)| *place).collect();
                let looked_up = (held.input > 0 && !held.receives).then_some(Place::Embedding);
                let places = places.into_iter().chain(looked_up).filter(|_| last);
                self.live += places.map(|place| self.arriving.of(place)).sum::<u64>();
            }
        }
        self.rise(0);
    }

    /// The parts from the last to the first, each of which lets go of what it kept.
    fn backward(&mut self, action: &Action, held: &StageBytes, last: bool) {
        let split = action.kind == Kind::Input;
        let mut incoming = held.output;
        let mut done = BTreeSet::new();
        for (place, part, again) in held.parts.iter().rev() {
            self.rise(if *again { part.kept() } else { 0 } + part.backward);
            self.free(if *again { part.output } else { part.kept() });
            // The gradient goes on from part to part.
            self.live = (self.live + part.input_grad).saturating_sub(incoming);
            incoming = part.input_grad;
            if split {
                self.live += part.deferred;
            }
            if last && !split && done.insert(*place) {
                self.live += self.arriving.of(*place);
            }
            self.rise(0);
        }
        self.free(held.input);
        if !split {
            self.free(held.tokens);
        }
        if held.input > 0 && !held.receives {
            // Of what was looked up the gradient goes into the tables.
            self.free(incoming);
            if last && !split && done.insert(Place::Embedding) {
                self.live += self.arriving.of(Place::Embedding);
            }
        }
    }
}
