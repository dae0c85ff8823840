//! The loop: build the stage, then step, evaluate, save, until told to stop.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use coxswain_comm::{Axis, DataPort, Links, Pipe, Store};
use coxswain_files::StoreFolder;
use coxswain_native::memory;
use coxswain_types::Step;
use coxswain_types::activity::{EnginePhase, EngineWork};
use coxswain_types::assignment::Assignment;
use coxswain_types::job::{Lengths, Precision};
use coxswain_types::model::Head;
use coxswain_types::params::{norm_slots, parameter_table};
use coxswain_types::schedule::Action;
use coxswain_types::status::{Begun, Directive, Pace, Saved, StepReport, ValidationResult};
use tch::Device;

use super::closing::{Closing, Vote, close};
use super::norms::norms;
use super::rate::learning_rate;
use super::saving;
use super::shared_folder::expect_shared;
use super::state::State;
use super::takeover::take_up;
use super::verdict::{Trainer, Verdict};
use crate::EngineError;
use crate::data::{MicroBatchData, Tokens};
use crate::error::Doing;
use crate::model::{Context, Rotary};
use crate::parallel::{Finding, GradientSum, MicroLoss, Mode, Probe, Runner, Seat, seats};

/// What a rank has to tell while it trains.
#[derive(Clone, Debug)]
pub enum EngineEvent {
    /// The network stands; aborting these links ends every wait of the engine.
    Linked(Links),
    /// The stage is built and training starts after this step. The lead rank reports the steps before it
    /// again that the coordinator may not have heard of.
    Ready(Begun, Vec<StepReport>),
    /// A step was applied.
    Stepped(Pace),
    /// What the lead rank reports of it.
    Reported(StepReport),
    /// This rank's part of a checkpoint is on disk.
    Saved(Saved),
}

/// The engine's view of what is wanted, and its way to tell. Called from the engine's thread.
pub trait Control {
    /// The newest directive that this rank has seen.
    fn directive(&self) -> Directive;
    /// Tells.
    fn tell(&self, event: EngineEvent);
}

/// A rank at work.
pub struct Engine {
    assignment: Assignment,
    run: StoreFolder,
    links: Links,
    pipe: Pipe,
    context: Rc<Context>,
    seats: Vec<Seat>,
    reduction: GradientSum,
    state: State,
    tokens: Tokens,
    rotary: Option<Rotary>,
    /// How far to train.
    run_to: Step,
    /// It saves after the first step from this one on, where it has saved nothing as new.
    save_after: Step,
    /// The newest step of which this rank has written its part of a checkpoint.
    saved: Step,
}

impl Engine {
    /// Joins the generation, builds the stage and gets its values: from what this rank and others hold in
    /// memory of an earlier generation, or from the checkpoint.
    ///
    /// `address` is the local address that peers can reach; `runtime` must be that of a checkpoint. Where
    /// this fails, `remains` still has what it had.
    pub fn build(
        assignment: Assignment,
        store: impl Store,
        port: &Arc<DataPort>,
        (runtime, device): (&str, Device),
        control: &dyn Control,
        remains: &mut Option<State>,
    ) -> Result<Engine, EngineError> {
        // Before the first tensor: sums and some products depend on the number of threads.
        tch::set_num_threads(assignment.threads as i32);
        memory::install();
        memory::reset_peak();
        let a = &assignment;
        let run = StoreFolder::from(Path::new(&a.directory));
        // Before any file is looked at: how long that takes is a matter of this rank's storage, and the others
        // wait for each other to join only so long.
        let links = Links::join(store, a.rank.0, a.world, port, a.rendezvous_ms, a.operation_ms).map_err(
            |cause| EngineError::Joining {
                generation: a.generation.0,
                rank: a.rank.0,
                address: port.address().to_string(),
                cause,
            },
        )?;
        links.enter(0, EngineWork::Phase(EnginePhase::CheckingFiles));
        control.tell(EngineEvent::Linked(links.clone()));
        expect_shared(&run, &links, a)?;
        let tokens = Tokens::open(&run, &a.data, &a.spec)?;

        links.enter(0, EngineWork::Phase(EnginePhase::GettingValues));
        let (state, origin) = take_up(a, &run, (runtime, device), &links, remains)?;
        *remains = None;
        let context = Rc::new(Context::of(a, links.group(&a.tensor_group, Axis::Tensor)?, device));
        let seats = seats(a, &state.parameters, &context)?;
        let reduction = GradientSum::new(a, &state.parameters, &links)?;
        let lengths = Lengths::of(&a.spec.model, &a.spec.train);
        let rotary = Rotary::new(&a.spec.model, 0, lengths.source.max(lengths.target).into(), device)?;
        let pipe = Pipe::new()?;
        let reports = if links.rank() == 0 { state.reports.iter().cloned().collect() } else { Vec::new() };
        control.tell(EngineEvent::Ready(Begun { step: Step(state.mark.step), origin }, reports));
        Ok(Engine {
            run_to: Step(a.spec.train.steps),
            save_after: Step(0),
            saved: a.resume.as_ref().map_or(Step(0), |resume| resume.step),
            assignment,
            run,
            links,
            pipe,
            context,
            seats,
            reduction,
            state,
            tokens,
            rotary,
        })
    }

