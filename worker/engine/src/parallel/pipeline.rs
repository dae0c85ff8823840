//! The interpreter of a step's actions. It decides nothing: it does what stands in the list.
//!
//! A receive is posted where it stands and awaited by the compute that needs it; a send starts
//! where it stands and ends by itself. A stage in flight is a chain of cuts, one for each piece of a
//! layer, so backward finishes layer by layer.

use std::collections::BTreeMap;

use coxswain_comm::{Axis, Links, Pipe, Transfer};
use coxswain_native::ops::DeferredWgrads;
use coxswain_types::job::Lengths;
use coxswain_types::params::Place;
use coxswain_types::schedule::{Action, Kind as Act};
use tch::{Device, Kind, Tensor};

use super::flight::{Flight, Kept, LaterWgrads, Part};
use super::piece::{piece, run};
use super::seat::Seat;
use super::{Cut, Probe, Reduction};
use crate::EngineError;
use crate::data::MicroBatchData;
use crate::error::Doing;
use crate::model::{Context, Dropout, Parameters, Pass, Rotary, buffer, on_device, pieces};

/// Whether gradients are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Forward and backward.
    Train {
        /// Steps taken before, for what is dropped.
        step: u64,
        /// What a micro-batch's loss is multiplied by before its gradient is taken.
        multiplier: f64,
    },
    /// Forward only.
    Evaluate,
}

/// The summed loss of a micro-batch, on the last stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MicroLoss {
    /// Which micro-batch of the step.
    pub micro_batch: u32,
    /// The sum over its tokens, each by its weight, in nats.
    pub loss: f64,
    /// How many tokens counted.
    pub tokens: u64,
    /// The sum of their weights.
    pub weight: f64,
    /// How many texts have been told their class, where an evaluation asks for classes.
    pub right: u64,
}

/// Runs lists of actions on the stages of a rank.
pub struct Runner<'a> {
    /// The stages.
    pub seats: &'a [Seat],
    /// What they share.
    pub context: &'a Context,
    /// Their parameters, for the buckets.
    pub parameters: &'a Parameters,
    /// Where gradients go.
    pub reduction: &'a mut Reduction,
    /// The network.
    pub links: &'a Links,
    /// Sends that have started.
    pub pipe: &'a Pipe,
    /// The training's numbers.
    pub train: &'a coxswain_types::job::TrainSpec,
    /// Positions of a sample.
    pub rotary: Option<&'a Rotary>,
    /// Tokens of a sample.
    pub lengths: Lengths,
    /// Where the first value that is not finite is noted, when one is looked for.
    pub probe: Option<&'a mut Probe>,
}

/// A message: of activations or of their gradient, into a stage, for a micro-batch.
type Message = (bool, u32, u32);

/// What one list leaves behind while it runs.
#[derive(Default)]
struct Progress {
    posted: BTreeMap<Message, (Transfer, Tensor)>,
    made: BTreeMap<Message, Tensor>,
    flights: BTreeMap<(u32, u32), Flight>,
    deferred: BTreeMap<(u32, u32), LaterWgrads>,
    /// Each with the tensor that has its number.
    losses: Vec<(MicroLoss, Tensor)>,
}

