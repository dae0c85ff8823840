//! The interpreter of a step's actions. It decides nothing: it does what stands in the list.
//!
//! A receive is posted where it stands and awaited by the compute that needs it; a send starts
//! where it stands and is awaited when its buffer is wanted back. A stage in flight is a chain of
//! cuts, one for each layer, so backward finishes layer by layer.

use std::collections::BTreeMap;

use coxswain_comm::{Axis, Links, Pipe, Transfer};
use coxswain_types::job::Checkpointing;
use coxswain_types::params::Place;
use coxswain_types::schedule::{Action, Kind as Act};
use tch::{Device, Kind, Tensor};

use super::{Cut, Reduction};
use crate::EngineError;
use crate::data::MicroBatchData;
use crate::error::Doing;
use crate::model::{Parameters, Rotary, Stage, buffer};

/// Whether gradients are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Forward and backward.
    Train,
    /// Forward only.
    Evaluate,
}

/// The summed loss of a micro-batch, on the last stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MicroLoss {
    /// Which micro-batch of the step.
    pub micro_batch: u32,
    /// The sum over its tokens, in nats.
    pub loss: f64,
    /// How many tokens counted.
    pub tokens: u64,
}

/// What a layer keeps between forward and backward.
enum Kept {
    /// All of it.
    Cut(Cut),
    /// The input; the rest is computed again.
    Input(Tensor),
}

/// A micro-batch between its forward and its backward.
struct Flight {
    data: MicroBatchData,
    layers: Vec<Kept>,
    head: Option<Cut>,
}

/// Runs lists of actions on one stage.
pub struct Runner<'a> {
    /// The stage's weights.
    pub stage: &'a Stage,
    /// Its parameters, for the buckets.
    pub parameters: &'a Parameters,
    /// Where gradients go.
    pub reduction: &'a mut Reduction,
    /// The network.
    pub links: &'a Links,
    /// The rank of the previous stage.
    pub previous: Option<u32>,
    /// The rank of the next stage.
    pub next: Option<u32>,
    /// What layers keep.
    pub checkpointing: Checkpointing,
    /// The layers of this stage.
    pub places: Vec<Place>,
    /// Sends that may be in flight: the stage's lead over the next one and two more.
    pub in_flight_max: usize,
    /// Positions of a sample.
    pub rotary: &'a Rotary,
    /// Shape of activations, `[b, t, d]`.
    pub shape: [i64; 3],
}

/// What one list leaves behind while it runs.
struct Progress {
    posted: BTreeMap<(bool, u32), (Transfer, Tensor)>,
    made: BTreeMap<(bool, u32), Tensor>,
    flights: BTreeMap<u32, Flight>,
    pipe: Pipe,
    losses: Vec<MicroLoss>,
}

