//! Data preparations under way. Each runs in a child process ([`child`]) with limits; its progress is told to the
//! driver, and it is killed when its job is over.

pub(crate) mod child;
mod memory;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use coxswain_core::cluster::{CheckDepth, Event, PreparedJob, Submission, Weight};
use coxswain_files::digests::Remembered;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::mpsc;

use child::{PreparationReport, PreparationRequest};

use crate::handle::{self, Request};
use crate::lock::lock;

/// How long a preparation may neither report progress nor read a byte.
const SILENT: Duration = Duration::from_secs(3600);

/// How long it may take in all.
const WHOLE: Duration = Duration::from_secs(48 * 3600);

/// How much the process may say: its digests are the largest part.
const MAX_SAID_BYTES: u64 = 256 << 20;

/// How much of its errors is kept.
const MAX_ERRORS_BYTES: u64 = 64 << 10;

/// The digests that a job's preparations found.
pub(crate) type Known = Arc<Mutex<Remembered>>;

/// Preparations under way; each ends at once with [`Preparations::end`], or when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Preparations {
    /// By job.
    under_way: BTreeMap<String, Arc<Mutex<UnderWay>>>,
}

/// A preparation.
#[derive(Debug)]
struct UnderWay {
    since: Instant,
    /// When it last reported progress or was seen to read.
    heard: Instant,
    /// How much it had read then.
    read_bytes: u64,
    /// Its process, while it may be killed.
    pid: Option<Pid>,
    /// Why it was killed.
    ended: Option<String>,
}

