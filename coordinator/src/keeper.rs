//! What is written into runs' folders: a thread for each folder does one thing after the other, so that a folder which
//! does not answer holds up its own job and nothing else. Which checkpoints are let go of is a second thread's, for
//! that may take minutes.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use coxswain_core::cluster::{Event, Look, MAX_WAITING};
use coxswain_types::Step;
use coxswain_types::status::StepReport;
use tokio::sync::mpsc::WeakSender;

use crate::claim::Claim;
use crate::folder;
use crate::handle::Request;
use crate::metrics::{METRICS, Metrics, Moved, Why};

/// How long a folder may take for one thing. A server that is started anew is back before that.
const ANSWER: Duration = Duration::from_secs(120);

/// What may wait for a folder. The lead of a run sends a few hundred reports until it hears that they are written.
const MAX_TASKS: usize = 1024;

/// How long a folder may still be held by a process that is about to end.
const ENDING: Duration = Duration::from_secs(3);

/// How long it may be held by a coordinator on a machine that is gone, for whose job this is: as long as a server waits
/// for that machine.
const GONE: Duration = Duration::from_secs(100);

/// Folders with a thread: those of all jobs that may be open, and as many that do not answer.
const MAX_FOLDERS: usize = 2 * MAX_WAITING;

/// Something to do in a folder.
enum Task {
    /// Claim it for a job, which is to be prepared then.
    Claim(String, Look),
    /// Open the metrics of a job, which goes on after this step.
    Open(String, Step),
    /// Note a step.
    Report(Box<StepReport>),
    /// Make what was noted up to this step survive a crash of the machine.
    Sync(Step),
    /// The job is over.
    Close,
}

/// What a folder's thread does.
#[derive(Debug, Default)]
struct Doing {
    /// Since when it is at the thing at hand, if it is at one.
    since: Option<Instant>,
}

/// A folder's threads.
#[derive(Debug)]
struct Keeper {
    tasks: SyncSender<Task>,
    prunes: Option<mpsc::Sender<(Step, u32)>>,
    doing: Arc<Mutex<Doing>>,
    /// The job that it is for.
    job: Option<String>,
    /// Whether its metrics are open.
    is_open: bool,
    /// Jobs that it is about to close.
    closing: u32,
}

/// The folders of all runs that are open.
#[derive(Debug)]
pub(crate) struct Keepers {
    keepers: BTreeMap<PathBuf, Keeper>,
    /// Where the answers go.
    requests: WeakSender<Request>,
}

impl Keepers {
    pub(crate) fn new(requests: WeakSender<Request>) -> Keepers {
        Keepers { keepers: BTreeMap::new(), requests }
    }

    /// Whether the metrics of a job are open.
    pub(crate) fn has(&self, job: &str) -> bool {
        self.keepers.values().any(|keeper| keeper.is_open && keeper.job.as_deref() == Some(job))
    }

    /// Claims a folder for a job, which is to be prepared then.
    pub(crate) fn claim(&mut self, job: &str, directory: &Path, look: Look) {
        self.keep(job, directory);
        self.give(job, Task::Claim(job.to_owned(), look));
    }

    /// Opens the metrics of a job, which goes on after step `from`.
    pub(crate) fn open(&mut self, job: &str, directory: &Path, from: Step) {
        self.keep(job, directory);
        self.give(job, Task::Open(job.to_owned(), from));
        if let Some((_, keeper)) = self.of(job) {
            keeper.is_open = true;
        }
    }

    /// Has a thread for the folder, which is the job's now.
    fn keep(&mut self, job: &str, directory: &Path) {
        let full = self.keepers.len() >= MAX_FOLDERS && !self.keepers.contains_key(directory);
        if full {
            let reason = format!("{MAX_FOLDERS} folders of runs do not answer; look at their file systems");
            return self.fail(job, reason);
        }
        if !self.keepers.contains_key(directory) {
            match Keeper::start(directory.to_owned(), self.requests.clone()) {
                Ok(keeper) => drop(self.keepers.insert(directory.to_owned(), keeper)),
                Err(error) => {
                    return self.fail(job, format!("no thread can be started for its folder: {error}"));
                }
            }
        }
        if let Some(keeper) = self.keepers.get_mut(directory) {
            keeper.job = Some(job.to_owned());
        }
    }

    /// Notes a step of a job.
    pub(crate) fn report(&mut self, job: &str, report: StepReport) {
        self.give(job, Task::Report(Box::new(report)));
    }

