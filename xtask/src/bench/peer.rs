//! PyTorch's side of a row: xtask/peers/torch_peer.py in a virtual environment under target/.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::shape::{BenchRow, BenchShape};
use super::table::Measurement;
use crate::pip::check_python;
use crate::repo::Repo;
use crate::run::{capture, run, say, succeeds};

/// The PyTorch that the peer runs: the version of our own libtorch, so that the kernels are the same.
const PACKAGES: [&str; 2] = ["torch==2.11.0", "numpy"];

/// Makes sure of a Python with PyTorch and returns it.
///
/// Nothing less than the whole of PyTorch with its GPU libraries can be imported, so all of it is
/// installed.
pub(super) fn environment(repo: &Repo) -> Result<PathBuf> {
    let folder = repo.target("bench-venv");
    let python = folder.join("bin/python");
    let probe = "import torch; raise SystemExit(torch.__version__.split('+')[0] != '2.11.0')";
    if succeeds(Command::new(&python).args(["-c", probe])) {
        return Ok(python);
    }
    check_python()?;
    say("installing PyTorch into target/bench-venv, once: 2.7 GB to fetch, 4.9 GB on disk, some minutes");
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))
        .context("could not make a virtual environment (on Debian: apt install python3-venv)")?;
    run(Command::new(&python).args(["-m", "pip", "install", "--disable-pip-version-check"]).args(PACKAGES))?;
    ensure!(
        succeeds(Command::new(&python).args(["-c", probe])),
        "PyTorch was installed into {} but cannot be imported",
        folder.display()
    );
    Ok(python)
}

/// Runs the peer once.
pub(super) fn measure(repo: &Repo, python: &Path, shape: &BenchShape, row: BenchRow) -> Result<Measurement> {
    let mut peer = Command::new(python);
    peer.arg(repo.path("xtask/peers/torch_peer.py")).args(shape.flags(row));
    // Its own defaults are measured, not what this shell asks of OpenMP.
    for variable in ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"] {
        peer.env_remove(variable);
    }
    parse(&String::from_utf8_lossy(&capture(&mut peer)?))
}

/// Reads the one JSON line that the peer prints last.
fn parse(output: &str) -> Result<Measurement> {
    let line = output.lines().last().context("the peer printed nothing")?;
    let row: Value = serde_json::from_str(line).with_context(|| format!("the peer printed `{line}`"))?;
    let tokens_per_second =
        row["tokens_per_second"].as_f64().context("the peer told no tokens_per_second")?;
    let peaks = row["peak_rss_mib"].as_array().context("the peer told no peak_rss_mib")?;
    Ok(Measurement { tokens_per_second, peak_mib: peaks.iter().filter_map(Value::as_u64).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_is_the_measurement() {
        let output = "a warning\n{\"tokens_per_second\": 512.5, \"peak_rss_mib\": [1700, 1650]}\n";
        assert_eq!(
            parse(output).unwrap(),
            Measurement { tokens_per_second: 512.5, peak_mib: vec![1700, 1650] }
        );
        for bad in ["", "Traceback\n", "{\"peak_rss_mib\": []}\n", "{\"tokens_per_second\": 1.0}\n"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
