//! What the coordinator does in a run's folder: tokens, the newest checkpoint, old checkpoints.

use std::path::Path;

use coxswain_core::cluster::{CheckDepth, PreparedJob, Submission, Weight};
use coxswain_files::folders::{Sound, set_aside, step_folder, step_path};
use coxswain_files::progress::Watch;
use coxswain_files::{Checkpoint, CheckpointError, Digests, Fingerprint, Manifest, StoreFolder};
use coxswain_types::assignment::{PreparedData, Resume};
use coxswain_types::job::{OptimizerKind, Reduction, TrainSpec};
use coxswain_types::{JobSpec, Step};

use crate::beginning;

/// The newest checkpoint of a run and what it was made with.
pub(crate) struct Newest {
    pub(crate) resume: Resume,
    pub(crate) threads: u32,
    pub(crate) runtime: String,
    pub(crate) spec: JobSpec,
    pub(crate) data: PreparedData,
}

/// What [`newest`] found.
type Found = (Option<Newest>, Vec<(u64, CheckpointError)>);

/// The newest checkpoint of `run` that is not damaged, or why the job cannot continue from it; and
/// the steps of newer ones, with what is wrong with each. Every byte is read of those that `verify` names.
pub(crate) fn newest(
    run: &StoreFolder,
    spec: &JobSpec,
    verify: impl Fn(&Manifest) -> bool,
) -> Result<Found, String> {
    let looked = coxswain_files::folders::newest_sound(run, |folder| {
        let checkpoint = Checkpoint::open(folder, None)?;
        let manifest = checkpoint.manifest().clone();
        if verify(&manifest) {
            checkpoint.verify()?;
        }
        Ok((manifest.clone(), (manifest, checkpoint.digest().to_owned())))
    });
    let Sound { found, damaged } = looked.map_err(|error| error.to_string())?;
    let Some((step, (manifest, digest))) = found else { return Ok((None, damaged)) };
    let folder = step_folder(run, step);
    if manifest.spec.model != spec.model {
        return Err(format!(
            "{folder} holds a checkpoint of another model; give another folder, or the model that it was trained with \
             (the manifest there says which)"
        ));
    }
    let Manifest { fingerprint: Some(fingerprint), spec: was, data, .. } = manifest else {
        return Err(format!(
            "{folder} is an imported model, which no run computed; give another folder, and name this one in \
             train.start_from"
        ));
    };
    if let Some(difference) = difference(&was.train, fingerprint.threads, &spec.train) {
        return Err(format!(
            "{folder} was trained with {difference}: the numbers would be other ones; set it back, or give another folder"
        ));
    }
    let resume = Resume { step: Step(step), path: step_path(step), digest };
    let Fingerprint { threads, runtime, .. } = fingerprint;
    let newest = Newest { resume, threads, runtime, spec: was, data };
    Ok((Some(newest), damaged))
}

/// The first key of `is` that a run has to keep and that differs from the checkpoint's.
fn difference(was: &TrainSpec, threads: u32, is: &TrainSpec) -> Option<String> {
    let shards = |train: &TrainSpec| train.tensor_shards.map_or("left out".to_owned(), |n| n.to_string());
    // With one run for each data rank their number follows the layout, which may change.
    let runs = |train: &TrainSpec| match train.reduction {
        Reduction::Canonical => train.gradient_groups.to_string(),
        Reduction::Fast => "left out".to_owned(),
    };
    let reduction = |train: &TrainSpec| match train.reduction {
        Reduction::Canonical => "canonical".to_owned(),
        Reduction::Fast => "fast".to_owned(),
    };
    let optimizer = |train: &TrainSpec| match train.optimizer.kind {
        OptimizerKind::AdamW => "adamw".to_owned(),
        OptimizerKind::Muon => "muon".to_owned(),
    };
    let rows = [
        ("seed", was.seed.to_string(), is.seed.to_string()),
        ("sequence", was.sequence.to_string(), is.sequence.to_string()),
        ("micro_batch_size", was.micro_batch_size.to_string(), is.micro_batch_size.to_string()),
        ("global_micro_batches", was.global_micro_batches.to_string(), is.global_micro_batches.to_string()),
        ("reduction", reduction(was), reduction(is)),
        ("gradient_groups", runs(was), runs(is)),
        ("tensor_shards", shards(was), shards(is)),
        ("precision", was.precision.name().to_owned(), is.precision.name().to_owned()),
        ("optimizer", optimizer(was), optimizer(is)),
        ("threads", threads.to_string(), is.threads.unwrap_or(threads).to_string()),
    ];
    rows.into_iter()
        .find(|(_, was, is)| was != is)
        .map(|(name, was, is)| format!("train.{name} {was}, and the job says {is}"))
}

