//! The loop: build the stage, then step, evaluate, save, until told to stop.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Instant;

use coxswain_comm::{Axis, Links, Pipe, Store};
use coxswain_native::memory;
use coxswain_types::Step;
use coxswain_types::assignment::Assignment;
use coxswain_types::job::{Lengths, Precision};
use coxswain_types::model::Head;
use coxswain_types::params::{norm_slots, parameter_table};
use coxswain_types::schedule::Action;
use coxswain_types::status::{HeldOut, Saved, StepReport};

use super::closing::{Closing, Vote, close};
use super::norms::norms;
use super::optimizer::{Optimizer, StepNumbers};
use super::rate::learning_rate;
use super::shared_folder::expect_shared;
use super::verdict::{Trainer, Verdict};
use crate::data::{MicroBatchData, Tokens};
use crate::error::Doing;
use crate::model::{Context, Parameters, Rotary, initial_values};
use crate::parallel::{Finding, MicroLoss, Mode, Probe, Reduction, Runner, Seat, seats};
use crate::{EngineError, checkpoint};

/// What a rank has to tell while it trains.
#[derive(Clone, Debug)]
pub enum Event {
    /// The network stands; aborting these links ends every wait of the engine.
    Linked(Links),
    /// The stage is built and training starts after this step.
    Ready(Step),
    /// A step was applied. The lead rank reports it.
    Stepped(Step, Option<StepReport>),
    /// This rank's part of a checkpoint is on disk.
    Saved(Saved),
}

/// The engine's view of what is wanted, and its way to tell. Called from the engine's thread.
pub trait Control {
    /// The newest Desired revision that this rank has seen.
    fn revision(&self) -> u64;
    /// How far to train under a revision.
    fn run_to(&self, revision: u64) -> Step;
    /// Tells.
    fn tell(&self, event: Event);
}

/// A rank at work.
pub struct Engine {
    assignment: Assignment,
    directory: PathBuf,
    links: Links,
    pipe: Pipe,
    context: Rc<Context>,
    seats: Vec<Seat>,
    parameters: Parameters,
    reduction: Reduction,
    optimizer: Optimizer,
    trainer: Trainer,
    tokens: Tokens,
    rotary: Option<Rotary>,
    step: Step,
}

impl Engine {
    /// Joins the generation, builds the stage and loads its values.
    ///
    /// `address` is the local address that peers can reach; `runtime` must be that of a checkpoint.
    pub fn build(
        assignment: Assignment,
        store: impl Store,
        address: &str,
        runtime: &str,
        control: &dyn Control,
    ) -> Result<Engine, EngineError> {
        // Before the first tensor: sums and some products depend on the number of threads.
        tch::set_num_threads(assignment.threads as i32);
        memory::install();
        memory::reset_peak();
        let a = &assignment;
        let directory = PathBuf::from(&a.directory);
        let tokens = Tokens::open(&directory, &a.data, &a.spec)?;
        let links = Links::join(store, a.rank.0, a.world, address, a.forming_ms, a.operation_ms).map_err(
            |source| EngineError::Joining {
                generation: a.generation.0,
                rank: a.rank.0,
                address: address.to_owned(),
                source,
            },
        )?;
        control.tell(Event::Linked(links.clone()));
        expect_shared(&directory, &links, a)?;

        let train = &a.spec.train;
        let parameters = Parameters::allocate(&a.parameters, train.precision, train.optimizer.kind)?;
        let context = Rc::new(Context::of(a, links.group(&a.tensor_group, Axis::Tensor)?));
        let seats = seats(a, &parameters, &context)?;
        let reduction = Reduction::new(a, &parameters, &links)?;
        let optimizer = Optimizer::new(&parameters, &reduction, &train.optimizer)?;
        let mut trainer = Trainer::new(train);
        let step = match &a.resume {
            Some(resume) => {
                trainer = checkpoint::load(&directory, resume, a, runtime, &parameters, &optimizer, &links)?;
                resume.step
            }
            None => {
                for param in parameters.iter().filter(|param| param.home) {
                    links.expect_wanted()?;
                    let values = tch::Tensor::from_slice(&initial_values(&param.row, train.seed));
                    let shape = param.row.local_shape();
                    param.weight.shallow_clone().f_copy_(&values.f_view(shape.as_slice())?)?;
                }
                if let Some(weights) = &a.data.weights {
                    let born = checkpoint::start(weights, &parameters, &links)?;
                    tracing::info!("weights from {}; born anew: {born:?}", weights.folder);
                }
                Step(0)
            }
        };
        parameters.refresh()?;
        let lengths = Lengths::of(&a.spec.model, train);
        let rotary = Rotary::new(&a.spec.model, 0, lengths.source.max(lengths.target).into())?;
        let pipe = Pipe::new()?;
        control.tell(Event::Ready(step));
        Ok(Engine {
            assignment,
            directory,
            links,
            pipe,
            context,
            seats,
            parameters,
            reduction,
            optimizer,
            trainer,
            tokens,
            rotary,
            step,
        })
    }

