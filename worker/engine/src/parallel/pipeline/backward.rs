//! The backward pass of a micro-batch on a stage, and its weight gradients, at once or by an action of their own.

use coxswain_native::ops::DeferredWgrads;
use coxswain_types::params::Place;
use tch::{Kind, Tensor};

use super::edges::Direction;
use super::parts::{PartState, StagePart};
use super::stash::{LaterWgrads, LookUpGrad, PlaceWgrads, Stash, Visit};
use super::{Mode, Runner, StageTask};
use crate::EngineError;
use crate::data::MicroBatchData;
use crate::parallel::Cut;

/// When weight gradients are computed.
pub(super) enum Wgrads {
    /// With the pass.
    Now,
    /// By a later action; so far these wait.
    Later(LaterWgrads),
}

impl Runner<'_> {
    /// The backward pass for the input; the weight gradients wait for [`Runner::weight_backward`].
    pub(super) fn input_backward(
        &mut self,
        task: &StageTask<'_>,
        stash: &mut Stash,
    ) -> Result<(), EngineError> {
        self.context.wgrad_queue.hold(true);
        let done = self.backward(task, &mut Wgrads::Later(LaterWgrads::default()), stash);
        self.context.wgrad_queue.hold(false);
        done
    }

    /// The backward pass: through the head or from the next stage's gradient, part by part, to the stage before or to
    /// the embedding.
    pub(super) fn backward(
        &mut self,
        task: &StageTask<'_>,
        wgrads: &mut Wgrads,
        stash: &mut Stash,
    ) -> Result<(), EngineError> {
        let grad = stash.receive(task, Direction::Backward)?;
        let flight = stash.land(task)?;
        let data = &flight.data;
        let mut dx = self.enter_backward(task, flight.head, grad, wgrads)?;
        let mut parts = flight.parts;
        while let Some(state) = parts.pop() {
            self.links.expect_wanted()?;
            let (part, visit) = (state.part, visit(task, state.part, parts.last()));
            // The queue is the model's, and what is deferred goes where `at_place` directs it.
            let cut = state.graph(task.seat, &self.pass(task, data))?;
            dx = self.at_place(task, visit, wgrads, || cut.backward(&dx))?;
            if let (StagePart::Bridge(shape), Some(bridge)) = (part, &task.seat.stage.bridge) {
                let (own, memory) = bridge.part(&dx, shape)?;
                dx = memory.f_contiguous()?;
                let own = LookUpGrad { place: Place::Bridge, dx_bte: own.f_contiguous()? };
                self.at_look_up(task, data, own, wgrads)?;
            }
        }
        if task.seat.stage.embedding.is_some() {
            self.at_look_up(task, data, LookUpGrad { place: Place::Embedding, dx_bte: dx }, wgrads)?;
        } else {
            stash.make(task, Direction::Backward, dx);
        }
        if let Wgrads::Later(later) = wgrads {
            stash.defer(task, flight.data, std::mem::take(later));
        }
        Ok(())
    }

    /// The weight gradients that a backward pass for the input has left.
    pub(super) fn weight_backward(
        &mut self,
        task: &StageTask<'_>,
        stash: &mut Stash,
    ) -> Result<(), EngineError> {
        let (data, later) = stash.take_deferred(task)?;
        for PlaceWgrads { visit, wgrads } in later.places {
            self.links.expect_wanted()?;
            self.reduction.begin(self.parameters, visit.place, task.micro_batch)?;
            DeferredWgrads::run(wgrads)?;
            self.leave_place(task, visit)?;
        }
        for look_up in later.look_ups {
            self.look_up_grad(task, &data, &look_up)?;
        }
        Ok(())
    }

    /// The gradient of the stage's output: through its head, or as the next stage has sent it.
    fn enter_backward(
        &mut self,
        task: &StageTask<'_>,
        head: Option<Cut>,
        grad: Option<Tensor>,
        wgrads: &mut Wgrads,
    ) -> Result<Tensor, EngineError> {
        let Mode::Train { multiplier, .. } = task.mode else {
            return Err(task.refuse("an evaluation has no backward"));
        };
        match (head, grad) {
            (Some(cut), None) => {
                let scale = Tensor::f_full([], multiplier, (Kind::Double, self.context.device))?;
                let head = Visit { place: Place::Head, last: true };
                self.at_place(task, head, wgrads, || cut.backward(&scale))
            }
            (None, Some(received)) => Ok(received),
            _ => Err(task.refuse("its gradient is not there, or not its own")),
        }
    }

    /// Runs a part of backward. The weight gradients of its place are computed at once, or wait.
    fn at_place(
        &mut self,
        task: &StageTask<'_>,
        visit: Visit,
        wgrads: &mut Wgrads,
        part: impl FnOnce() -> Result<Tensor, EngineError>,
    ) -> Result<Tensor, EngineError> {
        match wgrads {
            Wgrads::Later(later) => {
                let dx = part()?;
                later.places.push(PlaceWgrads { visit, wgrads: self.context.wgrad_queue.take() });
                Ok(dx)
            }
            Wgrads::Now => {
                self.reduction.begin(self.parameters, visit.place, task.micro_batch)?;
                let dx = part()?;
                self.context.wgrad_queue.flush()?;
                self.leave_place(task, visit)?;
                Ok(dx)
            }
        }
    }

    /// The gradient of a look-up, computed at once or kept for later.
    fn at_look_up(
        &mut self,
        task: &StageTask<'_>,
        data: &MicroBatchData,
        look_up: LookUpGrad,
        wgrads: &mut Wgrads,
    ) -> Result<(), EngineError> {
        match wgrads {
            Wgrads::Later(later) => {
                later.look_ups.push(look_up);
                Ok(())
            }
            Wgrads::Now => self.look_up_grad(task, data, &look_up),
        }
    }

    /// The gradient of a look-up, of the embedding of the first stack or of the decoder behind it.
    fn look_up_grad(
        &mut self,
        task: &StageTask<'_>,
        data: &MicroBatchData,
        LookUpGrad { place, dx_bte }: &LookUpGrad,
    ) -> Result<(), EngineError> {
        let stage = &task.seat.stage;
        let (table, ids_bt) = match place {
            Place::Bridge => (stage.bridge.as_ref().map(|bridge| &bridge.embedding), &data.ids_bt),
            _ => (stage.embedding.as_ref(), data.first_ids()),
        };
        let Some(table) = table else { return Ok(()) };
        self.reduction.begin(self.parameters, *place, task.micro_batch)?;
        table.look_up_backward(ids_bt, dx_bte, &self.pass(task, data))?;
        self.leave_place(task, Visit { place: *place, last: true })
    }

    /// A visit is over; with the last one the gradients of the place are whole.
    fn leave_place(&mut self, task: &StageTask<'_>, visit: Visit) -> Result<(), EngineError> {
        if !visit.last {
            return Ok(());
        }
        if let Some(probe) = &mut self.probe {
            probe.gradients(task.micro_batch, visit.place, self.reduction, self.parameters)?;
        }
        self.reduction.end(self.parameters, visit.place, task.micro_batch)
    }
}

/// The place of a part in the backward pass, which the part `next` follows.
fn visit(task: &StageTask<'_>, part: StagePart, next: Option<&PartState>) -> Visit {
    match part {
        // Its look-up follows.
        StagePart::Stem => Visit { place: Place::Embedding, last: false },
        StagePart::Bridge(_) => Visit { place: Place::Bridge, last: false },
        StagePart::Layer(at, _) => {
            let next = next.map(|state| state.part);
            let last = !matches!(next, Some(StagePart::Layer(other, _)) if other == at);
            Visit { place: task.seat.stage.places[at], last }
        }
    }
}
