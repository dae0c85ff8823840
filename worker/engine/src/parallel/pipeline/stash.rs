//! What waits between the actions of a list.

use std::collections::BTreeMap;

use coxswain_comm::Transfer;
use coxswain_native::ops::DeferredWgrads;
use coxswain_types::params::Place;
use tch::Tensor;

use super::edges::Direction;
use super::parts::PartState;
use super::{MicroLoss, StageTask};
use crate::EngineError;
use crate::data::MicroBatchData;
use crate::error::Doing;
use crate::parallel::Cut;

/// A message between stages, by the stage that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct MessageKey {
    direction: Direction,
    stage: u32,
    micro_batch: u32,
}

impl MessageKey {
    fn of(task: &StageTask<'_>, direction: Direction) -> MessageKey {
        MessageKey { direction, stage: task.seat.index, micro_batch: task.micro_batch }
    }
}

/// A micro-batch on a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct FlightKey {
    stage: u32,
    micro_batch: u32,
}

impl FlightKey {
    fn of(task: &StageTask<'_>) -> FlightKey {
        FlightKey { stage: task.seat.index, micro_batch: task.micro_batch }
    }
}

/// A micro-batch between its forward and its backward.
pub(super) struct Flight {
    pub(super) data: MicroBatchData,
    /// The parts, in order.
    pub(super) parts: Vec<PartState>,
    pub(super) head: Option<Cut>,
}

/// A micro-batch between its backward for the input and that for the weights.
#[derive(Default)]
pub(super) struct LaterWgrads {
    /// In the order of the backward pass.
    pub(super) places: Vec<PlaceWgrads>,
    /// Of the embeddings.
    pub(super) look_ups: Vec<LookUpGrad>,
}

/// Weight gradients of a part of a place.
pub(super) struct PlaceWgrads {
    pub(super) visit: Visit,
    pub(super) wgrads: DeferredWgrads,
}

/// A part of a place in the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Visit {
    pub(super) place: Place,
    /// Whether the place is then done.
    pub(super) last: bool,
}

/// The gradient of what an embedding's table was looked up for.
pub(super) struct LookUpGrad {
    /// Where the table is.
    pub(super) place: Place,
    /// `[b, t, e]`.
    pub(super) dx_bte: Tensor,
}

/// What one list of actions leaves behind while it runs.
#[derive(Default)]
pub(super) struct Stash {
    /// Messages that are under way to this rank.
    posted: BTreeMap<MessageKey, (Transfer, Tensor)>,
    /// Messages that a stage of this rank has made.
    made: BTreeMap<MessageKey, Tensor>,
    flights: BTreeMap<FlightKey, Flight>,
    later: BTreeMap<FlightKey, (MicroBatchData, LaterWgrads)>,
    /// Each with the tensor that has its number.
    pub(super) losses: Vec<(MicroLoss, Tensor)>,
}

impl Stash {
    /// A message to the task's stage is under way into `x`.
    pub(super) fn post(&mut self, task: &StageTask<'_>, direction: Direction, transfer: Transfer, x: Tensor) {
        self.posted.insert(MessageKey::of(task, direction), (transfer, x));
    }

    /// The message to the task's stage, from the network or from this rank itself; `None` where there is none, as at
    /// the ends of the pipeline.
    pub(super) fn receive(
        &mut self,
        task: &StageTask<'_>,
        direction: Direction,
    ) -> Result<Option<Tensor>, EngineError> {
        let key = MessageKey::of(task, direction);
        if let Some((transfer, x)) = self.posted.remove(&key) {
            transfer.wait().doing(|| {
                let MessageKey { stage, micro_batch, .. } = key;
                format!("stage {stage} waiting for {} of micro-batch {micro_batch}", direction.what())
            })?;
            return Ok(Some(x));
        }
        Ok(self.made.remove(&MessageKey { stage: direction.source(key.stage), ..key }))
    }

    /// The task's stage has made a message.
    pub(super) fn make(&mut self, task: &StageTask<'_>, direction: Direction, x: Tensor) {
        self.made.insert(MessageKey::of(task, direction), x);
    }

    /// The message that the task's stage has made.
    pub(super) fn take_made(&mut self, task: &StageTask<'_>, direction: Direction) -> Option<Tensor> {
        self.made.remove(&MessageKey::of(task, direction))
    }

    /// The task's forward is done.
    pub(super) fn take_off(&mut self, task: &StageTask<'_>, flight: Flight) {
        self.flights.insert(FlightKey::of(task), flight);
    }

    /// What the task's forward has left.
    pub(super) fn land(&mut self, task: &StageTask<'_>) -> Result<Flight, EngineError> {
        let flight = self.flights.remove(&FlightKey::of(task));
        flight.ok_or_else(|| task.refuse("its forward has not run"))
    }

    /// The task's backward for the input is done.
    pub(super) fn defer(&mut self, task: &StageTask<'_>, data: MicroBatchData, later: LaterWgrads) {
        self.later.insert(FlightKey::of(task), (data, later));
    }

    /// What the task's backward for the input has left.
    pub(super) fn take_deferred(
        &mut self,
        task: &StageTask<'_>,
    ) -> Result<(MicroBatchData, LaterWgrads), EngineError> {
        let later = self.later.remove(&FlightKey::of(task));
        later.ok_or_else(|| task.refuse("its backward for the input has not run"))
    }
}
