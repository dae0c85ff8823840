//! Tests of a binary in one process, as `cargo test` runs them.
//!
//! A process that loads libtorch computes for a third of a second before its first test. cargo-nextest starts one for
//! each test and two more for each binary: for the many short tests of the worker's crates that is more than the tests
//! themselves take.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::report::TestTime;
use super::runner::TestRun;
use crate::repo::Repo;
use crate::run::{capture, cargo, run};

/// The crates whose tests are short and load libtorch: where they lie, and their names.
pub(super) const CRATES: [(&str, &str); 4] = [
    ("worker", "coxswain-worker"),
    ("worker/comm", "coxswain-comm"),
    ("worker/engine", "coxswain-engine"),
    ("worker/native", "coxswain-native"),
];

/// A binary of tests.
#[derive(Debug, PartialEq, Eq)]
struct TestBinary {
    name: String,
    package: PathBuf,
    executable: PathBuf,
}

/// Runs the tests of these crates, each binary once, and notes how long each took.
///
/// # Errors
/// Names the binaries of which a test has failed.
pub(super) fn run_in_process(repo: &Repo, tests: &TestRun<'_>, times: &mut Vec<TestTime>) -> Result<()> {
    let mut build = cargo();
    build.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    tests.apply(repo, &mut build);
    let built = String::from_utf8(capture(&mut build)?).context("what cargo says of its artifacts")?;
    let mut failed = Vec::new();
    for binary in binaries(&built, &CRATES.map(|(folder, _)| repo.path(folder))) {
        let mut command = Command::new(&binary.executable);
        // As cargo starts it.
        command.current_dir(&binary.package).env("CARGO_MANIFEST_DIR", &binary.package).args(tests.filter);
        command.envs(tests.variables.iter().map(|(name, value)| (name, value)));
        let start = Instant::now();
        let ran = run(&mut command);
        times.push(TestTime { name: binary.name.clone(), took: start.elapsed() });
        failed.extend(ran.err().map(|_| binary.name));
    }
    ensure!(failed.is_empty(), "tests of {} have failed", failed.join(", "));
    Ok(())
}

/// The binaries of tests of the packages in these folders, out of what cargo says of its artifacts, a line of JSON each.
fn binaries(built: &str, packages: &[PathBuf]) -> Vec<TestBinary> {
    let artifacts = built.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let binary = |artifact: Value| {
        let package = Path::new(artifact["manifest_path"].as_str()?).parent()?.to_owned();
        let is_test = artifact["profile"]["test"].as_bool()? && packages.contains(&package);
        let executable = PathBuf::from(artifact["executable"].as_str()?);
        let folder = package.file_name()?.to_string_lossy().into_owned();
        let name = format!("{folder} {}", artifact["target"]["name"].as_str()?);
        is_test.then_some(TestBinary { name, package, executable })
    };
    artifacts.filter_map(binary).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn binaries_of_tests_are_told_from_other_artifacts() {
        let artifact = |folder: &str, name: &str, test: bool, executable: Option<&str>| {
            let manifest_path = format!("{folder}/Cargo.toml");
            json!({"reason": "compiler-artifact", "manifest_path": manifest_path, "target": {"name": name},
                   "profile": {"test": test}, "executable": executable})
            .to_string()
        };
        let built = [
            artifact("/r/worker/native", "ops", true, Some("/t/ops-1")),
            artifact("/r/worker/native", "coxswain_native", false, None),
            artifact("/r/worker", "coxswain-worker", false, Some("/t/coxswain-worker")),
            artifact("/r/tests", "layouts", true, Some("/t/layouts-1")),
            "{\"reason\":\"build-finished\",\"success\":true}".to_owned(),
            "not JSON".to_owned(),
        ];
        let packages = ["/r/worker", "/r/worker/native"].map(PathBuf::from);
        let found = binaries(&built.join("\n"), &packages);
        let ops = TestBinary {
            name: "native ops".to_owned(),
            package: "/r/worker/native".into(),
            executable: "/t/ops-1".into(),
        };
        assert_eq!(found, [ops]);
    }
}
