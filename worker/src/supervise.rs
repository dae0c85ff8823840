//! `coxswain-worker --devices`: starts a worker for each device and keeps it running. It hands on signals and what
//! workers write to stderr, starts those again that fail, and ends when all of them have.
//!
//! - [`policy`]: what becomes of a worker that has ended.

mod policy;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coxswain_agent::{Departure, StopRequest};
use coxswain_console::logs::LogFormat;
use coxswain_console::say;
use coxswain_transport::tls::Secret;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::args::{BadArgument, Work};
use crate::devices;
use crate::machine;
use crate::signals::StopSignals;
use policy::{AfterEnd, Attempts};

/// How many lines are kept of each worker, for when it fails.
const LAST_LINES: usize = 10;

/// How long what a worker wrote may take to arrive after its end.
const DRAIN: Duration = Duration::from_millis(200);

/// How much longer a worker that was asked to stop may take than the grace that it gives itself.
const KILL_AFTER: Duration = Duration::from_secs(10);

/// Options of this process that are not for its workers, or are others for each of them.
const OWN: [&str; 5] = ["--devices", "--name", "--data-listen", "--join-file", "--parent"];

/// One of the workers.
#[derive(Clone)]
struct DeviceWorker {
    name: String,
    device: String,
    args: Vec<OsString>,
}

/// What all of them have.
struct Crew {
    program: PathBuf,
    token: Option<Secret>,
    prefixed: bool,
    grace: Duration,
}

/// How a worker ended.
struct WorkerEnd {
    index: usize,
    status: Result<ExitStatus>,
    ran: Duration,
    last_lines: VecDeque<String>,
}

/// Runs the workers of `--devices` to their end; returns the exit code.
///
/// # Errors
/// A [`BadArgument`] where the options do not fit the machine.
pub(crate) fn run(work: &Work, format: LogFormat, raw: Vec<OsString>) -> Result<u8> {
    let (crew, workers) = prepare(work, format, &raw)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting the runtime")?;
    let code = runtime.block_on(supervise(crew.into(), &workers, work.tied));
    // A thread may wait for stdin.
    runtime.shutdown_background();
    code
}

fn prepare(work: &Work, format: LogFormat, raw: &[OsString]) -> Result<(Crew, Vec<DeviceWorker>)> {
    let bad = |why: String| anyhow::Error::from(BadArgument(why));
    let list = work.devices.as_ref().context("--devices")?;
    let devices = list.expand(devices::gpus()).map_err(|error| bad(format!("--devices {error}")))?;
    let base = work.name.clone().unwrap_or_else(|| machine::info(None, "cpu").id.0);
    // A token from stdin is read once, and handed on where no other user can read it.
    let from_stdin = work.join_file.as_deref().is_some_and(|path| path.as_os_str() == "-");
    let token = if from_stdin { Some(crate::identity::token_from_stdin()?) } else { None };
    let mut common = without(raw, &OWN);
    if let Some(path) = work.join_file.as_ref().filter(|_| !from_stdin) {
        common.extend([OsString::from("--join-file"), path.into()]);
    }
    if !work.tied {
        common.push("--tied".into());
    }
    let mut workers = Vec::new();
    for (index, device) in devices.into_iter().enumerate() {
        let name = format!("{base}-{index}");
        let mut args = common.clone();
        args.extend(["--name", &name, "--device", &device].map(OsString::from));
        if let Some(listen) = work.data_listen {
            let listen = nth_port(listen, index).ok_or_else(|| {
                bad(format!("--data-listen {listen}: worker {index} would need a port beyond 65535"))
            })?;
            args.extend(["--data-listen", &listen.to_string()].map(OsString::from));
        }
        workers.push(DeviceWorker { name, device, args });
    }
    let program = std::env::current_exe().context("finding this program's own file")?;
    let grace = Duration::from_secs(u64::from(work.grace_s)) + KILL_AFTER;
    Ok((Crew { program, token, prefixed: format == LogFormat::Text, grace }, workers))
}

/// The port of the `index`-th worker: those after the first one's. Port 0 lets the system choose each.
fn nth_port(listen: SocketAddr, index: usize) -> Option<SocketAddr> {
    if listen.port() == 0 {
        return Some(listen);
    }
    let port = listen.port().checked_add(u16::try_from(index).ok()?)?;
    Some(SocketAddr::new(listen.ip(), port))
}

