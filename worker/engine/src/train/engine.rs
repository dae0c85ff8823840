//! The loop: build the stage, then step, evaluate, save, until told to stop.

use std::path::{Path, PathBuf};
use std::time::Instant;

use coxswain_comm::{Axis, Links, Store};
use coxswain_native::{memory, ops};
use coxswain_types::Step;
use coxswain_types::assignment::Assignment;
use coxswain_types::params::Place;
use coxswain_types::status::{HeldOut, Saved, StepReport};

use super::closing::{Closing, Vote, close};
use super::optimizer::Optimizer;
use super::rate::learning_rate;
use crate::data::Tokens;
use crate::error::Doing;
use crate::model::{Parameters, Rotary, Shape, Stage, initial_values};
use crate::parallel::{MicroLoss, Mode, Reduction, Runner};
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
    stage: Stage,
    parameters: Parameters,
    reduction: Reduction,
    optimizer: Optimizer,
    tokens: Tokens,
    rotary: Rotary,
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
        let tokens = Tokens::open(&directory, &a.data, &a.spec.train)?;
        let links = Links::join(store, a.rank.0, a.world, address, a.forming_ms, a.operation_ms)
            .doing(|| format!("joining generation {} as rank {} from {address}", a.generation, a.rank))?;
        control.tell(Event::Linked(links.clone()));
        expect_shared(&directory, &links, a)?;

        let parameters = Parameters::allocate(&a.parameters)?;
        let shape = Shape { embedding: a.embedding, layers: a.layers.clone(), head: a.head };
        let group = links.group(&a.tensor_group, Axis::Tensor)?;
        let stage = Stage::build(&shape, &a.spec.model, &parameters, group)?;
        let mut optimizer = Optimizer::new(&parameters, &a.spec.train.optimizer);
        let step = match &a.resume {
            Some(resume) => {
                checkpoint::load(&directory, resume, a, runtime, &parameters, &mut optimizer, &links)?;
                resume.step
            }
            None => {
                for param in parameters.iter() {
                    links.expect_wanted()?;
                    let values = initial_values(&param.row, a.spec.train.seed);
                    param.weight.shallow_clone().f_copy_(
                        &tch::Tensor::from_slice(&values).f_view(param.row.local_shape().as_slice())?,
                    )?;
                }
                Step(0)
            }
        };
        let reduction = Reduction::new(a, &parameters, &links)?;
        let rotary = Rotary::new(&a.spec.model, 0, i64::from(a.spec.train.sequence))?;
        control.tell(Event::Ready(step));
        Ok(Engine {
            assignment,
            directory,
            links,
            stage,
            parameters,
            reduction,
            optimizer,
            tokens,
            rotary,
            step,
        })
    }

    /// Trains until the agreed revision's `run_to` is reached, and saves there.
    pub fn run(&mut self, control: &dyn Control) -> Result<(), EngineError> {
        let mut run_to = Step(self.assignment.spec.train.steps);
        let mut saved = self.step;
        while self.step < run_to {
            let started = Instant::now();
            let closing = self.train_step(control.revision())?;
            let train_seconds = started.elapsed().as_secs_f64();
            run_to = control.run_to(closing.revision).min(Step(self.assignment.spec.train.steps));
            let held_out = if self.evaluates(run_to) { self.evaluate()? } else { None };
            let report = (self.links.rank() == 0).then(|| self.report(&closing, train_seconds, held_out));
            tracing::Span::current().record("step", self.step.0);
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

    fn train_step(&mut self, revision: u64) -> Result<Closing, EngineError> {
        let (step, before) = (self.step.next(), self.step.0);
        let actions = std::mem::take(&mut self.assignment.train);
        let losses = self.interpret(&actions, Mode::Train, &|tokens, mb| tokens.train(before, mb));
        self.assignment.train = actions;
        let losses = losses?;
        self.reduction.finish(self.parameters.buckets())?;

        let vote = Vote { revision, norms: self.norms()?, losses: self.contributed(losses) };
        let train = &self.assignment.spec.train;
        let closing = close(&self.links, &vote, self.assignment.norm_slots, train.micro_batches)?;
        let norm = closing.norm / closing.tokens as f64;
        if !norm.is_finite() || !closing.loss.is_finite() {
            return Err(EngineError::NotFinite { step: step.0, norm, loss: closing.mean_loss() });
        }
        // Gradients are of the sum of losses: one division by the step's tokens and the clip.
        let clip = train.optimizer.clip_norm;
        let shrink = if clip > 0.0 && norm > clip { norm / clip } else { 1.0 };
        let rate = learning_rate(&train.optimizer, step.0, train.steps);
        let divisor = closing.tokens as f64 * shrink;
        self.optimizer.step(&self.parameters, &self.reduction, step.0, rate, divisor)?;
        self.reduction.clear();
        self.step = step;
        Ok(closing)
    }

    fn interpret(
        &mut self,
        actions: &[coxswain_types::schedule::Action],
        mode: Mode,
        fetch: &dyn Fn(&Tokens, u32) -> Result<crate::data::MicroBatchData, EngineError>,
    ) -> Result<Vec<MicroLoss>, EngineError> {
        let (a, tokens) = (&self.assignment, &self.tokens);
        let train = &a.spec.train;
        let mut runner = Runner {
            stage: &self.stage,
            parameters: &self.parameters,
            reduction: &mut self.reduction,
            links: &self.links,
            previous: a.previous,
            next: a.next,
            checkpointing: train.checkpointing,
            in_flight_max: (a.spec.layout.pipeline - a.stage) as usize + 2,
            places: a.layers.clone().map(Place::Layer).collect(),
            rotary: &self.rotary,
            shape: [train.micro_batch, train.sequence, a.spec.model.dim].map(i64::from),
        };
        runner.run(actions, mode, &|micro_batch| fetch(tokens, micro_batch))
    }

    /// Squared norms of the slices that this rank contributes.
    fn norms(&self) -> Result<Vec<(u32, f64)>, EngineError> {
        let mut norms = Vec::new();
        for (at, bucket) in self.parameters.buckets().iter().enumerate() {
            for param in &bucket.params {
                if let Some(slot) = param.row.norm_slot {
                    norms.push((slot, ops::sum_squares(&param.view_of(self.reduction.total(at)?)?)?));
                }
            }
        }
        Ok(norms)
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
            let part = self.interpret(&actions, Mode::Evaluate, &|tokens, mb| tokens.held_out(round, mb))?;
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
            bits_per_byte: bits / self.assignment.data.held_out_bytes as f64,
        }))
    }

    fn report(&self, closing: &Closing, seconds: f64, held_out: Option<HeldOut>) -> StepReport {
        let train = &self.assignment.spec.train;
        StepReport {
            step: self.step.0,
            loss: closing.mean_loss(),
            grad_norm: closing.norm / closing.tokens as f64,
            learning_rate: learning_rate(&train.optimizer, self.step.0, train.steps),
            tokens: closing.tokens,
            tokens_per_second: closing.tokens as f64 / seconds,
            step_seconds: seconds,
            held_out,
        }
    }

    fn save(&self, control: &dyn Control) -> Result<(), EngineError> {
        let a = &self.assignment;
        let files =
            checkpoint::save(&self.directory, self.step, a, &self.parameters, &self.optimizer, &self.links)?;
        control.tell(Event::Saved(Saved { step: self.step, files }));
        Ok(())
    }
}

