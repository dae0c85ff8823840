//! A slow neighbour does not stop a stage from computing what it can.
//!
//! Two stages as threads of this process, over real sockets: the second stage begins its first forward only once the
//! first stage has begun its second one. Were the first to wait for the second, neither would go on.

use std::sync::{Condvar, Mutex};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use coxswain_comm::MemoryStore;
use coxswain_engine::data::MicroBatchData;
use coxswain_tests::threads::{assignments, on_threads, step};
use coxswain_types::Assignment;
use tch::Tensor;

/// How long the second stage lets the first go on before it gives up; far more than two forwards take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How long the first stage is watched for a forward that it must not begin yet.
const WATCHED: Duration = Duration::from_millis(100);

/// The forwards that have begun: a stage and a micro-batch, in the order of their beginnings.
#[derive(Default)]
struct Forwards {
    begun: Mutex<Vec<(u32, u32)>>,
    more: Condvar,
}

impl Forwards {
    fn begin(&self, stage: u32, micro_batch: u32) {
        if let Ok(mut begun) = self.begun.lock() {
            begun.push((stage, micro_batch));
        }
        self.more.notify_all();
    }

    /// Waits until this forward has begun; `false` where it does not.
    fn wait_for(&self, forward: (u32, u32), limit: Duration) -> bool {
        let Ok(begun) = self.begun.lock() else { return false };
        let waited = self.more.wait_timeout_while(begun, limit, |begun| !begun.contains(&forward));
        waited.is_ok_and(|(begun, _)| begun.contains(&forward))
    }
}

/// Runs a rank's step, and notes each micro-batch that it fetches: the start of its forward.
fn rank(a: &Assignment, store: MemoryStore, forwards: &Forwards) -> Result<()> {
    let (train, stage) = (&a.spec.train, a.pipeline_index);
    let stepped = step(a, store, &|micro_batch| {
        if (stage, micro_batch) == (1, 0) {
            forwards.wait_for((0, 1), PATIENCE);
            // 1F1B: the first stage goes on to its third forward only when the first backward is in.
            forwards.wait_for((0, 2), WATCHED);
        }
        forwards.begin(stage, micro_batch);
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
    Ok(())
}

#[test]
fn the_first_stage_computes_while_the_second_dawdles() -> Result<()> {
    let forwards = Forwards::default();
    on_threads(&assignments("layout.pipeline", 2)?, |a, store| rank(a, store, &forwards))?;
    let begun = forwards.begun.into_inner().map_err(|error| anyhow!("{error}"))?;
    let at = |forward| begun.iter().position(|begun| *begun == forward);
    let (second, third, other) = (at((0, 1)), at((0, 2)), at((1, 0)));
    ensure!(second.is_some() && second < other, "the first stage waited for the second: {begun:?}");
    ensure!(third.is_some() && other < third, "the first stage was too far ahead: {begun:?}");
    Ok(())
}
