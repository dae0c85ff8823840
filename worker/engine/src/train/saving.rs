//! A rank's part of a training on disk and back: weights, moments, and the training's own numbers.

use coxswain_comm::{Axis, Links};
use coxswain_files::folders::{model_file, optimizer_file, step_folder};
use coxswain_files::{Checkpoint, CheckpointError, ShardTensor, StoreFolder, write_shard};
use coxswain_types::Step;
use coxswain_types::activity::{EnginePhase, EngineWork};
use coxswain_types::assignment::{Assignment, Resume};
use coxswain_types::status::SavedFile;
use tch::{Device, Kind, Tensor};

use super::optimizer::{Moments, Optimizer};
use super::verdict::Trainer;
use crate::EngineError;
use crate::checkpoint::{Named, by_name, dim_of, fingerprint, floats, read, shard, write};
use crate::error::Doing;
use crate::model::{Bucket, Param, Parameters};

const FIRST_MOMENT: &str = "exp_avg/";
const SECOND_MOMENT: &str = "exp_avg_sq/";
/// The training's own numbers, written by the lead rank.
const TRAINER: &str = "trainer/state";

/// Writes this rank's shard files of a checkpoint, synced; readers see them only after the manifest.
///
/// Under ZeRO-1 the first data rank collects the moments, one row at a time, while it writes.
pub(super) fn save(
    run: &StoreFolder,
    step: Step,
    assignment: &Assignment,
    parameters: &Parameters,
    optimizer: &Optimizer,
    trainer: &Trainer,
    links: &Links,
) -> Result<Vec<SavedFile>, EngineError> {
    let folder = step_folder(run, step.0);
    let mut files = Vec::new();
    let weights = by_name(parameters.iter().filter(|param| param.row.saves).map(|param| (&**param, ())));
    if !weights.is_empty() {
        let shards: Vec<_> = weights.iter().map(|(_, rows)| shard(rows, "")).collect();
        let name = model_file(assignment.generation, assignment.rank);
        files.push(write_shard(&folder, &name, &shards, |index, slab| -> Result<_, EngineError> {
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
    folder: &StoreFolder,
    assignment: &Assignment,
    moments: &[Named<'_, MomentRow<'_>>],
    trainer: &Trainer,
    links: &Links,
) -> Result<Option<SavedFile>, EngineError> {
    let group = &assignment.optimizer_group;
    let saves = |rows: &[(&Param, MomentRow<'_>)]| rows.first().is_some_and(|(param, _)| param.row.saves);
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
        let name = optimizer_file(assignment.generation, assignment.rank);
        file = Some(write_shard(folder, &name, &shards, |_, slab| -> Result<_, EngineError> {
            match next()? {
                Some((values, dim)) => write(&values, dim, slab),
                None => write(&[Tensor::from_slice(&trainer.encode())], 0, slab),
            }
        })?);
    }
    while next()?.is_some() {}
    Ok(file)
}

/// A moment of a row.
struct MomentRow<'a> {
    prefix: &'static str,
    moments: &'a Moments,
    moment: &'a Tensor,
    bucket: &'a Bucket,
}

/// The moments of all rows, in the same order on all ranks of an optimizer group.
fn moments<'a>(parameters: &'a Parameters, optimizer: &'a Optimizer) -> Vec<Named<'a, MomentRow<'a>>> {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for (at, bucket) in parameters.buckets().iter().enumerate() {
        let moments = optimizer.moments(at);
        for param in bucket.homes() {
            let row = |prefix, moment| MomentRow { prefix, moments, moment, bucket };
            first.push((&**param, row(FIRST_MOMENT, &moments.first)));
            second.extend(moments.second.as_ref().map(|moment| (&**param, row(SECOND_MOMENT, moment))));
        }
    }
    [by_name(first.into_iter()), by_name(second.into_iter())].into_iter().flatten().collect()
}

impl MomentRow<'_> {
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
pub(super) fn load(
    run: &StoreFolder,
    resume: &Resume,
    assignment: &Assignment,
    runtime: &str,
    stores: &[(&Parameters, &Optimizer)],
    links: &Links,
) -> Result<Trainer, EngineError> {
    let checkpoint = Checkpoint::open(&run.below(&resume.path), Some(&resume.digest)).map_err(damage)?;
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
    let enter = |phase| links.enter(resume.step.0, EngineWork::Phase(phase));
    enter(EnginePhase::CheckingCheckpoint);
    let go_on = || -> Result<(), EngineError> { Ok(links.expect_wanted()?) };
    let verified = checkpoint.verify_share(links.rank(), assignment.world, go_on);
    verified.map_err(|error| match error {
        EngineError::Checkpoint(error) => damage(error),
        other => other,
    })?;
    enter(EnginePhase::AwaitingChecks);
    links.barrier().doing(|| "checking the checkpoint with all ranks".to_owned())?;
    enter(EnginePhase::ReadingCheckpoint);
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
