//! Ranks as threads of this process, over real sockets: for what needs a look inside.

use std::path::Path;
use std::rc::Rc;

use anyhow::{Result, anyhow};
use coxswain_comm::{Axis, DataPort, Links, MemoryStore, Pipe};
use coxswain_core::plan::{Plan, sketch};
use coxswain_core::spec::{JobText, parse};
use coxswain_engine::EngineError;
use coxswain_engine::data::MicroBatchData;
use coxswain_engine::model::{Context, Parameters, Rotary, initial_values};
use coxswain_engine::parallel::{GradientSum, MicroLoss, Mode, Runner, seats};
use coxswain_types::Assignment;
use coxswain_types::job::Lengths;
use coxswain_types::params::ParameterRow;
use tch::{Device, Kind, Tensor};

use crate::JOB;

/// What a rank has after a step.
#[derive(Debug)]
pub struct Stepped {
    /// The losses, on the last stage.
    pub losses: Vec<MicroLoss>,
    /// The parameters.
    pub parameters: Parameters,
    /// The sums of their gradients.
    pub reduction: GradientSum,
}

/// The assignments of [`JOB`] with this changed, for as many workers as it needs.
pub fn assignments(path: &str, value: u32) -> Result<Vec<Assignment>> {
    assignments_of(JOB, &[(path.to_owned(), value.to_string())])
}

/// The assignments of a job with these values changed, for as many workers as it needs.
pub fn assignments_of(text: &str, sets: &[(String, String)]) -> Result<Vec<Assignment>> {
    Ok(plan_of(text, sets)?.assignments)
}

/// The plan of a job with these values changed, for as many workers as it needs.
pub fn plan_of(text: &str, sets: &[(String, String)]) -> Result<Plan> {
    let spec = parse(&JobText { source: "job", text, sets, base: Path::new("/") })
        .map_err(|error| anyhow!("{error}"))?;
    sketch(&spec, spec.layout.world()).map_err(|error| anyhow!("{error}"))
}

/// Forwards, backwards and the sum of gradients of one step on a rank, from initial values.
pub fn step(
    a: &Assignment,
    store: MemoryStore,
    fetch: &dyn Fn(u32) -> Result<MicroBatchData, EngineError>,
) -> Result<Stepped> {
    step_from(a, store, fetch, &initial)
}

/// Tokens that no other micro-batch of the step has, each of which is its own target.
pub fn own_tokens(a: &Assignment, micro_batch: u32) -> MicroBatchData {
    let train = &a.spec.train;
    let tokens = i64::from(train.micro_batch_size * train.sequence);
    let factor = i64::from(micro_batch) * 2 + 3;
    let targets_n = Tensor::arange(tokens, (Kind::Int64, Device::Cpu)) * factor;
    let targets_n = targets_n.remainder(i64::from(a.spec.model.vocab));
    MicroBatchData {
        source_bs: None,
        ids_bt: targets_n.view([i64::from(train.micro_batch_size), -1]),
        targets_n,
        tokens: tokens as u64,
        weights_n: None,
        weight: tokens as f64,
        documents: None,
        padded: None,
    }
}

/// The initial values of a row.
pub fn initial(row: &ParameterRow) -> Result<Tensor> {
    Ok(Tensor::from_slice(&initial_values(row, 1)))
}

/// The same, from the values that `values` gives for each row.
pub fn step_from(
    a: &Assignment,
    store: MemoryStore,
    fetch: &dyn Fn(u32) -> Result<MicroBatchData, EngineError>,
    values: &dyn Fn(&ParameterRow) -> Result<Tensor>,
) -> Result<Stepped> {
    let links = Links::join(store, a.rank.0, a.world, &DataPort::local()?, 5_000, 20_000)?;
    step_over(a, &links, fetch, values)
}

/// The same over links that are there already.
pub fn step_over(
    a: &Assignment,
    links: &Links,
    fetch: &dyn Fn(u32) -> Result<MicroBatchData, EngineError>,
    values: &dyn Fn(&ParameterRow) -> Result<Tensor>,
) -> Result<Stepped> {
    let train = &a.spec.train;
    let parameters = Parameters::allocate(&a.parameters, train.precision, train.optimizer.kind, Device::Cpu)?;
    for param in parameters.iter() {
        let values = values(&param.row)?;
        param.weight.shallow_clone().copy_(&values.view(param.row.local_shape().as_slice()));
    }
    let context = Rc::new(Context::of(a, links.group(&a.tensor_group, Axis::Tensor)?, Device::Cpu));
    let seats = seats(a, &parameters, &context)?;
    let mut reduction = GradientSum::new(a, &parameters, links)?;
    let rotary = Rotary::new(&a.spec.model, 0, i64::from(train.sequence), Device::Cpu)?;
    let pipe = Pipe::new()?;
    let mut runner = Runner {
        seats: &seats,
        context: &context,
        parameters: &parameters,
        reduction: &mut reduction,
        links,
        pipe: &pipe,
        train,
        rotary: rotary.as_ref(),
        lengths: Lengths::of(&a.spec.model, train),
        probe: None,
    };
    let losses = runner.run(&a.train, Mode::Train { step: 0, multiplier: 1.0 }, fetch)?;
    reduction.finish(&parameters)?;
    Ok(Stepped { losses, parameters, reduction })
}

/// Runs `rank` for each assignment in a thread of its own; the results in their order.
pub fn on_threads<T: Send>(
    assignments: &[Assignment],
    rank: impl Fn(&Assignment, MemoryStore) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let (store, rank) = (MemoryStore::default(), &rank);
    std::thread::scope(|scope| {
        let start = |a| {
            let store = store.clone();
            scope.spawn(move || rank(a, store))
        };
        let threads: Vec<_> = assignments.iter().map(start).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a rank panicked"))?).collect()
    })
}