    /// Trains until the agreed revision's `run_to` is reached, and saves there.
    pub fn run(&mut self, control: &dyn Control) -> Result<(), EngineError> {
        let done = self.train(control);
        if done.is_err() {
            // No peer will take what is still under way; the thread of sends must not wait for it.
            self.links.abort();
        }
        done
    }

    /// What another generation can go on with.
    pub fn leave(self) -> State {
        self.state
    }

    fn step(&self) -> Step {
        Step(self.state.mark.step)
    }

    fn train(&mut self, control: &dyn Control) -> Result<(), EngineError> {
        loop {
            self.settle(control)?;
            if self.step() >= self.run_to {
                return Ok(());
            }
            self.train_step(control)?;
        }
    }

    /// What the newest step asks for beside being taken: the validation loss, a report, a checkpoint. An
    /// earlier generation may have left it undone.
    fn settle(&mut self, control: &dyn Control) -> Result<(), EngineError> {
        let (step, last) = (self.step(), self.step() >= self.run_to);
        let due = |every: u64| last || (every > 0 && step.0.is_multiple_of(every));
        if let Some(mut report) = self.state.unfinished.clone() {
            if due(self.assignment.spec.train.validate_every) {
                self.links.enter(step.0, EngineWork::Phase(EnginePhase::Evaluating));
                report.validation = self.evaluate()?;
            }
            self.state.remember(&report);
            if self.links.rank() == 0 {
                control.tell(EngineEvent::Reported(report));
            }
        }
        let asked = self.saved < self.save_after && self.save_after <= step;
        if self.saved < step && (asked || due(self.assignment.spec.checkpoint.every)) {
            self.links.enter(step.0, EngineWork::Phase(EnginePhase::WritingCheckpoint));
            self.save(control)?;
            self.saved = step;
        }
        Ok(())
    }

    fn train_step(&mut self, control: &dyn Control) -> Result<(), EngineError> {
        let (started, waited_us) = (Instant::now(), self.links.waited_us());
        let (step, before) = (self.step().next(), self.state.trainer);
        let losses = self.gradients(None)?;
        let state = &mut self.state;
        self.links.enter(step.0, EngineWork::Phase(EnginePhase::ClosingStep));
        if let Some(copy) = &state.copy {
            copy.exchange(&state.optimizer, &self.reduction, &self.links)?;
        }
        let group = &self.assignment.optimizer_group;
        let norms = norms(&state.parameters, &self.reduction, group, &self.links)?;
        state.vote(&self.reduction)?;
        let losses = if self.assignment.tensor_index == 0 { losses } else { Vec::new() };
        let vote = Vote { directive: control.directive(), norms, losses };
        let train = &self.assignment.spec.train;
        let (closing, list) =
            close(&self.links, &vote, self.assignment.norm_slots, train.global_micro_batches)?;
        self.links.enter(step.0, EngineWork::Phase(EnginePhase::UpdatingWeights));
        let verdict = state.close(&closing, list, &self.context.group)?;
        if verdict == Verdict::Stop {
            self.reduction.clear();
            return Err(self.culprit(step, &closing)?);
        }
        let seconds = started.elapsed().as_secs_f64();
        let report = self.report(&closing, seconds, &before, verdict == Verdict::Skip);
        self.state.unfinished = Some(report);
        self.run_to = closing.directive.run_to.min(Step(self.assignment.spec.train.steps));
        self.save_after = closing.directive.save_after;
        self.state.gather(&self.reduction, &self.links, &self.assignment.optimizer_group)?;
        self.reduction.clear();
        let waited_us = self.links.waited_us() - waited_us;
        let busy_us = (started.elapsed().as_micros() as u64).saturating_sub(waited_us);
        control.tell(EngineEvent::Stepped(Pace { step, busy_us }));
        Ok(())
    }