    /// Trains until the agreed revision's `run_to` is reached, and saves there.
    pub fn run(&mut self, control: &dyn Control) -> Result<(), EngineError> {
        let done = self.train(control);
        if done.is_err() {
            // Nobody will take what is still under way; the thread of sends must not wait for it.
            self.links.abort();
        }
        done
    }

    fn train(&mut self, control: &dyn Control) -> Result<(), EngineError> {
        let mut run_to = Step(self.assignment.spec.train.steps);
        let mut saved = self.step;
        while self.step < run_to {
            let started = Instant::now();
            let trainer = self.trainer;
            let (closing, skipped) = self.train_step(control.revision())?;
            let seconds = started.elapsed().as_secs_f64();
            run_to = control.run_to(closing.revision).min(Step(self.assignment.spec.train.steps));
            let held_out = if self.evaluates(run_to) { self.evaluate()? } else { None };
            let report = (self.links.rank() == 0)
                .then(|| StepReport { held_out, ..self.report(&closing, seconds, &trainer, skipped) });
            control.tell(Event::Stepped(self.step, report));
            let every = self.assignment.spec.checkpoint.every;
            if self.step >= run_to || (every > 0 && self.step.0.is_multiple_of(every)) {
                self.save(control)?;
                saved = self.step;
            }
        }
        if saved < self.step {
            self.save(control)?;
        }
        Ok(())
    }

    /// Takes a step; says whether it was skipped.
    fn train_step(&mut self, revision: u64) -> Result<(Closing, bool), EngineError> {
        let (step, before) = (self.step.next(), self.trainer);
        let losses = self.gradients(None)?;
        let group = &self.assignment.optimizer_group;
        let norms = norms(&self.parameters, &self.reduction, group, &self.links)?;
        let vote = Vote { revision, norms, losses: self.contributed(losses) };
        let train = &self.assignment.spec.train;
        let closing = close(&self.links, &vote, self.assignment.norm_slots, train.micro_batches)?;
        let verdict = self.trainer.judge(&closing, train, step.0);
        match verdict {
            Verdict::Apply { learning_rate, divisor } => {
                let numbers = StepNumbers { applied: self.trainer.applied, learning_rate, divisor };
                let (parameters, reduction) = (&self.parameters, &self.reduction);
                self.optimizer.step(
                    parameters,
                    reduction,
                    &numbers,
                    &self.context.group,
                    &self.links,
                    group,
                )?;
            }
            Verdict::Skip => {}
            Verdict::Stop => {
                self.reduction.clear();
                self.trainer.loss_scale = before.loss_scale;
                return Err(self.culprit(step, &closing)?);
            }
        }
        self.reduction.clear();
        self.step = step;
        Ok((closing, verdict == Verdict::Skip))
    }

