//! The worker processes of `up`: started here or by [`ssh`](crate::ssh) on other machines, watched, and gone at the end in
//! every case.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use coxswain_files::atomic::create_folder;
use coxswain_files::regular;
use coxswain_transport::tls::args::TLS_DIR;
use coxswain_types::ids::WorkerId;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout_at};

use crate::ssh::{Remote, Tie};

/// The program, beside this one.
const PROGRAM: &str = "coxswain-worker";

/// How long workers that were told to leave may take before they are killed. They have nothing left
/// to save by then.
const STOP: Duration = Duration::from_secs(2);

/// How long a worker whose connection closed may take to be a process that has ended.
const SETTLE: Duration = Duration::from_millis(500);

/// How often in a row a worker is started again while the run takes no step.
const RESTARTS: u32 = 3;

/// How many lines of a log are a worker's last words.
const LAST_LINES: usize = 10;

/// How much of the end of a log is looked at for them.
const LAST_BYTES: usize = 16 << 10;

/// The worker program that belongs to this one.
pub(crate) fn program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("where this program lies cannot be told")?;
    let program = own.with_file_name(PROGRAM);
    if !program.is_file() {
        bail!(
            "{} is not there; it is looked for beside {} (`cargo build --release -p {PROGRAM}` builds it)",
            program.display(),
            own.display()
        );
    }
    Ok(program)
}

/// What to start.
pub(crate) struct Launch<'a> {
    pub(crate) program: &'a Path,
    /// The coordinator's address.
    pub(crate) url: &'a str,
    /// What each computes on.
    pub(crate) device: &'a str,
    pub(crate) count: u32,
    /// The folder of the logs.
    pub(crate) logs: &'a Path,
    /// The machines to start them on; `None` for this one.
    pub(crate) remote: Option<&'a Remote>,
}

struct Worker {
    name: String,
    child: Child,
    /// Its stdin: it ends when this is closed, so it outlives `up` in no case.
    _tie: Option<Tie>,
    log: PathBuf,
    ended: Option<ExitStatus>,
    /// Starts since the run last took a step, without the first.
    restarts: u32,
}

/// Worker processes. Those that are left are killed when this is dropped.
pub(crate) struct Workers {
    workers: Vec<Worker>,
}

impl Workers {
    /// Starts them. If one does not start, those before it are killed.
    pub(crate) fn start(launch: &Launch<'_>) -> Result<Workers> {
        create_folder(launch.logs).with_context(|| format!("{} cannot be made", launch.logs.display()))?;
        for index in 0..launch.count {
            // What an earlier run wrote is not this one's.
            let log = log(launch, index);
            regular::open_own(&log, File::options().write(true).create(true).truncate(true))
                .with_context(|| format!("{} cannot be written", log.display()))?;
        }
        let workers = (0..launch.count).map(|index| start_one(launch, index)).collect::<Result<_>>()?;
        Ok(Workers { workers })
    }

    /// The first worker that has ended, if one has.
    pub(crate) fn ended(&mut self) -> Option<String> {
        self.look();
        let ended = self.workers.iter().find_map(|worker| Some((worker, worker.ended?)));
        ended.map(|(worker, status)| format!("{} ended ({})", worker.name, describe(status)))
    }

    fn look(&mut self) {
        for worker in self.workers.iter_mut().filter(|worker| worker.ended.is_none()) {
            worker.ended = worker.child.try_wait().ok().flatten();
        }
    }

    /// Starts those again that have ended, unless they have done so too often.
    pub(crate) fn restart(&mut self, launch: &Launch<'_>) -> Result<()> {
        self.look();
        for (index, worker) in (0..).zip(&mut self.workers) {
            let Some(status) = worker.ended.filter(|_| worker.restarts < RESTARTS) else { continue };
            tracing::warn!("{} ended ({}) and is started again", worker.name, describe(status));
            let restarts = worker.restarts + 1;
            *worker = Worker { restarts, ..start_one(launch, index)? };
        }
        Ok(())
    }

    /// The run has taken a step: what ended before is forgiven.
    pub(crate) fn forgive(&mut self) {
        self.workers.iter_mut().for_each(|worker| worker.restarts = 0);
    }

