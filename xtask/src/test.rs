//! `test`: everything that must hold before a change lands, phase by phase, with what each took.
//!
//! - [`runner`]: what runs the tests, cargo-nextest or `cargo test`;
//! - [`in_process`]: tests that share the process of their binary;
//! - [`report`]: the last lines: what took how long, and what was skipped.
//!
//! Only the release profile is built: tests run programs that are compiled as those of users are, and a machine of
//! two cores compiles libtorch's bindings once. `--fast` alone takes the profile of the inner loop, which compiles the
//! crates without libtorch in seconds.

mod in_process;
mod report;
mod runner;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

pub(crate) use runner::TestRunner;

use crate::debian;
use crate::deploy::{self, DeployKit};
use crate::gpu;
use crate::libtorch;
use crate::repo::Repo;
use crate::run::{cargo, human, run, succeeds};
use crate::tidy;
use report::TestTime;
use runner::TestRun;

/// What to test.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask test                  everything that CI checks
  cargo xtask test --fast           format, tidiness and the crates without libtorch
  cargo xtask test --long           also the tests that take minutes each
  cargo xtask test -- layouts       only tests whose names contain `layouts`")]
pub(crate) struct TestArgs {
    /// Also run the tests that take minutes each (they look for COXSWAIN_LONG_TESTS=1).
    #[arg(long)]
    long: bool,
    /// Only check the format, the tidiness and the crates that need no libtorch, without optimisation.
    #[arg(long, conflicts_with = "long")]
    fast: bool,
    /// Run the tests under `cargo test`, even where there is cargo-nextest.
    #[arg(long)]
    plain: bool,
    #[command(flatten)]
    libtorch: libtorch::LibtorchChoice,
    /// Passed on to the tests: parts of their names, or `--nocapture` and `--exact`; other flags of the test harness
    /// need `--plain`. Formatting, lints and tidiness are left out then.
    #[arg(last = true)]
    filter: Vec<String>,
}

/// The environment variable that asks tests of minutes to run.
const LONG: &str = "COXSWAIN_LONG_TESTS";

/// The one that has tests of the emulated GPU left out.
const NO_GPU: &str = "COXSWAIN_NO_EMULATED_GPU";

/// The one that names the file to which tests add a line for what they skip (tests/src/skip.rs).
const SKIPPED: &str = "COXSWAIN_SKIPPED_FILE";

/// What `--fast` tests of the default members, which need no libtorch: all but the simulator's seeds and the
/// coordinator's tests with real processes, which take minutes without optimisation.
const FAST: [&str; 4] = ["--lib", "--bins", "--test=round_trip", "--test=replay"];

/// What has run so far, how long it took, and what was skipped.
#[derive(Default)]
struct TestLog {
    phases: Vec<(&'static str, Duration)>,
    times: Vec<TestTime>,
    skipped: Vec<String>,
}

impl TestLog {
    fn phase<T>(&mut self, name: &'static str, work: impl FnOnce(&mut TestLog) -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work(self);
        self.phases.push((name, start.elapsed()));
        result.with_context(|| format!("phase `{name}` failed"))
    }