    /// Syncs what was noted of a job, up to this step.
    pub(crate) fn sync(&mut self, job: &str, step: Step) {
        self.give(job, Task::Sync(step));
    }

    /// Lets go of a job's checkpoints but the newest `keep` up to that of step `newest`.
    pub(crate) fn prune(&mut self, job: &str, newest: Step, keep: u32) {
        let Some((directory, keeper)) = self.of(job) else { return };
        if keeper.prunes.is_none() {
            let (prunes, asked) = mpsc::channel();
            let (of, directory) = (job.to_owned(), directory.clone());
            match thread::Builder::new().spawn(move || prune(&of, &directory, &asked)) {
                Ok(_) => keeper.prunes = Some(prunes),
                Err(error) => return tracing::warn!(job, "old checkpoints stay: {error}"),
            }
        }
        if let Some(prunes) = &keeper.prunes {
            // The thread ends with its sender only.
            let _ = prunes.send((newest, keep));
        }
    }

    /// Closes the metrics of a job that is over.
    pub(crate) fn close(&mut self, job: &str) {
        let Some((directory, keeper)) = self.of(job) else { return };
        (keeper.job, keeper.prunes, keeper.is_open) = (None, None, false);
        match keeper.tasks.try_send(Task::Close) {
            Ok(()) => keeper.closing += 1,
            // It ends by itself once the folder answers, for nothing more comes.
            Err(_) => {
                let directory = directory.clone();
                self.keepers.remove(&directory);
            }
        }
    }

    /// A folder's thread has closed a job's metrics: it ends, unless another job was opened there.
    pub(crate) fn closed(&mut self, directory: &Path) {
        let Some(keeper) = self.keepers.get_mut(directory) else { return };
        keeper.closing = keeper.closing.saturating_sub(1);
        if keeper.job.is_none() && keeper.closing == 0 {
            self.keepers.remove(directory);
        }
    }

    /// This process did not run for a while, and no folder is to blame.
    pub(crate) fn paused(&mut self, pause: Duration) {
        for keeper in self.keepers.values() {
            let mut doing = keeper.doing.lock().unwrap_or_else(PoisonError::into_inner);
            doing.since = doing.since.map(|since| since + pause);
        }
    }

    /// The jobs whose folders do not answer, and how that is told.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<(String, String)> {
        let late = |(directory, keeper): (&PathBuf, &Keeper)| {
            let job = keeper.job.clone()?;
            let since = keeper.doing.lock().unwrap_or_else(PoisonError::into_inner).since?;
            let late = now.saturating_duration_since(since) >= ANSWER;
            late.then(|| (job, unanswered(directory)))
        };
        self.keepers.iter().filter_map(late).collect()
    }

    fn of(&mut self, job: &str) -> Option<(&PathBuf, &mut Keeper)> {
        self.keepers.iter_mut().find(|(_, keeper)| keeper.job.as_deref() == Some(job))
    }

    fn give(&mut self, job: &str, task: Task) {
        let Some((directory, keeper)) = self.of(job) else { return };
        if let Err(error) = keeper.tasks.try_send(task) {
            let reason = match error {
                TrySendError::Full(_) => unanswered(directory),
                TrySendError::Disconnected(_) => {
                    format!("nobody writes to {} any more; please report this", directory.display())
                }
            };
            self.fail(job, reason);
        }
    }

    /// Says that a job's folder cannot be written, from a task of its own: the driver reads what it is told.
    fn fail(&self, job: &str, reason: String) {
        let (job, requests) = (job.to_owned(), self.requests.clone());
        tokio::spawn(async move {
            if let Some(requests) = requests.upgrade() {
                let _ = requests.send(Request::Event(Event::Broken { job, reason })).await;
            }
        });
    }
}

fn unanswered(directory: &Path) -> String {
    format!(
        "the run's folder {} has not answered for {} s; look at its file system",
        directory.display(),
        ANSWER.as_secs()
    )
}

fn prune(job: &str, directory: &Path, asked: &Receiver<(Step, u32)>) {
    while let Ok(kept) = asked.recv() {
        folder::prune(job, directory, kept);
    }
}

impl Keeper {
    fn start(directory: PathBuf, requests: WeakSender<Request>) -> io::Result<Keeper> {
        let (tasks, asked) = mpsc::sync_channel(MAX_TASKS);
        let doing = Arc::new(Mutex::new(Doing::default()));
        let desk = Desk { directory, requests, doing: Arc::clone(&doing), claim: None, open: None };
        thread::Builder::new().spawn(move || desk.work(&asked))?;
        Ok(Keeper { tasks, prunes: None, doing, job: None, is_open: false, closing: 0 })
    }
}

