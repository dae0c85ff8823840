//! Two steps of a job, and the same in one process.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, anyhow, bail, ensure};
use coxswain_comm::{DataPort, Links, MemoryStore};
use coxswain_core::plan::{PlanError, sketch};
use coxswain_engine::{Control, Engine, EngineEvent, State};
use coxswain_files::{Digests, prepare};
use coxswain_types::JobSpec;
use coxswain_types::assignment::{Assignment, PreparedData};
use coxswain_types::job::{Layout, Precision, RecomputePolicy, Reduction};
use coxswain_types::status::{Directive, StepReport};
use tch::Device;

use super::Job;

/// How far losses and the first gradient norm may be apart where sums associate differently.
const TOLERANCE: f64 = 1e-5;
/// The same in low precision, which rounds thousands of times more coarsely.
const LOW_TOLERANCE: f64 = 4e-2;

/// How a job came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The numbers are those of one process.
    Holds,
    /// The planner, or what prepares tokens, refuses it before a worker has it.
    Refused(String),
}

/// Runs two steps of a job that has passed the checks, and the same in one process.
///
/// # Errors
/// Where a rank fails, a first step is not finite, or the numbers are others than in one process.
pub fn trial(job: &Job, folder: &Path) -> Result<Outcome> {
    let spec = job.parsed(folder).map_err(|refused| anyhow!("{refused}"))?;
    let plan = match sketch(&spec, spec.layout.world()) {
        Ok(plan) => plan,
        Err(refused @ (PlanError::Budget { .. } | PlanError::Custom(_))) => {
            return Ok(Outcome::Refused(refused.to_string()));
        }
        Err(broken) => bail!("the planner says: {broken}"),
    };
    let alone = sketch(&alone(&spec), 1).map_err(|error| anyhow!("in one process: {error}"))?;
    let directory = tempfile::tempdir_in(folder).context("a folder for the run")?;
    let data = match prepare(&directory.path().into(), &spec, None, &Digests::default(), &|_| Ok(())) {
        Ok(data) => data,
        Err(refused) => return Ok(Outcome::Refused(refused.to_string())),
    };
    let run = |assignments| run(assignments, directory.path(), &data);
    let wanted = run(alone.assignments).context("in one process")?;
    expect_finite(&wanted, &spec)?;
    let found = run(plan.assignments)?;
    compare(&found, &wanted, &spec)?;
    Ok(Outcome::Holds)
}

/// The job in one process, which computes nothing again and keeps no copies.
fn alone(spec: &JobSpec) -> JobSpec {
    let mut spec = spec.clone();
    spec.layout = Layout::ONE;
    spec.actions = Vec::new();
    spec.recovery.peer_replica = false;
    spec.train.recompute = RecomputePolicy::None;
    if spec.train.reduction == Reduction::Fast {
        spec.train.gradient_groups = 1;
    }
    spec
}

/// What a run left.
struct Numbers {
    /// Of each step.
    reports: Vec<StepReport>,
    /// The bits of every parameter, whole.
    weights: BTreeMap<String, Vec<Option<u32>>>,
}

/// What the ranks of a run tell.
#[derive(Default)]
struct Told {
    links: Mutex<Vec<Links>>,
    reports: Mutex<Vec<StepReport>>,
    failures: Mutex<Vec<String>>,
    weights: Mutex<BTreeMap<String, Vec<Option<u32>>>>,
}

/// A rank that panicked leaves what it held as it was.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control for Told {
    fn directive(&self) -> Directive {
        Directive { revision: 1, ..Directive::NONE }
    }

    fn tell(&self, event: EngineEvent) {
        match event {
            EngineEvent::Linked(links) => locked(&self.links).push(links),
            EngineEvent::Reported(report) => locked(&self.reports).push(report),
            EngineEvent::Ready(..) | EngineEvent::Stepped(_) | EngineEvent::Saved(_) => {}
        }
    }
}

fn run(mut assignments: Vec<Assignment>, directory: &Path, data: &PreparedData) -> Result<Numbers> {
    for a in &mut assignments {
        a.directory = directory.to_string_lossy().into_owned();
        a.data = data.clone();
        (a.rendezvous_ms, a.operation_ms) = (10_000, 60_000);
    }
    let (told, store) = (Told::default(), MemoryStore::default());
    std::thread::scope(|scope| {
        for assignment in assignments {
            let (told, store) = (&told, store.clone());
            scope.spawn(move || {
                let rank = assignment.rank;
                let end = catch_unwind(AssertUnwindSafe(|| run_rank(assignment, store, told)));
                let failure = match end {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => format!("rank {rank}: {error:#}"),
                    Err(_) => format!("rank {rank} panicked"),
                };
                locked(&told.failures).push(failure);
                locked(&told.links).iter().for_each(Links::abort);
            });
        }
    });
    // The others fail because the first did.
    if let Some(first) = locked(&told.failures).first() {
        bail!("{first}");
    }
    let weights = std::mem::take(&mut *locked(&told.weights));
    for (name, values) in &weights {
        ensure!(values.iter().all(Option::is_some), "the ranks together do not hold all of {name}");
    }
    let mut reports = std::mem::take(&mut *locked(&told.reports));
    reports.sort_by_key(|report| report.step);
    Ok(Numbers { reports, weights })
}