impl<'a> Runner<'a> {
    /// Runs `actions`; `fetch` gives a micro-batch's tokens. The result has the losses of the
    /// micro-batches in the order of the list, on the last stage.
    pub fn run(
        &mut self,
        actions: &[Action],
        mode: Mode,
        fetch: &dyn Fn(u32) -> Result<MicroBatchData, EngineError>,
    ) -> Result<Vec<MicroLoss>, EngineError> {
        let mut progress = Progress::default();
        for action in actions {
            self.links.expect_wanted()?;
            let computes = matches!(action.kind, Act::Forward | Act::Backward | Act::Input | Act::Weight);
            let told = match mode {
                Mode::Train { step, .. } if computes => Some(step + 1),
                _ => None,
            };
            if let Some(step) = told {
                self.links.enter(step, action.to_string());
            }
            let (at, micro_batch) = (action.stage, action.micro_batch.0);
            let seats = self.seats;
            let seat = seats
                .iter()
                .find(|seat| seat.index == at)
                .ok_or_else(|| refuse(action, "the stage is on another rank"))?;
            match action.kind {
                Act::RecvForward => self.post(&mut progress, seat, true, micro_batch)?,
                Act::RecvBackward => self.post(&mut progress, seat, false, micro_batch)?,
                Act::SendForward | Act::SendBackward => self.send(&mut progress, seat, action)?,
                Act::Forward => {
                    let input = self.received(&mut progress, seat, true, micro_batch)?;
                    self.forward(&mut progress, seat, mode, micro_batch, input, fetch(micro_batch)?)?;
                }
                Act::Backward => {
                    self.backward(&mut progress, seat, mode, action, false)?;
                }
                Act::Input => {
                    self.context.wgrad_queue.hold(true);
                    let done = self.backward(&mut progress, seat, mode, action, true);
                    self.context.wgrad_queue.hold(false);
                    done?;
                }
                Act::Weight => self.weight(&mut progress, seat, mode, action)?,
            }
            if told.is_some() {
                self.links.ended();
            }
        }
        self.pipe.drain().doing(|| "sending to a neighbouring stage".to_owned())?;
        losses(progress.losses)
    }

    fn post(
        &mut self,
        progress: &mut Progress,
        seat: &Seat,
        forward: bool,
        micro_batch: u32,
    ) -> Result<(), EngineError> {
        let from = if forward { seat.previous } else { seat.next };
        let from =
            from.ok_or_else(|| EngineError::Other(format!("stage {} has nobody there", seat.index)))?;
        let kind = crate::model::kind(self.context.precision);
        let x = buffer(&self.shape(seat, forward), kind, self.context.device)?;
        let transfer = self.links.recv(&x, from, edge(seat.index, forward, true))?;
        progress.posted.insert((forward, seat.index, micro_batch), (transfer, x));
        Ok(())
    }

    /// The shape of the activations that come to a stage, or of the gradient of those that leave it,
    /// `[b, t, d]`: behind a decoder's tokens are those of its encoder's output.
    fn shape(&self, seat: &Seat, forward: bool) -> [i64; 3] {
        let model = &self.context.model;
        let layers = &seat.stage.range;
        let next = if forward { layers.start } else { layers.end };
        let Lengths { source, target, .. } = self.lengths;
        let tokens = match model.encoder_layers {
            0 => target,
            encoder if next <= encoder => source,
            _ => target + source,
        };
        let here = if self.context.sequence_parallel {
            i64::from(tokens) / self.context.group_size
        } else {
            tokens.into()
        };
        [self.train.micro_batch_size.into(), here, model.dim.into()]
    }

    /// What a stage needs from its neighbour: from the network, or from this rank itself; `None` at
    /// the ends of the pipeline.
    fn received(
        &self,
        progress: &mut Progress,
        seat: &Seat,
        forward: bool,
        micro_batch: u32,
    ) -> Result<Option<Tensor>, EngineError> {
        if let Some((transfer, x)) = progress.posted.remove(&(forward, seat.index, micro_batch)) {
            transfer.wait().doing(|| {
                let what = if forward { "the activations" } else { "the gradient" };
                format!("stage {} waiting for {what} of micro-batch {micro_batch}", seat.index)
            })?;
            return Ok(Some(x));
        }
        let neighbour = if forward { seat.index.wrapping_sub(1) } else { seat.index + 1 };
        Ok(progress.made.remove(&(forward, neighbour, micro_batch)))
    }

    fn send(&mut self, progress: &mut Progress, seat: &Seat, action: &Action) -> Result<(), EngineError> {
        let forward = action.kind == Act::SendForward;
        let to = if forward { seat.next } else { seat.previous };
        let to = to.ok_or_else(|| refuse(action, "there is no stage to send to"))?;
        let x = progress.made.remove(&(forward, seat.index, action.micro_batch.0));
        let x = x.ok_or_else(|| refuse(action, "it has not been computed"))?.f_contiguous()?;
        Ok(self.pipe.push(self.links.send(&x, to, edge(seat.index, forward, false))?)?)
    }

