//! Writes into runs' folders. Each folder has a thread that does one thing after the other, so a folder that does not
//! answer holds up its own job only. Old checkpoints are removed by a second thread, because that may take minutes.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use coxswain_core::cluster::{CheckDepth, Event, MAX_WAITING};
use coxswain_files::StoreFolder;
use coxswain_types::Step;
use coxswain_types::status::StepReport;
use tokio::sync::mpsc::WeakSender;

use crate::claim::Claim;
use crate::folder;
use crate::handle::{Request, tell};
use crate::lock::lock;
use crate::metrics::{METRICS, Metrics, Moved, Why};

/// How long one operation in a folder may take. A file server that restarts is back before that.
const ANSWER: Duration = Duration::from_secs(120);

/// How many operations may wait for a folder. A lead sends at most a few hundred reports ahead of acknowledgements.
const MAX_TASKS: usize = 1024;

/// How long to wait for a folder that another process holds: one that is ending releases it.
const ENDING: Duration = Duration::from_secs(3);

/// How long to wait for the folder of a job that an earlier coordinator had at work. If its machine crashed, a file
/// server keeps the lock for about 90 s.
const GONE: Duration = Duration::from_secs(100);

/// The most folders with a thread: one for each job that may be open, and as many again that do not answer.
const MAX_FOLDERS: usize = 2 * MAX_WAITING;

/// An operation in a folder.
enum Task {
    /// Claim it for a job that is about to be prepared.
    Claim(String, CheckDepth),
    /// Open the metrics of a job, which goes on after this step.
    Open(String, Step),
    /// Note a step.
    Report(Box<StepReport>),
    /// Make what was noted up to this step survive a crash of the machine.
    Sync(Step),
    /// The job is over.
    Close,
}

/// When the operation under way began, if there is one.
type Since = Arc<Mutex<Option<Instant>>>;

/// A folder's threads.
#[derive(Debug)]
struct Keeper {
    tasks: SyncSender<Task>,
    prunes: Option<mpsc::Sender<(Step, u32)>>,
    since: Since,
    /// The job that it is for.
    job: Option<String>,
    /// Whether its metrics are open.
    is_open: bool,
    /// How many jobs it has yet to close.
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

    /// Claims a folder for a job that is about to be prepared.
    pub(crate) fn claim(&mut self, job: &str, directory: &Path, look: CheckDepth) {
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

    /// Starts a thread for the folder, unless it has one, and assigns it to the job.
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
            // The thread ends once the folder answers, because its sender is dropped.
            Err(_) => {
                let directory = directory.clone();
                self.keepers.remove(&directory);
            }
        }
    }

    /// Takes in that a folder's thread has closed a job. It is dropped unless another job uses the folder.
    pub(crate) fn closed(&mut self, directory: &Path) {
        let Some(keeper) = self.keepers.get_mut(directory) else { return };
        keeper.closing = keeper.closing.saturating_sub(1);
        if keeper.job.is_none() && keeper.closing == 0 {
            self.keepers.remove(directory);
        }
    }

    /// Moves deadlines after a pause of this process, which is not a folder's fault.
    pub(crate) fn paused(&self, pause: Duration) {
        for keeper in self.keepers.values() {
            let mut since = lock(&keeper.since);
            *since = since.map(|since| since + pause);
        }
    }

    /// The jobs whose folders do not answer, with a reason for each.
    pub(crate) fn overdue(&self, now: Instant) -> Vec<(String, String)> {
        let late = |(directory, keeper): (&PathBuf, &Keeper)| {
            let job = keeper.job.clone()?;
            let late = now.saturating_duration_since((*lock(&keeper.since))?) >= ANSWER;
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
                    format!("the thread that writes to {} has ended; please report this", directory.display())
                }
            };
            self.fail(job, reason);
        }
    }

    fn fail(&self, job: &str, reason: String) {
        tell(self.requests.clone(), Event::Broken { job: job.to_owned(), reason });
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
    let run = StoreFolder::from(directory);
    while let Ok(kept) = asked.recv() {
        folder::prune(job, &run, kept);
    }
}