    /// Forwards, backwards and the sum of gradients of the step that follows.
    fn gradients(&mut self, probe: Option<&mut Probe>) -> Result<Vec<MicroLoss>, EngineError> {
        let actions = std::mem::take(&mut self.assignment.train);
        let step = self.state.mark.step;
        let multiplier = self.state.trainer.multiplier(&self.assignment.spec.train);
        let mode = Mode::Train { step, multiplier };
        let losses = self.interpret(&actions, mode, probe, &|tokens, mb| tokens.train(step, mb));
        self.assignment.train = actions;
        let losses = losses?;
        self.links.enter(step + 1, EngineWork::Phase(EnginePhase::AddingGradients));
        self.reduction.finish(&self.state.parameters)?;
        Ok(losses)
    }

    /// Runs the step once more, looking at every output and every gradient, and says where the first
    /// value arose that is not finite.
    fn culprit(&mut self, step: Step, closing: &Closing) -> Result<EngineError, EngineError> {
        let model = self.assignment.spec.model.clone();
        let table = parameter_table(&model);
        let mut probe = Probe::new(self.assignment.rank.0, model.clone(), table.clone());
        self.gradients(Some(&mut probe))?;
        let own = probe.first.map_or(f64::INFINITY, Finding::code);
        let least =
            |lists: Vec<Vec<f64>>| vec![lists.iter().map(|list| list[0]).fold(f64::INFINITY, f64::min)];
        let first = self
            .links
            .close(&[own], least)
            .doing(|| "looking for the first value that is not finite".to_owned())?;
        let finding = first.first().copied().and_then(Finding::decode);
        let place = finding.map_or_else(
            || "the sum of gradients over micro-batches".to_owned(),
            |finding| finding.describe(&table, &model),
        );
        Ok(EngineError::NotFinite {
            step: step.0,
            in_a_row: self.state.trainer.skipped + 1,
            norm: closing.mean_norm(self.state.trainer.multiplier(&self.assignment.spec.train)),
            loss: closing.mean_loss(),
            place,
        })
    }

    fn interpret(
        &mut self,
        actions: &[Action],
        mode: Mode,
        probe: Option<&mut Probe>,
        fetch: &dyn Fn(&Tokens, u32) -> Result<MicroBatchData, EngineError>,
    ) -> Result<Vec<MicroLoss>, EngineError> {
        let (a, tokens) = (&self.assignment, &self.tokens);
        let train = &a.spec.train;
        let mut runner = Runner {
            seats: &self.seats,
            context: &self.context,
            parameters: &self.state.parameters,
            reduction: &mut self.reduction,
            links: &self.links,
            pipe: &self.pipe,
            train,
            rotary: self.rotary.as_ref(),
            lengths: Lengths::of(&a.spec.model, train),
            probe,
        };
        runner.run(actions, mode, &|micro_batch| fetch(tokens, micro_batch))
    }