/// A folder's thread.
struct Desk {
    directory: PathBuf,
    requests: WeakSender<Request>,
    doing: Arc<Mutex<Doing>>,
    /// That the folder is the job's, and no other coordinator's.
    claim: Option<Claim>,
    /// The job and its metrics; `None` before it is opened, and after it broke.
    open: Option<(String, Metrics)>,
}

impl Desk {
    fn work(mut self, asked: &Receiver<Task>) {
        let mut waiting = VecDeque::new();
        while let Ok(task) = asked.recv() {
            waiting.push_back(task);
            waiting.extend(asked.try_iter().take(MAX_TASKS));
            while let Some(task) = waiting.pop_front() {
                self.begin();
                let answer = self.act(task, &mut waiting);
                self.doing.lock().unwrap_or_else(PoisonError::into_inner).since = None;
                // The driver is gone when the coordinator ends.
                let Some(requests) = self.requests.upgrade() else { return };
                if let Some(answer) = answer {
                    let _ = requests.blocking_send(answer);
                }
            }
        }
    }

    fn begin(&self) {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner).since = Some(Instant::now());
    }

    /// Does one thing; steps that are noted one after the other are written together.
    fn act(&mut self, task: Task, waiting: &mut VecDeque<Task>) -> Option<Request> {
        match task {
            Task::Claim(job, look) => match self.claimed(&job, ENDING) {
                Ok(()) => Some(Request::Claimed { job, look }),
                Err(reason) => Some(Request::Event(Event::Broken { job, reason })),
            },
            Task::Open(job, from) => {
                if let Err(reason) = self.claimed(&job, GONE) {
                    return Some(Request::Event(Event::Broken { job, reason }));
                }
                match Metrics::open(&self.directory, from) {
                    Ok((metrics, moved)) => {
                        if let Some(moved) = moved {
                            warn(&job, moved);
                        }
                        self.open = Some((job, metrics));
                        self.written(Vec::new(), Some(Step(0)))
                    }
                    Err(error) => {
                        let reason = format!("metrics in {}: {error}", self.directory.display());
                        Some(Request::Event(Event::Broken { job, reason }))
                    }
                }
            }
            Task::Report(report) => {
                let mut reports = vec![*report];
                while let Some(Task::Report(report)) =
                    waiting.pop_front_if(|task| matches!(task, Task::Report(_)))
                {
                    reports.push(*report);
                }
                let (_, metrics) = self.open.as_mut()?;
                match metrics.append(&reports) {
                    Ok(()) => self.written(reports, None),
                    Err(error) => self.broken(&error),
                }
            }
            Task::Sync(step) => match self.open.as_ref()?.1.sync() {
                Ok(()) => self.written(Vec::new(), Some(step)),
                Err(error) => self.broken(&error),
            },
            Task::Close => {
                (self.open, self.claim) = (None, None);
                Some(Request::FolderClosed { directory: self.directory.clone() })
            }
        }
    }

    /// Sees to it that the folder is the job's.
    fn claimed(&mut self, job: &str, patience: Duration) -> Result<(), String> {
        if self.claim.is_none() {
            let claim = Claim::of(&self.directory, job, patience);
            let told = |error| format!("the run's folder {}: {error}", self.directory.display());
            self.claim = Some(claim.map_err(told)?);
        }
        Ok(())
    }

    /// Says what is written: all reports up to that of a step, or, of a sync, up to the step that was asked for. Lines
    /// that a machine lost with its power do not come back, and hold up nothing.
    fn written(&self, reports: Vec<StepReport>, synced: Option<Step>) -> Option<Request> {
        let (job, metrics) = self.open.as_ref()?;
        // Steps that were noted before a restart count as well.
        let step = reports.last().map_or(metrics.last(), |report| Step(report.step));
        let (step, synced) = (synced.map_or(step, |asked| asked.max(step)), synced.is_some());
        Some(Request::Written { job: job.clone(), reports, step, synced })
    }

    /// Nothing more is written of this job, and what was not written is not told.
    fn broken(&mut self, error: &std::io::Error) -> Option<Request> {
        let (job, _) = self.open.take()?;
        let reason = format!("{}: {error}", self.directory.join(METRICS).display());
        Some(Request::Event(Event::Broken { job, reason }))
    }
}

