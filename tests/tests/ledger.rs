//! Every sample exactly once: what the ranks of changing plans are told to compute, against the order of samples.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use coxswain_core::plan::{PlanRequest, plan};
use coxswain_core::spec::{JobText, parse};
use coxswain_files::{Samples, sample_index};
use coxswain_types::assignment::{PreparedData, TokenFile};
use coxswain_types::schedule::{Action, Kind};
use coxswain_types::status::WorkerInfo;
use coxswain_types::{Assignment, Generation, WorkerId};

const JOB: &str = "
name: ledger
model: {layers: 6, dim: 32, heads: 4, vocab: 300}
data: {synthetic: {tokens: 4096}}
train: {steps: 5, sequence: 16, micro_batch_size: 3, global_micro_batches: 8}
";

fn assignments(layout: &str, slow: &[u32]) -> Result<Vec<Assignment>> {
    let sets = [("layout".to_owned(), layout.to_owned())];
    let base = std::path::Path::new("/");
    let spec = parse(&JobText { source: "job.yaml", text: JOB, sets: &sets, base })
        .map_err(|faults| anyhow::anyhow!("{faults:?}"))?;
    let worker = |n: u32| WorkerInfo {
        id: WorkerId(format!("w{n}")),
        incarnation: 1,
        host: "alpha".to_owned(),
        pid: n,
        cores: 1,
        device: "cpu".to_owned(),
        runtime: "libtorch".to_owned(),
        serves: None,
    };
    let workers: Vec<_> = (0..spec.layout.world()).map(worker).collect();
    let slow_percent = workers.iter().map(|info| info.id.clone()).zip(slow.iter().copied()).collect();
    let file = TokenFile { path: String::new(), tokens: 0, digest: String::new() };
    let request = PlanRequest {
        job: "ledger-1".to_owned(),
        generation: Generation(1),
        spec: &spec,
        workers: &workers,
        directory: "",
        data: &PreparedData::of_tokens(file),
        resume: None,
        before: &[],
        slow_percent: &slow_percent,
        threads: 1,
    };
    Ok(plan(&request)?.assignments)
}

/// How often each window is learned from in a step: on the stage that knows the loss, by the first tensor rank.
fn enter(ledger: &mut BTreeMap<u64, u32>, samples: &Samples, plan: &[Assignment], step0: u64) {
    for rank in plan.iter().filter(|rank| rank.tensor_index == 0) {
        let Some(head) = rank.stages.iter().find(|stage| stage.head) else { continue };
        let (rows, of) = (rank.spec.train.micro_batch_size, rank.spec.train.global_micro_batches);
        let forward = |action: &&Action| action.kind == Kind::Forward && action.stage == head.index;
        for action in rank.train.iter().filter(forward) {
            for row in 0..rows {
                let sample = sample_index(step0, action.micro_batch.0, row, of, rows);
                *ledger.entry(samples.start(sample)).or_default() += 1;
            }
        }
    }
}

#[test]
fn every_sample_counts_once_in_each_epoch_whatever_becomes_of_the_layout() -> Result<()> {
    // The plans that a run goes through: it shrinks, is cut anew, grows, and spares slow workers.
    let plans = [
        assignments("{pipeline: 2, data: 3}", &[])?,
        assignments("{pipeline: 2, data: 2}", &[])?,
        assignments("{pipeline: 3, schedule: zb-h1}", &[])?,
        assignments("{data: 3}", &[100, 300])?,
        assignments("{pipeline: 2, data: 3, zero: 1}", &[100, 100, 250, 100, 150])?,
        assignments("{pipeline: 3, tensor: 2, schedule: interleaved}", &[100, 100, 175])?,
    ];
    // 24 samples a step: 5 steps are an epoch.
    let samples = Samples::new(120 * 16 + 1, 16, 3);
    for epochs in 1..=6 {
        let mut ledger = BTreeMap::new();
        for step0 in 0..5 * epochs {
            enter(&mut ledger, &samples, &plans[(step0 as usize / 4) % plans.len()], step0);
        }
        ensure!(ledger.len() as u64 == samples.windows(), "{} windows were used", ledger.len());
        let wrong = ledger.iter().find(|(_, times)| u64::from(**times) != epochs);
        ensure!(wrong.is_none(), "after {epochs} epochs: {wrong:?}");
    }
    Ok(())
}