    fn pass<'p>(&'p self, mode: Mode, micro_batch: u32, data: &'p MicroBatchData) -> Pass<'p> {
        let dropout = match mode {
            Mode::Train { step, .. } => Dropout::of(self.train, step, micro_batch),
            Mode::Evaluate => None,
        };
        Pass {
            rotary: self.rotary,
            first: 0,
            documents: data.documents.as_ref(),
            source: self.lengths.source.into(),
            padded: data.padded.as_deref(),
            dropout,
        }
    }

    /// A micro-batch where the rank computes. Numbers out of range are found before, on the host.
    fn placed(
        &self,
        seat: &Seat,
        mode: Mode,
        micro_batch: u32,
        data: MicroBatchData,
    ) -> Result<MicroBatchData, EngineError> {
        let pass = self.pass(mode, micro_batch, &data);
        if let Some(table) = &seat.stage.embedding {
            table.expect_rows(data.first_ids(), &pass)?;
        }
        if let Some(bridge) = &seat.stage.bridge {
            bridge.embedding.expect_rows(&data.ids_bt, &pass)?;
        }
        if let Some(head) = &seat.stage.head {
            head.expect_targets(&data.targets_n)?;
        }
        data.on(self.context.device)
    }

    fn forward(
        &mut self,
        progress: &mut Progress,
        seat: &Seat,
        mode: Mode,
        micro_batch: u32,
        input: Option<Tensor>,
        data: MicroBatchData,
    ) -> Result<(), EngineError> {
        let training = mode != Mode::Evaluate;
        let data = self.placed(seat, mode, micro_batch, data)?;
        let mut kept = Vec::new();
        let mut x_btd = match (&seat.stage.embedding, input) {
            (Some(table), None) => {
                let pass = self.pass(mode, micro_batch, &data);
                let x_bte = tch::no_grad(|| table.look_up(data.first_ids(), &pass))?;
                if table.has_stem(&pass) {
                    piece(seat, Part::Stem, x_bte, &pass, training.then_some((&mut kept, false)))?
                } else {
                    x_bte
                }
            }
            (None, Some(received)) => received,
            _ => {
                return Err(EngineError::Other(format!(
                    "stage {}, micro-batch {micro_batch}: its input is not there, or not its own",
                    seat.index
                )));
            }
        };
        for at in 0..seat.stage.layers.len() {
            let pass = self.pass(mode, micro_batch, &data);
            if let Some(bridge) = seat.stage.bridge_before(at) {
                let x_bte = tch::no_grad(|| bridge.embedding.look_up(&data.ids_bt, &pass))?;
                let part = Part::Bridge([x_bte.size()[0], x_bte.size()[1]]);
                let flat = bridge.join(&x_bte, &x_btd)?;
                x_btd = piece(seat, part, flat, &pass, training.then_some((&mut kept, false)))?;
                if let Some(probe) = &mut self.probe {
                    probe.activation(micro_batch, Place::Bridge, &x_btd)?;
                }
            }
            let pass = self.pass(mode, micro_batch, &data);
            for &(which, again) in pieces(seat.stage.recompute[at]) {
                self.links.expect_wanted()?;
                let part = Part::Layer(at, which);
                x_btd = piece(seat, part, x_btd, &pass, training.then_some((&mut kept, again)))?;
            }
            if let Some(probe) = &mut self.probe {
                probe.activation(micro_batch, seat.stage.places[at], &x_btd)?;
            }
        }
        let mut head = None;
        if let Some(model_head) = &seat.stage.head {
            self.links.expect_wanted()?;
            let pass = self.pass(mode, micro_batch, &data);
            let loss = |x: &Tensor| model_head.loss(x, &data.targets_n, data.weights_n.as_ref(), &pass);
            let value = if training {
                let cut = Cut::run(&x_btd, loss)?;
                let value = cut.output()?;
                head = Some(cut);
                value
            } else {
                tch::no_grad(|| loss(&x_btd))?
            };
            if let Some(probe) = &mut self.probe {
                probe.activation(micro_batch, Place::Head, &value)?;
            }
            let right =
                if training { 0 } else { tch::no_grad(|| model_head.right(&x_btd, &data.targets_n))? };
            let (tokens, weight) = (data.tokens, data.weight);
            let told = MicroLoss { micro_batch, loss: f64::NAN, tokens, weight, right };
            progress.losses.push((told, value));
        } else {
            progress.made.insert((true, seat.index, micro_batch), x_btd);
        }
        if training {
            progress.flights.insert((seat.index, micro_batch), Flight { data, kept, head });
        }
        Ok(())
    }

