//! What people are told of a run that does not begin with nothing: the step from which it goes on, the steps that are
//! taken again, and what is not as it was in the job of its checkpoint; or the weights that it starts from.

use std::path::Path;

use coxswain_core::spec::{SpecDifference, differences};
use coxswain_files::{Checkpoint, StoreFolder};
use coxswain_types::JobSpec;
use coxswain_types::assignment::{PreparedData, Weights};
use coxswain_types::params::parameter_table;
use coxswain_types::rate::learning_rate;
use serde_json::Value;

use crate::folder::Newest;
use crate::metrics;

/// The lines to tell before the first generation of a job is formed.
pub(crate) fn told(
    run: &StoreFolder,
    newest: Option<&Newest>,
    spec: &JobSpec,
    data: &PreparedData,
) -> Result<Vec<String>, String> {
    match (newest, &data.weights, &spec.train.start_from) {
        (Some(newest), ..) => Ok(goes_on(run, newest, spec)),
        (None, Some(weights), Some(from)) => begins_with(from, weights, spec).map(|line| vec![line]),
        (None, ..) => Ok(Vec::new()),
    }
}

fn goes_on(run: &StoreFolder, newest: &Newest, spec: &JobSpec) -> Vec<String> {
    let step = newest.resume.step.0;
    // Metrics that are missing say that no step was taken since, as far as is known.
    let noted = metrics::read(run).unwrap_or_default();
    let unsaved = noted.iter().filter(|line| line.step > step).count();
    let again = match unsaved {
        0 => String::new(),
        1 => "; 1 step after it was not saved: it is taken again, and its line in metrics.jsonl is cut"
            .to_owned(),
        steps => format!(
            "; {steps} steps after it were not saved: they are taken again, and their lines in metrics.jsonl are cut"
        ),
    };
    let first = format!("goes on from step {step} ({}){again}", newest.resume.path);
    let changes = differences(&newest.spec, spec).into_iter().map(|change| changed(&change));
    [first].into_iter().chain(changes).chain(rate(&newest.spec, spec, step)).collect()
}

fn changed(SpecDifference { key, was, is }: &SpecDifference) -> String {
    let value = |value: &Option<Value>| match value {
        None | Some(Value::Null) => "left out".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    format!("{key} was {} in the checkpoint's job and is {} now", value(was), value(is))
}

/// That the learning rate of the next step is not the one that the job of the checkpoint would have had.
fn rate(was: &JobSpec, is: &JobSpec, step: u64) -> Option<String> {
    let of = |spec: &JobSpec, step| learning_rate(&spec.train.optimizer, step, spec.train.steps);
    let next = step + 1;
    if next > is.train.steps || of(was, next).to_bits() == of(is, next).to_bits() {
        return None;
    }
    let (before, now) = (of(was, step.max(1)), of(is, next));
    Some(format!("the learning rate is {now:.3e} at step {next}, after {before:.3e} at step {step}"))
}

fn begins_with(from: &str, weights: &Weights, spec: &JobSpec) -> Result<String, String> {
    let checkpoint = Checkpoint::open(&Path::new(&weights.folder).into(), Some(&weights.digest));
    let checkpoint = checkpoint.map_err(|error| error.to_string())?;
    let is_new = |name: &String| checkpoint.shape(name).is_err();
    let new: Vec<_> = parameter_table(&spec.model).into_iter().map(|it| it.name).filter(is_new).collect();
    let new = if new.is_empty() { "nothing but the optimizer's state".to_owned() } else { new.join(", ") };
    Ok(format!("begins with the weights of {from}, step {}; new: {new}", checkpoint.manifest().step))
}

#[cfg(test)]
mod tests {
    use coxswain_core::spec::{JobText, parse};
    use coxswain_types::Step;
    use coxswain_types::assignment::{Resume, TokenFile};

    use super::*;

    const JOB: &str = "
name: tiny
model: {layers: 2, dim: 32, heads: 4, vocab: 300}
data: {synthetic: {tokens: 4096}}
train: {steps: 120, sequence: 16, global_micro_batches: 4, warmup_steps: 10, learning_rate: 0.001}
";

    fn spec(sets: &[(&str, &str)]) -> JobSpec {
        let sets: Vec<_> = sets.iter().map(|(path, value)| (path.to_string(), value.to_string())).collect();
        parse(&JobText { source: "job.yaml", text: JOB, sets: &sets, base: Path::new("/") }).unwrap()
    }

    fn lines(step: u64, sets: &[(&str, &str)], noted: u64) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let metrics: String = (1..=noted).map(|step| format!("{{\"step\":{step},\"loss\":1.0}}\n")).collect();
        std::fs::write(folder.path().join("metrics.jsonl"), metrics).unwrap();
        let resume =
            Resume { step: Step(step), path: format!("checkpoints/step-{step:08}"), digest: "d".to_owned() };
        let data = PreparedData::of_tokens(TokenFile { path: "t".into(), tokens: 100, digest: "d".into() });
        let newest =
            Newest { resume, threads: 1, runtime: "cpu".to_owned(), spec: spec(&[]), data: data.clone() };
        told(&folder.path().into(), Some(&newest), &spec(sets), &data).unwrap()
    }

    #[test]
    fn a_run_says_where_it_goes_on_and_what_is_not_as_it_was() {
        assert_eq!(lines(100, &[], 100), ["goes on from step 100 (checkpoints/step-00000100)"]);
        assert_eq!(
            lines(60, &[("layout.data", "2"), ("train.dropout", "0.1")], 77),
            [
                "goes on from step 60 (checkpoints/step-00000060); 17 steps after it were not saved: they are taken \
                 again, and their lines in metrics.jsonl are cut",
                "layout.data was 1 in the checkpoint's job and is 2 now",
                "train.dropout was 0.0 in the checkpoint's job and is 0.1 now",
            ]
        );
    }

    #[test]
    fn more_steps_lift_the_learning_rate_and_that_is_said() {
        assert_eq!(
            lines(120, &[("train.steps", "400")], 120)[1..],
            [
                "train.steps was 120 in the checkpoint's job and is 400 now",
                "the learning rate is 8.318e-4 at step 121, after 1.000e-4 at step 120",
            ]
        );
    }
}