    /// Forwards, backwards and the sum of gradients of the step that follows.
    fn gradients(&mut self, probe: Option<&mut Probe>) -> Result<Vec<MicroLoss>, EngineError> {
        let actions = std::mem::take(&mut self.assignment.train);
        let step = self.step.0;
        let multiplier = self.trainer.multiplier(&self.assignment.spec.train);
        let mode = Mode::Train { step, multiplier };
        let losses = self.interpret(&actions, mode, probe, &|tokens, mb| tokens.train(step, mb));
        self.assignment.train = actions;
        let losses = losses?;
        self.reduction.finish(&self.parameters)?;
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
            .close(&[own], 1, least)
            .doing(|| "looking for the first value that is not finite".to_owned())?;
        let finding = first.first().copied().and_then(Finding::decode);
        let place = finding.map_or_else(
            || "the sum of gradients over micro-batches".to_owned(),
            |finding| finding.describe(&table, &model),
        );
        Ok(EngineError::NotFinite {
            step: step.0,
            in_a_row: self.trainer.skipped,
            norm: closing.mean_norm(self.trainer.multiplier(&self.assignment.spec.train)),
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
            parameters: &self.parameters,
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

    /// All tensor ranks of the last stage know the loss; the first of them brings it.
    fn contributed(&self, losses: Vec<MicroLoss>) -> Vec<MicroLoss> {
        if self.assignment.tensor_index == 0 { losses } else { Vec::new() }
    }

    fn evaluates(&self, run_to: Step) -> bool {
        let every = self.assignment.spec.train.evaluate_every;
        self.step >= run_to || (every > 0 && self.step.0.is_multiple_of(every))
    }

    /// The loss over the whole held-out text, if there is one.
    fn evaluate(&mut self) -> Result<Option<HeldOut>, EngineError> {
        let rounds = self.tokens.held_out_rounds();
        if rounds == 0 {
            return Ok(None);
        }
        let micro_batches = self.assignment.spec.train.micro_batches;
        let actions = std::mem::take(&mut self.assignment.evaluate);
        let mut losses = Vec::new();
        for round in 0..rounds {
            let fetch = |tokens: &Tokens, mb: u32| tokens.held_out(round, mb);
            let part = self.interpret(&actions, Mode::Evaluate, None, &fetch)?;
            losses.extend(part.into_iter().map(|loss| MicroLoss {
                micro_batch: loss.micro_batch + round as u32 * micro_batches,
                ..loss
            }));
        }
        self.assignment.evaluate = actions;
        let vote = Vote { losses: self.contributed(losses), ..Vote::default() };
        let closing = close(&self.links, &vote, 0, rounds as u32 * micro_batches)?;
        let bits = closing.loss / std::f64::consts::LN_2;
        Ok(Some(HeldOut {
            loss: closing.mean_loss(),
            // Masked tokens and answers are a part of the text, and the masked know what follows them: no code
            // of so many bits.
            bits_per_byte: match self.assignment.spec.model.head {
                Head::Lm
                    if self.assignment.spec.model.encoder_layers == 0
                        && !self.assignment.spec.train.pairs =>
                {
                    bits / self.assignment.data.held_out_bytes as f64
                }
                Head::Lm | Head::MaskedLm | Head::Pooled { .. } => f64::NAN,
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
            step: self.step.0,
            loss: closing.mean_loss(),
            grad_norm: closing.mean_norm(multiplier),
            learning_rate: learning_rate(&train.optimizer, self.step.0, train.steps),
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
            held_out: None,
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
        let a = &self.assignment;
        let files = checkpoint::save(
            &self.directory,
            self.step,
            a,
            &self.parameters,
            &self.optimizer,
            &self.trainer,
            &self.links,
        )?;
        control.tell(Event::Saved(Saved { step: self.step, files }));
        Ok(())
    }
}