    /// Waits a moment for workers that are just ending, so that their last words can be told.
    pub(crate) async fn settle(&mut self) {
        let until = Instant::now() + SETTLE;
        while self.ended().is_none() && Instant::now() < until {
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// How those ended that have, and the last words of theirs and of those that the failure is `about`.
    pub(crate) fn last_words(&self, about: &[WorkerId]) -> String {
        let mut words = String::new();
        for worker in &self.workers {
            let named = about.iter().any(|id| id.0 == worker.name);
            let state = match worker.ended {
                Some(status) => describe(status),
                None if named => "still running".to_owned(),
                None => continue,
            };
            let tail = tail(&worker.log);
            let tail = if tail.is_empty() { "    (nothing)".to_owned() } else { tail };
            words.push_str(&format!(
                "{}: {state}; the end of {}:\n{tail}\n",
                worker.name,
                worker.log.display()
            ));
        }
        words
    }

    /// Kills them.
    pub(crate) async fn kill(mut self) {
        for worker in &mut self.workers {
            // An error means that it has just ended.
            let _ = worker.child.start_kill();
        }
        for worker in &mut self.workers {
            let _ = worker.child.wait().await;
        }
    }

    /// Waits for workers that were told to leave, and kills those that stay.
    pub(crate) async fn stop(mut self) {
        let until = Instant::now() + STOP;
        for worker in &mut self.workers {
            if timeout_at(until, worker.child.wait()).await.is_err() {
                tracing::warn!("{} does not leave by itself: killed", worker.name);
                // An error means that it has just ended.
                let _ = worker.child.kill().await;
            }
        }
    }
}

fn name(launch: &Launch<'_>, index: u32) -> String {
    let width = launch.count.saturating_sub(1).to_string().len();
    format!("worker-{index:0width$}")
}

fn log(launch: &Launch<'_>, index: u32) -> PathBuf {
    launch.logs.join(format!("{}.log", name(launch, index)))
}

fn start_one(launch: &Launch<'_>, index: u32) -> Result<Worker> {
    let (name, log) = (name(launch, index), log(launch, index));
    let out = regular::open_own(&log, File::options().append(true).create(true));
    let out = out.with_context(|| format!("{} cannot be written", log.display()))?;
    let err = out.try_clone().with_context(|| format!("{} cannot be written", log.display()))?;
    let mut command = match launch.remote {
        Some(remote) => remote.command(launch, index, &name),
        None => here(launch, index, &name),
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(out)
        .stderr(err)
        // Ctrl-C reaches `up` alone, which ends the run in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("{} does not start", command.as_std().get_program().display()))?;
    let tie = match launch.remote {
        Some(remote) => remote.hand_over(child.stdin.take()),
        None => child.stdin.take().map(Tie::Pipe),
    };
    Ok(Worker { name, child, _tie: tie, log, ended: None, restarts: 0 })
}

/// The options of a worker of `up`, wherever it runs.
pub(crate) fn options(launch: &Launch<'_>, device: &str, name: &str) -> Vec<String> {
    // `up` is the coordinator, and does not come back.
    let words = [
        "--coordinator",
        launch.url,
        "--device",
        device,
        "--name",
        name,
        "--coordinator-timeout-s",
        "0",
        "--tied",
    ];
    words.map(str::to_owned).to_vec()
}

/// A worker on this machine.
fn here(launch: &Launch<'_>, index: u32, name: &str) -> Command {
    // A worker that has the cores to itself spins for about a millisecond before its threads sleep:
    // the next product is mostly there by then. Workers that share cores must not spin at all.
    let spin = if launch.count == 1 { "30000" } else { "0" };
    let device = coxswain_proto::device::device_of(launch.device, index);
    let mut command = Command::new(launch.program);
    command
        .args(options(launch, &device, name))
        .args((launch.count > 1).then_some("--shares-cores"))
        .env("OMP_WAIT_POLICY", "PASSIVE")
        .env("GOMP_SPINCOUNT", spin)
        // Those are for coordinators with certificates, and this one is on this machine only.
        .env_remove(TLS_DIR)
        .env_remove("COXSWAIN_JOIN_TOKEN");
    command
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

fn tail(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let end = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LAST_BYTES)..]).into_owned();
    let lines: Vec<_> = end.lines().filter(|line| !line.trim().is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    last.iter().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}
