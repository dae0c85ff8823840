//! The coordinator: the real core under a driver that does effects as `coordinator/src/driver.rs` does, in
//! their order, with nothing visible before what it follows from is on disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use coxswain_core::cluster::{Cluster, Effect, Entry, Event, PAUSE_MS, Planning, PreparedJob, Submission};
use coxswain_types::assignment::{PreparedData, Resume, TokenFile};
use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::status::{DesiredState, Leave, LeaveCause, StepReport, WorkerStatus};

use crate::disk;
use crate::faults::FaultFamily;
use crate::world::{SECOND_US, SimEvent, World};

/// Times in a million that the coordinator dies between two effects, where it may.
const CRASHES: u64 = 700;
/// Times in a million that an entry is torn, or the disk says no, where they may.
const TEARS: u64 = 8_000;
/// Times in a million that tokens cannot be made ready, or a line of metrics not be written, where they may.
const SHELL_FAILURES: u64 = 1_500;

/// A write into a run's folder.
enum MetricsWrite {
    /// The line of a step.
    Report(Box<StepReport>),
    /// A sync, requested for this step.
    Sync(Step),
}

/// How often the real driver checks whether it was stopped.
const LOOK_MS: u64 = 1000;

/// The coordinator's process, or its place.
#[derive(Default)]
pub(crate) struct SimCoordinator {
    pub(crate) cluster: Cluster,
    pub(crate) up: bool,
    /// How often it was started.
    pub(crate) life: u32,
    started_us: u64,
    clock: u64,
    pub(crate) stalled_until_us: u64,
    /// When it was stopped, until it notices.
    pub(crate) stopped_us: Option<u64>,
    pub(crate) boot_us: u64,
    pub(crate) full_until_us: u64,
    /// The newest stream of each process.
    pub(crate) links: BTreeMap<(WorkerId, u64), usize>,
    /// The rendezvous: the processes by rank.
    met: BTreeMap<(String, Generation), BTreeMap<u32, usize>>,
    /// Jobs whose metrics are open.
    metrics: BTreeSet<String>,
    /// Writes into runs' folders that wait, in order.
    writes: VecDeque<(String, MetricsWrite)>,
    /// Whose plan is being made.
    planning: Option<String>,
    /// When the timer that is set goes off.
    timer_us: Option<u64>,
    now_us: u64,
}

impl SimCoordinator {
    /// Whether calls are answered.
    pub(crate) fn serves(&self, now_us: u64) -> bool {
        self.up && self.stalled_until_us <= now_us
    }

    /// The generations whose ranks may meet.
    pub(crate) fn at_work(&self) -> Vec<(String, Generation)> {
        at_work(&self.cluster)
    }

    /// A rank comes to the rendezvous.
    pub(crate) fn join(&mut self, job: &str, generation: Generation, rank: u32, process: usize) {
        self.met.entry((job.to_owned(), generation)).or_default().insert(rank, process);
    }

    /// All ranks, once they are there.
    pub(crate) fn met(&self, job: &str, generation: Generation, world: u32) -> Option<Vec<usize>> {
        let ranks = self.met.get(&(job.to_owned(), generation))?;
        (ranks.len() == world as usize).then(|| ranks.values().copied().collect())
    }

    pub(crate) fn now_ms(&self) -> u64 {
        (self.now_us - self.started_us) * 1000 / self.clock
    }
}

/// The generations at work, however many the core lets be.
pub(crate) fn at_work(cluster: &Cluster) -> Vec<(String, Generation)> {
    cluster.rendezvous().into_iter().map(|(job, generation)| (job.to_owned(), generation)).collect()
}

impl World {
    /// Starts the coordinator on what its journal holds.
    pub(crate) fn boot(&mut self) {
        if self.coordinator.up {
            return;
        }
        let entries = match self.disk.open() {
            Ok(entries) => entries,
            Err(why) => return self.broken("replay", format!("the journal cannot be read: {why}")),
        };
        self.judge_found(&entries);
        let clock = match self.may(FaultFamily::Drift) {
            true => 1_000_000 - self.swarm.drift + self.chance.coordinator.below(2 * self.swarm.drift),
            false => 1_000_000,
        };
        let count = entries.len();
        self.coordinator = SimCoordinator {
            cluster: Cluster::replay(entries),
            up: true,
            life: self.coordinator.life + 1,
            started_us: self.now_us,
            now_us: self.now_us,
            clock,
            full_until_us: self.coordinator.full_until_us,
            ..SimCoordinator::default()
        };
        let jobs = self.coordinator.cluster.jobs().into_iter();
        let begun = jobs.filter(|job| !job.state.is_over() && job.generation > Generation(0));
        self.coordinator.metrics = begun.map(|job| job.job).collect();
        self.judge_boot();
        let begun: Vec<_> = self.coordinator.metrics.iter().cloned().collect();
        begun.into_iter().for_each(|job| self.write_later(job, MetricsWrite::Sync(Step(0))));
        self.tell(|| format!("the coordinator starts with {count} entries in its journal"));
        self.handle(Event::Tick);
    }