/// The lead rank leaves a word in the run's folder that every other rank must read there.
fn expect_shared(directory: &Path, links: &Links, a: &Assignment) -> Result<(), EngineError> {
    let path = directory.join(format!(".shared-{}", a.generation));
    let file = |source| EngineError::File { path: path.clone(), source };
    // The word need not be secret, only new: a file left by another run must not pass for it.
    let word = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64) & ((1 << 52) - 1);
    if links.rank() == 0 {
        std::fs::write(&path, word.to_string()).map_err(file)?;
    }
    let agreed = links
        .close(&[word as f64], 1, |lists| lists[0].clone())
        .doing(|| "agreeing on the run's folder".to_owned())?;
    let read = std::fs::read_to_string(&path).ok().and_then(|text| text.parse::<u64>().ok());
    let same = read == agreed.first().map(|&word| word as u64);
    // All hear of a failure, and nobody removes the file before all have read it.
    let failed = links
        .close(&[f64::from(u8::from(!same))], 1, |lists| vec![lists.iter().map(|list| list[0]).sum()])
        .doing(|| "agreeing on the run's folder".to_owned())?;
    if links.rank() == 0 {
        std::fs::remove_file(&path).map_err(file)?;
    }
    if failed.first().is_some_and(|&ranks| ranks > 0.0) {
        return Err(EngineError::NotShared(directory.to_owned()));
    }
    Ok(())
}
