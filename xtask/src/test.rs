//! `test`: everything that must hold before a change lands, phase by phase, with what each took.
//!
//! Only the release profile is built: tests run programs that are compiled as those of users are, and a machine of
//! two cores compiles libtorch's bindings once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::gpu;
use crate::libtorch;
use crate::repo::Repo;
use crate::run::{cargo, human, run, say, succeeds};
use crate::{texts, tidy};

/// What to test.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask test                  everything that CI checks
  cargo xtask test --long           also the tests that take minutes each
  cargo xtask test -- layouts       only tests whose names contain `layouts`")]
pub(crate) struct Args {
    /// Also run the tests that take minutes each (they look for COXSWAIN_LONG_TESTS=1).
    #[arg(long)]
    long: bool,
    #[command(flatten)]
    libtorch: libtorch::Choice,
    /// Passed on to the tests: a part of their names, or flags of the test harness. Formatting,
    /// lints and tidiness are left out then.
    #[arg(last = true)]
    filter: Vec<String>,
}

/// The environment variable that asks tests of minutes to run.
const LONG: &str = "COXSWAIN_LONG_TESTS";

/// The one that has tests of the emulated GPU left out.
const NO_GPU: &str = "COXSWAIN_NO_EMULATED_GPU";

/// The phases that have run, and how long each took.
#[derive(Default)]
struct Log {
    phases: Vec<(&'static str, Duration)>,
}

impl Log {
    fn phase<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let result = work();
        self.phases.push((name, start.elapsed()));
        result.with_context(|| format!("phase `{name}` failed"))
    }

    /// One line a phase, and the sum.
    fn table(&self) -> String {
        let mut lines = String::new();
        let total = self.phases.iter().map(|(_, took)| *took).sum();
        for (name, took) in self.phases.iter().copied().chain([("total", total)]) {
            lines += &format!("{name:<10} {:>10}\n", human(took));
        }
        lines
    }
}

/// Runs the checks, cheapest first, and stops at the first that fails.
///
/// # Errors
/// Names the phase and the command that failed.
pub(crate) fn test(repo: &Repo, args: &Args) -> Result<()> {
    let mut log = Log::default();
    let result = phases(repo, args, &mut log);
    eprint!("\nphases\n{}", log.table());
    result
}

fn phases(repo: &Repo, args: &Args, log: &mut Log) -> Result<()> {
    let all = args.filter.is_empty();
    if all {
        log.phase("format", || run(cargo().current_dir(repo.root()).args(["fmt", "--all", "--check"])))?;
        log.phase("tidy", || tidy::tidy(repo))?;
        log.phase("deny", || deny(repo))?;
    }
    let (libtorch, emulated) = log.phase("set-up", || {
        let libtorch = libtorch::setup_with(repo, &args.libtorch, &[&gpu::EMULATED])?;
        texts::texts(repo)?;
        let emulated = gpu::emulated(repo, &libtorch)?;
        Ok((libtorch, emulated))
    })?;
    let workspace = |words: &[&str], rest: &[String]| {
        let mut command = cargo();
        libtorch.apply(command.current_dir(repo.root()).args(words).args(["--release", "--workspace"]));
        if args.long {
            command.env(LONG, "1");
        }
        if !emulated {
            command.env(NO_GPU, "1");
        }
        run(command.args(rest))
    };
    let deny_warnings = ["--all-targets", "--", "-D", "warnings"].map(str::to_owned);
    if all {
        log.phase("lint", || workspace(&["clippy"], &deny_warnings))?;
    }
    // Tests of whole clusters start the programs, which `cargo test` alone would not build. One command builds both:
    // tests enable more features of tokio, and two commands would compile it and its dependents twice.
    log.phase("build", || workspace(&["build"], &["--all-targets".to_owned()]))?;
    let mut rest = args.filter.clone();
    if !all {
        rest.insert(0, "--".to_owned());
    }
    log.phase("tests", || workspace(&["test"], &rest))
}

/// Licences, sources and duplicates of what we depend on. The tool is no part of a plain Rust
/// installation, so it is used where it is found.
fn deny(repo: &Repo) -> Result<()> {
    if !succeeds(cargo().args(["deny", "--version"])) {
        say("deny: skipped, for cargo-deny is not installed (cargo install cargo-deny)");
        return Ok(());
    }
    run(cargo().current_dir(repo.root()).args(["deny", "check", "bans", "licenses", "sources"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_holds_every_phase_up_to_the_one_that_failed() {
        let mut log = Log::default();
        log.phase("good", || Ok(())).unwrap();
        let error = log.phase("bad", || -> Result<()> { anyhow::bail!("it broke") }).unwrap_err();
        assert_eq!(format!("{error:#}"), "phase `bad` failed: it broke");
        let names: Vec<_> = log.phases.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["good", "bad"]);
        log.phases = vec![("good", Duration::from_millis(1_500)), ("bad", Duration::from_secs(75))];
        expect_test::expect![[r"
              good            1.5 s
              bad          1 m 15 s
              total        1 m 17 s
        "]]
        .assert_eq(&log.table());
    }
}