    /// The coordinator's process is gone.
    pub(crate) fn crash(&mut self, why: &str) {
        self.tell(|| format!("the coordinator dies: {why}"));
        self.coordinator.up = false;
        let life = self.coordinator.life;
        for connection in 0..self.network.connections.len() {
            let link = &self.network.connections[connection];
            if link.life == life && !link.over {
                let slot = self.processes[link.process].slot;
                let (soonest, latest) =
                    if self.reaches(slot) { (100, 20_000) } else { (3 * SECOND_US, 5 * SECOND_US) };
                let soon_us = self.chance.network.between(soonest, latest);
                self.after(soon_us, SimEvent::Broken { connection });
            }
        }
        let away_us = 20_000 + self.chance.coordinator.below(self.swarm.reboot_us);
        self.coordinator.boot_us = self.now_us + away_us;
        self.after(away_us, SimEvent::Boot);
    }

    /// Puts off what happens to a coordinator that is stopped; `false` where this life is over.
    fn coordinates(&mut self, life: u32, what: impl FnOnce() -> SimEvent) -> bool {
        self.coordinator.now_us = self.now_us;
        let SimCoordinator { up, life: now, stalled_until_us, .. } = self.coordinator;
        if up && now == life && self.now_us < stalled_until_us {
            self.at(stalled_until_us, what());
            return false;
        }
        if up && now == life {
            let stopped_us = self.coordinator.stopped_us.take().unwrap_or(self.now_us);
            let for_ms = (self.now_us - stopped_us) / 1000;
            if for_ms >= LOOK_MS + PAUSE_MS {
                self.handle(Event::Paused { for_ms });
            }
        }
        self.coordinator.up && self.coordinator.life == life
    }

    pub(crate) fn status_arrives(&mut self, connection: usize, status: Box<WorkerStatus>) {
        let life = self.network.connections[connection].life;
        let again = status.clone();
        if !self.coordinates(life, || SimEvent::Status { connection, status: again })
            || !self.is_read(connection)
        {
            return;
        }
        let worker = status.info.id.clone();
        let key = (worker.clone(), status.info.incarnation);
        let known = self.coordinator.links.get(&key).copied();
        if known > Some(connection) {
            return;
        }
        let fresh = known != Some(connection);
        if fresh {
            self.coordinator.links.insert(key, connection);
        }
        self.network.connections[connection].spoken = true;
        self.judge_status(&status);
        self.handle(Event::Seen { status: *status });
        if fresh && self.coordinator.up {
            self.wake(&worker);
        }
    }

    /// The coordinator learns that a stream has ended.
    pub(crate) fn stream_closed(&mut self, connection: usize) {
        let life = self.network.connections[connection].life;
        if !self.coordinates(life, || SimEvent::Closed { connection }) {
            return;
        }
        let link = &mut self.network.connections[connection];
        if !std::mem::take(&mut link.heard) {
            return;
        }
        let process = link.process;
        let info = &self.processes[process].status.info;
        let key = (info.id.clone(), info.incarnation);
        // The end of a stream that another one has replaced says nothing of the worker.
        if self.coordinator.links.get(&key) == Some(&connection) {
            self.coordinator.links.remove(&key);
            let why = "its connection closed".to_owned();
            self.judge_lost(process, connection);
            self.handle(Event::Lost { worker: key.0, incarnation: key.1, why });
        }
    }

    pub(crate) fn tick(&mut self, life: u32, at_us: u64) {
        if self.coordinator.life != life || self.coordinator.timer_us != Some(at_us) {
            return;
        }
        // What waits in the queue of requests is a sign of life, and goes first.
        if self.coordinator.up && self.now_us < self.coordinator.stalled_until_us {
            let at_us = self.coordinator.stalled_until_us + 1;
            self.coordinator.timer_us = Some(at_us);
            return self.at(at_us, SimEvent::Tick { life, at_us });
        }
        if !self.coordinates(life, || SimEvent::Tick { life, at_us }) {
            return;
        }
        self.coordinator.timer_us = None;
        let due = self.coordinator.cluster.next_deadline_ms();
        if due.is_some_and(|due_ms| due_ms <= self.coordinator.now_ms()) {
            self.handle(Event::Tick);
        } else {
            self.set_timer();
        }
    }