fn warn(job: &str, Moved { why, steps, to }: Moved) {
    let why = match why {
        Why::Anew => "the folder has no checkpoint, so its steps are taken anew",
        Why::NoText => "metrics.jsonl is damaged: parts of it are no text",
    };
    tracing::warn!(job, "{why}; the metrics of {steps} steps are kept in {to}");
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    use tokio::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::metrics;

    fn report(step: u64) -> StepReport {
        serde_json::from_value(serde_json::json!({
            "step": step, "loss": 2.0, "grad_norm": 1.0, "learning_rate": 0.1, "tokens": 8,
            "tokens_per_second": 8.0, "step_seconds": 1.0,
        }))
        .unwrap()
    }

    async fn told(answers: &mut Receiver<Request>) -> String {
        match tokio::time::timeout(Duration::from_secs(10), answers.recv()).await.unwrap().unwrap() {
            Request::Written { job, reports, step, synced } => {
                let steps: Vec<_> = reports.iter().map(|report| report.step).collect();
                format!("{job} {steps:?} to {step}{}", if synced { ", synced" } else { "" })
            }
            Request::Event(Event::Broken { job, reason }) => format!("{job} breaks: {reason}"),
            Request::FolderClosed { .. } => "closed".to_owned(),
            _ => "something else".to_owned(),
        }
    }

    #[tokio::test]
    async fn what_is_written_is_told_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let (requests, mut answers) = channel(8);
        let mut keepers = Keepers::new(requests.downgrade());
        keepers.open("a-1", folder.path(), Step(0));
        assert_eq!(told(&mut answers).await, "a-1 [] to 0, synced");
        keepers.report("a-1", report(1));
        assert_eq!(told(&mut answers).await, "a-1 [1] to 1");
        keepers.sync("a-1", Step(1));
        assert_eq!(told(&mut answers).await, "a-1 [] to 1, synced");
        // Lines that are gone, with the power of a machine, hold up nothing.
        keepers.sync("a-1", Step(7));
        assert_eq!(told(&mut answers).await, "a-1 [] to 7, synced");
        // The next job in the same folder waits for what is still written of the one before.
        keepers.report("a-1", report(2));
        keepers.close("a-1");
        keepers.open("b-2", folder.path(), Step(1));
        assert_eq!(told(&mut answers).await, "a-1 [2] to 2");
        assert_eq!(told(&mut answers).await, "closed");
        keepers.closed(folder.path());
        assert!(keepers.has("b-2") && !keepers.has("a-1"));
        assert_eq!(told(&mut answers).await, "b-2 [] to 1, synced");
        let noted: Vec<_> = metrics::read(folder.path()).unwrap().iter().map(|line| line.step).collect();
        assert_eq!(noted, [1]);
        keepers.close("b-2");
        assert_eq!(told(&mut answers).await, "closed");
        keepers.closed(folder.path());
        assert!(keepers.keepers.is_empty());
    }

    #[tokio::test]
    async fn a_folder_that_cannot_be_written_breaks_its_own_job() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, good) = (folder.path().join("pipe"), folder.path().join("good"));
        std::fs::create_dir(&pipe).unwrap();
        mknodat(CWD, pipe.join(METRICS), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let (requests, mut answers) = channel(8);
        let mut keepers = Keepers::new(requests.downgrade());
        keepers.open("a-1", &pipe, Step(0));
        let told_first = told(&mut answers).await;
        assert!(told_first.starts_with("a-1 breaks: metrics in ") && told_first.contains("a named pipe"));
        // What comes later is not written, nor told.
        keepers.report("a-1", report(1));
        keepers.open("b-2", &good, Step(0));
        assert_eq!(told(&mut answers).await, "b-2 [] to 0, synced");
    }

    #[tokio::test]
    async fn a_folder_that_does_not_answer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (requests, mut answers) = channel(1);
        let mut keepers = Keepers::new(requests.downgrade());
        keepers.open("a-1", folder.path(), Step(0));
        assert_eq!(told(&mut answers).await, "a-1 [] to 0, synced");
        let now = Instant::now();
        assert_eq!(keepers.overdue(now + ANSWER), []);
        keepers.of("a-1").unwrap().1.doing.lock().unwrap().since = Some(now);
        assert_eq!(keepers.overdue(now + ANSWER / 2), []);
        let overdue = keepers.overdue(now + ANSWER);
        assert_eq!(overdue.len(), 1);
        assert!(overdue[0].1.ends_with("has not answered for 120 s; look at its file system"), "{overdue:?}");
    }
}
