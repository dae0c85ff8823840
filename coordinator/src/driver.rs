//! The one task that owns the [`Cluster`]: requests become events, and effects are done in order.
//! What has to survive a crash is in the journal, synced, before any later effect is done, so
//! no consequence is seen of anything that can be forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use coxswain_core::cluster::{
    CancelWhen, CheckDepth, Cluster, Effect, Entry, Event, JobEvent, JobState, JobSummary, Notice, PAUSE_MS,
    Planning, Submission, Weight,
};
use coxswain_core::plan::MAX_ASSIGNMENT_BYTES;
use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::status::{DesiredState, Leave, LeaveCause, WorkerStatus};
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::{JoinHandle, block_in_place};
use tokio::time::MissedTickBehavior;

use crate::event_line::EventLine;
use crate::handle::{Handle, JobNews, News, Request, Times};
use crate::journal::Journal;
use crate::keeper::Keepers;
use crate::preparation::{Known, Preparations};
use crate::store::RendezvousStore;

/// Requests that may wait for the driver. Each of a few thousand workers has at most one on its way;
/// when the queue is full its sender waits, which slows the streams down.
const MAX_REQUESTS: usize = 1024;

/// News that a slow watcher may be behind. One that is further behind goes on with the newest.
const MAX_NEWS: usize = 1024;

/// How often the driver checks for folders that do not answer, and whether it was stopped itself.
const LOOK: Duration = Duration::from_secs(1);

// What is wanted of a worker beside its assignment is a few short texts.
const _: () = assert!(MAX_ASSIGNMENT_BYTES + (64 << 10) < coxswain_proto::limits::MAX_MESSAGE_BYTES);

/// What the task does next.
#[expect(clippy::large_enum_variant, reason = "one is alive at a time, on the stack")]
enum Next {
    Request(Request),
    /// Check what runs beside it.
    Look,
    /// A deadline of the cluster has come.
    Due,
}

/// A stream to a process.
struct WorkerStream {
    connection: u64,
    desired: watch::Sender<DesiredState>,
}

/// The task's state.
struct Driver {
    cluster: Cluster,
    journal: Journal,
    store: Arc<RendezvousStore>,
    started: Instant,
    /// By name and incarnation.
    links: BTreeMap<(WorkerId, u64), WorkerStream>,
    /// What is written into the folders of jobs that are at work.
    keepers: Keepers,
    /// File digests of each unfinished job, so that an interruption does not read its files again.
    digests: BTreeMap<String, Known>,
    news: broadcast::Sender<News>,
    /// What goes into the journal.
    happened: broadcast::Sender<EventLine>,
    /// When jobs were first formed, and when they ended, by the wall clock.
    dates: Dates,
    /// The summaries that watchers know, of jobs that are not over.
    told: BTreeMap<String, JobSummary>,
    /// Up to which of the cluster's news watchers were told.
    shown: u64,
    requests: mpsc::WeakSender<Request>,
    preparations: Preparations,
    left_over: LeftOver,
}

