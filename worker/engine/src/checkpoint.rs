//! Values to disk and back. A shard file holds what a rank owns of each parameter, named by
//! parameter and global offsets, so that any other layout can read its own slices from it.
//!
//! When a checkpoint is committed is the coordinator's decision; this module writes a rank's part.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use coxswain_comm::{Axis, Links};
use coxswain_files::folders::{model_file, optimizer_file, step_folder};
use coxswain_files::{
    Checkpoint, CheckpointError, Fingerprint, Header, ShardTensor, SlabWriter, write_shard,
};
use coxswain_types::Step;
use coxswain_types::assignment::{Assignment, Resume, Weights};
use coxswain_types::job::Reduction;
use coxswain_types::params::ParameterRow;
use coxswain_types::status::SavedFile;
use tch::{Device, Kind, Tensor};

use crate::EngineError;
use crate::error::Doing;
use crate::model::{Bucket, Param, Parameters, on_device};
use crate::train::{Moments, Optimizer, Trainer};

const FIRST_MOMENT: &str = "exp_avg/";
const SECOND_MOMENT: &str = "exp_avg_sq/";
/// The training's own numbers, written by the lead rank.
const TRAINER: &str = "trainer/state";

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

/// Writes this rank's shard files of a checkpoint, synced; nobody sees them before the manifest.
///
/// Under ZeRO-1 the first data rank collects the moments, one row at a time, while it writes.
pub fn save(
    directory: &Path,
    step: Step,
    assignment: &Assignment,
    parameters: &Parameters,
    optimizer: &Optimizer,
    trainer: &Trainer,
    links: &Links,
) -> Result<Vec<SavedFile>, EngineError> {
    let folder = step_folder(directory, step.0);
    coxswain_files::atomic::create_folder(&folder)
        .map_err(|cause| EngineError::File { path: folder.clone(), cause })?;
    let mut files = Vec::new();
    let weights = by_name(parameters.iter().filter(|param| param.row.saves).map(|param| (&**param, ())));
    if !weights.is_empty() {
        let shards: Vec<_> = weights.iter().map(|(_, rows)| shard(rows, "")).collect();
        let path = folder.join(model_file(assignment.generation, assignment.rank));
        files.push(write_shard(&path, &shards, |index, slab| -> Result<_, EngineError> {
            links.expect_wanted()?;
            let values: Vec<_> =
                weights[index].1.iter().map(|(param, ())| param.weight.shallow_clone()).collect();
            write(&values, dim_of(&weights[index].1), slab)
        })?);
    }
    let moments = moments(parameters, optimizer);
    let group = &assignment.optimizer_group;
    if assignment.data_index > 0 && group.len() > 1 {
        for (param, row) in moments.iter().flat_map(|(_, rows)| rows) {
            row.give(param, group[0], links)?;
        }
        return Ok(files);
    }
    files.extend(save_moments(&folder, assignment, &moments, trainer, links)?);
    Ok(files)
}

/// Writes the moments, and on the lead rank the training's own numbers.
fn save_moments(
    folder: &Path,
    assignment: &Assignment,
    moments: &[Named<'_, Row<'_>>],
    trainer: &Trainer,
    links: &Links,
) -> Result<Option<SavedFile>, EngineError> {
    let group = &assignment.optimizer_group;
    let saves = |rows: &[(&Param, Row<'_>)]| rows.first().is_some_and(|(param, _)| param.row.saves);
    let mut shards: Vec<_> = moments
        .iter()
        .filter(|(_, rows)| saves(rows))
        .map(|(_, rows)| shard(rows, rows.first().map_or("", |(_, row)| row.prefix)))
        .collect();
    if links.rank() == 0 {
        let len = Trainer::NUMBERS;
        shards.push(ShardTensor { name: TRAINER.to_owned(), shape: vec![len], dim: 0, offset: 0, len });
    }
    // Others give every row, also those that this rank does not write, and in this order: that of the
    // names, in which a file is written.
    let mut left = moments.iter();
    let mut next = || -> Result<Option<(Vec<Tensor>, i64)>, EngineError> {
        for (_, rows) in left.by_ref() {
            links.expect_wanted()?;
            let values = rows.iter().map(|(param, row)| row.collect(param, group, links));
            let values = values.collect::<Result<Vec<_>, _>>()?;
            if saves(rows) {
                return Ok(Some((values, dim_of(rows))));
            }
        }
        Ok(None)
    };
    let mut file = None;
    if !shards.is_empty() {
        let path = folder.join(optimizer_file(assignment.generation, assignment.rank));
        file = Some(write_shard(&path, &shards, |_, slab| -> Result<_, EngineError> {
            match next()? {
                Some((values, dim)) => write(&values, dim, slab),
                None => write(&[Tensor::from_slice(&trainer.encode())], 0, slab),
            }
        })?);
    }
    while next()?.is_some() {}
    Ok(file)
}

/// The rows of one tensor on this rank, by offset, and something of each.
type Named<'a, T> = (String, Vec<(&'a Param, T)>);

