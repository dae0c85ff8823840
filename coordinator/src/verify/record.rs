//! What a finished run left, read back to the bit.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use coxswain_core::certificate::RunRecord;
use coxswain_files::{Checkpoint, Fingerprint, StoreFolder};
use serde::Deserialize;

use crate::metrics::METRICS;

/// A line of the metrics. JSON has no word for what is not finite: it is null.
#[derive(Deserialize)]
struct StepRecord {
    step: u64,
    loss: Option<f64>,
    grad_norm: Option<f64>,
    #[serde(default)]
    parameter_norms: BTreeMap<String, Option<f64>>,
    #[serde(default)]
    validation: Option<ValidationRecord>,
}

#[derive(Deserialize)]
struct ValidationRecord {
    loss: Option<f64>,
}

/// Reads the run in `folder`, and what its bits depend on.
pub(super) fn read(folder: &Path) -> Result<(RunRecord, Fingerprint)> {
    let run = StoreFolder::from(folder);
    let path = run.place(METRICS);
    let mut text = String::new();
    let read = run.reader(METRICS).and_then(|mut metrics| metrics.read_to_string(&mut text));
    read.with_context(|| format!("{} cannot be read", path.display()))?;
    let mut record = steps(&text).with_context(|| path.display().to_string())?;
    let latest = coxswain_files::latest(&run)?;
    let (_, step) = latest.with_context(|| format!("{run} holds no checkpoint"))?;
    let checkpoint = Checkpoint::open(&step, None)?;
    record.digests = checkpoint.digests()?.into_iter().collect();
    ensure!(!record.digests.is_empty(), "{step} holds no tensors");
    let fingerprint = checkpoint.manifest().fingerprint.clone();
    let fingerprint = fingerprint.with_context(|| format!("{step} was computed by no run"))?;
    Ok((record, fingerprint))
}

fn steps(text: &str) -> Result<RunRecord> {
    let mut record = RunRecord::default();
    for (line, at) in text.lines().zip(1_usize..) {
        let line: StepRecord =
            serde_json::from_str(line).with_context(|| format!("line {at} is not a step"))?;
        let step = line.step;
        // Without them the certificate would claim more than was compared.
        ensure!(!line.parameter_norms.is_empty(), "step {step} names no parameter's gradient norm");
        let norms = line.parameter_norms.into_iter().map(|(name, norm)| (name, norm.unwrap_or(f64::NAN)));
        record.parameter_norms.insert(step, norms.collect());
        record.norms.insert(step, line.grad_norm.unwrap_or(f64::NAN));
        let before = record.losses.insert(step, line.loss.unwrap_or(f64::NAN));
        ensure!(before.is_none(), "step {step} is there twice");
        record.validation = line.validation.map(|validation| validation.loss.unwrap_or(f64::NAN));
    }
    ensure!(!record.losses.is_empty(), "there are no steps");
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_read_back_to_the_same_bits_and_null_is_no_number() {
        let text = r#"{"step":1,"loss":null,"grad_norm":null,"learning_rate":1.0,"skipped":true,"parameter_norms":{"a":null}}
{"step":2,"loss":0.30000000000000004,"grad_norm":2.5,"parameter_norms":{"a":1e-30},"validation":{"loss":3.5,"bits_per_byte":1.0}}
"#;
        let record = steps(text).unwrap();
        assert!(record.losses[&1].is_nan() && record.norms[&1].is_nan());
        assert!(record.parameter_norms[&1]["a"].is_nan());
        assert_eq!((record.losses[&2], record.norms[&2]), (0.1 + 0.2, 2.5));
        assert_eq!((record.parameter_norms[&2]["a"], record.validation), (1e-30, Some(3.5)));
    }

    #[test]
    fn metrics_that_compare_less_than_they_should_are_refused() {
        let step = r#"{"step":1,"loss":1.0,"grad_norm":1.0,"parameter_norms":{"a":1.0}}"#;
        let rows = [
            (String::new(), "there are no steps"),
            (format!("{step}\n{step}\n"), "step 1 is there twice"),
            (step.replace(r#""a":1.0"#, ""), "names no parameter's gradient norm"),
            (format!("{step}\n{{\"step\":2,"), "line 2 is not a step"),
        ];
        for (text, expected) in rows {
            let error = format!("{:#}", steps(&text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
    }
}