/// How a preparation reports.
pub(crate) struct Reporter<'a> {
    /// Takes the progress; an error stops the work.
    pub(crate) watch: Watch<'a>,
    /// Takes a line for the log.
    pub(crate) tell: &'a dyn Fn(Weight, String),
}

/// Makes a job's tokens ready and finds its newest checkpoint. Takes seconds for a megabyte of text the first time.
/// After an interruption it reads only the start of each text, lists of digests and manifests again. The `first` time
/// people are told what the job begins with.
pub(crate) fn prepare(
    submission: &Submission,
    look: CheckDepth,
    digests: &Digests,
    reporter: &Reporter<'_>,
    first: bool,
) -> Result<PreparedJob, String> {
    let run = &StoreFolder::from(Path::new(&submission.directory));
    // Hashed again instead of trusting remembered digests: bit rot leaves metadata unchanged. No rank verifies the
    // checkpoint of a finished job.
    let whole =
        |manifest: &Manifest| look == CheckDepth::Whole || manifest.step >= submission.spec.train.steps;
    let (newest, damaged) = newest(run, &submission.spec, whole)?;
    for (step, error) in damaged {
        (reporter.tell)(Weight::Warning, format!("the checkpoint of step {step} is set aside: {error}"));
        set_aside(run, step).map_err(|error| error.to_string())?;
    }
    let wanted = newest.as_ref().map(|newest| &newest.data);
    let data = coxswain_files::prepare(run, &submission.spec, wanted, digests, reporter.watch);
    let data = data.map_err(|error| error.to_string())?;
    if first {
        for line in beginning::told(run, newest.as_ref(), &submission.spec, &data)? {
            (reporter.tell)(Weight::Info, line);
        }
    }
    let (threads, runtime) = newest.as_ref().map(|newest| (newest.threads, newest.runtime.clone())).unzip();
    Ok(PreparedJob { data, resume: newest.map(|newest| newest.resume), threads, runtime })
}

/// Lets go of old checkpoints. What cannot be removed costs room and nothing else.
pub(crate) fn prune(job: &str, run: &StoreFolder, (newest, keep): (Step, u32)) {
    match coxswain_files::prune(run, newest.0, keep) {
        Ok(steps) if steps.is_empty() => {}
        Ok(steps) => tracing::info!(job, "let go of the checkpoints of steps {steps:?}"),
        Err(error) => tracing::warn!(job, "old checkpoints stay: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use coxswain_core::spec::{JobText, parse};

    use super::*;

    const JOB: &str = "
name: tiny
model: {layers: 2, dim: 32, heads: 4, vocab: 300}
data: {synthetic: {tokens: 4096}}
train: {steps: 5, sequence: 16, global_micro_batches: 4}
";

    fn spec(sets: &[(&str, &str)]) -> JobSpec {
        let sets: Vec<_> = sets.iter().map(|(path, value)| (path.to_string(), value.to_string())).collect();
        parse(&JobText { source: "job.yaml", text: JOB, sets: &sets, base: Path::new("/") }).unwrap()
    }

    #[test]
    fn a_run_keeps_what_its_numbers_depend_on() {
        let refused = [
            (("train.seed", "2"), "train.seed 1, and the job says 2"),
            (("train.threads", "3"), "train.threads 2, and the job says 3"),
            (("train.precision", "bf16"), "train.precision fp32, and the job says bf16"),
            (("train.tensor_shards", "4"), "train.tensor_shards left out, and the job says 4"),
            (("train.reduction", "fast"), "train.reduction canonical, and the job says fast"),
            (("train.gradient_groups", "2"), "train.gradient_groups 4, and the job says 2"),
            (("train.optimizer", "muon"), "train.optimizer adamw, and the job says muon"),
        ];
        let was = spec(&[]).train;
        for (set, expected) in refused {
            assert_eq!(difference(&was, 2, &spec(&[set]).train).as_deref(), Some(expected));
        }
        let may_change = [
            ("train.dropout", "0.1"),
            ("train.learning_rate_schedule", "wsd"),
            ("train.recompute", "full"),
            ("train.weight_decay", "0"),
            ("layout", "{pipeline: 2, data: 2, zero: 1, schedule: zb-h1}"),
            ("train.threads", "2"),
        ];
        for set in may_change {
            assert_eq!(difference(&was, 2, &spec(&[set]).train), None, "{set:?}");
        }
    }

    #[test]
    fn a_fast_run_may_change_its_number_of_data_ranks() {
        let fast = ("train.reduction", "fast");
        let was = spec(&[fast]).train;
        assert_eq!(difference(&was, 2, &spec(&[fast, ("layout.data", "3")]).train), None);
    }
}
