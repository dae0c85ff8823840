//! Values to disk and back: the slices of tensors that a rank holds, named by parameter and global offsets, so that
//! any other layout can read its own slices from them.
//!
//! When a checkpoint is committed is the coordinator's decision. What of a training is saved and read again is
//! `train/saving.rs`, which stands on this.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use coxswain_comm::Links;
use coxswain_files::{Checkpoint, Fingerprint, Header, ShardTensor, SlabWriter};
use coxswain_types::Step;
use coxswain_types::assignment::{Assignment, Weights};
use coxswain_types::job::Reduction;
use coxswain_types::params::ParameterRow;
use tch::{Device, Tensor};

use crate::EngineError;
use crate::model::{Param, Parameters, on_device};

/// What the values depend on beside the job.
pub fn fingerprint(assignment: &Assignment, runtime: &str) -> Fingerprint {
    let train = &assignment.spec.train;
    Fingerprint {
        runtime: runtime.to_owned(),
        threads: assignment.threads,
        dtype: "fp32".to_owned(),
        precision: train.precision.name().to_owned(),
        global_micro_batches: train.global_micro_batches,
        micro_batch_size: train.micro_batch_size,
        gradient_groups: if train.reduction == Reduction::Fast { 0 } else { train.gradient_groups },
        tensor_shards: train.tensor_shards.unwrap_or(0),
    }
}

/// What a manifest says beside its files, for the rank that publishes it.
pub fn header(assignment: &Assignment, runtime: &str, step: Step) -> Header {
    Header {
        job: assignment.job.clone(),
        step: step.0,
        spec: assignment.spec.clone(),
        fingerprint: Some(fingerprint(assignment, runtime)),
        data: assignment.data.clone(),
    }
}

/// The rows of one tensor on this rank, by offset, and something of each.
pub(crate) type Named<'a, T> = (String, Vec<(&'a Param, T)>);

/// Rows by the names of their tensors: a rank's logical shards of one are neighbours in it.
pub(crate) fn by_name<'a, T>(rows: impl Iterator<Item = (&'a Param, T)>) -> Vec<Named<'a, T>> {
    let mut named: BTreeMap<&str, Vec<(&Param, T)>> = BTreeMap::new();
    for (param, value) in rows {
        named.entry(&param.row.name).or_default().push((param, value));
    }
    let named = named.into_iter().map(|(name, mut rows)| {
        rows.sort_by_key(|(param, _)| param.row.offset);
        (name.to_owned(), rows)
    });
    named.collect()
}

/// The dimension along which the rows of a tensor follow each other.
pub(crate) fn dim_of<T>(rows: &[(&Param, T)]) -> i64 {
    rows.first().map_or(0, |(param, _)| i64::from(param.row.dim))
}

/// Elements that are copied out of tensors at a time.
const PIECE: i64 = 1 << 18;

/// Writes slices that follow each other along `dim` as one, without a copy of all of it.
pub(crate) fn write(values: &[Tensor], dim: i64, slab: &mut SlabWriter<'_>) -> Result<(), EngineError> {
    let mut piece = |flat: &Tensor| -> Result<(), EngineError> {
        let values = Vec::<f32>::try_from(on_device(flat, Device::Cpu)?)?;
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(slab.write(&bytes)?)
    };
    let pieces =
        |all: i64, each: i64| (0..all).step_by(each.max(1) as usize).map(move |at| (at, each.min(all - at)));
    if values.len() == 1 || dim == 0 {
        for value in values {
            let flat = value.f_contiguous()?.f_flatten(0, -1)?;
            for (at, len) in pieces(flat.numel() as i64, PIECE) {
                piece(&flat.f_narrow(0, at, len)?)?;
            }
        }
        return Ok(());
    }
    // A row of the whole is one of each slice, one after the other.
    let rows = values.first().map_or(0, |value| value.size()[0]);
    let across: i64 = values.iter().map(|value| value.numel() as i64).sum::<i64>() / rows.max(1);
    for (at, len) in pieces(rows, PIECE / across.max(1)) {
        let parts = values.iter().map(|value| value.f_narrow(0, at, len)).collect::<Result<Vec<_>, _>>()?;
        piece(&Tensor::f_cat(&parts, dim)?.f_flatten(0, -1)?)?;
    }
    Ok(())
}

/// Loads the weights alone.
pub(crate) fn load_weights(checkpoint: &Checkpoint, parameters: &Parameters) -> Result<(), EngineError> {
    parameters
        .iter()
        .filter(|param| param.home)
        .try_for_each(|param| read(checkpoint, &param.row, "", &param.weight))
}

/// Values of weights that a job starts from; says which parameters the checkpoint does not have, whose
/// values stay.
pub fn start(
    weights: &Weights,
    parameters: &Parameters,
    links: &Links,
) -> Result<BTreeSet<String>, EngineError> {
    let checkpoint = Checkpoint::open(&Path::new(&weights.folder).into(), Some(&weights.digest))?;
    let mut initialized = BTreeSet::new();
    for param in parameters.iter().filter(|param| param.home) {
        links.expect_wanted()?;
        match checkpoint.shape(&param.row.name) {
            Ok(_) => read(&checkpoint, &param.row, "", &param.weight)?,
            Err(_) => {
                initialized.insert(param.row.name.clone());
            }
        }
    }
    Ok(initialized)
}

/// The slice of a tensor that neighbouring rows make.
pub(crate) fn shard<T>(rows: &[(&Param, T)], prefix: &str) -> ShardTensor {
    let first = rows.first().map(|(param, _)| &param.row);
    ShardTensor {
        name: format!("{prefix}{}", first.map_or("", |row| &row.name)),
        shape: first.map_or(Vec::new(), |row| row.shape.clone()),
        dim: first.map_or(0, |row| row.dim),
        offset: first.map_or(0, |row| row.offset),
        len: rows.iter().map(|(param, _)| param.row.len).sum(),
    }
}

/// Reads the slice of a row into `into`, whose name in the checkpoint has this prefix.
pub(crate) fn read(
    checkpoint: &Checkpoint,
    row: &ParameterRow,
    prefix: &str,
    into: &Tensor,
) -> Result<(), EngineError> {
    let name = format!("{prefix}{}", row.name);
    let stored = checkpoint.shape(&name)?;
    if stored != row.shape {
        return Err(EngineError::Other(format!(
            "the checkpoint's {name} has the shape {stored:?}, the job's model wants {:?}; continue with the \
             job that wrote it, or start in another folder",
            row.shape
        )));
    }
    let bytes = checkpoint.read_slice(&name, row.dim, row.offset, row.len)?;
    let values = floats(&bytes);
    into.shallow_clone().f_copy_(&Tensor::from_slice(&values).f_view(into.size().as_slice())?)?;
    Ok(())
}

/// Little-endian fp32 numbers.
pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