impl Runner<'_> {
    /// Runs `actions`; `fetch` gives a micro-batch's tokens. The result has the losses of the
    /// micro-batches in the order of the list, on the last stage.
    pub fn run(
        &mut self,
        actions: &[Action],
        mode: Mode,
        fetch: &dyn Fn(u32) -> Result<MicroBatchData, EngineError>,
    ) -> Result<Vec<MicroLoss>, EngineError> {
        let mut progress = Progress {
            posted: BTreeMap::new(),
            made: BTreeMap::new(),
            flights: BTreeMap::new(),
            pipe: Pipe::new(self.in_flight_max),
            losses: Vec::new(),
        };
        for action in actions {
            self.links.expect_wanted()?;
            let micro_batch = action.micro_batch.0;
            match action.kind {
                Act::RecvForward => self.post(&mut progress, true, micro_batch)?,
                Act::RecvBackward => self.post(&mut progress, false, micro_batch)?,
                Act::SendForward | Act::SendBackward => self.send(&mut progress, action)?,
                Act::Forward => {
                    let input = self.received(&mut progress, true, micro_batch)?;
                    self.forward(&mut progress, mode, micro_batch, input, fetch(micro_batch)?)?;
                }
                Act::Backward => {
                    let grad = self.received(&mut progress, false, micro_batch)?;
                    self.backward(&mut progress, action, grad)?;
                }
            }
        }
        progress.pipe.drain().doing(|| "sending to a neighbouring stage".to_owned())?;
        Ok(progress.losses)
    }

    fn peer(&self, forward: bool) -> Option<u32> {
        if forward { self.previous } else { self.next }
    }

    fn post(&self, progress: &mut Progress, forward: bool, micro_batch: u32) -> Result<(), EngineError> {
        let from = self
            .peer(forward)
            .ok_or_else(|| EngineError::Other("a receive from a stage that does not exist".to_owned()))?;
        let into = buffer(&self.shape)?;
        let transfer = self.links.recv(&into, from, Axis::Pipeline)?;
        progress.posted.insert((forward, micro_batch), (transfer, into));
        Ok(())
    }

    /// What was received for a compute action; nothing at the pipeline's ends.
    fn received(
        &self,
        progress: &mut Progress,
        forward: bool,
        micro_batch: u32,
    ) -> Result<Option<Tensor>, EngineError> {
        let Some((transfer, tensor)) = progress.posted.remove(&(forward, micro_batch)) else {
            return Ok(None);
        };
        let what = if forward { "activations" } else { "gradient" };
        transfer.wait().doing(|| format!("waiting for the {what} of micro-batch {micro_batch}"))?;
        Ok(Some(tensor))
    }

    fn send(&self, progress: &mut Progress, action: &Action) -> Result<(), EngineError> {
        let forward = action.kind == Act::SendForward;
        let refuse =
            |reason: &str| EngineError::Action { action: action.to_string(), reason: reason.to_owned() };
        let to = self.peer(!forward).ok_or_else(|| refuse("there is no such stage"))?;
        let x = progress
            .made
            .remove(&(forward, action.micro_batch.0))
            .ok_or_else(|| refuse("there is nothing to send yet"))?;
        Ok(progress.pipe.push(self.links.send(&x.f_contiguous()?, to, Axis::Pipeline)?)?)
    }

    fn forward(
        &self,
        progress: &mut Progress,
        mode: Mode,
        micro_batch: u32,
        input: Option<Tensor>,
        data: MicroBatchData,
    ) -> Result<(), EngineError> {
        let mut x_btd = match (&self.stage.embedding, input) {
            (Some(table), None) => self.stage.embed(table, &data.ids_bt)?,
            (None, Some(received)) => received,
            _ => {
                return Err(EngineError::Other(format!("micro-batch {micro_batch} has no input of its own")));
            }
        };
        let mut layers = Vec::new();
        for layer in &self.stage.layers {
            let whole = mode == Mode::Train && self.checkpointing == Checkpointing::None;
            if whole {
                let cut = Cut::run(&x_btd, |x| layer.forward(x, self.rotary))?;
                x_btd = cut.output()?;
                layers.push(Kept::Cut(cut));
            } else {
                let output = tch::no_grad(|| layer.forward(&x_btd, self.rotary))?;
                if mode == Mode::Train {
                    layers.push(Kept::Input(x_btd));
                }
                x_btd = output;
            }
        }
        let mut head = None;
        if let Some(model_head) = &self.stage.head {
            let loss = |x: &Tensor| model_head.loss(x, &data.targets_n);
            let value = if mode == Mode::Train {
                let cut = Cut::run(&x_btd, loss)?;
                let value = cut.output()?;
                head = Some(cut);
                value
            } else {
                tch::no_grad(|| loss(&x_btd))?
            };
            let loss = value.f_double_value(&[])?;
            progress.losses.push(MicroLoss { micro_batch, loss, tokens: data.tokens });
        } else {
            progress.made.insert((true, micro_batch), x_btd);
        }
        if mode == Mode::Train {
            progress.flights.insert(micro_batch, Flight { data, layers, head });
        }
        Ok(())
    }

    fn backward(
        &mut self,
        progress: &mut Progress,
        action: &Action,
        grad: Option<Tensor>,
    ) -> Result<(), EngineError> {
        let micro_batch = action.micro_batch.0;
        let refuse =
            |reason: &str| EngineError::Action { action: action.to_string(), reason: reason.to_owned() };
        let flight =
            progress.flights.remove(&micro_batch).ok_or_else(|| refuse("its forward has not run"))?;
        let mut dx = match (flight.head, grad) {
            (Some(cut), None) => {
                let one = Tensor::f_ones([], (Kind::Double, Device::Cpu))?;
                self.in_bucket(Place::Head, micro_batch, |_| cut.backward(&one))?
            }
            (None, Some(received)) => received,
            _ => return Err(refuse("it has no gradient of its own")),
        };
        for (at, kept) in flight.layers.into_iter().enumerate().rev() {
            let (stage, rotary) = (self.stage, self.rotary);
            dx = self.in_bucket(self.places[at], micro_batch, |_| {
                let cut = match kept {
                    Kept::Cut(cut) => cut,
                    Kept::Input(x) => Cut::run(&x, |x| stage.layers[at].forward(x, rotary))?,
                };
                cut.backward(&dx)
            })?;
        }
        if let Some(table) = &self.stage.embedding {
            let ids = flight.data.ids_bt;
            self.in_bucket(Place::Embedding, micro_batch, |stage| stage.embed_grad(table, &ids, &dx))?;
        } else {
            progress.made.insert((false, micro_batch), dx);
        }
        Ok(())
    }

    /// Runs a piece of backward whose weight gradients belong to the bucket of `place`.
    fn in_bucket<T>(
        &mut self,
        place: Place,
        micro_batch: u32,
        piece: impl FnOnce(&Stage) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let at = self.parameters.bucket_of(place)?;
        let bucket = &self.parameters.buckets()[at];
        self.reduction.begin(at, bucket, micro_batch)?;
        let result = piece(self.stage)?;
        self.stage.tape.flush()?;
        self.reduction.end(at, bucket, micro_batch)?;
        Ok(result)
    }
}
