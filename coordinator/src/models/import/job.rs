//! The job that an import writes: it starts from the import, and has a text to be named.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use coxswain_core::spec::raw::{Paths, RawData, RawJob, RawTrain};
use coxswain_core::spec::{JobText, look, raw_model, raw_yaml};
use coxswain_types::JobSpec;
use coxswain_types::framing::Framing;
use coxswain_types::job::{Corruption, DataSpec, ModelSpec};
use coxswain_types::model::Architecture;

/// The job's file, below the folder of the import.
pub(super) const JOB: &str = "job.yaml";
/// The longest samples of the job.
const SEQUENCE: u32 = 512;

/// A job of this model that says nothing else.
pub(super) fn spec_of(model: &ModelSpec) -> Result<JobSpec> {
    let text = "name: imported\nmodel: {layers: 1, dim: 8, heads: 1, vocab: 300}\n\
                data: {synthetic: {tokens: 999}}\ntrain: {steps: 100, sequence: 64}\n";
    let job = JobText { source: "the import", text, sets: &[], base: Path::new("/") };
    let spec = look(&job).map_err(|error| anyhow!("{error}"))?;
    Ok(JobSpec { model: model.clone(), ..spec })
}

/// The text of a job that starts from the import, which must say the very model.
pub(super) fn text(spec: &JobSpec, framing: &Framing) -> Result<String> {
    let job = raw_yaml(&starting(spec, framing)).map_err(|error| anyhow!("{error}"))?;
    let text = format!("# Name a text (or labelled lines) and how long to train.\n{job}");
    let job = JobText { source: JOB, text: &text, sets: &[], base: Path::new("/") };
    let again = look(&job).map_err(|error| anyhow!("a job file cannot express this model: {error}"))?;
    if again.model != spec.model {
        bail!("a job file cannot express this model: it reads back as another one");
    }
    Ok(text)
}

fn starting(spec: &JobSpec, framing: &Framing) -> RawJob {
    let longest = spec.model.positions.longest().or(framing.longest).unwrap_or(u32::MAX);
    // One token that stands for any span is what text was infilled with (BART).
    let one = framing.sentinels.is_some_and(|sentinels| sentinels.count == 1);
    let infills = one && spec.model.architecture == Architecture::EncoderDecoder;
    let file = |name: &str| Some(Paths::One(name.to_owned()));
    let data = match &spec.data {
        DataSpec::Labelled { classes, .. } => RawData {
            labelled: file("lines.tsv"),
            classes: (!classes.is_empty()).then(|| classes.clone()),
            ..RawData::default()
        },
        _ => RawData { text: file("text.txt"), ..RawData::default() },
    };
    let train = RawTrain {
        steps: 100,
        sequence: SEQUENCE.min(longest),
        learning_rate: Some(2e-5),
        corruption: infills.then_some(Corruption::Infilling),
        start_from: Some(".".to_owned()),
        ..RawTrain::default()
    };
    RawJob {
        name: spec.name.clone(),
        model: raw_model(&spec.model),
        data,
        train,
        layout: None,
        checkpoint: None,
        recovery: None,
        priority: None,
    }
}