    /// The backward pass; with `delay`, weight gradients are kept for later.
    fn backward(
        &mut self,
        progress: &mut Progress,
        seat: &Seat,
        mode: Mode,
        action: &Action,
        delay: bool,
    ) -> Result<(), EngineError> {
        let micro_batch = action.micro_batch.0;
        let grad = self.received(progress, seat, false, micro_batch)?;
        let flight = progress.flights.remove(&(seat.index, micro_batch));
        let flight = flight.ok_or_else(|| refuse(action, "its forward has not run"))?;
        let Mode::Train { multiplier, .. } = mode else {
            return Err(refuse(action, "an evaluation has no backward"));
        };
        let mut later = LaterWgrads::default();
        let mut dx = match (flight.head, grad) {
            (Some(cut), None) => {
                let scale = Tensor::f_full([], multiplier, (Kind::Double, self.context.device))?;
                self.at_place(Place::Head, micro_batch, true, delay, &mut later, || cut.backward(&scale))?
            }
            (None, Some(received)) => received,
            _ => return Err(refuse(action, "its gradient is not there, or not its own")),
        };
        let mut kept = flight.kept;
        while let Some((part, state)) = kept.pop() {
            self.links.expect_wanted()?;
            let (place, last) = match part {
                Part::Stem => (Place::Embedding, false),
                Part::Bridge(_) => (Place::Bridge, false),
                Part::Layer(at, _) => {
                    let last = !matches!(kept.last(), Some((Part::Layer(next, _), _)) if *next == at);
                    (seat.stage.places[at], last)
                }
            };
            // The queue of weight gradients is the model's, and what is deferred goes where `at_place` directs it.
            let pass = self.pass(mode, micro_batch, &flight.data);
            let cut = match state {
                Kept::Cut(cut) => cut,
                Kept::Input(x) => Cut::run(&x, |x| run(seat, part, x, &pass))?,
            };
            dx = self.at_place(place, micro_batch, last, delay, &mut later, || cut.backward(&dx))?;
            if let (Part::Bridge(shape), Some(bridge)) = (part, &seat.stage.bridge) {
                let (own, memory) = bridge.part(&dx, shape)?;
                dx = memory.f_contiguous()?;
                let look_up = (Place::Bridge, own.f_contiguous()?);
                if delay {
                    later.look_ups.push(look_up);
                } else {
                    self.look_up_grad(seat, mode, micro_batch, &flight.data, look_up)?;
                }
            }
        }
        if seat.stage.embedding.is_some() {
            if delay {
                later.look_ups.push((Place::Embedding, dx));
            } else {
                self.look_up_grad(seat, mode, micro_batch, &flight.data, (Place::Embedding, dx))?;
            }
        } else {
            progress.made.insert((false, seat.index, micro_batch), dx);
        }
        if delay {
            later.data = Some(flight.data);
            progress.deferred.insert((seat.index, micro_batch), later);
        }
        Ok(())
    }