/// The arguments without these options and their values.
fn without(raw: &[OsString], options: &[&str]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut skip = false;
    for arg in raw {
        if std::mem::take(&mut skip) {
            continue;
        }
        let text = arg.to_string_lossy();
        let (name, value) = text.split_once('=').map_or((text.as_ref(), false), |(name, _)| (name, true));
        if options.contains(&name) {
            skip = !value;
        } else {
            kept.push(arg.clone());
        }
    }
    kept
}

async fn supervise(crew: std::sync::Arc<Crew>, workers: &[DeviceWorker], tied: bool) -> Result<u8> {
    let (_renewed, nothing) = mpsc::channel(1);
    let mut signals = StopSignals::listen(nothing)?;
    let mut stdin_ended = if tied { machine::end_of_stdin()? } else { mpsc::channel(1).1 };
    // How often the workers have been asked to stop, and by which signal.
    let (stop, asked) = watch::channel((0u32, Signal::TERM));
    let mut running = JoinSet::new();
    let mut attempts = vec![Attempts::default(); workers.len()];
    let start = |running: &mut JoinSet<WorkerEnd>, index: usize, after: Duration| {
        let worker = workers[index].clone();
        running.spawn(attend(crew.clone(), worker, index, after, asked.clone()));
    };
    (0..workers.len()).for_each(|index| start(&mut running, index, Duration::ZERO));
    let names: Vec<_> = workers.iter().map(|worker| format!("{} ({})", worker.name, worker.device)).collect();
    tracing::info!("started {} workers: {}", workers.len(), names.join(", "));
    let mut code = None;
    loop {
        tokio::select! {
            request = signals.next() => {
                let (signal, departure) = match request {
                    StopRequest::Interrupt => (Signal::INT, StopRequest::Interrupt),
                    _ => (Signal::TERM, StopRequest::Terminate),
                };
                code = code.or(Some(Departure::Asked(departure).code()));
                stop.send_modify(|asked| *asked = (asked.0 + 1, signal));
            }
            // Whoever started this process has ended.
            Some(()) = stdin_ended.recv() => {
                tracing::error!("the program that started these workers has ended");
                code = code.or(Some(1));
                stop.send_modify(|asked| *asked = (asked.0 + 1, Signal::TERM));
            }
            ended = running.join_next() => {
                let Some(ended) = ended else { return Ok(code.unwrap_or(0)) };
                let ended = ended.context("the task of a worker")?;
                if let Some(given_up) = judge(ended, workers, &mut attempts, code.is_some(), &mut |index, after| {
                    start(&mut running, index, after);
                }) {
                    code = code.or(Some(given_up));
                    stop.send_modify(|asked| *asked = (asked.0 + 1, Signal::TERM));
                }
            }
        }
    }
}

/// Says how a worker ended, and starts it again where it should be. Returns the exit code with which all have to end.
fn judge(
    ended: WorkerEnd,
    workers: &[DeviceWorker],
    attempts: &mut [Attempts],
    stopping: bool,
    again: &mut dyn FnMut(usize, Duration),
) -> Option<u8> {
    let worker = &workers[ended.index];
    let who = format!("{} ({})", worker.name, worker.device);
    let (how, code) = match &ended.status {
        Ok(status) => (describe(*status), status.code()),
        Err(error) => (format!("could not be started: {error:#}"), None),
    };
    if stopping {
        tracing::info!("{who} {how}");
        return None;
    }
    match attempts[ended.index].after(code, ended.ran) {
        AfterEnd::Stay => {
            tracing::info!("{who} {how}: drained");
            None
        }
        AfterEnd::GiveUp => {
            tracing::error!("{who} {how}; all workers end");
            last_words(&ended.last_lines);
            Some(2)
        }
        AfterEnd::Again(wait) => {
            tracing::error!("{who} {how}; it is started again in {} s", wait.as_secs());
            last_words(&ended.last_lines);
            again(ended.index, wait);
            None
        }
    }
}

