//! Values to disk and back. A shard file holds what a rank owns of each parameter, named by
//! parameter and global offsets, so that any other layout can read its own slices from it.
//!
//! When a checkpoint is committed is the coordinator's decision; this module writes a rank's part.

use std::path::Path;

use coxswain_comm::Links;
use coxswain_files::folders::{model_file, optimizer_file, step_folder};
use coxswain_files::{Checkpoint, Fingerprint, Header, ShardTensor, write_shard};
use coxswain_types::Step;
use coxswain_types::assignment::{Assignment, Resume};
use coxswain_types::params::ParameterRow;
use coxswain_types::status::SavedFile;
use tch::Tensor;

use crate::EngineError;
use crate::model::Parameters;
use crate::train::Optimizer;

const FIRST_MOMENT: &str = "exp_avg/";
const SECOND_MOMENT: &str = "exp_avg_sq/";

/// What the values depend on beside the job.
pub fn fingerprint(assignment: &Assignment, runtime: &str) -> Fingerprint {
    let train = &assignment.spec.train;
    Fingerprint {
        runtime: runtime.to_owned(),
        threads: assignment.threads,
        dtype: "fp32".to_owned(),
        micro_batches: train.micro_batches,
        micro_batch: train.micro_batch,
        reduction_runs: train.reduction_runs,
    }
}

/// What a manifest says beside its files, for the rank that publishes it.
pub fn header(assignment: &Assignment, runtime: &str, step: Step) -> Header {
    Header {
        job: assignment.job.clone(),
        step: step.0,
        spec: assignment.spec.clone(),
        fingerprint: fingerprint(assignment, runtime),
        data: assignment.data.clone(),
    }
}

/// Writes this rank's shard files of a checkpoint, synced; nobody sees them before the manifest.
pub fn save(
    directory: &Path,
    step: Step,
    assignment: &Assignment,
    parameters: &Parameters,
    optimizer: &Optimizer,
    links: &Links,
) -> Result<Vec<SavedFile>, EngineError> {
    let folder = step_folder(directory, step.0);
    coxswain_files::atomic::create_folder(&folder)
        .map_err(|source| EngineError::File { path: folder.clone(), source })?;
    let (mut weights, mut moments) = (Vec::new(), Vec::new());
    for (at, bucket) in parameters.buckets().iter().enumerate() {
        let (first, second) = optimizer.moments(at);
        for param in bucket.params.iter().filter(|param| param.row.saves) {
            weights.push((shard(&param.row, ""), param.weight.shallow_clone()));
            moments.push((shard(&param.row, FIRST_MOMENT), param.view_of(first)?));
            moments.push((shard(&param.row, SECOND_MOMENT), param.view_of(second)?));
        }
    }
    let names = [
        (model_file(assignment.generation, assignment.rank), weights),
        (optimizer_file(assignment.generation, assignment.rank), moments),
    ];
    let mut files = Vec::new();
    for (name, tensors) in names.into_iter().filter(|(_, tensors)| !tensors.is_empty()) {
        let (tensors, values): (Vec<_>, Vec<_>) = tensors.into_iter().unzip();
        files.push(write_shard(&folder.join(name), &tensors, |index| -> Result<_, EngineError> {
            links.expect_wanted()?;
            bytes(&values[index])
        })?);
    }
    Ok(files)
}

/// Loads this rank's slices of a committed checkpoint, whatever layout wrote it.
pub fn load(
    directory: &Path,
    resume: &Resume,
    assignment: &Assignment,
    runtime: &str,
    parameters: &Parameters,
    optimizer: &mut Optimizer,
    links: &Links,
) -> Result<(), EngineError> {
    let checkpoint = Checkpoint::open(&directory.join(&resume.path), Some(&resume.digest))?;
    let differences = checkpoint.manifest().fingerprint.differences(&fingerprint(assignment, runtime));
    if !differences.is_empty() {
        return Err(EngineError::Fingerprint(differences));
    }
    if checkpoint.manifest().data != assignment.data {
        return Err(EngineError::Other(format!(
            "{} was trained on other tokens than this run has prepared; start in another folder",
            resume.path
        )));
    }
    for (at, bucket) in parameters.buckets().iter().enumerate() {
        for param in &bucket.params {
            links.expect_wanted()?;
            let (first, second) = optimizer.moments(at);
            read(&checkpoint, &param.row, "", &param.weight)?;
            read(&checkpoint, &param.row, FIRST_MOMENT, &param.view_of(first)?)?;
            read(&checkpoint, &param.row, SECOND_MOMENT, &param.view_of(second)?)?;
        }
    }
    Ok(())
}

/// Loads the weights alone.
pub(crate) fn load_weights(checkpoint: &Checkpoint, parameters: &Parameters) -> Result<(), EngineError> {
    parameters.iter().try_for_each(|param| read(checkpoint, &param.row, "", &param.weight))
}

fn shard(row: &ParameterRow, prefix: &str) -> ShardTensor {
    ShardTensor {
        name: format!("{prefix}{}", row.name),
        shape: row.shape.clone(),
        dim: row.dim,
        offset: row.offset,
        len: row.len,
    }
}

fn bytes(x: &Tensor) -> Result<Vec<u8>, EngineError> {
    let values = Vec::<f32>::try_from(&x.f_contiguous()?.f_flatten(0, -1)?)?;
    let mut bytes = vec![0; values.len() * 4];
    for (bytes, value) in bytes.chunks_exact_mut(4).zip(values) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    Ok(bytes)
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
    let values: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    into.shallow_clone().f_copy_(&Tensor::from_slice(&values).f_view(into.size().as_slice())?)?;
    Ok(())
}
