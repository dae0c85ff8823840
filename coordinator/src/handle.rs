//! What the rest of the coordinator says to the driver.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coxswain_core::cluster::{CheckDepth, Event, GenerationShown, JobSummary, SubmitError, WorkerSummary};
use coxswain_core::plan::expect_plannable;
use coxswain_types::JobSpec;
use coxswain_types::ids::{Step, WorkerId};
use coxswain_types::status::{DesiredState, Published, StepReport, WorkerStatus};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};
use tokio::task::spawn_blocking;

use crate::event_line::EventLine;

/// How many submitted jobs are planned at once. A plan takes milliseconds, and seconds where it is large: others wait,
/// and the cores and the memory are left to the rest of the coordinator.
const MAX_SKETCHES: usize = 1;

/// What the driver is asked to do.
pub(crate) enum Request {
    /// Take a job.
    Submit {
        spec: Box<JobSpec>,
        directory: String,
        /// Why a plan chose its layout.
        chosen: Option<String>,
        reply: oneshot::Sender<Result<String, SubmitError>>,
    },
    /// Number a worker's process.
    Register { reply: oneshot::Sender<u64> },
    /// A worker said this on the stream `connection`, which sends what `desired` holds.
    Seen { connection: u64, status: Box<WorkerStatus>, desired: watch::Sender<DesiredState> },
    /// The stream ended.
    Closed { connection: u64, worker: WorkerId, incarnation: u64, why: String },
    /// Handle an event; the reply comes when all that follows is done.
    Happened { event: Event, reply: oneshot::Sender<()> },
    /// Handle an event, without a reply.
    Event(Event),
    /// A job's folder is its own: it can be prepared.
    Claimed { job: String, look: CheckDepth },
    /// Reports of a job were written, up to this step.
    Written { job: String, reports: Vec<StepReport>, step: Step, synced: bool },
    /// The metrics of a job that is over are closed.
    FolderClosed { directory: PathBuf },
    /// One job as it is now.
    Get { job: String, reply: oneshot::Sender<Option<JobSummary>> },
    /// The story of a job.
    Explain { job: String, reply: oneshot::Sender<Option<String>> },
    /// A job's newest generation, for pages.
    Shown { job: String, reply: oneshot::Sender<Option<GenerationShown>> },
    /// What was asked for with a job.
    Spec { job: String, reply: oneshot::Sender<Option<JobSpec>> },
    /// The ids of all jobs that are known.
    Ids { reply: oneshot::Sender<BTreeSet<String>> },
    /// All jobs and workers as they are now.
    List { reply: oneshot::Sender<Listing> },
}

/// Tells the driver of an event from code that must not wait for the driver's queue.
pub(crate) fn tell(requests: mpsc::WeakSender<Request>, event: Event) {
    tokio::spawn(async move {
        if let Some(requests) = requests.upgrade() {
            // The driver is gone when the coordinator ends.
            let _ = requests.send(Request::Event(event)).await;
        }
    });
}

/// All jobs and all workers.
pub(crate) type Listing = (Vec<(JobSummary, Times)>, Vec<WorkerSummary>);

/// When what happened to a job, by the wall clock: for people.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Times {
    /// Seconds from its first generation until now, or until its end.
    pub(crate) elapsed_s: Option<u64>,
    /// Seconds since its end.
    pub(crate) over_s: Option<u64>,
}

/// What a watcher of a job is told.
#[derive(Clone, Debug)]
pub(crate) enum JobNews {
    /// The job's state changed.
    Summary(JobSummary),
    /// A step was taken.
    Report(StepReport),
    /// A checkpoint can be read.
    Checkpoint(Published),
}

/// News of a job.
#[derive(Clone, Debug)]
pub(crate) struct News {
    pub(crate) job: String,
    pub(crate) news: JobNews,
}

/// The coordinator is about to end.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the coordinator is ending")]
pub(crate) struct Ending;

/// The way to the driver.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    requests: mpsc::Sender<Request>,
    news: broadcast::Sender<News>,
    happened: broadcast::Sender<EventLine>,
    folder: Arc<Path>,
    /// Turns of those who plan a job that is submitted.
    sketches: Arc<Semaphore>,
}

impl Handle {
    pub(crate) fn new(
        requests: mpsc::Sender<Request>,
        news: broadcast::Sender<News>,
        happened: broadcast::Sender<EventLine>,
        folder: &Path,
    ) -> Handle {
        Handle {
            requests,
            news,
            happened,
            folder: folder.into(),
            sketches: Arc::new(Semaphore::new(MAX_SKETCHES)),
        }
    }

    /// The coordinator's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// What goes into the journal from now on.
    pub(crate) fn job_events(&self) -> broadcast::Receiver<EventLine> {
        self.happened.subscribe()
    }

