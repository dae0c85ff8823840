//! The child process that prepares one job's data. Texts, tokenizers and checkpoints come from strangers, so they are
//! read here: a file that crashes this process, stalls it or exhausts its memory fails one job only.

use std::io::{BufRead, BufReader, Read, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Context;
use coxswain_console::parent::ParentArgs;
use coxswain_core::cluster::{CheckDepth, PreparedJob, Submission, Weight};
use coxswain_files::digests::Remembered;
use coxswain_files::{Digests, PreparationProgress, Stopped};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

use crate::folder::{self, Reporter};
use crate::lock::lock;

/// How often progress is told at most.
const TELL: Duration = Duration::from_secs(1);

/// The most files that are open at once; maps of weights are the largest part.
const MAX_FILES: u64 = 1024;

#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Prepare {
    #[command(flatten)]
    parent: ParentArgs,
}

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct PreparationRequest {
    pub(crate) submission: Submission,
    pub(crate) look: CheckDepth,
    /// Whether no generation of the job was formed.
    pub(crate) first: bool,
    /// The digests that earlier processes found.
    pub(crate) digests: Remembered,
    /// The memory that the process may take for itself.
    pub(crate) memory_bytes: u64,
}

/// What the process says, a line of JSON each.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PreparationReport {
    /// How far it is.
    Doing(String),
    /// A line for the log.
    Told(Weight, String),
    /// It is done.
    Done {
        /// What was found, or why the job cannot run.
        result: Box<Result<PreparedJob, String>>,
        /// The digests that are known now.
        digests: Remembered,
    },
}

/// Prepares the job that standard input names.
pub(crate) fn main(args: Prepare) -> anyhow::Result<()> {
    args.parent.follow().context("following the process that started this one")?;
    work(std::io::stdin(), std::io::stdout(), limit)
}

/// Prepares the job that `input` names, after `limit` has set the limits, and reports on `output`.
pub(super) fn work(
    input: impl Read,
    output: impl Write + Send,
    limit: impl FnOnce(u64) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut line = String::new();
    BufReader::new(input).read_line(&mut line).context("reading what is asked for")?;
    let asked: PreparationRequest = serde_json::from_str(&line).context("what is asked for")?;
    limit(asked.memory_bytes)?;
    let output = Mutex::new((output, Instant::now()));
    let say = |said: &PreparationReport| -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(said).context("a line to say")?;
        line.push(b'\n');
        let mut output = lock(&output);
        output.1 = Instant::now();
        output.0.write_all(&line).and_then(|()| output.0.flush()).context("saying it")
    };
    let watch = |progress: PreparationProgress| {
        // If it is locked, another thread is reporting.
        let due = output.try_lock().is_ok_and(|output| output.1.elapsed() >= TELL);
        // This fails once the coordinator is gone.
        if due { say(&PreparationReport::Doing(progress.to_string())).map_err(|_| Stopped) } else { Ok(()) }
    };
    let tell = |weight: Weight, text: String| {
        // If the coordinator is gone, the next report of progress stops the work.
        let _ = say(&PreparationReport::Told(weight, text));
    };
    let digests = Digests::with(asked.digests);
    let reporter = Reporter { watch: &watch, tell: &tell };
    let result = folder::prepare(&asked.submission, asked.look, &digests, &reporter, asked.first);
    say(&PreparationReport::Done { result: Box::new(result), digests: digests.remembered() })
}

/// Limits this process's memory and files, and makes it the first candidate when the system runs out of memory.
fn limit(memory_bytes: u64) -> anyhow::Result<()> {
    for (resource, most) in
        [(Resource::Data, memory_bytes), (Resource::Nofile, MAX_FILES), (Resource::Core, 0)]
    {
        let maximum = getrlimit(resource).maximum;
        let most = Some(maximum.map_or(most, |maximum| maximum.min(most)));
        setrlimit(resource, Rlimit { current: most, maximum: most })
            .with_context(|| format!("setting the limit {resource:?}"))?;
    }
    // Only Linux has this setting.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}