    /// One line a phase, and the sum; the slowest tests; and what was skipped.
    fn table(&self) -> String {
        let mut lines = "phases\n".to_owned();
        let total = self.phases.iter().map(|(_, took)| *took).sum();
        for (name, took) in self.phases.iter().copied().chain([("total", total)]) {
            lines += &format!("{:>10}  {name}\n", human(took));
        }
        if !self.times.is_empty() {
            lines += &format!("the slowest tests\n{}", report::slowest(&self.times));
        }
        if !self.skipped.is_empty() {
            lines += "skipped\n";
            lines.extend(self.skipped.iter().map(|what| format!("  {what}\n")));
        }
        lines
    }
}

/// Runs the checks, cheapest first, and stops at the first that fails.
///
/// # Errors
/// Names the phase and the command that failed.
pub(crate) fn test(repo: &Repo, args: &TestArgs) -> Result<()> {
    let mut log = TestLog::default();
    let result = if args.fast { fast(repo, args, &mut log) } else { phases(repo, args, &mut log) };
    eprint!("\n{}", log.table());
    result
}

fn phases(repo: &Repo, args: &TestArgs, log: &mut TestLog) -> Result<()> {
    let all = args.filter.is_empty();
    if all {
        written_well(repo, log)?;
        log.phase("deny", |log| deny(repo, log))?;
        log.phase("deploy", |log| manifests(repo, log))?;
    }
    let (runner, libtorch, emulated) = log.phase("set-up", |_| {
        debian::provide();
        let libtorch = libtorch::setup_with(repo, &args.libtorch, &[&gpu::EMULATED])?;
        let emulated = gpu::emulated(repo, &libtorch)?;
        Ok((runner(repo, args), libtorch, emulated))
    })?;
    let build = ["--release", "--workspace"];
    let workspace = |words: &[&str]| {
        let mut command = cargo();
        libtorch.apply(command.current_dir(repo.root()).arg(words[0]).args(build));
        run(command.args(&words[1..]))
    };
    if all {
        log.phase("lint", |_| workspace(&["clippy", "--all-targets", "--", "-D", "warnings"]))?;
    }
    // Tests of whole clusters start the programs, which `cargo test` alone would not build. One command builds both:
    // tests enable more features of tokio, and two commands would compile it and its dependents twice.
    log.phase("build", |_| workspace(&["build", "--all-targets"]))?;
    let mut variables = Vec::new();
    if args.long {
        variables.push((LONG, "1".to_owned()));
    }
    if !emulated {
        variables.push((NO_GPU, "1".to_owned()));
    }
    // Tests that are asked for by name may be given more to do, as by COXSWAIN_RANDOM_JOBS.
    let profile = if all && !args.long { "default" } else { "long" };
    let (filter, libtorch) = (&args.filter[..], Some(&libtorch));
    let mut tests = TestRun { build: &build, profile, filter, libtorch, in_process: true, variables };
    run_tests(repo, &runner, &mut tests, log)?;
    // Examples have no names to choose by.
    if all {
        log.phase("examples", |_| runner.run_examples(repo, &tests))?;
    }
    Ok(())
}

/// What can be said without libtorch and without optimised builds.
fn fast(repo: &Repo, args: &TestArgs, log: &mut TestLog) -> Result<()> {
    if args.filter.is_empty() {
        written_well(repo, log)?;
    }
    let runner = log.phase("set-up", |_| Ok(runner(repo, args)))?;
    let mut tests = TestRun {
        build: &FAST,
        profile: "fast",
        filter: &args.filter,
        libtorch: None,
        in_process: false,
        variables: Vec::new(),
    };
    run_tests(repo, &runner, &mut tests, log)
}

fn runner(repo: &Repo, args: &TestArgs) -> TestRunner {
    if args.plain { TestRunner::Plain } else { TestRunner::find(repo) }
}

/// What no compiler is needed for.
fn written_well(repo: &Repo, log: &mut TestLog) -> Result<()> {
    log.phase("format", |_| run(cargo().current_dir(repo.root()).args(["fmt", "--all", "--check"])))?;
    log.phase("tidy", |_| tidy::tidy(repo))
}

/// Runs the tests, and notes how long they took and what they skipped.
fn run_tests(repo: &Repo, runner: &TestRunner, tests: &mut TestRun<'_>, log: &mut TestLog) -> Result<()> {
    let skipped = repo.target("skipped-tests");
    forget(&skipped)?;
    tests.variables.push((SKIPPED, skipped.to_string_lossy().into_owned()));
    let ran = log.phase("tests", |log| runner.run(repo, tests, &mut log.times));
    log.skipped.extend(report::skipped(&skipped));
    ran
}

/// Removes what an earlier run has left.
fn forget(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Licences, sources and duplicates of what we depend on. The tool is not a part of a plain Rust
/// installation, so it is used where it is found.
fn deny(repo: &Repo, log: &mut TestLog) -> Result<()> {
    if !succeeds(cargo().args(["deny", "--version"])) {
        log.skipped.push("deny: cargo-deny is not installed (cargo install cargo-deny)".to_owned());
        return Ok(());
    }
    run(cargo().current_dir(repo.root()).args(["deny", "check", "bans", "licenses", "sources"]))
}

/// The chart, the overlays and the container files, where their tools can be fetched.
fn manifests(repo: &Repo, log: &mut TestLog) -> Result<()> {
    match DeployKit::find(repo) {
        Ok(kit) => deploy::check(repo, &kit),
        Err(error) => {
            log.skipped
                .push(format!("deploy: the tools of `cargo xtask deploy --check` are missing: {error:#}"));
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_holds_every_phase_up_to_the_one_that_failed() {
        let mut log = TestLog::default();
        log.phase("good", |_| Ok(())).unwrap();
        let error = log.phase("bad", |_| -> Result<()> { anyhow::bail!("it broke") }).unwrap_err();
        assert_eq!(format!("{error:#}"), "phase `bad` failed: it broke");
        let names: Vec<_> = log.phases.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["good", "bad"]);
        log.phases = vec![("good", Duration::from_millis(1_500)), ("bad", Duration::from_secs(75))];
        log.times = vec![TestTime { name: "layouts hold".to_owned(), took: Duration::from_secs(61) }];
        log.skipped = vec!["tests/tests/nodes.rs:41: network namespaces need root".to_owned()];
        expect_test::expect![[r"
            phases
                 1.5 s  good
              1 m 15 s  bad
              1 m 17 s  total
            the slowest tests
               1 m 1 s  layouts hold
            skipped
              tests/tests/nodes.rs:41: network namespaces need root
        "]]
        .assert_eq(&log.table());
    }
}
