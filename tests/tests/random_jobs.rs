//! No job that passes the checks may end a worker, start with a NaN, or give other numbers than one process.
//!
//! Jobs are drawn from seeds ([`coxswain_tests::random`]). They run in a child process, since what is looked for
//! may end it; the child says on stderr which seed it is at. A job that fails is made as small as it can be while
//! it fails, and printed as a job file.
//!
//! `COXSWAIN_RANDOM_JOBS=2000` runs so many, `COXSWAIN_RANDOM_FIRST=17` starts with another seed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use coxswain_core::spec::resolved_yaml;
use coxswain_tests::random::{Job, Outcome, trial, write_texts};

/// Jobs of a run of the tests.
const JOBS: u64 = 40;
/// What the child does: `seeds FIRST COUNT`, or `job FILE`.
const CHILD: &str = "COXSWAIN_RANDOM_CHILD";
/// What begins a line that the child says to its parent.
const SAYS: &str = "random-jobs: ";
/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// At most so many of a run are made small.
const SHRUNK_MAX: usize = 5;

fn number(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

#[test]
fn no_job_that_passes_the_checks_fails_in_a_worker() -> Result<()> {
    let folder = tempfile::tempdir()?;
    write_texts(folder.path())?;
    if let Ok(task) = std::env::var(CHILD) {
        return child(&task, folder.path());
    }
    let (first, count) = (number("COXSWAIN_RANDOM_FIRST", 1)?, number("COXSWAIN_RANDOM_JOBS", JOBS)?);
    let (mut next, mut held, mut refused, mut failures) = (first, 0, Vec::new(), Vec::new());
    while next < first + count {
        let mut parent = Parent::start(&format!("seeds {next} {}", first + count - next))?;
        let mut seed = next;
        let end = loop {
            match parent.line() {
                Some(Said::At(at)) => seed = at,
                Some(Said::Holds) => held += 1,
                Some(Said::Refused(why)) => refused.push((seed, why)),
                Some(Said::Failed(why)) => {
                    println!("seed {seed} fails: {why}");
                    failures.push((seed, why));
                }
                None => break parent.end()?,
            }
        };
        if let Some(why) = end {
            println!("seed {seed} ends its process: {why}");
            failures.push((seed, why));
        }
        next = seed + 1;
    }
    println!("{held} hold, {} are refused, {} fail", refused.len(), failures.len());
    for (seed, why) in &refused {
        println!("seed {seed} is refused: {why}");
    }
    for (seed, why) in failures.iter().take(SHRUNK_MAX) {
        shrink(*seed, why, folder.path())?;
    }
    ensure!(failures.is_empty(), "{} of {count} jobs fail", failures.len());
    // Most are run, so that the test says something.
    ensure!(held * 2 > count, "only {held} of {count} jobs were run");
    Ok(())
}

fn child(task: &str, folder: &Path) -> Result<()> {
    let say = |what: &str| eprintln!("{SAYS}{}", what.replace('\n', " "));
    let tell = |job: &Job| match trial(job, folder) {
        Ok(Outcome::Holds) => say("holds"),
        Ok(Outcome::Refused(why)) => say(&format!("refused {why}")),
        Err(error) => say(&format!("failed {error:#}")),
    };
    match task.split(' ').collect::<Vec<_>>()[..] {
        ["seeds", first, count] => {
            let first: u64 = first.parse()?;
            for seed in first..first + count.parse::<u64>()? {
                say(&format!("at {seed}"));
                match Job::of_seed(seed, folder) {
                    Some(job) => tell(&job),
                    None => say("refused by the checks"),
                }
            }
        }
        ["job", file] => tell(&Job::of_text(&std::fs::read_to_string(file)?)?),
        _ => return Err(anyhow!("{CHILD}={task}")),
    }
    Ok(())
}

/// What the child says.
enum Said {
    At(u64),
    Holds,
    Refused(String),
    Failed(String),
}

/// The child as its parent sees it.
struct Parent {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
    /// The newest lines that are not for the parent.
    other: Vec<String>,
    hangs: bool,
}

impl Parent {
    fn start(task: &str) -> Result<Parent> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", "no_job_that_passes_the_checks_fails_in_a_worker", "--nocapture"]);
        command.env(CHILD, task).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting a child")?;
        let stderr = BufReader::new(child.stderr.take().context("the child's stderr")?);
        let (say, lines) = channel();
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| say.send(line)));
        Ok(Parent { child, lines, other: Vec::new(), hangs: false })
    }

    /// The next that it says; `None` where it has ended, or says nothing for long.
    fn line(&mut self) -> Option<Said> {
        loop {
            let line = match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => line,
                Err(end) => {
                    self.hangs = end == RecvTimeoutError::Timeout;
                    return None;
                }
            };
            let Some(said) = line.strip_prefix(SAYS) else {
                self.other.push(line);
                continue;
            };
            let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
            return Some(match word {
                "at" => Said::At(rest.parse().unwrap_or(u64::MAX)),
                "holds" => Said::Holds,
                "refused" => Said::Refused(rest.to_owned()),
                _ => Said::Failed(rest.to_owned()),
            });
        }
    }

    /// Why it ended, if not well.
    fn end(mut self) -> Result<Option<String>> {
        if self.hangs {
            self.child.kill()?;
        }
        let status = self.child.wait()?;
        if status.success() {
            return Ok(None);
        }
        let last = self.other.len().saturating_sub(6);
        let why = if self.hangs { "it hangs".to_owned() } else { status.to_string() };
        Ok(Some(format!("{why}; {}", self.other[last..].join(" | "))))
    }
}

/// What a job fails with, in a process of its own; `None` where it does not.
fn failure(job: &Job, folder: &Path) -> Result<Option<String>> {
    let file = folder.join("job.sets");
    std::fs::write(&file, job.to_text())?;
    let mut parent = Parent::start(&format!("job {}", file.display()))?;
    let mut failed = None;
    while let Some(said) = parent.line() {
        if let Said::Failed(why) = said {
            failed = Some(why);
        }
    }
    Ok(parent.end()?.or(failed))
}

/// Leaves values out while the job fails, and prints what is left.
fn shrink(seed: u64, why: &str, folder: &Path) -> Result<()> {
    let mut job = Job::of_seed(seed, folder).context("the job of a seed that fails")?;
    let mut why = why.to_owned();
    let mut at = 0;
    while at < job.sets.len() {
        let smaller = job.without(at);
        let fails = if smaller.parsed(folder).is_ok() { failure(&smaller, folder)? } else { None };
        match fails {
            Some(now) => (job, why) = (smaller, now),
            None => at += 1,
        }
    }
    let spec = job.parsed(folder).map_err(|refused| anyhow!("{refused}"))?;
    println!("\nseed {seed}, made small, fails: {why}\n{}", job.to_text());
    println!("{}", resolved_yaml(&spec).map_err(|error| anyhow!("{error}"))?);
    Ok(())
}