/// Repeats the last lines of a worker, which lines of the others may have followed.
fn last_words(lines: &VecDeque<String>) {
    for line in lines {
        say(&format!("    {line}"));
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

/// Starts a worker after a while, and stays with it to its end.
async fn attend(
    crew: std::sync::Arc<Crew>,
    worker: DeviceWorker,
    index: usize,
    after: Duration,
    mut asked: watch::Receiver<(u32, Signal)>,
) -> WorkerEnd {
    tokio::select! {
        () = sleep(after) => {}
        () = async { drop(asked.wait_for(|(times, _)| *times > 0).await) } => {}
    }
    let started = Instant::now();
    let mut last_lines = VecDeque::new();
    let status = live(&crew, &worker, &mut asked, &mut last_lines).await;
    WorkerEnd { index, status, ran: started.elapsed(), last_lines }
}

async fn live(
    crew: &Crew,
    worker: &DeviceWorker,
    asked: &mut watch::Receiver<(u32, Signal)>,
    last_lines: &mut VecDeque<String>,
) -> Result<ExitStatus> {
    if asked.borrow().0 > 0 {
        bail!("all are asked to stop");
    }
    let mut child = spawn(crew, worker)?;
    // It ends when this is closed, and so with this process however that ends.
    let _tie = child.stdin.take();
    let mut lines = BufReader::new(child.stderr.take().context("the worker's stderr")?).lines();
    let mut tell = |line: String| {
        say(&if crew.prefixed { format!("{} | {line}", worker.name) } else { line.clone() });
        last_lines.push_back(line);
        if last_lines.len() > LAST_LINES {
            last_lines.pop_front();
        }
    };
    let mut kill_at = None;
    let mut reads = true;
    let status = loop {
        tokio::select! {
            line = lines.next_line(), if reads => match line {
                Ok(Some(line)) => tell(line),
                // A line that is not text is left out.
                Err(error) if error.kind() == ErrorKind::InvalidData => {}
                _ => reads = false,
            },
            status = child.wait() => break status.context("waiting for it")?,
            Ok(()) = asked.changed() => {
                let (_, signal) = *asked.borrow_and_update();
                send(&child, signal);
                kill_at = kill_at.or(Some(Instant::now() + crew.grace));
            }
            () = at(kill_at) => {
                tracing::warn!("{} does not end, and is killed", worker.name);
                send(&child, Signal::KILL);
                kill_at = None;
            }
        }
    };
    while reads && let Some(line) = rest(&mut lines).await {
        tell(line);
    }
    Ok(status)
}

fn spawn(crew: &Crew, worker: &DeviceWorker) -> Result<Child> {
    let mut command = Command::new(&crew.program);
    command.args(&worker.args).stdin(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if let Some(token) = &crew.token {
        command.env("COXSWAIN_JOIN_TOKEN", token.expose());
    }
    // Ctrl-C of a terminal goes to a whole group, and is handed on by this process: a worker would take it for two.
    command.process_group(0);
    command.spawn().with_context(|| format!("starting {}", crew.program.display()))
}

/// A line that was written before the end.
async fn rest(lines: &mut Lines<BufReader<ChildStderr>>) -> Option<String> {
    timeout(DRAIN, lines.next_line()).await.ok()?.ok()?
}

/// Ready at this time, or never.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Sends a signal to a worker that has not ended.
fn send(child: &Child, signal: Signal) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    // An error means that it has just ended.
    let _ = pid.map(|pid| kill_process(pid, signal));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_the_supervisor_are_left_out() {
        let raw =
            ["--devices", "all", "--coordinator", "a:1", "--name=x", "--tls-ca", "ca", "--join-file", "-"];
        let raw: Vec<OsString> = raw.map(OsString::from).into();
        let kept = without(&raw, &OWN);
        assert_eq!(kept, ["--coordinator", "a:1", "--tls-ca", "ca"].map(OsString::from));
    }

    #[test]
    fn each_worker_has_the_next_port() {
        let of =
            |listen: &str, index| nth_port(listen.parse().unwrap(), index).map(|found| found.to_string());
        assert_eq!(of("0.0.0.0:7071", 0).as_deref(), Some("0.0.0.0:7071"));
        assert_eq!(of("[::]:7071", 7).as_deref(), Some("[::]:7078"));
        assert_eq!(of("0.0.0.0:0", 7).as_deref(), Some("0.0.0.0:0"));
        assert_eq!(of("0.0.0.0:65535", 1), None);
    }
}