    /// Sets the timer for the next deadline.
    fn set_timer(&mut self) {
        let Some(due_ms) = self.coordinator.cluster.next_deadline_ms() else { return };
        let SimCoordinator { started_us, clock, life, timer_us, .. } = self.coordinator;
        // Rounded up, for a timer that is early would be set again and again.
        let at_us = (started_us + (due_ms * clock).div_ceil(1000)).max(self.now_us + 1);
        if timer_us.is_none_or(|timer_us| at_us < timer_us) {
            self.coordinator.timer_us = Some(at_us);
            self.at(at_us, SimEvent::Tick { life, at_us });
        }
    }

    /// Hands an event to the core and does what follows.
    pub(crate) fn handle(&mut self, event: Event) {
        self.coordinator.now_us = self.now_us;
        let now_ms = self.coordinator.now_ms();
        let before = self.judge_before(now_ms, &event);
        let effects = self.coordinator.cluster.handle(now_ms, event.clone());
        self.judge_effects(now_ms, &event, &effects, before);
        let at_work = self.coordinator.at_work();
        self.coordinator.met.retain(|(job, generation), _| at_work.contains(&(job.clone(), *generation)));
        for effect in effects.clone() {
            if self.may(FaultFamily::Crash) && self.chance.coordinator.happens(CRASHES) {
                self.counts.count(FaultFamily::Crash);
                return self.crash("it is killed between two effects");
            }
            if let Err(why) = self.act(effect) {
                return self.crash(&why);
            }
        }
        self.judge_after(now_ms, &event, &effects);
        self.set_timer();
    }

    /// Does one effect. An error ends the coordinator.
    fn act(&mut self, effect: Effect) -> Result<(), String> {
        match effect {
            Effect::Record(entry) => {
                self.append(&entry)?;
                self.judge_recorded(&entry);
                self.recorded(entry);
            }
            Effect::Prepare { job, .. } => {
                let (life, soon_us) = (self.coordinator.life, self.chance.coordinator.between(500, 300_000));
                self.after(soon_us, SimEvent::Look { life, job });
            }
            Effect::Plan(planning) => self.plan(planning),
            Effect::Wake(worker) => self.wake(&worker),
            Effect::Refuse { worker, incarnation, reason } => {
                if let Some(connection) = self.coordinator.links.remove(&(worker, incarnation)) {
                    let leave = Some(Leave { cause: LeaveCause::Refused, reason });
                    let desired = DesiredState { leave, ..DesiredState::default() };
                    self.send_down(connection, Box::new(desired));
                }
            }
            Effect::Report { job, report } => {
                if self.coordinator.metrics.contains(&job) {
                    self.judge_report(&job, &report);
                    self.write_later(job, MetricsWrite::Report(Box::new(report)));
                }
            }
            Effect::Sync { job, step } => self.write_later(job, MetricsWrite::Sync(step)),
            Effect::Prune { job, newest, keep } => {
                self.judge_prune(&job, keep);
                let directory = self.coordinator.cluster.submission(&job).map(|s| s.directory.clone());
                let directory = directory.unwrap_or_default();
                let soon_us = self.chance.coordinator.between(100, 50_000);
                self.after(soon_us, SimEvent::Prune { directory, newest, keep });
            }
            Effect::Notice(notice) => self.tell(|| notice.text),
        }
        Ok(())
    }

    /// Queues a write.
    fn write_later(&mut self, job: String, write: MetricsWrite) {
        self.coordinator.writes.push_back((job, write));
        let latest_us = self.chance.coordinator.pick(&[100, 5_000, SECOND_US]);
        let soon_us = self.chance.coordinator.between(10, latest_us);
        let life = self.coordinator.life;
        self.after(soon_us, SimEvent::Write { life });
    }

    /// Does the next write, unless its job is over.
    pub(crate) fn write(&mut self, life: u32) {
        if !self.coordinates(life, || SimEvent::Write { life }) {
            return;
        }
        let Some((job, write)) = self.coordinator.writes.pop_front() else { return };
        if !self.coordinator.metrics.contains(&job) {
            return;
        }
        if self.may(FaultFamily::MetricsFail) && self.chance.coordinator.happens(SHELL_FAILURES) {
            self.counts.count(FaultFamily::MetricsFail);
            self.judge.excuse(&job);
            self.coordinator.metrics.remove(&job);
            let reason = "metrics: no space left on device".to_owned();
            return self.handle(Event::Broken { job, reason });
        }
        let (step, synced) = match write {
            MetricsWrite::Report(report) => {
                self.judge_written(&job, &report);
                (Step(report.step), false)
            }
            MetricsWrite::Sync(step) => (self.last_written(&job).max(step), true),
        };
        self.handle(Event::Written { job, step, synced });
    }

