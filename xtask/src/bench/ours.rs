//! Our side of a row: a run of `coxswain up`, its metrics and the workers' last words.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::median;
use super::shape::{BenchRow, BenchShape, WARM_UP_STEPS};
use super::table::Measurement;
use crate::repo::Repo;
use crate::run::run;

const MIB: f64 = 1024.0 * 1024.0;

/// Runs the row's job in target/bench and reads what it left there.
pub(super) fn measure(repo: &Repo, shape: &BenchShape, row: BenchRow) -> Result<Measurement> {
    let folder = repo.target("bench").join(row.name());
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("could not remove {}", folder.display()))?;
    }
    let parent = repo.target("bench");
    fs::create_dir_all(&parent).with_context(|| format!("could not create {}", parent.display()))?;
    let job = parent.join(format!("{}.yaml", row.name()));
    fs::write(&job, shape.job(row)).with_context(|| format!("could not write {}", job.display()))?;

    let mut up = Command::new(repo.binary("coxswain"));
    up.arg("up").arg(&job).args(["--workers", &row.processes().to_string(), "--out"]).arg(&folder);
    run(&mut up)?;

    let metrics = read(&folder.join("metrics.jsonl"))?;
    let tokens_per_second = speed(&metrics).with_context(|| format!("in {}", folder.display()))?;
    let peak_mib = (0..row.processes())
        .map(|worker| {
            let log = folder.join(format!("logs/worker-{worker}.log"));
            peak(&read(&log)?).with_context(|| format!("{} tells no peak_rss_bytes", log.display()))
        })
        .collect::<Result<_>>()?;
    Ok(Measurement { tokens_per_second, peak_mib })
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("could not read {}", path.display()))
}

/// The median of tokens per second over the steps after the warm-up.
fn speed(metrics: &str) -> Result<f64> {
    let mut speeds = Vec::new();
    for line in metrics.lines() {
        let row: Value = serde_json::from_str(line).context("a line of metrics.jsonl is not JSON")?;
        if row["step"].as_u64().is_some_and(|step| step > WARM_UP_STEPS) {
            speeds.push(row["tokens_per_second"].as_f64().context("a step has no tokens_per_second")?);
        }
    }
    let speed = median(speeds).context("metrics.jsonl has no step after the warm-up")?;
    ensure!(speed.is_finite() && speed > 0.0, "the speed is {speed} tokens per second");
    Ok(speed)
}

/// The peak resident memory that a worker tells at its end (`peak_rss_bytes=N`), in MiB.
fn peak(log: &str) -> Option<u64> {
    let mut last = log.rsplit("peak_rss_bytes=");
    let digits: String = last.next()?.chars().take_while(char::is_ascii_digit).collect();
    // Without the key, the whole log is the first piece.
    last.next()?;
    Some((digits.parse::<f64>().ok()? / MIB).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_speed_leaves_the_warm_up_out() {
        let lines = |speeds: &[f64]| -> String {
            let line = |(i, s): (usize, &f64)| format!("{{\"step\":{},\"tokens_per_second\":{s}}}\n", i + 1);
            speeds.iter().enumerate().map(line).collect()
        };
        assert_eq!(speed(&lines(&[1.0, 2.0, 30.0, 10.0, 20.0])).unwrap(), 20.0);
        assert!(speed(&lines(&[1.0, 2.0])).is_err());
        assert!(speed(&lines(&[1.0, 2.0, 0.0])).is_err());
        assert!(speed("{\"step\":3}\n").is_err());
        assert!(speed("{\"st").is_err());
    }

    #[test]
    fn the_last_peak_counts() {
        let log = "INFO start\npeak_rss_bytes=1048576 peak_tensor_bytes=5\npeak_rss_bytes=3145728 peak_tensor_bytes=9\n";
        assert_eq!(peak(log), Some(3));
        assert_eq!(peak("INFO 12 start\n"), None);
        assert_eq!(peak("7\npeak_rss_bytes=\n"), None);
    }
}
