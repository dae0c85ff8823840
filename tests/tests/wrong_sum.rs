//! A sum in the wrong order is caught: data ranks as threads of this process, over real sockets, with
//! the real plan and with one whose tree of sums was tampered with. So is a sum that lacks a gradient.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use coxswain_comm::{Links, MemoryStore};
use coxswain_core::certificate::{RunRecord, differences};
use coxswain_engine::EngineError;
use coxswain_engine::model::Parameters;
use coxswain_engine::parallel::GradientSum;
use coxswain_native::ops::{embed_grad, sum_squares};
use coxswain_tests::threads::{assignments, on_threads, own_tokens, step};
use coxswain_types::Assignment;
use coxswain_types::params::{EMBEDDING, Place};
use tch::{Device, Kind, Tensor};

/// The gradients of a step on one rank: the norm of each parameter's, and a digest of it.
type Gradients = (BTreeMap<String, f64>, BTreeMap<String, String>);

fn rank(a: &Assignment, store: MemoryStore) -> Result<Gradients> {
    let stepped = step(a, store, &|micro_batch| Ok(own_tokens(a, micro_batch)))?;
    let (mut norms, mut digests) = (BTreeMap::new(), BTreeMap::new());
    for (at, bucket) in stepped.parameters.buckets().iter().enumerate() {
        for param in &bucket.params {
            let grad = param.view_of(stepped.reduction.total(at)?)?.flatten(0, -1);
            let bytes: Vec<u8> = Vec::<f32>::try_from(&grad)?.iter().flat_map(|x| x.to_le_bytes()).collect();
            norms.insert(param.row.name.clone(), sum_squares(&grad)?.sqrt());
            digests.insert(param.row.name.clone(), coxswain_files::atomic::digest_bytes(&bytes));
        }
    }
    Ok((norms, digests))
}

/// What rank 0 has after a step of these assignments.
fn record(assignments: &[Assignment]) -> Result<RunRecord> {
    let (norms, digests) = on_threads(assignments, rank)?.swap_remove(0);
    let norm = norms.values().map(|norm| norm * norm).sum::<f64>().sqrt();
    Ok(RunRecord {
        losses: BTreeMap::from([(1, 1.0)]),
        norms: BTreeMap::from([(1, norm)]),
        parameter_norms: BTreeMap::from([(1, norms)]),
        validation: None,
        digests,
    })
}

#[test]
fn a_tree_with_two_branches_exchanged_does_not_pass_for_the_right_one() -> Result<()> {
    let one = record(&assignments("layout.data", 1)?)?;
    let three = assignments("layout.data", 3)?;
    let right = differences(&record(&three)?, &one);
    ensure!(right.bitwise(), "three data ranks differ from one: {right:?}");

    // Rank 0 takes the two parts of rank 1 for each other's: each is added once, elsewhere.
    let mut wrong = three;
    let parts = wrong[0].data_nodes[1].clone();
    ensure!(parts.len() == 2, "{parts:?}");
    wrong[0].data_nodes[1] = vec![parts[1], parts[0]];
    let found = differences(&record(&wrong)?, &one);
    ensure!(!found.bitwise() && found.other_tensors > 0, "the wrong sum has the bits of the right one");
    Ok(())
}

#[test]
fn a_gradient_that_no_backward_pass_writes_is_an_error_with_its_name() -> Result<()> {
    let mut assignments = assignments("train.global_micro_batches", 2)?;
    let a = assignments.swap_remove(0);
    let parameters = Parameters::allocate(
        &a.parameters,
        a.spec.train.precision,
        a.spec.train.optimizer.kind,
        Device::Cpu,
    )?;
    let mut reduction = GradientSum::new(&a, &parameters, &Links::alone())?;
    let range = parameters.buckets_of(Place::Embedding);
    let table = &parameters.buckets()[range.start].params[0];
    ensure!(range.len() == 1 && table.row.name == EMBEDDING, "{:?}", table.row);
    let (ids_n, dy_nd) = (
        Tensor::from_slice(&[3_i64]),
        Tensor::ones([1, table.row.shape[1] as i64], (Kind::Float, Device::Cpu)),
    );
    let end = |reduction: &mut GradientSum, write: bool| -> Result<(), EngineError> {
        for micro_batch in a.runs[0].clone() {
            reduction.begin(&parameters, Place::Embedding, micro_batch)?;
            if write {
                embed_grad(&ids_n, &dy_nd, &table.slot, 0)?;
            }
            reduction.end(&parameters, Place::Embedding, micro_batch)?;
        }
        reduction.clear();
        Ok(())
    };
    end(&mut reduction, true)?;
    // The buffer of that step, which is used again.
    match end(&mut reduction, false) {
        Err(EngineError::Unwritten { name, .. }) => ensure!(name == table.row.name, "{name}"),
        other => anyhow::bail!("{other:?}"),
    }
    Ok(())
}