    fn append(&mut self, entry: &Entry) -> Result<(), String> {
        if self.may(FaultFamily::Torn) && self.chance.coordinator.happens(TEARS) {
            self.counts.count(FaultFamily::Torn);
            let kept = self.chance.coordinator.pick(&[0, 500, 900, 1000]);
            self.disk.append(entry, disk::JournalWrite::Died { kept });
            return Err(format!("its machine dies with {kept} thousandths of an entry on disk"));
        }
        let fails = self.may(FaultFamily::DiskError) && self.chance.coordinator.happens(TEARS);
        if fails {
            self.counts.count(FaultFamily::DiskError);
        }
        if fails || self.now_us < self.coordinator.full_until_us {
            self.disk.append(entry, disk::JournalWrite::Failed);
            return Err("the journal cannot be written".to_owned());
        }
        self.disk.append(entry, disk::JournalWrite::Synced);
        Ok(())
    }

    /// What goes with an entry that is in the journal.
    fn recorded(&mut self, entry: Entry) {
        match entry {
            // Steps that a job takes again give the bits that are noted.
            Entry::Formed { job, .. } if self.coordinator.metrics.contains(&job) => {}
            Entry::Formed { job, from, .. } => {
                let directory = self.coordinator.cluster.submission(&job).map(|s| s.directory.clone());
                self.folders.entry(directory.unwrap_or_default()).or_default().rewind_metrics(from);
                self.coordinator.metrics.insert(job);
            }
            Entry::Ended { job, .. } => {
                self.coordinator.metrics.remove(&job);
            }
            _ => {}
        }
    }

    /// Sends what is wanted to the newest process of this name.
    fn wake(&mut self, worker: &WorkerId) {
        let of_name = (worker.clone(), 0)..=(worker.clone(), u64::MAX);
        let newest = self.coordinator.links.range(of_name).next_back();
        if let Some((_, &connection)) = newest {
            let desired = self.coordinator.cluster.desired(worker);
            self.judge_desired(worker, connection, &desired);
            self.send_down(connection, Box::new(desired));
        }
    }

    /// Has a generation planned: most plans are here at once, and those of thousands of ranks take seconds.
    fn plan(&mut self, planning: Box<Planning>) {
        if let Some(job) = self.coordinator.planning.replace(planning.job.clone()) {
            self.broken("S12", format!("a plan of {} is asked for while one of {job} is made", planning.job));
        }
        let life = self.coordinator.life;
        let latest_us = self.chance.coordinator.pick(&[1_000, 50_000, 8 * SECOND_US]);
        let soon_us = self.chance.coordinator.between(100, latest_us);
        self.after(soon_us, SimEvent::Planned { life, planning });
    }

    /// A plan is here.
    pub(crate) fn planned(&mut self, life: u32, planning: Box<Planning>) {
        if self.coordinates(life, || SimEvent::Planned { life, planning: planning.clone() }) {
            self.coordinator.planning = None;
            self.handle(Event::Planned { ticket: planning.ticket, result: planning.plan() });
        }
    }

    /// Looks into a job's folder for its newest checkpoint.
    pub(crate) fn look(&mut self, life: u32, job: String) {
        if !self.coordinator.up || self.coordinator.life != life {
            return;
        }
        let Some(Submission { directory, .. }) = self.coordinator.cluster.submission(&job) else { return };
        let folder = self.folders.entry(directory.clone()).or_default();
        let result = match folder.latest() {
            None => Ok(None),
            Some((step, digest)) => folder.read(step, Some(&digest)).map(|_| {
                let path = format!("checkpoints/{step}");
                Some((Resume { step, path, digest }, folder.made(step)))
            }),
        };
        let mut result = result.map(|found| {
            let train = TokenFile { path: "tokens".to_owned(), tokens: 4096, digest: "t".to_owned() };
            let (resume, made) = found.unzip();
            let (threads, runtime) = made.unzip();
            PreparedJob { data: PreparedData::of_tokens(train), resume, threads, runtime }
        });
        if let Err(why) = &result {
            let why = why.clone();
            return self.broken("S6", format!("the newest checkpoint of {job} cannot be read: {why}"));
        }
        if self.may(FaultFamily::PrepareFails) && self.chance.coordinator.happens(10 * SHELL_FAILURES) {
            self.counts.count(FaultFamily::PrepareFails);
            self.judge.excuse(&job);
            result = Err("the text cannot be read".to_owned());
        }
        let soon_us = self.chance.coordinator.between(100, 500_000);
        self.after(soon_us, SimEvent::Found { life, job, result: Box::new(result) });
    }

    pub(crate) fn found(&mut self, life: u32, job: String, result: Result<PreparedJob, String>) {
        let (job_again, again) = (job.clone(), Box::new(result.clone()));
        if self.coordinates(life, || SimEvent::Found { life, job: job_again, result: again }) {
            self.handle(Event::Prepared { job, result });
        }
    }

    pub(crate) fn prune(&mut self, directory: &str, newest: Step, keep: u32) {
        self.folders.entry(directory.to_owned()).or_default().prune(newest, keep);
        self.judge_folder(directory);
    }
}
