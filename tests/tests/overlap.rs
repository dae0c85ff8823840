//! A slow neighbour does not stop a stage from computing what it can.
//!
//! Two stages as threads of this process, over real sockets: the second dawdles before its first
//! forward, and the first must be well into its second micro-batch by then.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use coxswain_comm::MemoryStore;
use coxswain_engine::data::MicroBatchData;
use coxswain_tests::threads::{assignments, on_threads, step};
use coxswain_types::Assignment;
use tch::Tensor;

const DELAY: Duration = Duration::from_millis(500);

/// Runs a rank's step and returns when it fetched each micro-batch: the start of its forward.
fn rank(a: &Assignment, store: MemoryStore) -> Result<Vec<Instant>> {
    let train = &a.spec.train;
    let delay = if a.pipeline_index == 1 { DELAY } else { Duration::ZERO };
    let fetched = Mutex::new(Vec::new());
    let stepped = step(a, store, &|micro_batch| {
        if micro_batch == 0 {
            std::thread::sleep(delay);
        }
        if let Ok(mut fetched) = fetched.lock() {
            fetched.push(Instant::now());
        }
        let ids = vec![i64::from(micro_batch); (train.micro_batch_size * train.sequence) as usize];
        let targets_n = Tensor::from_slice(&ids);
        let ids_bt = targets_n.view([i64::from(train.micro_batch_size), -1]);
        Ok(MicroBatchData {
            source_bs: None,
            ids_bt,
            targets_n,
            tokens: ids.len() as u64,
            weights_n: None,
            weight: ids.len() as f64,
            documents: None,
            padded: None,
        })
    })?;
    let head = a.stages.iter().any(|stage| stage.head);
    ensure!(stepped.losses.len() == if head { train.global_micro_batches as usize } else { 0 });
    fetched.into_inner().map_err(|error| anyhow!("{error}"))
}

#[test]
fn the_first_stage_computes_while_the_second_dawdles() -> Result<()> {
    let start = Instant::now();
    let times = on_threads(&assignments("layout.pipeline", 2)?, rank)?;
    let (first, second) = (&times[0], &times[1]);
    let (ahead, woke) = (first.get(1).context("a second forward")?, second.first().context("a forward")?);
    println!("first stage, second forward: {:?}; second stage wakes: {:?}", *ahead - start, *woke - start);
    ensure!(ahead < woke, "the first stage waited for the second");
    ensure!(*woke - *ahead > DELAY / 2, "the first stage was not well ahead");
    // 1F1B: it goes on to the third forward only when the first backward is in.
    ensure!(first.get(2).context("a third forward")? > woke, "the delay was no delay");
    Ok(())
}