    /// The loss over the whole validation text, if there is one.
    fn evaluate(&mut self) -> Result<Option<ValidationResult>, EngineError> {
        let rounds = self.tokens.validation_rounds();
        if rounds == 0 {
            return Ok(None);
        }
        let micro_batches = self.assignment.spec.train.global_micro_batches;
        let actions = std::mem::take(&mut self.assignment.evaluate);
        let mut losses = Vec::new();
        for round in 0..rounds {
            let fetch = |tokens: &Tokens, mb: u32| tokens.validation(round, mb);
            let part = self.interpret(&actions, Mode::Evaluate, None, &fetch)?;
            losses.extend(part.into_iter().map(|loss| MicroLoss {
                micro_batch: loss.micro_batch + round as u32 * micro_batches,
                ..loss
            }));
        }
        self.assignment.evaluate = actions;
        // All tensor ranks of the last stage know the loss; the first of them brings it.
        let losses = if self.assignment.tensor_index == 0 { losses } else { Vec::new() };
        let right: u64 = losses.iter().map(|loss| loss.right).sum();
        let vote = Vote { losses, ..Vote::default() };
        let (closing, _) = close(&self.links, &vote, 0, rounds as u32 * micro_batches)?;
        let accuracy = match self.assignment.spec.model.head {
            Head::Pooled { .. } => {
                let all = self.links.close_sum(&[right as f64]);
                let all = all.doing(|| "adding up the classes that were told right".to_owned())?;
                all.first().map(|right| right / closing.tokens as f64)
            }
            Head::Lm | Head::MaskedLm { .. } => None,
        };
        let bits = closing.loss / std::f64::consts::LN_2;
        Ok(Some(ValidationResult {
            loss: closing.mean_loss(),
            accuracy,
            // Masked tokens and answers are a part of the text, and the masked know what follows them: no code
            // of so many bits.
            bits_per_byte: match self.assignment.spec.model.head {
                Head::Lm
                    if self.assignment.spec.model.encoder_layers == 0
                        && !self.assignment.spec.train.pairs =>
                {
                    bits / self.assignment.data.validation_bytes as f64
                }
                Head::Lm | Head::MaskedLm { .. } | Head::Pooled { .. } => f64::NAN,
            },
        }))
    }

    /// What is told of a step; `trainer` is as it was before.
    fn report(&self, closing: &Closing, seconds: f64, trainer: &Trainer, skipped: bool) -> StepReport {
        let train = &self.assignment.spec.train;
        let scaled = train.precision == Precision::Fp16;
        let multiplier = trainer.multiplier(train);
        let mean = 1.0 / closing.weight / multiplier;
        StepReport {
            step: self.state.mark.step,
            loss: closing.mean_loss(),
            grad_norm: closing.mean_norm(multiplier),
            learning_rate: learning_rate(&train.optimizer, self.state.mark.step, train.steps),
            tokens: closing.tokens,
            tokens_per_second: closing.tokens as f64 / seconds,
            step_seconds: seconds,
            skipped,
            loss_scale: scaled.then_some(trainer.loss_scale),
            parameter_norms: if train.parameter_norms {
                self.parameter_norms(closing, mean)
            } else {
                BTreeMap::new()
            },
            validation: None,
        }
    }

    /// The gradient norm of each parameter, from the slots of its slices.
    fn parameter_norms(&self, closing: &Closing, mean: f64) -> BTreeMap<String, f64> {
        let table = parameter_table(&self.assignment.spec.model);
        let (first, count) = norm_slots(&table, self.assignment.shard_count);
        let ends = first.iter().skip(1).copied().chain([count]);
        let norm = |((parameter, start), end): ((&coxswain_types::params::Parameter, &u32), u32)| {
            let squares: f64 = closing.squares[*start as usize..end as usize].iter().sum();
            (parameter.name.clone(), squares.sqrt() * mean)
        };
        table.iter().zip(&first).zip(ends).map(norm).collect()
    }

    fn save(&self, control: &dyn Control) -> Result<(), EngineError> {
        let (a, state) = (&self.assignment, &self.state);
        let files = saving::save(
            &self.run,
            self.step(),
            a,
            &state.parameters,
            &state.optimizer,
            &state.trainer,
            &self.links,
        )?;
        control.tell(EngineEvent::Saved(Saved { step: self.step(), files }));
        Ok(())
    }
}
