//! What is remembered between two looks at the cluster: answers of the driver for a moment, the newest events, plans,
//! and what lies in runs' folders. So many watchers ask the task that decides no more often than one.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use coxswain_core::cluster::GenerationShown;
use coxswain_core::plan::{PlannedPart, PlannedStep, sketch_shown};
use coxswain_types::job::Layout;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Mutex as TurnMutex, Semaphore, watch};
use tokio::task::spawn_blocking;

use super::history;
use super::saves::{SavedCheckpoint, checkpoints};
use super::series::{MAX_POINTS, Series, read};
use super::{ClusterView, DetailInput, JobDetail, ViewInput, detail, most_worth, view};
use crate::auth::{Caller, now_s};
use crate::event_line::EventLine;
use crate::events;
use crate::handle::{Ending, Handle, Listing};
use crate::lock::lock;

/// How old an answer of the driver may be. What changes is seen twice a second.
const FRESH: Duration = Duration::from_millis(300);

/// How old the list of a run's checkpoints may be.
const FOLDER_FRESH: Duration = Duration::from_secs(2);

/// The most events that are remembered, of all jobs; some 300 bytes each.
const MAX_EVENTS: usize = 5000;

/// The most jobs of which something is remembered: those that somebody looks at.
const MAX_JOBS: usize = 64;

/// How many folders are read at once. One that does not answer holds one of these turns.
const MAX_READS: usize = 4;

/// A value with the time at which it was found out.
type Dated<T> = Option<(Instant, T)>;

/// The newest events.
type EventMemory = Arc<Mutex<VecDeque<EventLine>>>;

/// Generations by their jobs.
type GenerationMemory = BTreeMap<String, (Instant, Arc<Option<GenerationShown>>)>;

/// What a plan is made from, as far as it changes while a job lives.
type PlanKey = (Layout, Vec<u32>);

/// A plan as it is shown.
#[derive(Debug, Default)]
struct PlanShown {
    parts: Vec<PlannedPart>,
    step: Option<PlannedStep>,
}

/// What is known of one job.
#[derive(Debug, Default)]
struct JobMemory {
    used: Option<Instant>,
    /// The plan, once it is made; it is being made while there is a key alone.
    plan: Option<(PlanKey, Option<Arc<PlanShown>>)>,
    checkpoints: Dated<Arc<Vec<SavedCheckpoint>>>,
    /// Whether the folder is being read.
    reading: bool,
}

/// What is shown of the cluster, for all who look.
#[derive(Debug)]
pub(crate) struct Hub {
    handle: Handle,
    started: Instant,
    listing: TurnMutex<Dated<Arc<Listing>>>,
    generations: TurnMutex<GenerationMemory>,
    /// The newest events, once they were asked for.
    /// With whether the journal has been read.
    events: TurnMutex<Option<(EventMemory, watch::Receiver<bool>)>>,
    jobs: Mutex<BTreeMap<String, JobMemory>>,
    reads: Arc<Semaphore>,
    plans: Arc<Semaphore>,
}

