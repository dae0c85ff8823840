//! What a training is on a rank, apart from the network and the stage: weights, the optimizer's state, the
//! trainer's numbers, and what it takes to go on with them in another generation.

use std::collections::VecDeque;

use coxswain_comm::{Group, Links};
use coxswain_types::assignment::{Assignment, PreparedData};
use coxswain_types::job::{JobSpec, Layout, OptimizerKind, Precision};
use coxswain_types::status::StepReport;
use tch::{Device, Tensor};

use super::closing::Closing;
use super::handover::{HandoverPiece, Mark, Roster};
use super::held::{Held, Part, together};
use super::optimizer::{Optimizer, StepNumbers, gather_weights};
use super::replica::Replica;
use super::verdict::{Trainer, Verdict};
use crate::EngineError;
use crate::model::{Bucket, Parameters};
use crate::parallel::GradientSum;

/// How many reports are remembered for a rank that comes to lead. The coordinator records a step within a
/// round trip; a minute without one is some thousands of the shortest steps.
const REPORTS_MAX: usize = 4096;
/// The same, where each names the norms of all parameters.
const LONG_REPORTS_MAX: usize = 16;

/// Whose training it is: ranks share what they hold where all of this is the same.
#[derive(Clone, Debug, PartialEq)]
struct TrainingIdentity {
    job: String,
    directory: String,
    /// Without its layout, which changes no number.
    spec: JobSpec,
    data: PreparedData,
    threads: u32,
}

impl TrainingIdentity {
    fn of(a: &Assignment) -> TrainingIdentity {
        let mut spec = a.spec.clone();
        spec.actions = Vec::new();
        spec.layout = Layout::ONE;
        TrainingIdentity {
            job: a.job.clone(),
            directory: a.directory.clone(),
            spec,
            data: a.data.clone(),
            threads: a.threads,
        }
    }
}

/// The list that closed a step.
#[derive(Clone, Debug)]
pub struct Closed {
    /// The lineage before it.
    before: u64,
    /// The list.
    pub list: Vec<f64>,
}

impl Closed {
    /// As numbers that JSON carries whatever the values are.
    pub fn bits(&self) -> (u64, Vec<u64>) {
        (self.before, self.list.iter().map(|value| value.to_bits()).collect())
    }

    /// From [`Closed::bits`].
    pub fn of_bits(before: u64, bits: &[u64]) -> Closed {
        Closed { before, list: bits.iter().map(|bits| f64::from_bits(*bits)).collect() }
    }
}

/// What a rank holds of a training.
#[derive(Debug)]
pub struct State {
    identity: TrainingIdentity,
    /// Among so many ranks the optimizer's state is sharded.
    parts: usize,
    tensor_ranks: usize,
    /// The weights.
    pub parameters: Parameters,
    /// The optimizer's state.
    pub optimizer: Optimizer,
    /// What is kept for another rank.
    pub copy: Option<Replica>,
    /// What a handover that failed has left; then there are no parameters.
    left: Vec<Held>,
    /// The training's own numbers.
    pub trainer: Trainer,
    /// The step, and how it was come to.
    pub mark: Mark,
    /// What closed that step, where it was taken here.
    pub closed: Option<Closed>,
    /// The summed gradients of the step that follows, once this rank has voted on it.
    grads: Option<Vec<Tensor>>,
    /// Whether all weights are of that step; under ZeRO-1 only its own are, until those of others are here.
    whole: bool,
    /// Whether an update began that did not end: then nothing here is of any step.
    torn: bool,
    /// Reports of the newest steps, oldest first.
    pub reports: VecDeque<StepReport>,
    /// The report of the newest step, until all that it says is known.
    pub unfinished: Option<StepReport>,
}

impl State {
    /// Of an assignment, at zero.
    pub fn zeros(a: &Assignment, device: Device) -> Result<State, EngineError> {
        State::of(a, Part::all(a, device).into_iter().map(Part::zeros).collect::<Result<_, _>>()?)
    }

