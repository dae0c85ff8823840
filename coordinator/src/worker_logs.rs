//! `coxswain logs`: what the workers of a run that `up` started have written, together or of one rank.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use coxswain_console::printable;
use coxswain_files::regular;
use serde_json::Value;

use crate::failure::Failure;
use crate::{events, output};

/// The folder of workers' logs in a run's folder.
pub(crate) const LOGS: &str = "logs";

/// How often files are looked at that are followed.
const LOOK: Duration = Duration::from_millis(200);

/// How much of the end of a log is read for its last lines.
const TAIL_BYTES: u64 = 1 << 20;

/// The most logs that are read; a machine has a worker for each of its devices.
const MAX_LOGS: usize = 1024;

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The run's folder.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Of this rank of the newest generation only.
    #[arg(long, value_name = "N", conflicts_with = "worker")]
    rank: Option<usize>,
    /// Of this worker only.
    #[arg(long, value_name = "NAME")]
    worker: Option<String>,
    /// How many of the last lines of each.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20)]
    lines: usize,
    /// Go on with what is written from now on.
    #[arg(short, long)]
    follow: bool,
}

/// A log that is read.
struct WorkerLog {
    name: String,
    path: PathBuf,
    /// How far it was read.
    at: u64,
    /// The beginning of a line whose end is not written yet.
    open: Vec<u8>,
}

pub(crate) fn logs(args: &Logs) -> Result<(), Failure> {
    let folder = args.folder.join(LOGS);
    let wanted = match args.rank {
        Some(rank) => Some(worker_of(&args.folder, rank)?),
        None => args.worker.clone(),
    };
    let mut logs = found(&folder, wanted.as_deref())?;
    let width = logs.iter().map(|log| log.name.chars().count()).max().unwrap_or(0);
    let several = logs.len() > 1;
    let told = |log: &WorkerLog, line: &str| {
        let line = printable(line);
        if several { format!("{:<width$}  {line}\n", log.name) } else { format!("{line}\n") }
    };
    for log in &mut logs {
        let lines = tail(log, args.lines).with_context(|| format!("{}", log.path.display()))?;
        output::write(&lines.iter().map(|line| told(log, line)).collect::<String>())?;
    }
    if !args.follow {
        return Ok(());
    }
    // Ctrl-C ends it, or a reader that has gone.
    loop {
        thread::sleep(LOOK);
        for log in &mut logs {
            let lines = more(log).with_context(|| format!("{}", log.path.display()))?;
            output::write(&lines.iter().map(|line| told(log, line)).collect::<String>())?;
        }
    }
}

/// The worker of a rank, as the newest generation in the journal of the run's folder says.
fn worker_of(folder: &Path, rank: usize) -> Result<String, Failure> {
    let past = events::past(&folder.join("coordinator"), "")?;
    let ranks = past.iter().rev().find_map(|line| line.fields.get("ranks")?.as_array());
    let ranks = ranks.ok_or_else(|| Failure::Input("no generation of this run has formed yet".to_owned()))?;
    let worker = ranks.get(rank).and_then(|rank| rank.get("worker")).and_then(Value::as_str);
    worker.map(str::to_owned).ok_or_else(|| {
        Failure::Input(format!("--rank {rank}: the newest generation has the ranks 0..{}", ranks.len()))
    })
}

/// The logs in a folder, in the order of their names.
fn found(folder: &Path, wanted: Option<&str>) -> Result<Vec<WorkerLog>, Failure> {
    let shown = folder.display();
    let entries = std::fs::read_dir(folder).map_err(|error| {
        Failure::Input(format!(
            "{shown}: {error}; `up` keeps its workers' logs there. Workers that were started by hand write to their own \
             stderr"
        ))
    })?;
    let mut logs = Vec::new();
    for entry in entries.take(MAX_LOGS) {
        let path = entry.with_context(|| format!("{shown}"))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".log"));
        let Some(name) = name.map(str::to_owned) else { continue };
        if wanted.is_none_or(|wanted| wanted == name) {
            logs.push(WorkerLog { name, path, at: 0, open: Vec::new() });
        }
    }
    logs.sort_by(|a, b| a.name.cmp(&b.name));
    match (logs.is_empty(), wanted) {
        (false, _) => Ok(logs),
        (true, Some(wanted)) => Err(Failure::Input(format!("{shown} has no log of {wanted}"))),
        (true, None) => Err(Failure::Input(format!("{shown} has no logs"))),
    }
}

/// The last lines that a worker of the run in `directory` wrote; `None` where the run has no log of it, as where workers
/// were started by hand.
///
/// # Errors
/// The log cannot be read.
pub(crate) fn last_lines(directory: &Path, worker: &str, most: usize) -> io::Result<Option<Vec<String>>> {
    let folder = directory.join(LOGS);
    let Ok(mut logs) = found(&folder, Some(worker)) else { return Ok(None) };
    let Some(log) = logs.first_mut() else { return Ok(None) };
    // Others may write to a run's folder, and these lines are shown to whoever may look: a link could lead anywhere.
    for path in [&folder, &log.path] {
        if std::fs::symlink_metadata(path)?.is_symlink() {
            return Err(io::Error::other(format!(
                "{} is a link, which the page does not follow",
                path.display()
            )));
        }
    }
    tail(log, most).map(Some)
}

/// The last lines of a log, which is read up to its end.
fn tail(log: &mut WorkerLog, most: usize) -> io::Result<Vec<String>> {
    let size = regular::open(&log.path)?.1.len();
    log.at = size.saturating_sub(TAIL_BYTES);
    let cut = log.at > 0;
    let mut lines = more(log)?;
    if cut && !lines.is_empty() {
        // The first one may have begun before.
        lines.remove(0);
    }
    let first = lines.len().saturating_sub(most);
    Ok(lines.split_off(first))
}

/// The whole lines that a log has more than before. A worker that is started again goes on in the same file, and the next
/// run begins it anew.
fn more(log: &mut WorkerLog) -> io::Result<Vec<String>> {
    let (mut file, data): (File, _) = regular::open(&log.path)?;
    if data.len() < log.at {
        (log.at, log.open) = (0, Vec::new());
    }
    file.seek(SeekFrom::Start(log.at))?;
    let mut bytes = std::mem::take(&mut log.open);
    log.at += file.take(TAIL_BYTES).read_to_end(&mut bytes)? as u64;
    let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    log.open = bytes.split_off(whole);
    // A line without an end has none to wait for.
    if log.open.len() as u64 > TAIL_BYTES {
        bytes.append(&mut log.open);
    }
    Ok(String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn the_last_lines_come_first_and_then_whole_ones() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("worker-0.log"), "one\ntwo\nthree\nfo").unwrap();
        std::fs::write(folder.path().join("notes.txt"), "not a log").unwrap();
        let mut logs = found(folder.path(), None).unwrap();
        assert_eq!(logs.len(), 1);
        let log = &mut logs[0];
        assert_eq!(tail(log, 2).unwrap(), ["two", "three"]);
        assert!(more(log).unwrap().is_empty());
        let mut file = File::options().append(true).open(&log.path).unwrap();
        file.write_all(b"ur\nfive\n").unwrap();
        assert_eq!(more(log).unwrap(), ["four", "five"]);
        std::fs::write(&log.path, "anew\n").unwrap();
        assert_eq!(more(log).unwrap(), ["anew"]);
        assert!(found(folder.path(), Some("worker-7")).is_err());
    }
}
