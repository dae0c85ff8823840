//! What the coordinator does in a run's folder: tokens, the newest checkpoint, old checkpoints.

use std::path::Path;

use coxswain_core::cluster::{Prepared, Submission};
use coxswain_files::atomic::{create_folder, digest_file};
use coxswain_files::folders::step_path;
use coxswain_files::manifest::MANIFEST;
use coxswain_files::{Checkpoint, Manifest};
use coxswain_types::assignment::{PreparedData, Resume};
use coxswain_types::{JobSpec, Step};

/// The newest checkpoint of a run and what it was made with.
pub(crate) struct Newest {
    pub(crate) resume: Resume,
    pub(crate) threads: u32,
    data: PreparedData,
}

/// The newest checkpoint in `directory`, or why the job cannot continue from it.
pub(crate) fn newest(directory: &Path, spec: &JobSpec) -> Result<Option<Newest>, String> {
    let latest = coxswain_files::latest(directory).map_err(|error| error.to_string())?;
    let Some((step, folder)) = latest else { return Ok(None) };
    let manifest = Manifest::read(&folder, None).map_err(|error| error.to_string())?;
    if manifest.spec.model != spec.model {
        return Err(format!(
            "{} holds a checkpoint of another model; give another folder, or the model that it was trained with \
             (the manifest there says which)",
            folder.display()
        ));
    }
    let (was, is) = (&manifest.spec.train, &spec.train);
    for (name, was, is) in [
        ("seed", was.seed, is.seed),
        ("sequence", was.sequence.into(), is.sequence.into()),
        ("micro_batch", was.micro_batch.into(), is.micro_batch.into()),
        ("micro_batches", was.micro_batches.into(), is.micro_batches.into()),
        ("reduction_runs", was.reduction_runs.into(), is.reduction_runs.into()),
        (
            "threads",
            manifest.fingerprint.threads.into(),
            is.threads.unwrap_or(manifest.fingerprint.threads).into(),
        ),
    ] {
        if was != is {
            return Err(format!(
                "{} was trained with train.{name} {was}, and the job says {is}: the numbers would be other ones; \
                 set it back, or give another folder",
                folder.display()
            ));
        }
    }
    let path = folder.join(MANIFEST);
    let digest = digest_file(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let resume = Resume { step: Step(step), path: step_path(step), digest };
    Ok(Some(Newest { resume, threads: manifest.fingerprint.threads, data: manifest.data }))
}

/// Makes a job's tokens ready and finds its newest checkpoint. Takes seconds for a megabyte of text.
pub(crate) fn prepare(submission: &Submission) -> Result<Prepared, String> {
    let directory = Path::new(&submission.directory);
    create_folder(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let newest = newest(directory, &submission.spec)?;
    let data = match &newest {
        None => coxswain_files::prepare(directory, &submission.spec),
        Some(newest) => coxswain_files::prepare_again(directory, &submission.spec, &newest.data),
    };
    let data = data.map_err(|error| error.to_string())?;
    if let Some(newest) = &newest {
        // Every byte is looked at once, here: workers read the parts that they need.
        let checkpoint = Checkpoint::open(&directory.join(&newest.resume.path), Some(&newest.resume.digest));
        checkpoint.and_then(|checkpoint| checkpoint.verify()).map_err(|error| error.to_string())?;
    }
    let threads = newest.as_ref().map(|newest| newest.threads);
    Ok(Prepared { data, resume: newest.map(|newest| newest.resume), threads })
}

/// Lets go of old checkpoints. What cannot be removed costs room and nothing else.
pub(crate) fn prune(job: &str, directory: &Path, keep: u32) {
    match coxswain_files::prune(directory, keep) {
        Ok(steps) if steps.is_empty() => {}
        Ok(steps) => tracing::info!(job, "let go of the checkpoints of steps {steps:?}"),
        Err(error) => tracing::warn!(job, "old checkpoints stay: {error}"),
    }
}