/// Rows by the names of their tensors: a rank's logical shards of one are neighbours in it.
fn by_name<'a, T>(rows: impl Iterator<Item = (&'a Param, T)>) -> Vec<Named<'a, T>> {
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
fn dim_of<T>(rows: &[(&Param, T)]) -> i64 {
    rows.first().map_or(0, |(param, _)| i64::from(param.row.dim))
}

/// Elements that are copied out of tensors at a time.
const PIECE: i64 = 1 << 18;

/// Writes slices that follow each other along `dim` as one, without a copy of all of it.
fn write(values: &[Tensor], dim: i64, slab: &mut SlabWriter<'_>) -> Result<(), EngineError> {
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

/// A moment of a row.
struct Row<'a> {
    prefix: &'static str,
    moments: &'a Moments,
    moment: &'a Tensor,
    bucket: &'a Bucket,
}

/// The moments of all rows, in the same order on all ranks of an optimizer group.
fn moments<'a>(parameters: &'a Parameters, optimizer: &'a Optimizer) -> Vec<Named<'a, Row<'a>>> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (at, bucket) in parameters.buckets().iter().enumerate() {
        let moments = optimizer.moments(at);
        for param in bucket.homes() {
            let row = |prefix, moment| Row { prefix, moments, moment, bucket };
            first.push((&**param, row(FIRST_MOMENT, &moments.first)));
            second.extend(moments.second.as_ref().map(|moment| (&**param, row(SECOND_MOMENT, moment))));
        }
    }
    [by_name(first.into_iter()), by_name(second.into_iter())].into_iter().flatten().collect()
}

impl Row<'_> {
    /// Gives this rank's part to the rank that writes.
    fn give(&self, param: &Param, to: u32, links: &Links) -> Result<(), EngineError> {
        let (_, own) = self.moments.segment(self.moment, &param.range())?;
        if own.numel() > 0 {
            let sent = links.send(&own, to, Axis::Optimizer)?.wait();
            sent.doing(|| "giving optimizer state to the rank that writes it".to_owned())?;
        }
        Ok(())
    }

    /// The whole row, from all ranks of the group.
    fn collect(&self, param: &Param, group: &[u32], links: &Links) -> Result<Tensor, EngineError> {
        let range = param.range();
        let shaped = |flat: &Tensor| -> Result<Tensor, EngineError> {
            let row = flat.f_narrow(0, 0, param.row.elements() as i64)?;
            Ok(row.f_view(param.row.local_shape().as_slice())?)
        };
        if group.len() < 2 {
            return shaped(&self.moments.segment(self.moment, &range)?.1);
        }
        let flat = Tensor::f_zeros([range.end - range.start], (Kind::Float, Device::Cpu))?;
        let (start, own) = self.moments.segment(self.moment, &range)?;
        flat.f_narrow(0, (start - range.start).max(0), own.numel() as i64)?.f_copy_(&own)?;
        for (&rank, slice) in group.iter().zip(self.bucket.layout.slices(group.len())).skip(1) {
            let (from, to) = (slice.start.max(range.start), slice.end.min(range.end));
            if from < to {
                let part = flat.f_narrow(0, from - range.start, to - from)?;
                let received = links.recv(&part, rank, Axis::Optimizer)?.wait();
                received.doing(|| "collecting optimizer state from data ranks".to_owned())?;
            }
        }
        shaped(&flat)
    }
}

