//! A slow neighbour does not stop a stage from computing what it can.
//!
//! Two stages as threads of this process, over real Gloo: the second dawdles before its first
//! forward, and the first must be well into its second micro-batch by then.

use std::path::Path;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use coxswain_comm::{Axis, Links, MemoryStore, Pipe};
use coxswain_core::plan::sketch;
use coxswain_core::spec::{JobText, parse};
use coxswain_engine::data::MicroBatchData;
use coxswain_engine::model::{Context, Parameters, Rotary, initial_values};
use coxswain_engine::parallel::{Mode, Reduction, Runner, seats};
use coxswain_tests::JOB;
use coxswain_types::Assignment;
use tch::Tensor;

const DELAY: Duration = Duration::from_millis(500);

/// Runs a rank's step and returns when it fetched each micro-batch: the start of its forward.
fn rank(assignment: &Assignment, store: MemoryStore, delay: Duration) -> Result<Vec<Instant>> {
    let (a, train) = (assignment, &assignment.spec.train);
    let links = Links::join(store, a.rank.0, a.world, "127.0.0.1", 5_000, 20_000)?;
    let parameters = Parameters::allocate(&a.parameters, train.precision, train.optimizer.kind)?;
    for param in parameters.iter() {
        let values =
            Tensor::from_slice(&initial_values(&param.row, 1)).view(param.row.local_shape().as_slice());
        param.weight.shallow_clone().copy_(&values);
    }
    let context = Rc::new(Context::of(a, links.group(&a.tensor_group, Axis::Tensor)?));
    let seats = seats(a, &parameters, &context)?;
    let mut reduction = Reduction::new(a, &parameters, &links)?;
    let rotary = Rotary::new(&a.spec.model, 0, i64::from(train.sequence))?;
    let pipe = Pipe::new()?;
    let fetched = Mutex::new(Vec::new());
    let mut runner = Runner {
        seats: &seats,
        context: &context,
        parameters: &parameters,
        reduction: &mut reduction,
        links: &links,
        pipe: &pipe,
        train,
        rotary: &rotary,
        shape: [train.micro_batch, train.sequence, a.spec.model.dim].map(i64::from),
        probe: None,
    };
    let losses = runner.run(&a.train, Mode::Train { step: 0, multiplier: 1.0 }, &|micro_batch| {
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
    let head = a.stages.iter().any(|stage| stage.head);
    ensure!(losses.len() == if head { train.micro_batches as usize } else { 0 });
    reduction.finish(&parameters)?;
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
                let delay = if assignment.pipeline_index == 1 { DELAY } else { Duration::ZERO };
                scope.spawn(move || rank(assignment, store, delay))
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
