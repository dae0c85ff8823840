//! A sum in the wrong order is caught: data ranks as threads of this process, over real Gloo, with
//! the real plan and with one whose tree of sums was tampered with.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Result, ensure};
use coxswain_comm::{Axis, Links, MemoryStore, Pipe};
use coxswain_core::certificate::{RunRecord, differences};
use coxswain_core::plan::sketch;
use coxswain_core::spec::{JobText, parse};
use coxswain_engine::data::MicroBatchData;
use coxswain_engine::model::{Context, Parameters, Rotary, initial_values};
use coxswain_engine::parallel::{Mode, Reduction, Runner, seats};
use coxswain_native::ops::sum_squares;
use coxswain_tests::JOB;
use coxswain_types::{Assignment, JobSpec};
use tch::{Kind, Tensor};

fn spec(data: u32) -> Result<JobSpec> {
    let sets = [("layout.data".to_owned(), data.to_string())];
    parse(&JobText { source: "job", text: JOB, sets: &sets, base: Path::new("/") })
        .map_err(|error| anyhow::anyhow!("{error}"))
}

/// The gradients of a step on one rank: the norm of each parameter's, and a digest of it.
fn rank(a: &Assignment, store: MemoryStore) -> Result<(BTreeMap<String, f64>, BTreeMap<String, String>)> {
    let train = &a.spec.train;
    let links = Links::join(store, a.rank.0, a.world, "127.0.0.1", 5_000, 20_000)?;
    let parameters = Parameters::allocate(&a.parameters, train.precision, train.optimizer.kind)?;
    for param in parameters.iter() {
        let values = Tensor::from_slice(&initial_values(&param.row, 1));
        param.weight.shallow_clone().copy_(&values.view(param.row.local_shape().as_slice()));
    }
    let context = Rc::new(Context::of(a, links.group(&a.tensor_group, Axis::Tensor)?));
    let seats = seats(a, &parameters, &context)?;
    let mut reduction = Reduction::new(a, &parameters, &links)?;
    let rotary = Rotary::new(&a.spec.model, 0, i64::from(train.sequence))?;
    let pipe = Pipe::new()?;
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
    let tokens = i64::from(train.micro_batch * train.sequence);
    runner.run(&a.train, Mode::Train { step: 0, multiplier: 1.0 }, &|micro_batch| {
        // Every micro-batch has tokens of its own.
        let targets_n = (Tensor::arange(tokens, (Kind::Int64, tch::Device::Cpu))
            * (i64::from(micro_batch) * 2 + 3))
            .remainder(300);
        let ids_bt = targets_n.view([i64::from(train.micro_batch), -1]);
        Ok(MicroBatchData { ids_bt, targets_n, tokens: tokens as u64 })
    })?;
    reduction.finish(&parameters)?;
    let (mut norms, mut digests) = (BTreeMap::new(), BTreeMap::new());
    for (at, bucket) in parameters.buckets().iter().enumerate() {
        for param in &bucket.params {
            let grad = param.view_of(reduction.total(at)?)?.flatten(0, -1);
            let bytes: Vec<u8> = Vec::<f32>::try_from(&grad)?.iter().flat_map(|x| x.to_le_bytes()).collect();
            norms.insert(param.row.name.clone(), sum_squares(&grad)?.sqrt());
            digests.insert(param.row.name.clone(), coxswain_files::atomic::digest_bytes(&bytes));
        }
    }
    Ok((norms, digests))
}

/// What rank 0 has after a step of these assignments.
fn record(assignments: &[Assignment]) -> Result<RunRecord> {
    let store = MemoryStore::default();
    let mut ranks = std::thread::scope(|scope| {
        let threads: Vec<_> = assignments
            .iter()
            .map(|a| (a, store.clone()))
            .map(|(a, store)| scope.spawn(move || rank(a, store)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow::anyhow!("a rank panicked"))?)
            .collect::<Result<Vec<_>>>()
    })?;
    let (norms, digests) = ranks.swap_remove(0);
    let norm = norms.values().map(|norm| norm * norm).sum::<f64>().sqrt();
    Ok(RunRecord {
        losses: BTreeMap::from([(1, 1.0)]),
        norms: BTreeMap::from([(1, norm)]),
        parameter_norms: BTreeMap::from([(1, norms)]),
        held_out: None,
        digests,
    })
}

#[test]
fn a_tree_with_two_branches_exchanged_does_not_pass_for_the_right_one() -> Result<()> {
    let plan = |data| -> Result<Vec<Assignment>> {
        Ok(sketch(&spec(data)?, data).map_err(|error| anyhow::anyhow!("{error}"))?.assignments)
    };
    let one = record(&plan(1)?)?;
    let three = plan(3)?;
    let right = differences(&record(&three)?, &one);
    ensure!(right.bitwise(), "three data ranks differ from one: {right:?}");

    // Rank 0 takes the parts of ranks 1 and 2 for each other's: every part is added once, elsewhere.
    let mut wrong = three;
    let (first, second) = (wrong[0].data_nodes[1].clone(), wrong[0].data_nodes[2].clone());
    ensure!(first.len() == 2 && second.len() == 2, "{first:?} {second:?}");
    wrong[0].data_nodes[1] = vec![second[1], second[0]];
    wrong[0].data_nodes[2] = vec![first[1], first[0]];
    let found = differences(&record(&wrong)?, &one);
    ensure!(!found.bitwise() && found.other_tensors > 0, "the wrong sum has the bits of the right one");
    Ok(())
}