    pub(crate) async fn explain(&self, job: &str) -> Result<Option<String>, Ending> {
        self.ask(|reply| Request::Explain { job: job.to_owned(), reply }).await
    }

    pub(crate) async fn send(&self, request: Request) -> Result<(), Ending> {
        self.requests.send(request).await.map_err(|_| Ending)
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Ending> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply)).await?;
        answer.await.map_err(|_| Ending)
    }

    /// Submits a job; returns its id. It is planned for workers that do not exist first, so that one that cannot be
    /// planned is refused.
    pub(crate) async fn submit(
        &self,
        spec: JobSpec,
        directory: String,
        chosen: Option<String>,
    ) -> Result<Result<String, SubmitError>, Ending> {
        match self.plannable(spec).await? {
            Ok(spec) => {
                self.ask(|reply| Request::Submit { spec: Box::new(spec), directory, chosen, reply }).await
            }
            Err(error) => Ok(Err(error)),
        }
    }

    /// The job, if it can be planned.
    async fn plannable(&self, spec: JobSpec) -> Result<Result<JobSpec, SubmitError>, Ending> {
        let turn = self.sketches.clone().acquire_owned().await.map_err(|_| Ending)?;
        let plan = move || {
            // The caller may be gone before this ends.
            let _turn = turn;
            expect_plannable(&spec).map(|()| spec)
        };
        Ok(match spawn_blocking(plan).await {
            Ok(planned) => planned.map_err(SubmitError::Plan),
            Err(error) => {
                tracing::error!("planning a submitted job failed: {error}");
                Err(SubmitError::Planner)
            }
        })
    }

    /// The number of a worker's process.
    pub(crate) async fn register(&self) -> Result<u64, Ending> {
        self.ask(|reply| Request::Register { reply }).await
    }

    /// Handles an event and waits until all that follows is done.
    pub(crate) async fn happened(&self, event: Event) -> Result<(), Ending> {
        self.ask(|reply| Request::Happened { event, reply }).await
    }

    pub(crate) async fn get(&self, job: &str) -> Result<Option<JobSummary>, Ending> {
        self.ask(|reply| Request::Get { job: job.to_owned(), reply }).await
    }

    /// The ids of all jobs that are known.
    pub(crate) async fn ids(&self) -> Result<BTreeSet<String>, Ending> {
        self.ask(|reply| Request::Ids { reply }).await
    }

    /// A job's newest generation, for pages; `None` where it has none.
    pub(crate) async fn shown(&self, job: &str) -> Result<Option<GenerationShown>, Ending> {
        self.ask(|reply| Request::Shown { job: job.to_owned(), reply }).await
    }

    /// What was asked for with a job; `None` if it is not known.
    pub(crate) async fn spec(&self, job: &str) -> Result<Option<JobSpec>, Ending> {
        self.ask(|reply| Request::Spec { job: job.to_owned(), reply }).await
    }

    pub(crate) async fn list(&self) -> Result<Listing, Ending> {
        self.ask(|reply| Request::List { reply }).await
    }

    /// Watches a job, starting with how it is now; `None` if it is not known.
    pub(crate) async fn watch(&self, job: &str) -> Result<Option<Watcher>, Ending> {
        // Subscribed before the look, so that no change between the two is missed.
        let news = self.news.subscribe();
        let first = self.get(job).await?;
        Ok(first.map(|first| Watcher {
            handle: self.clone(),
            job: job.to_owned(),
            news,
            next: Some(first),
            behind: false,
            over: false,
        }))
    }
}

/// Follows one job until it is over.
pub(crate) struct Watcher {
    handle: Handle,
    job: String,
    news: broadcast::Receiver<News>,
    /// A state to tell before any news.
    next: Option<JobSummary>,
    /// Whether news were missed, so that the state has to be asked for.
    behind: bool,
    over: bool,
}

impl Watcher {
    /// What comes next; `None` after the job's last state. Cancelling this loses nothing.
    pub(crate) async fn next(&mut self) -> Option<JobNews> {
        loop {
            if self.over {
                return None;
            }
            if self.behind {
                self.next = self.handle.get(&self.job).await.ok().flatten();
                self.behind = false;
            }
            if let Some(summary) = self.next.take() {
                return Some(self.summary(summary));
            }
            match self.news.recv().await {
                Ok(news) if news.job != self.job => {}
                Ok(News { news: JobNews::Summary(summary), .. }) => return Some(self.summary(summary)),
                Ok(News { news, .. }) => return Some(news),
                // Too slow for all reports: go on with how the job is now.
                Err(RecvError::Lagged(_)) => self.behind = true,
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn summary(&mut self, summary: JobSummary) -> JobNews {
        self.over = summary.state.is_over();
        JobNews::Summary(summary)
    }
}