/// What becomes of jobs that an earlier coordinator on this folder left open.
#[derive(Clone, Copy, Debug)]
pub(crate) enum LeftOver {
    /// They go on.
    Continue,
    /// They are cancelled, for this reason.
    Cancel(&'static str),
}

/// Starts the driver on what the journal in `folder` holds. It ends when all handles are gone, or
/// with an error when the journal cannot be written.
pub(crate) fn start(
    folder: &Path,
    left_over: LeftOver,
) -> Result<(Handle, Arc<RendezvousStore>, JoinHandle<Result<()>>)> {
    let (journal, replayed) = Journal::open(folder)?;
    if replayed.cut_bytes > 0 {
        tracing::warn!("cut {} bytes off the journal that a crash had left incomplete", replayed.cut_bytes);
    }
    let (sender, receiver) = mpsc::channel(MAX_REQUESTS);
    let (news, _) = broadcast::channel(MAX_NEWS);
    let (happened, _) = broadcast::channel(MAX_NEWS);
    let store = Arc::new(RendezvousStore::default());
    let mut dates = Dates::new();
    replayed.entries.iter().for_each(|(at_ms, entry)| date(&mut dates, *at_ms, entry));
    let driver = Driver {
        cluster: Cluster::replay(replayed.entries.into_iter().map(|(_, entry)| entry)),
        journal,
        store: store.clone(),
        started: Instant::now(),
        links: BTreeMap::new(),
        keepers: Keepers::new(sender.downgrade()),
        digests: BTreeMap::new(),
        news: news.clone(),
        happened: happened.clone(),
        dates,
        told: BTreeMap::new(),
        shown: 0,
        requests: sender.downgrade(),
        preparations: Preparations::default(),
        left_over,
    };
    let task = tokio::spawn(driver.run(receiver));
    Ok((Handle::new(sender, news, happened, folder), store, task))
}

impl Driver {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) -> Result<()> {
        if let LeftOver::Cancel(reason) = self.left_over {
            for job in self.cluster.jobs().into_iter().filter(|job| !job.state.is_over()) {
                let (reason, when) = (reason.to_owned(), CancelWhen::Now);
                self.handle(Event::Cancelled { job: job.job, reason, when })?;
            }
        }
        let begun = |job: &JobSummary| !job.state.is_over() && job.generation > Generation(0);
        for JobSummary { job, .. } in self.cluster.jobs().into_iter().filter(begun) {
            self.open(&job, Step(u64::MAX));
        }
        self.handle(Event::Tick)?;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ran = uptime();
        loop {
            let deadline = self.cluster.next_deadline_ms();
            let due = self.started + Duration::from_millis(deadline.unwrap_or(0));
            let next = tokio::select! {
                // Requests first: a status that waits in the queue is a sign of life.
                biased;
                request = requests.recv() => match request {
                    Some(request) => Next::Request(request),
                    None => return Ok(()),
                },
                _ = look.tick() => Next::Look,
                () = tokio::time::sleep_until(due.into()), if deadline.is_some() => Next::Due,
            };
            // Checked before the event is handled: a stream may have closed while this process was stopped.
            let now = uptime();
            let pause = now.saturating_sub(std::mem::replace(&mut ran, now));
            if pause >= LOOK + Duration::from_millis(PAUSE_MS) {
                self.keepers.paused(pause);
                self.preparations.paused(pause);
                let for_ms = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                self.handle(Event::Paused { for_ms })?;
            }
            match next {
                Next::Request(request) => self.take(request)?,
                Next::Look => self.look()?,
                Next::Due => self.handle(Event::Tick)?,
            }
        }
    }

    /// Ends preparations and jobs whose processes or folders take too long.
    fn look(&mut self) -> Result<()> {
        let now = Instant::now();
        self.preparations.end_overdue(now);
        for (job, reason) in self.keepers.overdue(now) {
            self.handle(Event::Broken { job, reason })?;
        }
        Ok(())
    }

    fn take(&mut self, request: Request) -> Result<()> {
        match request {
            Request::Submit { spec, directory, chosen, reply } => {
                let job = self.cluster.next_job(&spec.name, &directory);
                if let Ok(job) = &job {
                    let submission = Submission { job: job.clone(), spec: *spec, directory, chosen };
                    self.handle(Event::Submitted(Box::new(submission)))?;
                }
                let _ = reply.send(job);
            }
            Request::Register { reply } => {
                if let Some(incarnation) = self.cluster.register() {
                    let _ = reply.send(incarnation);
                }
            }
            Request::Seen { connection, status, desired } => self.seen(connection, *status, desired)?,
            Request::Closed { connection, worker, incarnation, why } => {
                let key = (worker.clone(), incarnation);
                // The end of a stream that another one has replaced says nothing of the worker.
                if self.links.get(&key).is_some_and(|link| link.connection == connection) {
                    self.links.remove(&key);
                    self.handle(Event::Lost { worker, incarnation, why })?;
                }
            }
            Request::Happened { event, reply } => {
                self.handle(event)?;
                let _ = reply.send(());
            }
            Request::Event(event) => {
                if let Event::Prepared { job, .. } = &event {
                    self.preparations.end(job);
                }
                self.handle(event)?;
            }
            Request::Claimed { job, look } => self.prepare(job, look),
            Request::Written { job, reports, step, synced } => {
                for report in reports {
                    self.tell(job.clone(), JobNews::Report(report));
                }
                self.handle(Event::Written { job, step, synced })?;
            }
            Request::FolderClosed { directory } => self.keepers.closed(&directory),
            Request::Get { job, reply } => {
                let _ = reply.send(self.cluster.summary(&job));
            }
            Request::Explain { job, reply } => {
                self.handle(Event::Tick)?;
                let elapsed_s = self.times(&job).elapsed_s;
                let _ = reply.send(self.cluster.explain(&job, elapsed_s));
            }
            Request::Shown { job, reply } => {
                self.handle(Event::Tick)?;
                let _ = reply.send(self.cluster.generation_shown(&job));
            }
            Request::Spec { job, reply } => {
                let _ = reply.send(self.cluster.submission(&job).map(|submission| submission.spec.clone()));
            }
            Request::Ids { reply } => {
                let _ = reply.send(self.cluster.job_ids().map(str::to_owned).collect());
            }
            Request::List { reply } => {
                let jobs = self.cluster.jobs().into_iter();
                let jobs = jobs
                    .map(|job| {
                        let times = self.times(&job.job);
                        (job, times)
                    })
                    .collect();
                let _ = reply.send((jobs, self.cluster.workers()));
            }
        }
        Ok(())
    }