impl UnderWay {
    fn kill(&mut self, why: String) {
        self.ended.get_or_insert(why);
        if let Some(pid) = self.pid {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

impl Preparations {
    /// Prepares a job in a child process and tells the driver of its progress and its end. `first` says that no
    /// generation of the job was formed yet.
    pub(crate) fn start(
        &mut self,
        submission: Submission,
        (look, first): (CheckDepth, bool),
        known: Known,
        requests: mpsc::WeakSender<Request>,
    ) {
        let now = Instant::now();
        let under_way =
            Arc::new(Mutex::new(UnderWay { since: now, heard: now, read_bytes: 0, pid: None, ended: None }));
        self.under_way.insert(submission.job.clone(), Arc::clone(&under_way));
        let (of, to) = (submission.job.clone(), requests.clone());
        // The system ends the child with the thread that started it, so this thread lives as long as the child.
        let started = thread::Builder::new().spawn(move || {
            let job = submission.job.clone();
            let digests = lock(&known).clone();
            let memory_bytes = memory::share_bytes();
            let asked = PreparationRequest { submission, look, first, digests, memory_bytes };
            let tell =
                |event| requests.upgrade().is_some_and(|to| to.try_send(Request::Event(event)).is_ok());
            let result = follow(&asked, &under_way, &known, &|doing| {
                // Dropped when the driver's queue is full.
                tell(Event::Preparing { job: job.clone(), doing });
            });
            // The driver is gone when the coordinator ends; then the result is dropped.
            if let Some(requests) = requests.upgrade() {
                let _ = requests.blocking_send(Request::Event(Event::Prepared { job, result }));
            }
        });
        if let Err(error) = started {
            let result = Err(format!("its data cannot be prepared: no thread can be started: {error}"));
            handle::tell(to, Event::Prepared { job: of, result });
        }
    }

    /// Ends the preparation of a job, if it is under way.
    pub(crate) fn end(&mut self, job: &str) {
        if let Some(under_way) = self.under_way.remove(job) {
            lock(&under_way).kill("it is not needed any more".to_owned());
        }
    }

    /// Moves deadlines after a pause of this process.
    pub(crate) fn paused(&self, pause: Duration) {
        for under_way in self.under_way.values() {
            let mut under_way = lock(under_way);
            under_way.since += pause;
            under_way.heard += pause;
        }
    }

    /// Ends those that take too long.
    pub(crate) fn end_overdue(&self, now: Instant) {
        for under_way in self.under_way.values() {
            let mut under_way = lock(under_way);
            let (silent, whole) = (
                now.saturating_duration_since(under_way.heard),
                now.saturating_duration_since(under_way.since),
            );
            if whole >= WHOLE {
                under_way.kill(format!("it took more than {} hours", WHOLE.as_secs() / 3600));
            } else if silent >= SILENT {
                // Reading a large checkpoint through takes long and reports no progress.
                let read_bytes = under_way.pid.map_or(0, read_bytes);
                if read_bytes > under_way.read_bytes {
                    (under_way.read_bytes, under_way.heard) = (read_bytes, now);
                } else {
                    under_way.kill(format!("it made no progress for {} minutes", SILENT.as_secs() / 60));
                }
            }
        }
    }
}

impl Drop for Preparations {
    fn drop(&mut self) {
        for under_way in self.under_way.values() {
            lock(under_way).kill("the coordinator ends".to_owned());
        }
    }
}

/// How many bytes a process has read, by system calls and through memory maps; 0 if the system does not tell.
fn read_bytes(pid: Pid) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{}/io", pid.as_raw_nonzero())).unwrap_or_default();
    let of =
        |line: &str| line.strip_prefix("rchar:").or(line.strip_prefix("read_bytes:"))?.trim().parse().ok();
    text.lines().filter_map(of).fold(0, u64::saturating_add)
}

/// Starts the process and follows it to its end.
fn follow(
    asked: &PreparationRequest,
    under_way: &Mutex<UnderWay>,
    known: &Known,
    doing: &dyn Fn(String),
) -> Result<PreparedJob, String> {
    let cannot = |error: &dyn std::fmt::Display| format!("its data cannot be prepared: {error}");
    let mut line = serde_json::to_vec(asked).map_err(|error| cannot(&error))?;
    line.push(b'\n');
    let mut process = start(line).map_err(|error| cannot(&error))?;
    {
        let mut under_way = lock(under_way);
        under_way.pid = process.pid;
        if let Some(why) = under_way.ended.clone() {
            under_way.kill(why);
        }
    }
    let mut done = None;
    let mut said = BufReader::new(process.said.by_ref().take(MAX_SAID_BYTES));
    let mut line = String::new();
    while said.read_line(&mut line).is_ok_and(|read| read > 0) {
        lock(under_way).heard = Instant::now();
        match serde_json::from_str(&line) {
            Ok(PreparationReport::Doing(what)) => doing(what),
            Ok(PreparationReport::Told(Weight::Warning, text)) => {
                tracing::warn!(job = asked.submission.job, "{text}")
            }
            Ok(PreparationReport::Told(Weight::Info, text)) => {
                tracing::info!(job = asked.submission.job, "{text}")
            }
            Ok(PreparationReport::Done { result, digests }) => {
                *lock(known) = digests;
                done = Some(*result);
            }
            Err(error) => {
                done = Some(Err(cannot(&format!("its process sent an invalid message: {error}"))));
                break;
            }
        }
        line.clear();
    }
    let ended = {
        // From here on the process may be reaped, and its id reused for another one.
        let mut under_way = lock(under_way);
        under_way.pid = None;
        under_way.ended.clone()
    };
    let (status, errors) = process.end().map_err(|error| cannot(&error))?;
    match (done, ended) {
        (Some(result), _) => result,
        (None, Some(why)) => Err(cannot(&why)),
        (None, None) => Err(cannot(&cause(status, &errors, asked.memory_bytes))),
    }
}

/// Why a process ended without a result.
fn cause(status: ExitStatus, errors: &str, memory_bytes: u64) -> String {
    let mebibytes = memory_bytes >> 20;
    if errors.contains("memory allocation of") {
        return format!(
            "it takes more than the {mebibytes} MiB of memory that it may have, and a text of any size takes some \
             300 MiB; look at the model that train.start_from names, or give the coordinator more memory"
        );
    }
    let said = errors.lines().filter(|line| !line.trim().is_empty()).take(2).collect::<Vec<_>>().join(" ");
    match (status.signal(), said.is_empty()) {
        (Some(9), _) => {
            "its process was killed, most likely since the machine has no memory left; give the coordinator a \
             machine with more free memory"
                .to_owned()
        }
        (Some(signal), _) => format!("its process was ended by signal {signal}: {said}"),
        (None, false) => said,
        (None, true) => format!("its process ended without a message ({status})"),
    }
}

/// A process that prepares a job.
struct Process {
    pid: Option<Pid>,
    said: Box<dyn Read + Send>,
    /// Waits for its end: how it ended, and what it wrote to standard error.
    end: Box<dyn FnOnce() -> std::io::Result<(ExitStatus, String)>>,
}

impl Process {
    fn end(self) -> std::io::Result<(ExitStatus, String)> {
        drop(self.said);
        (self.end)()
    }
}

/// Starts the process and tells it what is asked.
#[cfg(not(test))]
fn start(asked: Vec<u8>) -> std::io::Result<Process> {
    use std::os::unix::process::CommandExt;
    // The program that is running, even if its file was replaced since.
    let own = std::path::Path::new("/proc/self/exe");
    let program = if own.exists() { own.to_owned() } else { std::env::current_exe()? };
    let mut command = Command::new(program);
    command.arg0("coxswain").arg("prepare").args(coxswain_console::parent::options());
    // Ctrl-C in a terminal must reach the coordinator only.
    command.process_group(0);
    start_command(command, asked)
}

fn start_command(mut command: Command, asked: Vec<u8>) -> std::io::Result<Process> {
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = Pid::from_raw(process.id().cast_signed());
    let missing = || std::io::Error::other("a process has no pipes");
    let (mut input, said) =
        (process.stdin.take().ok_or_else(missing)?, process.stdout.take().ok_or_else(missing)?);
    let errors = process.stderr.take().ok_or_else(missing)?;
    // A process that ends early leaves this write unfinished; its exit status says why.
    let spawn = thread::Builder::new().spawn(move || input.write_all(&asked));
    let errors = spawn.and_then(|_| {
        thread::Builder::new().spawn(move || {
            let (mut kept, mut errors) = (Vec::new(), errors);
            let _ = errors.by_ref().take(MAX_ERRORS_BYTES).read_to_end(&mut kept);
            let _ = std::io::copy(&mut errors, &mut std::io::sink());
            String::from_utf8_lossy(&kept).into_owned()
        })
    });
    let errors = match errors {
        Ok(errors) => errors,
        Err(error) => {
            let _ = process.kill();
            let _ = process.wait();
            return Err(error);
        }
    };
    let end = move || {
        // Its output is at an end, so a process that is still there hangs.
        let _ = process.kill();
        let status = process.wait()?;
        Ok((status, errors.join().unwrap_or_default()))
    };
    Ok(Process { pid, said: Box::new(said), end: Box::new(end) })
}

/// In unit tests there is no program to start, so a thread takes the part of the process.
#[cfg(test)]
fn start(asked: Vec<u8>) -> std::io::Result<Process> {
    let (said, output) = std::io::pipe()?;
    let worked = thread::spawn(move || child::work(&asked[..], output, |_| Ok(())));
    let end = || {
        let worked = worked.join().map_err(|_| std::io::Error::other("it panicked"))?;
        let errors = worked.err().map_or(String::new(), |error| format!("{error:#}"));
        Ok((ExitStatus::default(), errors))
    };
    Ok(Process { pid: None, said: Box::new(said), end: Box::new(end) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(script: &str) -> String {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut process = start_command(command, b"asked\n".to_vec()).unwrap();
        let mut said = String::new();
        process.said.read_to_string(&mut said).unwrap();
        // A process that closes its output is killed; these end by themselves.
        thread::sleep(Duration::from_millis(200));
        let (status, errors) = process.end().unwrap();
        cause(status, &errors, 512 << 20)
    }

    #[test]
    fn a_preparation_without_progress_is_ended() {
        let mut command = Command::new("sh");
        command.args(["-c", "while read -r line; do :; done; exec sleep 60"]);
        let process = start_command(command, b"asked\n".to_vec()).unwrap();
        let now = Instant::now();
        let under_way = UnderWay { since: now, heard: now, read_bytes: 0, pid: process.pid, ended: None };
        let under_way = Arc::new(Mutex::new(under_way));
        let mut preparations = Preparations::default();
        preparations.under_way.insert("a-1".to_owned(), Arc::clone(&under_way));
        preparations.end_overdue(now + SILENT / 2);
        // It has read what it was asked, and the program before that.
        let (mut read, mut before) = (0, u64::MAX);
        while read == 0 || read != before {
            thread::sleep(Duration::from_millis(300));
            before = std::mem::replace(&mut read, read_bytes(process.pid.unwrap()));
        }
        preparations.end_overdue(now + SILENT);
        assert_eq!(lock(&under_way).ended, None);
        preparations.end_overdue(now + 2 * SILENT);
        assert_eq!(lock(&under_way).ended.as_deref(), Some("it made no progress for 60 minutes"));
        lock(&under_way).pid = None;
        assert_eq!(process.end().unwrap().0.signal(), Some(9));
    }

    #[test]
    fn how_a_process_ended_is_told_in_words() {
        let rows = [
            (
                "echo thread panicked at x >&2; echo 'slice is too short' >&2; exit 101",
                "panicked at x slice is too short",
            ),
            (
                "echo 'memory allocation of 9 bytes failed' >&2; kill -ABRT $$",
                "more than the 512 MiB of memory",
            ),
            ("kill -KILL $$", "killed, most likely since the machine has no memory left"),
            ("kill -SEGV $$", "ended by signal 11"),
            ("exit 3", "ended without a message (exit status: 3)"),
        ];
        for (script, expected) in rows {
            let told = ended(script);
            assert!(told.contains(expected), "{script}: {told}");
        }
    }
}
