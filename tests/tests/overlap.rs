//! A slow neighbour does not stop a stage from computing what it can.
//!
//! Two stages as threads of this process, over real Gloo: the second dawdles before its first
//! forward, and the first must be well into its second micro-batch by then.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coxswain_comm::{Axis, Links, MemoryStore};
use coxswain_core::plan::sketch;
use coxswain_core::spec::{JobText, parse};
use coxswain_engine::data::MicroBatchData;
use coxswain_engine::model::{Parameters, Rotary, Shape, Stage, initial_values};
use coxswain_engine::parallel::{Mode, Reduction, Runner};
use coxswain_tests::JOB;
use coxswain_types::Assignment;
use coxswain_types::params::Place;
use tch::Tensor;

const DELAY: Duration = Duration::from_millis(500);

/// Runs a stage's step and returns when it fetched each micro-batch: the start of its forward.
fn stage(assignment: &Assignment, store: MemoryStore, delay: Duration) -> Result<Vec<Instant>> {
    let (a, train) = (assignment, &assignment.spec.train);
    let links = Links::join(store, a.rank.0, a.world, "127.0.0.1", 5_000, 20_000)?;
    let parameters = Parameters::allocate(&a.parameters)?;
    for param in parameters.iter() {
        let values =
            Tensor::from_slice(&initial_values(&param.row, 1)).view(param.row.local_shape().as_slice());
        param.weight.shallow_clone().copy_(&values);
    }
    let shape = Shape { embedding: a.embedding, layers: a.layers.clone(), head: a.head };
    let group = links.group(&a.tensor_group, Axis::Tensor)?;
    let stage = Stage::build(&shape, &a.spec.model, &parameters, group)?;
    let mut reduction = Reduction::new(a, &parameters, &links)?;
    let rotary = Rotary::new(&a.spec.model, 0, i64::from(train.sequence))?;
    let fetched = Mutex::new(Vec::new());
    let mut runner = Runner {
        stage: &stage,
        parameters: &parameters,
        reduction: &mut reduction,
        links: &links,
        previous: a.previous,
        next: a.next,
        checkpointing: train.checkpointing,
        places: a.layers.clone().map(Place::Layer).collect(),
        in_flight_max: 4,
        rotary: &rotary,
        shape: [train.micro_batch, train.sequence, a.spec.model.dim].map(i64::from),
    };
    let losses = runner.run(&a.train, Mode::Train, &|micro_batch| {
        if micro_batch == 0 {
            std::thread::sleep(delay);
        }
        if let Ok(mut fetched) = fetched.lock() {
            fetched.push(Instant::now());
        }
        let ids = vec![i64::from(micro_batch); (train.micro_batch * train.sequence) as usize];
        let targets_n = Tensor::from_slice(&ids);
        let ids_bt = targets_n.view([i64::from(train.micro_batch), -1]);
        Ok(MicroBatchData { ids_bt, targets_n, tokens: ids.len() as u64 })
    })?;
    ensure!(losses.len() == if a.head { train.micro_batches as usize } else { 0 });
    reduction.finish(parameters.buckets())?;
    fetched.into_inner().map_err(|e| anyhow::anyhow!("{e}"))
}

#[test]
fn the_first_stage_computes_while_the_second_dawdles() -> Result<()> {
    let sets = [("layout.pipeline".to_owned(), "2".to_owned())];
    let spec = parse(&JobText { source: "job", text: JOB, sets: &sets, base: Path::new("/") })
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let plan = sketch(&spec, 2).map_err(|error| anyhow::anyhow!("{error}"))?;
    let store = MemoryStore::default();
    let start = Instant::now();
    let times = std::thread::scope(|scope| {
        let threads: Vec<_> = plan
            .assignments
            .iter()
            .map(|assignment| {
                let store = store.clone();
                let delay = if assignment.stage == 1 { DELAY } else { Duration::ZERO };
                scope.spawn(move || stage(assignment, store, delay))
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().map_err(|_| anyhow::anyhow!("a stage panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let (first, second) = (&times[0], &times[1]);
    let (ahead, woke) = (first.get(1).context("a second forward")?, second.first().context("a forward")?);
    println!("first stage, second forward: {:?}; second stage wakes: {:?}", *ahead - start, *woke - start);
    ensure!(ahead < woke, "the first stage waited for the second");
    ensure!(*woke - *ahead > DELAY / 2, "the first stage was not well ahead");
    // 1F1B: it goes on to the third forward only when the first backward is in.
    ensure!(first.get(2).context("a third forward")? > woke, "the delay was no delay");
    Ok(())
}