impl Keeper {
    fn start(directory: PathBuf, requests: WeakSender<Request>) -> io::Result<Keeper> {
        let (tasks, asked) = mpsc::sync_channel(MAX_TASKS);
        let since = Since::default();
        let desk = Desk { directory, requests, since: Arc::clone(&since), claim: None, open: None };
        thread::Builder::new().spawn(move || desk.work(&asked))?;
        Ok(Keeper { tasks, prunes: None, since, job: None, is_open: false, closing: 0 })
    }
}

/// A folder's thread.
struct Desk {
    directory: PathBuf,
    requests: WeakSender<Request>,
    since: Since,
    /// The lock on the folder.
    claim: Option<Claim>,
    /// The job and its metrics; `None` before they are opened and after a write failed.
    open: Option<(String, Metrics)>,
}

impl Desk {
    fn work(mut self, asked: &Receiver<Task>) {
        let mut waiting = VecDeque::new();
        while let Ok(task) = asked.recv() {
            waiting.push_back(task);
            waiting.extend(asked.try_iter().take(MAX_TASKS));
            while let Some(task) = waiting.pop_front() {
                *lock(&self.since) = Some(Instant::now());
                let answer = self.act(task, &mut waiting);
                *lock(&self.since) = None;
                // The driver is gone when the coordinator ends.
                let Some(requests) = self.requests.upgrade() else { return };
                if let Some(answer) = answer {
                    let _ = requests.blocking_send(answer);
                }
            }
        }
    }

    /// Does one operation; reports that wait one after the other are written together.
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
                match Metrics::open(&self.directory.as_path().into(), from) {
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
            Task::Sync(step) => {
                let metrics = &self.open.as_ref()?.1;
                // A checkpoint is about to be committed.
                let held = self.claim.as_ref().map_or(Ok(()), Claim::check);
                if let Err(error) = held {
                    let (job, _) = self.open.take()?;
                    let reason = format!("the run's folder {}: {error}", self.directory.display());
                    return Some(Request::Event(Event::Broken { job, reason }));
                }
                match metrics.sync() {
                    Ok(()) => self.written(Vec::new(), Some(step)),
                    Err(error) => self.broken(&error),
                }
            }
            Task::Close => {
                (self.open, self.claim) = (None, None);
                Some(Request::FolderClosed { directory: self.directory.clone() })
            }
        }
    }

    /// Locks the folder for the job, unless it is locked already.
    fn claimed(&mut self, job: &str, patience: Duration) -> Result<(), String> {
        if self.claim.is_none() {
            let claim = Claim::of(&self.directory, job, patience);
            let told = |error| format!("the run's folder {}: {error}", self.directory.display());
            self.claim = Some(claim.map_err(told)?);
        }
        Ok(())
    }

    /// The answer after a write or a sync. A sync is answered with at least the step that was requested, even if lines
    /// are missing, because a power cut may have taken them for good.
    fn written(&self, reports: Vec<StepReport>, synced: Option<Step>) -> Option<Request> {
        let (job, metrics) = self.open.as_ref()?;
        // Reports that were written before a restart count as well.
        let step = reports.last().map_or(metrics.last(), |report| Step(report.step));
        let (step, synced) = (synced.map_or(step, |asked| asked.max(step)), synced.is_some());
        Some(Request::Written { job: job.clone(), reports, step, synced })
    }

    /// Gives up the job's metrics after a failed write: later reports are neither written nor acknowledged.
    fn broken(&mut self, error: &std::io::Error) -> Option<Request> {
        let (job, _) = self.open.take()?;
        let reason = format!("{}: {error}", self.directory.join(METRICS).display());
        Some(Request::Event(Event::Broken { job, reason }))
    }
}

fn warn(job: &str, Moved { why, steps, to }: Moved) {
    let why = match why {
        Why::Anew => "the folder has no checkpoint, so its steps are taken anew",
        Why::NoText => "metrics.jsonl is damaged: parts of it are not text",
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
        // Lines that a power cut took hold up nothing.
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
        let noted: Vec<_> =
            metrics::read(&folder.path().into()).unwrap().iter().map(|line| line.step).collect();
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
        *lock(&keepers.of("a-1").unwrap().1.since) = Some(now);
        assert_eq!(keepers.overdue(now + ANSWER / 2), []);
        let overdue = keepers.overdue(now + ANSWER);
        assert_eq!(overdue.len(), 1);
        assert!(overdue[0].1.ends_with("has not answered for 120 s; look at its file system"), "{overdue:?}");
    }
}
