//! The forward pass of a micro-batch on a stage.

use coxswain_types::params::Place;
use tch::Tensor;

use super::edges::Direction;
use super::parts::{PartChain, StagePart};
use super::stash::{Flight, Stash};
use super::{MicroLoss, Mode, Runner, StageTask};
use crate::EngineError;
use crate::data::MicroBatchData;
use crate::model::{HeadModule, Keeps, pieces};
use crate::parallel::Cut;

impl Runner<'_> {
    /// Runs the task's stage on the output of the stage before it, or on the micro-batch's tokens.
    pub(super) fn forward(
        &mut self,
        task: &StageTask<'_>,
        input: Option<Tensor>,
        data: MicroBatchData,
        stash: &mut Stash,
    ) -> Result<(), EngineError> {
        let data = self.placed(task, data)?;
        let training = task.mode != Mode::Evaluate;
        let mut chain = PartChain { seat: task.seat, kept: training.then(Vec::new) };
        let x_btd = self.enter_stage(task, input, &data, &mut chain)?;
        let x_btd = self.layers(task, x_btd, &data, &mut chain)?;
        let head = match &task.seat.stage.head {
            Some(head) => self.head(task, head, &x_btd, &data, stash)?,
            None => {
                stash.make(task, Direction::Forward, x_btd);
                None
            }
        };
        if let Some(parts) = chain.kept {
            stash.take_off(task, Flight { data, parts, head });
        }
        Ok(())
    }

    /// A micro-batch where the rank computes. Numbers out of range are found before, on the host.
    fn placed(&self, task: &StageTask<'_>, data: MicroBatchData) -> Result<MicroBatchData, EngineError> {
        let (stage, pass) = (&task.seat.stage, self.pass(task, &data));
        if let Some(table) = &stage.embedding {
            table.expect_rows(data.first_ids(), &pass)?;
        }
        if let Some(bridge) = &stage.bridge {
            bridge.embedding.expect_rows(&data.ids_bt, &pass)?;
        }
        if let Some(head) = &stage.head {
            head.expect_targets(&data.targets_n)?;
        }
        data.on(self.context.device)
    }

    /// What the first layer of the stage reads.
    fn enter_stage(
        &self,
        task: &StageTask<'_>,
        input: Option<Tensor>,
        data: &MicroBatchData,
        chain: &mut PartChain<'_>,
    ) -> Result<Tensor, EngineError> {
        match (&task.seat.stage.embedding, input) {
            (Some(table), None) => {
                let pass = self.pass(task, data);
                let x_bte = tch::no_grad(|| table.look_up(data.first_ids(), &pass))?;
                if table.has_stem(&pass) {
                    chain.run(StagePart::Stem, Keeps::Graph, x_bte, &pass)
                } else {
                    Ok(x_bte)
                }
            }
            (None, Some(received)) => Ok(received),
            _ => Err(EngineError::Other(format!(
                "stage {}, micro-batch {}: its input is not there, or not its own",
                task.seat.index, task.micro_batch
            ))),
        }
    }

    fn layers(
        &mut self,
        task: &StageTask<'_>,
        mut x_btd: Tensor,
        data: &MicroBatchData,
        chain: &mut PartChain<'_>,
    ) -> Result<Tensor, EngineError> {
        let stage = &task.seat.stage;
        for at in 0..stage.layers.len() {
            if let Some(bridge) = stage.bridge_before(at) {
                let pass = self.pass(task, data);
                let x_bte = tch::no_grad(|| bridge.embedding.look_up(&data.ids_bt, &pass))?;
                let part = StagePart::Bridge([x_bte.size()[0], x_bte.size()[1]]);
                let flat = bridge.join(&x_bte, &x_btd)?;
                x_btd = chain.run(part, Keeps::Graph, flat, &pass)?;
                self.probe_activation(task, Place::Bridge, &x_btd)?;
            }
            for &(piece, keeps) in pieces(stage.recompute[at]) {
                self.links.expect_wanted()?;
                x_btd = chain.run(StagePart::Layer(at, piece), keeps, x_btd, &self.pass(task, data))?;
            }
            self.probe_activation(task, stage.places[at], &x_btd)?;
        }
        Ok(x_btd)
    }

    /// The loss of the micro-batch, and in training its graph.
    fn head(
        &mut self,
        task: &StageTask<'_>,
        head: &HeadModule,
        x_btd: &Tensor,
        data: &MicroBatchData,
        stash: &mut Stash,
    ) -> Result<Option<Cut>, EngineError> {
        self.links.expect_wanted()?;
        let pass = self.pass(task, data);
        let loss = |x: &Tensor| head.loss(x, &data.targets_n, data.weights_n.as_ref(), &pass);
        let (value, cut) = match task.mode {
            Mode::Train { .. } => {
                let cut = Cut::run(x_btd, loss)?;
                (cut.output()?, Some(cut))
            }
            Mode::Evaluate => (tch::no_grad(|| loss(x_btd))?, None),
        };
        self.probe_activation(task, Place::Head, &value)?;
        let right = match task.mode {
            Mode::Train { .. } => 0,
            Mode::Evaluate => tch::no_grad(|| head.right(x_btd, &data.targets_n))?,
        };
        let &MicroBatchData { tokens, weight, .. } = data;
        let loss = MicroLoss { micro_batch: task.micro_batch, loss: f64::NAN, tokens, weight, right };
        stash.losses.push((loss, value));
        Ok(cut)
    }
}