/// Loads this rank's slices of a committed checkpoint, whatever layout wrote it, into all of `stores`. Each rank
/// verifies a share of its files, and no rank reads a value before all shares are verified.
///
/// # Errors
/// [`EngineError::Damaged`] on the rank that found the damage. The others wait until the coordinator ends the
/// generation.
pub fn load(
    directory: &Path,
    resume: &Resume,
    assignment: &Assignment,
    runtime: &str,
    stores: &[(&Parameters, &Optimizer)],
    links: &Links,
) -> Result<Trainer, EngineError> {
    let checkpoint = Checkpoint::open(&directory.join(&resume.path), Some(&resume.digest)).map_err(damage)?;
    let Some(its) = &checkpoint.manifest().fingerprint else {
        return Err(EngineError::Other(format!(
            "{} is an imported model, which no run computed",
            resume.path
        )));
    };
    let differences = its.differences(&fingerprint(assignment, runtime));
    if !differences.is_empty() {
        return Err(EngineError::Fingerprint(differences));
    }
    if checkpoint.manifest().data != assignment.data {
        return Err(EngineError::Other(format!(
            "{} was trained on other tokens than this run has prepared; start in another folder",
            resume.path
        )));
    }
    links.enter(resume.step.0, format!("checking the files of the checkpoint of step {}", resume.step));
    let go_on = || -> Result<(), EngineError> { Ok(links.expect_wanted()?) };
    let verified = checkpoint.verify_share(links.rank(), assignment.world, go_on);
    verified.map_err(|error| match error {
        EngineError::Checkpoint(error) => damage(error),
        other => other,
    })?;
    links
        .enter(resume.step.0, "waiting until all ranks have checked their part of the checkpoint".to_owned());
    links.barrier().doing(|| "checking the checkpoint with all ranks".to_owned())?;
    links.enter(resume.step.0, format!("reading the checkpoint of step {}", resume.step));
    for (parameters, optimizer) in stores {
        load_values(&checkpoint, parameters, optimizer, links)?;
    }
    let bytes = checkpoint.read_slice(TRAINER, 0, 0, Trainer::NUMBERS)?;
    Trainer::decode(&floats(&bytes))
        .ok_or_else(|| EngineError::Other(format!("{}: {TRAINER} is not readable", resume.path)))
}

/// What is wrong with the checkpoint to go on from: an older one is better, if its files are not what was written.
fn damage(error: CheckpointError) -> EngineError {
    if error.is_damage() { EngineError::Damaged(error) } else { EngineError::Checkpoint(error) }
}

/// Reads the slices of weights and moments that are here.
fn load_values(
    checkpoint: &Checkpoint,
    parameters: &Parameters,
    optimizer: &Optimizer,
    links: &Links,
) -> Result<(), EngineError> {
    for param in parameters.iter().filter(|param| param.home) {
        links.expect_wanted()?;
        read(checkpoint, &param.row, "", &param.weight)?;
    }
    for (param, row) in moments(parameters, optimizer).iter().flat_map(|(_, rows)| rows) {
        let (start, own) = row.moments.segment(row.moment, &param.range())?;
        if own.numel() == 0 {
            continue;
        }
        links.expect_wanted()?;
        let range = param.range();
        let flat = Tensor::f_zeros([range.end - range.start], (Kind::Float, Device::Cpu))?;
        let whole = flat.f_narrow(0, 0, param.row.elements() as i64)?;
        read(checkpoint, &param.row, row.prefix, &whole.f_view(param.row.local_shape().as_slice())?)?;
        own.shallow_clone().f_copy_(&flat.f_narrow(0, start - range.start, own.numel() as i64)?)?;
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
    let checkpoint = Checkpoint::open(Path::new(&weights.folder), Some(&weights.digest))?;
    let mut born = BTreeSet::new();
    for param in parameters.iter().filter(|param| param.home) {
        links.expect_wanted()?;
        match checkpoint.shape(&param.row.name) {
            Ok(_) => read(&checkpoint, &param.row, "", &param.weight)?,
            Err(_) => {
                born.insert(param.row.name.clone());
            }
        }
    }
    Ok(born)
}

/// The slice of a tensor that neighbouring rows make.
fn shard<T>(rows: &[(&Param, T)], prefix: &str) -> ShardTensor {
    let first = rows.first().map(|(param, _)| &param.row);
    ShardTensor {
        name: format!("{prefix}{}", first.map_or("", |row| &row.name)),
        shape: first.map_or(Vec::new(), |row| row.shape.clone()),
        dim: first.map_or(0, |row| row.dim),
        offset: first.map_or(0, |row| row.offset),
        len: rows.iter().map(|(param, _)| param.row.len).sum(),
    }
}

fn read(checkpoint: &Checkpoint, row: &ParameterRow, prefix: &str, into: &Tensor) -> Result<(), EngineError> {
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

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}