fn run_rank(assignment: Assignment, store: MemoryStore, told: &Told) -> Result<()> {
    let mut engine =
        Engine::build(assignment, store, &DataPort::local()?, ("test", Device::Cpu), told, &mut None)?;
    engine.run(told)?;
    gather(&engine.leave(), &mut locked(&told.weights))
}

/// Puts the slices of a rank at their places.
fn gather(state: &State, whole: &mut BTreeMap<String, Vec<Option<u32>>>) -> Result<()> {
    for param in state.parameters.iter().filter(|param| param.home) {
        let row = &param.row;
        let values = Vec::<f32>::try_from(&param.weight.f_contiguous()?.f_flatten(0, -1)?)?;
        let dim = usize::from(row.dim);
        let inner: u64 = row.shape[dim + 1..].iter().product();
        let elements: u64 = row.shape.iter().product();
        let into = whole.entry(row.name.clone()).or_insert_with(|| vec![None; elements as usize]);
        for (block, values) in (0..).zip(values.chunks((row.len * inner) as usize)) {
            let start = ((block * row.shape[dim] + row.offset) * inner) as usize;
            for (at, value) in (start..).zip(values) {
                let other = into[at].replace(value.to_bits());
                ensure!(
                    other.is_none_or(|other| other == value.to_bits()),
                    "two ranks differ in {}",
                    row.name
                );
            }
        }
    }
    Ok(())
}

/// Whether a run starts well. Half precision may overflow, and skip the step.
fn expect_finite(numbers: &Numbers, spec: &JobSpec) -> Result<()> {
    ensure!(numbers.reports.len() as u64 == spec.train.steps, "{} steps are reported", numbers.reports.len());
    let first = numbers.reports.first().context("a step")?;
    let finite = first.loss.is_finite() && first.grad_norm.is_finite() && !first.skipped;
    let half = spec.train.precision == Precision::Fp16;
    ensure!(finite || half, "the first step: loss {}, gradient norm {}", first.loss, first.grad_norm);
    Ok(())
}

fn compare(found: &Numbers, wanted: &Numbers, spec: &JobSpec) -> Result<()> {
    let pairs = || found.reports.iter().zip(&wanted.reports);
    ensure!(found.reports.len() == wanted.reports.len(), "{} steps are reported", found.reports.len());
    let (train, layout) = (&spec.train, &spec.layout);
    let exact = (train.tensor_shards.is_some() || layout.tensor == 1)
        && (train.reduction == Reduction::Canonical || layout.data == 1);
    if !exact {
        let most = if train.precision == Precision::Fp32 { TOLERANCE } else { LOW_TOLERANCE };
        let close = |what: &str, step: u64, a: f64, b: f64| {
            let near = (a - b).abs() <= most * b.abs() || a.to_bits() == b.to_bits() || !b.is_finite();
            near.then_some(()).with_context(|| format!("step {step}: {what} {a}, in one process {b}"))
        };
        for (a, b) in pairs() {
            close("loss", a.step, a.loss, b.loss)?;
            if let (Some(a), Some(b), step) = (&a.validation, &b.validation, a.step) {
                close("validation loss", step, a.loss, b.loss)?;
            }
        }
        return pairs()
            .take(1)
            .try_for_each(|(a, b)| close("gradient norm", a.step, a.grad_norm, b.grad_norm));
    }
    for (a, b) in pairs() {
        let validation =
            |report: &StepReport| report.validation.as_ref().map_or(0.0, |validation| validation.loss);
        for (what, a_value, b_value) in [
            ("loss", a.loss, b.loss),
            ("gradient norm", a.grad_norm, b.grad_norm),
            ("validation loss", validation(a), validation(b)),
            ("number of tokens", a.tokens as f64, b.tokens as f64),
            ("loss scale", a.loss_scale.unwrap_or(0.0), b.loss_scale.unwrap_or(0.0)),
        ] {
            ensure!(
                a_value.to_bits() == b_value.to_bits(),
                "step {}: {what} {a_value}, in one process {b_value}",
                a.step
            );
        }
        let norms = |report: &StepReport| -> Vec<_> {
            report.parameter_norms.iter().map(|(name, norm)| (name.clone(), norm.to_bits())).collect()
        };
        ensure!(norms(a) == norms(b), "step {}: norms of parameters differ", a.step);
        ensure!(a.skipped == b.skipped, "step {} was skipped by some", a.step);
    }
    for (name, values) in &wanted.weights {
        ensure!(found.weights.get(name) == Some(values), "the final {name} differs from one process");
    }
    Ok(())
}