    /// Of an assignment with these values of all its parts, in their order.
    pub fn of(a: &Assignment, held: Vec<Held>) -> Result<State, EngineError> {
        let (copy, own): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.part.copy);
        let (parameters, optimizer) = together(a, a.spec.train.precision, own)?;
        let copy =
            a.peer_replica.as_ref().map(|peer_replica| Replica::of(a, peer_replica, copy)).transpose()?;
        Ok(State { copy, ..State::without(a, parameters, optimizer) })
    }

    /// What a handover that failed left, for another try.
    pub fn left(a: &Assignment, left: Vec<Held>) -> Result<State, EngineError> {
        let (parameters, optimizer) = together(a, Precision::Fp32, Vec::new())?;
        Ok(State { left, whole: false, ..State::without(a, parameters, optimizer) })
    }

    fn without(a: &Assignment, parameters: Parameters, optimizer: Optimizer) -> State {
        State {
            identity: TrainingIdentity::of(a),
            parts: a.optimizer_group.len(),
            tensor_ranks: a.tensor_group.len(),
            parameters,
            optimizer,
            copy: None,
            left: Vec::new(),
            trainer: Trainer::new(&a.spec.train),
            mark: Mark::default(),
            closed: None,
            grads: None,
            whole: true,
            torn: false,
            reports: VecDeque::new(),
            unfinished: None,
        }
    }

    /// Whether what is here is of this step.
    pub fn is_at(&self, mark: Mark) -> bool {
        !self.torn && self.mark == mark
    }

    /// Whether this is a state of the training that `a` is of.
    pub fn is_of(&self, a: &Assignment) -> bool {
        self.identity == TrainingIdentity::of(a)
    }

    /// Remembers the gradients that this rank has in hand as it votes.
    pub fn vote(&mut self, reduction: &GradientSum) -> Result<(), EngineError> {
        self.grads = Some(reduction.totals()?);
        Ok(())
    }

    /// Takes the step that `list` closes, or not, as it says.
    pub fn close(
        &mut self,
        closing: &Closing,
        list: Vec<f64>,
        tensor: &Group,
    ) -> Result<Verdict, EngineError> {
        let grads = self.grads.take();
        let grads =
            grads.ok_or_else(|| EngineError::Other("a step ends before it was voted on".to_owned()))?;
        let train = &self.identity.spec.train;
        let before = self.trainer;
        let verdict = self.trainer.judge(closing, train, self.mark.step + 1);
        match verdict {
            Verdict::Apply { learning_rate, divisor } => {
                let numbers = StepNumbers { applied: self.trainer.applied, learning_rate, divisor };
                self.torn = true;
                self.optimizer.step(&self.parameters, &grads, &numbers, tensor)?;
                if let Some(copy) = &self.copy {
                    copy.step(&numbers, tensor)?;
                }
                self.torn = false;
                self.whole = self.parts == 1;
            }
            Verdict::Skip => {}
            Verdict::Stop => {
                self.trainer = before;
                return Ok(verdict);
            }
        }
        let before = self.mark.lineage;
        self.mark = Mark { step: self.mark.step + 1, lineage: lineage(before, &list) };
        self.closed = Some(Closed { before, list });
        Ok(verdict)
    }

    /// Gets the weights that other data ranks have updated.
    pub fn gather(
        &mut self,
        reduction: &GradientSum,
        links: &Links,
        group: &[u32],
    ) -> Result<(), EngineError> {
        if !self.whole {
            gather_weights(&self.parameters, reduction, links, group)?;
            self.whole = true;
        }
        self.parameters.refresh()
    }

    /// Remembers what is reported of the newest step.
    pub fn remember(&mut self, report: &StepReport) {
        let most = if report.parameter_norms.is_empty() { REPORTS_MAX } else { LONG_REPORTS_MAX };
        self.reports.push_back(report.clone());
        while self.reports.len() > most {
            self.reports.pop_front();
        }
        self.unfinished = None;
    }

    /// What this rank brings to a handover, if these are its remains, and `needs` of its assignment.
    pub fn roster(remains: Option<&State>, needs: Vec<HandoverPiece>) -> Roster {
        let Some(state) = remains.filter(|state| !state.torn) else {
            return Roster { needs, ..Roster::default() };
        };
        // Matrices that tensor ranks hold in parts are updated by all of them together.
        let together =
            state.identity.spec.train.optimizer.kind == OptimizerKind::Muon && state.tensor_ranks > 1;
        Roster {
            mark: Some(state.mark),
            voted: state.grads.is_some() && !together,
            closed: state.closed.as_ref().map(|closed| closed.before),
            holds: state.held().iter().flat_map(|held| held.part.pieces()).collect(),
            needs,
        }
    }

    /// The values that are here, by bucket; the tensors are the very same.
    pub fn held(&self) -> Vec<Held> {
        // Once it takes the step that it has voted on, only its own part is of that step.
        let whole = self.parts == 1 || (self.whole && self.grads.is_none());
        let mut all = buckets(&self.parameters, &self.optimizer, whole, false);
        if let Some(copy) = &self.copy {
            all.extend(buckets(&copy.parameters, &copy.optimizer, self.parts == 1, true));
        }
        all.extend(self.left.iter().map(Held::shallow_clone));
        all
    }
}

fn buckets(parameters: &Parameters, optimizer: &Optimizer, whole: bool, copy: bool) -> Vec<Held> {
    let held = |(at, bucket): (usize, &Bucket)| {
        let moments = optimizer.moments(at).shallow_clone();
        let (own, device) = (moments.own.clone(), bucket.weights.device());
        let part = Part { copy, layout: bucket.layout.clone(), own, whole, device };
        Held { part, weights: bucket.weights.shallow_clone(), moments }
    };
    parameters.buckets().iter().enumerate().map(held).collect()
}

/// A digest of a list that closed a step and of all before it. 48 bits, so that JSON carries it exactly.
pub(super) fn lineage(before: u64, list: &[f64]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&before.to_le_bytes());
    for value in list {
        hasher.update(&value.to_bits().to_le_bytes());
    }
    number(&hasher.finalize())
}

/// The lineage of a training that starts from a checkpoint with this digest, or from initial values.
pub(super) fn origin(digest: &str) -> u64 {
    number(&blake3::hash(digest.as_bytes()))
}

fn number(hash: &blake3::Hash) -> u64 {
    hash.as_bytes()[..6].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}