    /// Runs a piece of backward whose weight gradients belong to `place`. They are computed at once,
    /// or deferred; `last` says that no other piece of the place follows.
    fn at_place(
        &mut self,
        place: Place,
        micro_batch: u32,
        last: bool,
        delay: bool,
        later: &mut LaterWgrads,
        piece: impl FnOnce() -> Result<Tensor, EngineError>,
    ) -> Result<Tensor, EngineError> {
        if delay {
            let dx = piece()?;
            later.places.push((place, last, self.context.wgrad_queue.take()));
            return Ok(dx);
        }
        self.reduction.begin(self.parameters, place, micro_batch)?;
        let dx = piece()?;
        self.context.wgrad_queue.flush()?;
        if last {
            self.finish_place(place, micro_batch)?;
        }
        Ok(dx)
    }

    fn finish_place(&mut self, place: Place, micro_batch: u32) -> Result<(), EngineError> {
        if let Some(probe) = &mut self.probe {
            probe.gradients(micro_batch, place, self.reduction, self.parameters)?;
        }
        self.reduction.end(self.parameters, place, micro_batch)
    }

    /// The weight gradients that a backward pass has deferred.
    fn weight(
        &mut self,
        progress: &mut Progress,
        seat: &Seat,
        mode: Mode,
        action: &Action,
    ) -> Result<(), EngineError> {
        let micro_batch = action.micro_batch.0;
        let later = progress.deferred.remove(&(seat.index, micro_batch));
        let mut later = later.ok_or_else(|| refuse(action, "its backward for the input has not run"))?;
        for (place, last, deferred) in std::mem::take(&mut later.places) {
            self.links.expect_wanted()?;
            self.reduction.begin(self.parameters, place, micro_batch)?;
            DeferredWgrads::run(deferred)?;
            if last {
                self.finish_place(place, micro_batch)?;
            }
        }
        let Some(data) = &later.data else { return Ok(()) };
        for look_up in std::mem::take(&mut later.look_ups) {
            self.look_up_grad(seat, mode, micro_batch, data, look_up)?;
        }
        Ok(())
    }

    /// The gradient of a look-up, of the embedding of the first stack or of the decoder behind it.
    fn look_up_grad(
        &mut self,
        seat: &Seat,
        mode: Mode,
        micro_batch: u32,
        data: &MicroBatchData,
        (place, dx_bte): (Place, Tensor),
    ) -> Result<(), EngineError> {
        let bridge = seat.stage.bridge.as_ref().map(|bridge| &bridge.embedding);
        let (table, ids_bt) = match place {
            Place::Bridge => (bridge, &data.ids_bt),
            _ => (seat.stage.embedding.as_ref(), data.first_ids()),
        };
        let Some(table) = table else { return Ok(()) };
        self.reduction.begin(self.parameters, place, micro_batch)?;
        table.look_up_backward(ids_bt, &dx_bte, &self.pass(mode, micro_batch, data))?;
        self.finish_place(place, micro_batch)
    }
}

/// The losses with their numbers. They are read together, at the end: each look at a GPU waits for all that it was told
/// to do.
fn losses(of: Vec<(MicroLoss, Tensor)>) -> Result<Vec<MicroLoss>, EngineError> {
    let values = of.iter().map(|(_, value)| value.f_view([1])).collect::<Result<Vec<_>, _>>()?;
    if values.is_empty() {
        return Ok(Vec::new());
    }
    let values = Vec::<f64>::try_from(on_device(&Tensor::f_cat(&values, 0)?, Device::Cpu)?)?;
    Ok(of.into_iter().zip(values).map(|((told, _), loss)| MicroLoss { loss, ..told }).collect())
}

/// The tag of a message: of the edge from stage `s` to `s + 1`, in one of its directions.
fn edge(stage: u32, forward: bool, receiving: bool) -> Axis {
    let stage = if forward == receiving { stage.wrapping_sub(1) } else { stage };
    Axis::Edge { stage, backward: !forward }
}

fn refuse(action: &Action, reason: &str) -> EngineError {
    EngineError::Action { action: action.to_string(), reason: reason.to_owned() }
}