impl Hub {
    /// Of this driver's cluster. Nothing is done before somebody looks.
    pub(crate) fn new(handle: Handle) -> Arc<Hub> {
        Arc::new(Hub {
            handle,
            started: Instant::now(),
            listing: TurnMutex::default(),
            generations: TurnMutex::default(),
            events: TurnMutex::default(),
            jobs: Mutex::default(),
            reads: Arc::new(Semaphore::new(MAX_READS)),
            plans: Arc::new(Semaphore::new(1)),
        })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The cluster as `caller` may see it, with this job in full, or where the name is empty with the job that is most
    /// worth it; `None` where the job is not known. The caller may see the job.
    pub(crate) async fn view(
        self: &Arc<Hub>,
        caller: &Caller,
        job: &str,
    ) -> Result<Option<ClusterView>, Ending> {
        let listing = self.listing().await?;
        let (jobs, workers) = &*listing;
        let chosen = match job {
            "" => most_worth(caller, jobs),
            job => match jobs.iter().find(|(summary, _)| summary.job == job) {
                Some((summary, _)) => Some(summary),
                None => return Ok(None),
            },
        };
        let at_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let mut input = ViewInput {
            at_ms: u64::try_from(at_ms).unwrap_or(u64::MAX),
            uptime: self.started.elapsed(),
            caller,
            now_s: now_s(),
            jobs,
            workers,
            detail: None,
        };
        if let Some(chosen) = chosen {
            input.detail = Some(self.detail(&chosen.job, Path::new(&chosen.directory)).await?);
        }
        Ok(Some(view(input)))
    }

    /// One job in full.
    pub(crate) async fn detail(self: &Arc<Hub>, job: &str, directory: &Path) -> Result<JobDetail, Ending> {
        let generation = self.generation(job).await?;
        let plan = (*generation).as_ref().and_then(|generation| self.plan(job, generation));
        let plan = plan.unwrap_or_default();
        let checkpoints = self.checkpoints(job, directory);
        let events = self.events().await;
        let events: Vec<EventLine> =
            lock(&events).iter().filter(|line| line.job.as_deref() == Some(job)).cloned().collect();
        Ok(detail(&DetailInput {
            job,
            generation: (*generation).as_ref(),
            parts: &plan.parts,
            planned: plan.step.as_ref(),
            checkpoints: &checkpoints,
            events: &events,
        }))
    }

    /// All jobs and workers, as they were a moment ago.
    pub(crate) async fn listing(&self) -> Result<Arc<Listing>, Ending> {
        let mut known = self.listing.lock().await;
        if let Some((at, listing)) = &*known
            && at.elapsed() < FRESH
        {
            return Ok(listing.clone());
        }
        let listing = Arc::new(self.handle.list().await?);
        *known = Some((Instant::now(), listing.clone()));
        Ok(listing)
    }

    /// A job's newest generation, as it was a moment ago.
    pub(crate) async fn generation(&self, job: &str) -> Result<Arc<Option<GenerationShown>>, Ending> {
        let mut known = self.generations.lock().await;
        known.retain(|_, (at, _)| at.elapsed() < FRESH);
        if let Some((_, generation)) = known.get(job) {
            return Ok(generation.clone());
        }
        let generation = Arc::new(self.handle.shown(job).await?);
        known.insert(job.to_owned(), (Instant::now(), generation.clone()));
        Ok(generation)
    }

    /// The newest events of all jobs, from the oldest to the newest, as they go on.
    pub(crate) async fn events(&self) -> EventMemory {
        let (lines, mut read) =
            self.events.lock().await.get_or_insert_with(|| follow_events(&self.handle)).clone();
        // Reading goes on where a caller's deadline ends this wait.
        let _ = read.wait_for(|read| *read).await;
        lines
    }

    /// The plan of a generation, where it is known; else it is made meanwhile.
    fn plan(self: &Arc<Hub>, job: &str, generation: &GenerationShown) -> Option<Arc<PlanShown>> {
        let key = (generation.spec.layout, generation.slow_percent.clone());
        let mut jobs = lock(&self.jobs);
        let memory = memory_of(&mut jobs, job);
        if let Some((known, plan)) = &memory.plan
            && *known == key
        {
            return plan.clone();
        }
        memory.plan = Some((key.clone(), None));
        let (hub, job, spec) = (self.clone(), job.to_owned(), generation.spec.clone());
        tokio::spawn(async move {
            let Ok(turn) = hub.plans.clone().acquire_owned().await else { return };
            let slow = key.1.clone();
            let made = spawn_blocking(move || {
                let _turn = turn;
                let plan = sketch_shown(&spec, &slow).ok().flatten()?;
                Some(PlanShown { parts: plan.parts(), step: plan.step() })
            });
            let made = made.await.ok().flatten().unwrap_or_default();
            if let Some(memory) = lock(&hub.jobs).get_mut(&job)
                && let Some((asked, plan)) = &mut memory.plan
                && *asked == key
            {
                *plan = Some(Arc::new(made));
            }
        });
        None
    }

    /// The checkpoints of a job as they were found last; they are looked for again meanwhile.
    fn checkpoints(self: &Arc<Hub>, job: &str, directory: &Path) -> Arc<Vec<SavedCheckpoint>> {
        let mut jobs = lock(&self.jobs);
        let memory = memory_of(&mut jobs, job);
        let known = memory.checkpoints.as_ref();
        let fresh = known.is_some_and(|(at, _)| at.elapsed() < FOLDER_FRESH);
        let found = known.map(|(_, found)| found.clone()).unwrap_or_default();
        if fresh || memory.reading {
            return found;
        }
        memory.reading = true;
        let (hub, job, directory) = (self.clone(), job.to_owned(), directory.to_owned());
        tokio::spawn(async move {
            let found = hub.reading(move || checkpoints(&directory)).await;
            if let Some(memory) = lock(&hub.jobs).get_mut(&job) {
                memory.reading = false;
                let found = found.and_then(Result::ok).unwrap_or_default();
                memory.checkpoints = Some((Instant::now(), Arc::new(found)));
            }
        });
        found
    }

    /// The numbers of the run in `directory`.
    pub(crate) async fn series(&self, directory: PathBuf) -> Option<std::io::Result<Series>> {
        self.reading(move || read(&directory, MAX_POINTS)).await
    }

    /// Does work on files beside all else; `None` where the coordinator is ending.
    pub(crate) async fn reading<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let turn = self.reads.clone().acquire_owned().await.ok()?;
        let work = move || {
            let _turn = turn;
            work()
        };
        spawn_blocking(work).await.ok()
    }
}

