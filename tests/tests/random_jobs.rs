//! No job that passes the checks may end a worker, start with a NaN, or give other numbers than one process.
//!
//! Jobs are drawn from seeds ([`coxswain_tests::random`]). They run in a child process, since what is looked for
//! may end it; the child says on stderr which seed it is at. A job that fails is made as small as it can be while
//! it fails, and printed as a job file.
//!
//! `COXSWAIN_RANDOM_JOBS=2000` runs so many, `COXSWAIN_RANDOM_FIRST=17` starts with another seed.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a job fails with, and a child's words")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use coxswain_core::spec::resolved_yaml;
use coxswain_tests::random::{Job, Outcome, trial, write_texts};
use coxswain_types::JobSpec;
use coxswain_types::job::OptimizerKind;
use serde_yaml::Value;

/// Jobs of a run of the tests.
const JOBS: u64 = 40;
/// Jobs that are drawn to see what is drawn.
const DRAWN: u64 = 1500;
/// What the child does: `seeds FIRST COUNT`, or `job FILE`.
const CHILD: &str = "COXSWAIN_RANDOM_CHILD";
/// What begins a line that the child says to its parent.
const SAYS: &str = "random-jobs: ";
/// Nothing here takes so long.
const PATIENCE: Duration = Duration::from_secs(120);
/// At most so many of a run are made small.
const SHRUNK_MAX: usize = 5;

/// Keys that are not drawn: what names a job or a model, the number of steps, and weights from elsewhere, of which
/// `finetune` has tests.
const FIXED: [&str; 9] = [
    "name",
    "model.preset",
    "train.steps",
    "train.start_from",
    // These leave choices to the planner, which ends before a job is what is drawn here.
    "train.batch_size",
    "layout",
    "layout.memory",
    "layout.max_tensor",
    "layout.keep_exact",
];

/// The word of a key whose value the planner chooses.
const AUTO: &str = "auto";

/// Jobs that passed the checks and ended a worker, as [`Job::to_text`] writes them.
const MENDED: [&str; 3] = [
    // A data rank owned a part of a matrix.
    "model.ffn=24\ntrain.optimizer=muon\ntrain.tensor_shards=2\ntrain.global_micro_batches=2\nlayout.data=2\n\
     layout.zero=1\n",
    // Three rows for four shards.
    "model.heads=4\nmodel.token_types=3\ntrain.tensor_shards=4\nlayout.tensor=2\n",
    // Two rows for four shards, of which two added each.
    "model.heads=4\nmodel.positions=learned\nmodel.max_positions=2\ntrain.sequence=2\ntrain.tensor_shards=4\n\
     layout.tensor=4\n",
];

/// What norms of query and key heads meet: fewer key heads than shards, split sequences, every form of attention that
/// has projections of its own, LayerNorm, shared layers, low precisions and what is computed again.
const NORMED_HEADS: [&str; 6] = [
    "model.heads=4\nmodel.kv_heads=1\nmodel.head_dim=6\ntrain.sequence=8\ntrain.tensor_shards=4\nlayout.tensor=4\n\
     layout.sequence_parallel=true\n",
    "model.heads=4\nmodel.kv_heads=2\ntrain.precision=bf16\ntrain.recompute=full\ntrain.global_micro_batches=4\n\
     train.tensor_shards=2\nlayout.data=2\nlayout.zero=1\nlayout.tensor=2\n",
    "model.layers=2\nmodel.heads=4\ntrain.recompute=attention\nlayout.pipeline=2\nlayout.schedule=zb-h1\n",
    "model.architecture=encoder-decoder\nmodel.layers=2\nmodel.heads=4\nmodel.norm=layer\nmodel.layer_groups=2\n\
     train.sequence=8\ntrain.tensor_shards=2\nlayout.tensor=2\n",
    "model.architecture=encoder\nmodel.layers=2\nmodel.heads=4\nmodel.layer_groups=1\ntrain.sequence=8\n\
     model.attention={kind: longformer, window: 2, global: 2, projections: true}\ntrain.tensor_shards=2\nlayout.tensor=2\n",
    "model.heads=4\nmodel.attention={kind: compressed, window: 4, block: 2}\ntrain.tensor_shards=4\nlayout.tensor=2\n",
];

fn number(variable: &str, default: u64) -> Result<u64> {
    match std::env::var(variable) {
        Ok(text) => text.parse().with_context(|| format!("{variable}={text} is not a number")),
        Err(_) => Ok(default),
    }
}

#[test]
fn jobs_that_ended_a_worker_hold() -> Result<()> {
    let folder = tempfile::tempdir()?;
    write_texts(folder.path())?;
    for text in MENDED {
        let outcome = trial(&Job::of_text(text)?, folder.path()).with_context(|| text.to_owned())?;
        ensure!(outcome == Outcome::Holds, "{text}: {outcome:?}");
    }
    Ok(())
}

#[test]
fn norms_of_heads_have_the_bits_of_one_process() -> Result<()> {
    let folder = tempfile::tempdir()?;
    write_texts(folder.path())?;
    for text in NORMED_HEADS {
        let text = format!("model.qk_norm=true\n{text}");
        let outcome = trial(&Job::of_text(&text)?, folder.path()).with_context(|| text.clone())?;
        ensure!(outcome == Outcome::Holds, "{text}: {outcome:?}");
    }
    Ok(())
}

