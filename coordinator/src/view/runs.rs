//! The runs below a folder, beside each other: how far each came, and in which keys of their jobs they differ.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use coxswain_core::spec::key_values;
use coxswain_files::regular;
use coxswain_types::JobSpec;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::series::SeriesMaker;
use crate::job;
use crate::metrics::{self, METRICS};

/// How many folders deep a run may lie below the given one.
const MAX_DEPTH: usize = 3;

/// The most folders that are looked into, and the most runs that are found. A folder has them by the dozen.
const MAX_FOLDERS: usize = 10_000;
pub(crate) const MAX_RUNS: usize = 500;

/// The longest job file that is compared.
const MAX_JOB_BYTES: u64 = 1 << 20;

/// The file with every value of a run's job.
pub(crate) const JOB: &str = "job.yaml";

/// A run and how it went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RunRow {
    /// Its folder below the one that was looked through; `.` for that one itself.
    pub(crate) run: String,
    pub(crate) steps: u64,
    pub(crate) tokens: u64,
    pub(crate) seconds: f64,
    pub(crate) skipped: u64,
    /// The mean of the last few steps.
    pub(crate) loss: Option<f64>,
    pub(crate) validation_loss: Option<f64>,
    pub(crate) best_validation_loss: Option<f64>,
    pub(crate) tokens_per_second: Option<f64>,
    /// Keys of its job whose values differ among the runs, with its values.
    pub(crate) differs: BTreeMap<String, String>,
}

/// The folders of runs below `folder`, itself among them, in the order of their names.
///
/// # Errors
/// `folder` itself cannot be read. Unreadable files and folders below it are skipped.
pub(crate) fn folders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::read_dir(folder)?;
    let (mut found, mut open, mut looked) = (Vec::new(), vec![(folder.to_owned(), 0)], 0);
    while let Some((at, depth)) = open.pop() {
        looked += 1;
        if looked > MAX_FOLDERS || found.len() >= MAX_RUNS {
            break;
        }
        if at.join(METRICS).is_file() {
            found.push(at);
            // What lies inside a run is its own.
            continue;
        }
        if depth < MAX_DEPTH {
            let entries = fs::read_dir(&at).into_iter().flatten().flatten();
            let below = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            open.extend(below.map(|entry| (entry.path(), depth + 1)));
        }
    }
    found.sort();
    Ok(found)
}

/// The runs below `folder`.
///
/// # Errors
/// As [`folders`].
pub(crate) fn below(folder: &Path) -> io::Result<Vec<RunRow>> {
    let folders = folders(folder)?;
    let jobs: Vec<_> = folders.iter().map(|run| job_keys(run)).collect();
    let differing = differing(&jobs);
    let rows = folders.iter().zip(&jobs).map(|(run, job)| {
        let name = run.strip_prefix(folder).unwrap_or(run).to_string_lossy().into_owned();
        let name = if name.is_empty() { ".".to_owned() } else { name };
        let own = differing.iter().map(|key| (key.clone(), job.get(key).cloned().unwrap_or("-".to_owned())));
        RunRow { run: name, differs: own.collect(), ..measured(run) }
    });
    Ok(rows.collect())
}

/// How a run went.
fn measured(run: &Path) -> RunRow {
    let mut maker = SeriesMaker::new(super::series::MAX_POINTS);
    let (mut last, mut recent, mut best) = (0, Vec::new(), None::<f64>);
    let mut validation = None;
    // After a read error the run keeps the steps read so far.
    let _ = metrics::each_report(&run.into(), |report| {
        if report.step <= last {
            return;
        }
        last = report.step;
        maker.add(&report);
        recent.push(report.loss);
        if recent.len() > RECENT {
            recent.remove(0);
        }
        if let Some(loss) =
            report.validation.map(|validation| validation.loss).filter(|loss| loss.is_finite())
        {
            validation = Some(loss);
            best = Some(best.map_or(loss, |best| best.min(loss)));
        }
    });
    let series = maker.end();
    let (seconds, tokens) = (series.seconds.last().copied(), series.tokens.last().copied());
    let (seconds, tokens) = (seconds.unwrap_or(0.0), tokens.unwrap_or(0));
    let losses: Vec<_> = recent.into_iter().filter(|loss| loss.is_finite()).collect();
    RunRow {
        run: String::new(),
        steps: last,
        tokens,
        seconds,
        skipped: series.skipped,
        loss: (!losses.is_empty()).then(|| losses.iter().sum::<f64>() / losses.len() as f64),
        validation_loss: validation,
        best_validation_loss: best,
        tokens_per_second: (seconds > 0.0).then(|| tokens as f64 / seconds),
        differs: BTreeMap::new(),
    }
}