/// What is known of a job, in place of one that was looked at longest ago.
fn memory_of<'a>(jobs: &'a mut BTreeMap<String, JobMemory>, job: &str) -> &'a mut JobMemory {
    if jobs.len() >= MAX_JOBS && !jobs.contains_key(job) {
        let oldest = jobs.iter().min_by_key(|(_, memory)| memory.used).map(|(job, _)| job.clone());
        oldest.and_then(|oldest| jobs.remove(&oldest));
    }
    let memory = jobs.entry(job.to_owned()).or_default();
    memory.used = Some(Instant::now());
    memory
}

/// Reads the journal's events once, and those that follow for as long as somebody holds them.
fn follow_events(handle: &Handle) -> (EventMemory, watch::Receiver<bool>) {
    // Subscribed before the journal is read, so that nothing between the two is missed.
    let mut news = handle.job_events();
    let folder = handle.folder().to_owned();
    let lines: EventMemory = Arc::default();
    let weak = Arc::downgrade(&lines);
    let (told, read) = watch::channel(false);
    tokio::spawn(async move {
        let past = spawn_blocking(move || events::past(&folder, "")).await;
        match past.map_err(anyhow::Error::from).and_then(|past| past) {
            Ok(past) => {
                let Some(lines) = weak.upgrade() else { return };
                let mut lines = lock(&lines);
                past.into_iter().for_each(|line| remember(&mut lines, line));
            }
            Err(error) => tracing::warn!("what happened before cannot be shown: {error:#}"),
        }
        told.send_replace(true);
        loop {
            let heard = news.recv().await;
            let Some(lines) = weak.upgrade() else { return };
            match heard {
                Ok(line) => {
                    let mut lines = lock(&lines);
                    // What was read may have been heard of as well.
                    let told = lines.back().is_some_and(|last| line.at_ms <= last.at_ms);
                    if !(told && lines.contains(&slim(line.clone()))) {
                        remember(&mut lines, line);
                    }
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    });
    (lines, read)
}

/// Adds a line, in place of the oldest that no count of a job is made of: those counts only grow.
fn remember(lines: &mut VecDeque<EventLine>, line: EventLine) {
    lines.push_back(slim(line));
    if lines.len() > MAX_EVENTS {
        let spare = lines.iter().position(|line| !history::counts(&line.kind));
        lines.remove(spare.unwrap_or(0));
    }
}

/// A line without the list of all ranks, which may be thousands.
fn slim(mut line: EventLine) -> EventLine {
    line.fields.remove("ranks");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_is_remembered_longest() {
        let line = |at_ms: u64, kind: &str| EventLine {
            at_ms,
            kind: kind.to_owned(),
            job: None,
            generation: None,
            worker: None,
            text: String::new(),
            fields: serde_json::Map::new(),
        };
        let mut lines = VecDeque::new();
        remember(&mut lines, line(0, "interrupted"));
        (1..=MAX_EVENTS as u64 + 5).for_each(|at_ms| remember(&mut lines, line(at_ms, "committed")));
        assert_eq!(lines.len(), MAX_EVENTS);
        assert_eq!([lines[0].at_ms, lines[1].at_ms], [0, 7]);
    }
}