#[test]
fn every_key_and_every_word_is_drawn() -> Result<()> {
    let folder = Path::new("/");
    let (mut values, mut specs) = (BTreeMap::new(), Vec::new());
    for seed in 0..DRAWN {
        let Some(job) = Job::of_seed(seed, folder) else { continue };
        let spec = job.parsed(folder).map_err(|refused| anyhow!("{refused}"))?;
        let resolved = resolved_yaml(&spec).map_err(|error| anyhow!("{error}"))?;
        flatten(String::new(), serde_yaml::from_str(&resolved)?, &mut values);
        specs.push(spec);
    }
    ensure!(specs.len() as u64 * 10 > DRAWN * 9, "only {} of {DRAWN} jobs pass the checks", specs.len());
    let mut missing = Vec::new();
    for (key, wanted) in keys() {
        let found = values.get(key).cloned().unwrap_or_default();
        let words: Vec<_> = wanted.iter().filter(|word| !found.contains(**word)).collect();
        if !words.is_empty() || found.len() < 2 {
            missing.push(format!("{key}: {words:?}, found {found:?}"));
        }
    }
    ensure!(missing.is_empty(), "not drawn:\n{}", missing.join("\n"));
    expect_layouts(&specs)
}

/// The keys of the reference that are drawn, each with the words that it may be.
fn keys() -> Vec<(&'static str, Vec<&'static str>)> {
    let page = include_str!("../../docs/job.md");
    let key = |line: &'static str| {
        let row: Vec<&'static str> = line.split('|').map(str::trim).collect();
        let [_, key, kind, _, allowed, _, _] = row[..] else { return None };
        let key = key.strip_prefix('`')?.strip_suffix('`')?;
        let chosen = ["word", "word or map", "true or false", "true, false or list"].contains(&kind);
        let quoted = allowed.split('`').skip(1).step_by(2);
        let words = quoted.filter(|word| chosen && !word.starts_with('{') && *word != AUTO).collect();
        (kind != "map" && key != "model.attention" && !FIXED.contains(&key)).then_some((key, words))
    };
    page.lines().filter_map(key).collect()
}

/// The values of each key, written out; those of a list are its own.
fn flatten(key: String, value: Value, into: &mut BTreeMap<String, BTreeSet<String>>) {
    match value {
        Value::Mapping(map) => {
            for (name, value) in map {
                let name = name.as_str().unwrap_or_default();
                let key = if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
                flatten(key, value, into);
            }
        }
        Value::Sequence(list) => list.into_iter().for_each(|value| flatten(key.clone(), value, into)),
        Value::String(text) => _ = into.entry(key).or_default().insert(text),
        Value::Bool(flag) => _ = into.entry(key).or_default().insert(flag.to_string()),
        value => _ = into.entry(key).or_default().insert(format!("{value:?}")),
    }
}

/// Layouts, and what goes wrong in some of them only, are drawn often.
fn expect_layouts(specs: &[JobSpec]) -> Result<()> {
    let sharded = |spec: &JobSpec| spec.train.shards(spec.layout.tensor) > spec.layout.tensor;
    let zero = |spec: &JobSpec| spec.layout.zero && spec.layout.data > 1;
    let muon = |spec: &JobSpec| spec.train.optimizer.kind == OptimizerKind::Muon;
    type Is<'a> = &'a dyn Fn(&JobSpec) -> bool;
    let shares: [(&str, usize, Is<'_>); 8] = [
        ("pipeline", 25, &|spec| spec.layout.pipeline > 1),
        ("tensor", 25, &|spec| spec.layout.tensor > 1),
        ("data", 25, &|spec| spec.layout.data > 1),
        ("all three axes", 5, &|spec| spec.layout.pipeline.min(spec.layout.tensor).min(spec.layout.data) > 1),
        ("tensor_shards above tensor", 20, &sharded),
        ("zero", 10, &zero),
        ("a split sequence", 5, &|spec| spec.layout.sequence_parallel && spec.layout.tensor > 1),
        ("muon with shards and zero", 1, &|spec| muon(spec) && sharded(spec) && zero(spec)),
    ];
    for (what, least, is) in shares {
        let found = specs.iter().filter(|spec| is(spec)).count();
        ensure!(found * 100 >= specs.len() * least, "{what}: {found} of {} jobs", specs.len());
    }
    Ok(())
}

#[test]
fn no_job_that_passes_the_checks_fails_in_a_worker() -> Result<()> {
    if let Ok(task) = std::env::var(CHILD) {
        return child(&task, &std::env::current_dir()?);
    }
    let folder = tempfile::tempdir()?;
    write_texts(folder.path())?;
    let (first, count) = (number("COXSWAIN_RANDOM_FIRST", 1)?, number("COXSWAIN_RANDOM_JOBS", JOBS)?);
    let (mut next, mut held, mut refused, mut failures) = (first, 0, Vec::new(), Vec::new());
    while next < first + count {
        let mut parent = Parent::start(&format!("seeds {next} {}", first + count - next), folder.path())?;
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
    /// Starts one that works in the folder of the texts.
    fn start(task: &str, folder: &Path) -> Result<Parent> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", "no_job_that_passes_the_checks_fails_in_a_worker", "--nocapture"]);
        command
            .env(CHILD, task)
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
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
    let mut parent = Parent::start(&format!("job {}", file.display()), folder)?;
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
    let mut tried = BTreeSet::new();
    loop {
        let untried = |smaller: &Job| smaller.parsed(folder).is_ok() && !tried.contains(&smaller.to_text());
        let Some(smaller) = job.smaller().into_iter().find(untried) else { break };
        tried.insert(smaller.to_text());
        if let Some(now) = failure(&smaller, folder)? {
            (job, why) = (smaller, now);
        }
    }
    let spec = job.parsed(folder).map_err(|refused| anyhow!("{refused}"))?;
    println!("\nseed {seed}, made small, fails: {why}\n{}", job.to_text());
    println!("{}", resolved_yaml(&spec).map_err(|error| anyhow!("{error}"))?);
    Ok(())
}