/// Of how many last steps the loss is a mean: one step's is noise.
const RECENT: usize = 10;

/// The job of a run, by the file that `up` leaves in its folder; `None` if that is missing or unreadable.
pub(crate) fn job_of(run: &Path) -> Option<JobSpec> {
    let bytes = regular::read(&run.join(JOB), MAX_JOB_BYTES).ok()?;
    job::parse(&String::from_utf8(bytes).ok()?, JOB, run, &[]).ok()
}

/// The keys of a run's job with their values, such as `train.steps`; empty if its job file is missing or unreadable.
fn job_keys(run: &Path) -> BTreeMap<String, String> {
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let values = job_of(run).map(|spec| key_values(&spec)).unwrap_or_default();
    values.into_iter().map(|(key, value)| (key, text(value))).collect()
}

/// The keys whose values are not the same in all jobs.
fn differing(jobs: &[BTreeMap<String, String>]) -> Vec<String> {
    let mut keys: Vec<&String> = jobs.iter().flat_map(BTreeMap::keys).collect();
    keys.sort();
    keys.dedup();
    let differs = |key: &&&String| {
        let mut values = jobs.iter().map(|job| job.get(**key));
        let first = values.next().flatten();
        values.any(|value| value != first)
    };
    keys.iter().filter(differs).map(|key| (*key).clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(folder: &Path, name: &str, job: &str, losses: &[f64]) {
        let run = folder.join(name);
        fs::create_dir_all(&run).unwrap();
        let line = |(loss, step): (&f64, u64)| {
            format!(
                "{{\"step\":{step},\"loss\":{loss},\"grad_norm\":1,\"learning_rate\":0.1,\"tokens\":10,\
                 \"tokens_per_second\":5,\"step_seconds\":2}}\n"
            )
        };
        fs::write(run.join(METRICS), losses.iter().zip(1..).map(line).collect::<String>()).unwrap();
        fs::write(run.join(JOB), job).unwrap();
    }

    #[test]
    fn runs_are_found_measured_and_compared() {
        let folder = tempfile::tempdir().unwrap();
        let job = |steps: u64| {
            format!(
                "{{name: x, model: {{layers: 2, dim: 32, heads: 4, vocab: 300}}, data: {{synthetic: {{tokens: 4096}}}}, \
                 train: {{steps: {steps}, sequence: 16, global_micro_batches: 4}}}}"
            )
        };
        run(folder.path(), "a", &job(2), &[4.0, 3.0]);
        run(folder.path(), "deep/b", &job(3), &[4.0, 3.0, 2.0]);
        fs::create_dir_all(folder.path().join("not-a-run/logs")).unwrap();
        let rows = below(folder.path()).unwrap();
        let told: Vec<_> = rows
            .iter()
            .map(|row| {
                (row.run.as_str(), row.steps, row.tokens, row.loss, row.differs["train.steps"].as_str())
            })
            .collect();
        assert_eq!(told, [("a", 2, 20, Some(3.5), "2"), ("deep/b", 3, 30, Some(3.0), "3")]);
        // The rest is the same, but for what follows from the steps.
        assert!(!rows[0].differs.contains_key("train.seed"), "{rows:?}");
        assert_eq!(below(&folder.path().join("a")).unwrap()[0].run, ".");
        assert!(below(&folder.path().join("none")).is_err());
    }
}
