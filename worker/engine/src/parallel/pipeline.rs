//! The interpreter of a step's actions. It decides nothing: it does what stands in the list.
//!
//! A receive is posted where it stands and awaited by the compute that needs it; a send starts
//! where it stands and ends by itself. A stage in flight is a chain of cuts, one for each part of a
//! layer, so backward finishes layer by layer.
//!
//! - [`Runner::run`]: the loop over actions.
//! - [`edges`]: which rank a message goes to or comes from, under which tag, in which shape.
//! - [`stash`]: what waits between actions: messages, activations in flight, later weight gradients.
//! - [`parts`]: the parts of a stage between cuts.
//! - [`forward`], [`backward`]: what a compute action does.

use coxswain_comm::{Links, Pipe};
use coxswain_types::activity::EngineWork;
use coxswain_types::job::{Lengths, TrainSpec};
use coxswain_types::params::Place;
use coxswain_types::schedule::{Action, Kind as Act};
use tch::{Device, Tensor};

use super::seat::Seat;
use super::{GradientSum, Probe};
use crate::EngineError;
use crate::data::MicroBatchData;
use crate::error::Doing;
use crate::model::{Context, Dropout, Parameters, Pass, Rotary, buffer, kind, on_device};

mod backward;
mod edges;
mod forward;
mod parts;
mod stash;

use backward::Wgrads;
use edges::{Direction, Edges};
use stash::Stash;

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
    pub reduction: &'a mut GradientSum,
    /// The network.
    pub links: &'a Links,
    /// Sends that have started.
    pub pipe: &'a Pipe,
    /// The training's numbers.
    pub train: &'a TrainSpec,
    /// Positions of a sample.
    pub rotary: Option<&'a Rotary>,
    /// Tokens of a sample.
    pub lengths: Lengths,
    /// Where the first value that is not finite is noted, when one is looked for.
    pub probe: Option<&'a mut Probe>,
}

/// An action, and what it is about.
#[derive(Clone, Copy)]
struct StageTask<'t> {
    action: &'t Action,
    seat: &'t Seat,
    mode: Mode,
    micro_batch: u32,
}

impl StageTask<'_> {
    fn refuse(&self, reason: &str) -> EngineError {
        refuse(self.action, reason)
    }
}

impl<'a> Runner<'a> {
    /// Runs `actions`; `fetch` gives a micro-batch's tokens. The result has the losses of the
    /// micro-batches in the order of the list, on the last stage.
    ///
    /// # Errors
    /// An action that does not fit those before it, and whatever fails below it.
    pub fn run(
        &mut self,
        actions: &[Action],
        mode: Mode,
        fetch: &dyn Fn(u32) -> Result<MicroBatchData, EngineError>,
    ) -> Result<Vec<MicroLoss>, EngineError> {
        let mut stash = Stash::default();
        for action in actions {
            self.links.expect_wanted()?;
            let shown = self.show(action, mode);
            let seat = seat_of(self.seats, action)?;
            let task = StageTask { action, seat, mode, micro_batch: action.micro_batch.0 };
            match action.kind {
                Act::RecvForward => self.post(&task, Direction::Forward, &mut stash)?,
                Act::RecvBackward => self.post(&task, Direction::Backward, &mut stash)?,
                Act::SendForward => self.send(&task, Direction::Forward, &mut stash)?,
                Act::SendBackward => self.send(&task, Direction::Backward, &mut stash)?,
                Act::Forward => {
                    let input = stash.receive(&task, Direction::Forward)?;
                    self.forward(&task, input, fetch(task.micro_batch)?, &mut stash)?;
                }
                Act::Backward => self.backward(&task, &mut Wgrads::Now, &mut stash)?,
                Act::Input => self.input_backward(&task, &mut stash)?,
                Act::Weight => self.weight_backward(&task, &mut stash)?,
            }
            if shown {
                self.links.ended(*action);
            }
        }
        self.pipe.drain().doing(|| "sending to a neighbouring stage".to_owned())?;
        losses(stash.losses)
    }

    /// Shows a compute action of a training step to those who ask what this rank does.
    fn show(&self, action: &Action, mode: Mode) -> bool {
        let computes = matches!(action.kind, Act::Forward | Act::Backward | Act::Input | Act::Weight);
        match mode {
            Mode::Train { step, .. } if computes => {
                self.links.enter(step + 1, EngineWork::Action(*action));
                true
            }
            Mode::Train { .. } | Mode::Evaluate => false,
        }
    }

    /// Posts the receive of a message into the task's stage.
    fn post(&self, task: &StageTask<'_>, direction: Direction, stash: &mut Stash) -> Result<(), EngineError> {
        let edge = direction.into(task.seat);
        let edge = edge.ok_or_else(|| {
            EngineError::Other(format!("stage {} has no neighbour to receive from", task.seat.index))
        })?;
        let shape = self.edges().shape(&task.seat.stage.range, direction);
        let x = buffer(&shape, kind(self.context.precision), self.context.device)?;
        let transfer = self.links.recv(&x, edge.peer, edge.axis)?;
        stash.post(task, direction, transfer, x);
        Ok(())
    }

    /// Starts to send what the task's stage has made.
    fn send(&self, task: &StageTask<'_>, direction: Direction, stash: &mut Stash) -> Result<(), EngineError> {
        let edge = direction.out_of(task.seat).ok_or_else(|| task.refuse("there is no stage to send to"))?;
        let x = stash.take_made(task, direction).ok_or_else(|| task.refuse("it has not been computed"))?;
        Ok(self.pipe.push(self.links.send(&x.f_contiguous()?, edge.peer, edge.axis)?)?)
    }

    fn edges(&self) -> Edges {
        Edges::new(self.context, self.train.micro_batch_size, self.lengths)
    }

    fn pass<'p>(&'p self, task: &StageTask<'_>, data: &'p MicroBatchData) -> Pass<'p> {
        let dropout = match task.mode {
            Mode::Train { step, .. } => Dropout::of(self.train, step, task.micro_batch),
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

    /// Looks for values of an activation that are not finite, where a step is probed.
    fn probe_activation(
        &mut self,
        task: &StageTask<'_>,
        place: Place,
        x: &Tensor,
    ) -> Result<(), EngineError> {
        match &mut self.probe {
            Some(probe) => probe.activation(task.micro_batch, place, x),
            None => Ok(()),
        }
    }
}

/// The stage of an action.
fn seat_of<'a>(seats: &'a [Seat], action: &Action) -> Result<&'a Seat, EngineError> {
    let seat = seats.iter().find(|seat| seat.index == action.stage);
    seat.ok_or_else(|| refuse(action, "the stage is on another rank"))
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

fn refuse(action: &Action, reason: &str) -> EngineError {
    EngineError::Action { action: action.to_string(), reason: reason.to_owned() }
}