    fn times(&self, job: &str) -> Times {
        let Some((formed_ms, ended_ms)) = self.dates.get(job).copied() else { return Times::default() };
        let now_ms = wall_clock_ms();
        // The clock may have been set back.
        let since = |from_ms: u64, until_ms: u64| until_ms.saturating_sub(from_ms) / 1000;
        Times {
            elapsed_s: formed_ms.map(|formed_ms| since(formed_ms, ended_ms.unwrap_or(now_ms))),
            over_s: ended_ms.map(|ended_ms| since(ended_ms, now_ms)),
        }
    }

    fn seen(
        &mut self,
        connection: u64,
        status: WorkerStatus,
        desired: watch::Sender<DesiredState>,
    ) -> Result<()> {
        let worker = status.info.id.clone();
        let key = (worker.clone(), status.info.incarnation);
        let known = self.links.get(&key).map(|link| link.connection);
        // What comes late on a stream that another one has replaced is older than what is known, and its
        // end would count as the worker's.
        if known > Some(connection) {
            return Ok(());
        }
        let fresh = known != Some(connection);
        if fresh {
            self.links.insert(key, WorkerStream { connection, desired });
        }
        self.handle(Event::Seen { status })?;
        if fresh {
            self.wake(&worker);
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        let now_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let effects = self.cluster.handle(now_ms, event);
        self.store.serve(&self.cluster.rendezvous());
        for effect in effects {
            self.act(effect)?;
        }
        // A heartbeat changes nothing that is shown.
        if std::mem::replace(&mut self.shown, self.cluster.news()) != self.cluster.news() {
            self.tell_summaries();
        }
        Ok(())
    }

    /// Does one effect; work in a job's folder is only started here. An error ends the coordinator.
    fn act(&mut self, effect: Effect) -> Result<()> {
        match effect {
            Effect::Record(entry) => {
                let at_ms = wall_clock_ms();
                let append = || self.journal.append(&entry, at_ms);
                block_in_place(append)
                    .context("the journal cannot be written, so nothing can be promised any more")?;
                // An error means that there is no follower.
                let _ = self.happened.send(EventLine::new(at_ms, JobEvent::from(&entry)));
                date(&mut self.dates, at_ms, &entry);
                self.recorded(entry);
            }
            Effect::Prepare { job, look } => self.claim(&job, look),
            Effect::Plan(planning) => self.plan(*planning),
            Effect::Wake(worker) => self.wake(&worker),
            Effect::Refuse { worker, incarnation, reason } => {
                if let Some(link) = self.links.remove(&(worker, incarnation)) {
                    let leave = Some(Leave { cause: LeaveCause::Refused, reason });
                    link.desired.send_replace(DesiredState { leave, ..DesiredState::default() });
                }
            }
            Effect::Report { job, report } => self.keepers.report(&job, report),
            Effect::Sync { job, step } => self.keepers.sync(&job, step),
            Effect::Prune { job, newest, keep, .. } => self.keepers.prune(&job, newest, keep),
            Effect::Notice(notice) => log(&notice),
        }
        Ok(())
    }

    /// What goes with an entry that is in the journal.
    fn recorded(&mut self, entry: Entry) {
        match entry {
            // Steps that a job takes again give the bits that are noted of them, and what is cut would be missing
            // where a checkpoint beyond them turns up: one that an interrupted generation publishes late.
            Entry::Formed { job, from, .. } if !self.keepers.has(&job) => self.open(&job, from),
            Entry::Published { job, checkpoint } => self.tell(job, JobNews::Checkpoint(checkpoint)),
            Entry::Ended { job, .. } => {
                self.preparations.end(&job);
                self.keepers.close(&job);
                self.digests.remove(&job);
                let known: BTreeSet<_> = self.cluster.jobs().into_iter().map(|job| job.job).collect();
                self.dates.retain(|job, _| known.contains(job));
            }
            Entry::Compacted { .. }
            | Entry::Started { .. }
            | Entry::Submitted(_)
            | Entry::Formed { .. }
            | Entry::Begun { .. }
            | Entry::Committed { .. }
            | Entry::Interrupted { .. }
            | Entry::Stopping { .. }
            | Entry::Preparing { .. }
            | Entry::Prepared { .. }
            | Entry::Saving { .. }
            | Entry::Cancelling { .. }
            | Entry::Regrouped { .. }
            | Entry::Drained { .. }
            | Entry::Noted { .. } => {}
        }
    }

    /// Opens the metrics of a job that goes on after step `from`.
    fn open(&mut self, job: &str, from: Step) {
        if let Some(submission) = self.cluster.submission(job) {
            self.keepers.open(job, Path::new(&submission.directory), from);
        }
    }

    /// Claims a job's folder; the job is prepared once that is done.
    fn claim(&mut self, job: &str, look: CheckDepth) {
        if let Some(submission) = self.cluster.submission(job) {
            self.keepers.claim(job, Path::new(&submission.directory), look);
        }
    }

    fn prepare(&mut self, job: String, look: CheckDepth) {
        let summary = self.cluster.summary(&job);
        // It may have been cancelled since.
        if summary.as_ref().is_none_or(|job| job.state != JobState::Preparing) {
            return;
        }
        let submission = self.cluster.submission(&job).cloned();
        let first = summary.is_some_and(|job| job.generation == Generation(0));
        if let Some(submission) = submission {
            let known = Arc::clone(self.digests.entry(job).or_default());
            self.preparations.start(submission, (look, first), known, self.requests.clone());
        }
    }

    /// Has the plan made in a thread of its own, which may take seconds.
    fn plan(&self, planning: Planning) {
        let Some(requests) = self.requests.upgrade() else { return };
        let ticket = planning.ticket;
        let made = tokio::task::spawn_blocking(move || planning.plan());
        tokio::spawn(async move {
            let result = made.await.unwrap_or_else(|error| Err(format!("{error}; please report this")));
            // The driver is gone when the coordinator ends; then the plan is dropped.
            let _ = requests.send(Request::Event(Event::Planned { ticket, result })).await;
        });
    }

    /// Sends what is wanted to the newest process of this name.
    fn wake(&self, worker: &WorkerId) {
        let of_name = (worker.clone(), 0)..=(worker.clone(), u64::MAX);
        if let Some((_, link)) = self.links.range(of_name).next_back() {
            link.desired.send_replace(self.cluster.desired(worker));
        }
    }

    /// Tells watchers of jobs whose state changed. Steps are told by their reports.
    fn tell_summaries(&mut self) {
        for summary in self.cluster.jobs() {
            let known = self.told.get(&summary.job);
            let quiet = JobSummary { numbers: None, ..summary.clone() };
            let same = known.is_some_and(|known| {
                JobSummary { step: summary.step, numbers: None, ..known.clone() } == quiet
            });
            // A job that was over before anyone could watch it is not news.
            if same || (known.is_none() && summary.state.is_over() && !self.told.contains_key(&summary.job)) {
                continue;
            }
            if summary.state.is_over() {
                self.told.remove(&summary.job);
            } else {
                self.told.insert(summary.job.clone(), summary.clone());
            }
            self.tell(summary.job.clone(), JobNews::Summary(summary));
        }
    }

    fn tell(&self, job: String, news: JobNews) {
        // An error means that there is no watcher.
        let _ = self.news.send(News { job, news });
    }
}

/// When a job was first formed, and when it ended.
type Dates = BTreeMap<String, (Option<u64>, Option<u64>)>;

fn date(dates: &mut Dates, at_ms: u64, entry: &Entry) {
    match entry {
        Entry::Formed { job, .. } => {
            dates.entry(job.clone()).or_default().0.get_or_insert(at_ms);
        }
        Entry::Ended { job, .. } => dates.entry(job.clone()).or_default().1 = Some(at_ms),
        _ => {}
    }
}

/// The time since the machine was started, including the time for which it was suspended.
fn uptime() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or_default())
        + Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or_default())
}

/// The time, for people.
fn wall_clock_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn log(notice: &Notice) {
    let Notice { weight, job, generation, worker, text } = notice;
    let (job, worker) = (job.as_deref(), worker.as_ref().map(|worker| worker.0.as_str()));
    let generation = generation.map(|generation| generation.0);
    match weight {
        Weight::Info => tracing::info!(job, generation, worker, "{text}"),
        Weight::Warning => tracing::warn!(job, generation, worker, "{text}"),
    }
}

/// Whether this is a state in which a job's workers are expected to be there.
pub(crate) fn needs_workers(state: JobState) -> bool {
    matches!(state, JobState::Gathering | JobState::Running)
}
