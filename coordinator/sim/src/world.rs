//! All that is simulated, and the loop that lets one thing happen after the other.

use std::collections::BTreeMap;

use coxswain_core::cluster::{Planning, PreparedJob};
use coxswain_types::ids::{Generation, Step};
use coxswain_types::job::JobSpec;
use coxswain_types::status::{DesiredState, SavedFile, WorkerStatus};

use crate::coordinator::SimCoordinator;
use crate::disk::Disk;
use crate::engine::{Letter, SimWork};
use crate::faults::{Counts, FaultFamily};
use crate::folder::SimFolder;
use crate::judge::{Judge, RuleViolation};
use crate::network::SimNetwork;
use crate::queue::EventQueue;
use crate::random::{Random, digest};
use crate::swarm::{JobPlan, SimCase, Swarm, stream};
use crate::truth::Lineage;
use crate::worker::SimProcess;

/// A second.
pub(crate) const SECOND_US: u64 = 1_000_000;

/// What happens.
pub(crate) enum SimEvent {
    /// A worker's heartbeat is due.
    Beat { process: usize, beat: u32 },
    /// A worker looks for its coordinator.
    Reach { process: usize },
    /// A worker's engine has come to the end of something.
    Work { process: usize, stint: u32, work: SimWork },
    /// A message from another rank has come.
    Letter { from: usize, to: usize, letter: Letter },
    /// A rank has had no answer of another for long.
    Unanswered { from: usize, to: usize, until_us: u64, generation: Generation },
    /// A manifest is written.
    Publish { process: usize, stint: u32, publish: Box<Publishing> },
    /// A status has come to the coordinator.
    Status { connection: usize, status: Box<WorkerStatus> },
    /// The coordinator's desired state has come to a worker.
    DesiredState { connection: usize, desired: Box<DesiredState> },
    /// The coordinator learns that a stream has ended.
    Closed { connection: usize },
    /// A worker learns that its stream has ended.
    Broken { connection: usize },
    /// A process ends.
    End { process: usize },
    /// A worker that was asked to stop waits no more for the end of a step.
    Grace { process: usize },
    /// Somebody starts a worker in the place of one that ended.
    Start { slot: usize },
    /// The coordinator's timer is due.
    Tick { life: u32, at_us: u64 },
    /// A job's folder was looked at.
    Look { life: u32, job: String },
    /// What was found there has come.
    Found { life: u32, job: String, result: Box<Result<PreparedJob, String>> },
    /// A generation was planned.
    Planned { life: u32, planning: Box<Planning> },
    /// The next line of metrics is written.
    Write { life: u32 },
    /// Old checkpoints are removed.
    Prune { directory: String, newest: Step, keep: u32 },
    /// The coordinator starts.
    Boot,
    /// What was held up may pass.
    Flush,
    /// A connection over which nothing passed for long is given up.
    KeepAlive { connection: usize },
    /// A user does something.
    User { job: usize },
    /// A user looks for a job, and cancels it or not.
    Cancel { number: u64 },
    /// Something goes wrong.
    Incident { number: u64 },
}

/// A manifest that is being written.
pub(crate) struct Publishing {
    pub(crate) directory: String,
    pub(crate) step: Step,
    pub(crate) files: Vec<SavedFile>,
    pub(crate) world: u32,
    pub(crate) threads: u32,
    pub(crate) runtime: String,
}

/// All that is simulated.
pub(crate) struct World {
    pub(crate) swarm: Swarm,
    pub(crate) case: SimCase,
    pub(crate) now_us: u64,
    queue: EventQueue<SimEvent>,
    pub(crate) network: SimNetwork,
    pub(crate) processes: Vec<SimProcess>,
    /// The newest process of each name.
    pub(crate) slots: Vec<Option<usize>>,
    pub(crate) coordinator: SimCoordinator,
    pub(crate) disk: Disk,
    pub(crate) folders: BTreeMap<String, SimFolder>,
    pub(crate) truths: BTreeMap<String, Lineage>,
    pub(crate) jobs: Vec<JobPlan>,
    pub(crate) specs: Vec<JobSpec>,
    pub(crate) judge: Judge,
    pub(crate) counts: Counts,
    pub(crate) chance: Chance,
    pub(crate) healed: bool,
    pub(crate) events: u64,
    pub(crate) trace: u64,
    /// The story, where somebody listens.
    pub(crate) story: Option<Vec<String>>,
}

/// The streams of chance.
pub(crate) struct Chance {
    pub(crate) network: Random,
    pub(crate) workers: Random,
    pub(crate) clients: Random,
    pub(crate) coordinator: Random,
    pub(crate) checks: Random,
}

impl World {
    pub(crate) fn new(case: &SimCase, told: bool) -> World {
        let swarm = Swarm::of(case);
        let random = |purpose| Random::new(case.seed, purpose);
        let slots = (swarm.workers + if swarm.on.has(FaultFamily::Liar) { swarm.liars } else { 0 }) as usize;
        let mut world = World {
            case: case.clone(),
            now_us: 0,
            queue: EventQueue::new(),
            network: SimNetwork::default(),
            processes: Vec::new(),
            slots: vec![None; slots],
            coordinator: SimCoordinator::default(),
            disk: Disk::default(),
            folders: BTreeMap::new(),
            truths: BTreeMap::new(),
            jobs: Vec::new(),
            specs: Vec::new(),
            judge: Judge::default(),
            counts: Counts::default(),
            chance: Chance {
                network: random(stream::NETWORK),
                workers: random(stream::WORKERS),
                clients: random(stream::CLIENTS),
                coordinator: random(stream::COORDINATOR),
                checks: random(stream::CHECKS),
            },
            healed: false,
            events: 0,
            trace: case.seed,
            story: told.then(Vec::new),
            swarm,
        };
        world.after(0, SimEvent::Boot);
        for slot in 0..slots {
            let at_us = world.chance.workers.below(3 * SECOND_US);
            world.after(at_us, SimEvent::Start { slot });
        }
        for plan in world.swarm.jobs.clone() {
            let at_us = plan.at_us;
            let job = world.add_job(plan);
            world.after(at_us, SimEvent::User { job });
        }
        let first_us = world.pause_between_incidents(0);
        world.after(first_us, SimEvent::Incident { number: 0 });
        if world.swarm.on.has(FaultFamily::Cancel) {
            let at_us = world.chance.clients.below(120 * SECOND_US);
            world.after(at_us, SimEvent::Cancel { number: 0 });
        }
        world
    }

    /// Has something happen after a while.
    pub(crate) fn after(&mut self, while_us: u64, what: SimEvent) {
        self.queue.push(self.now_us + while_us, what);
    }

    pub(crate) fn at(&mut self, at_us: u64, what: SimEvent) {
        self.queue.push(at_us.max(self.now_us), what);
    }

    /// Lets the next thing happen; `false` when nothing will, or when a rule was broken.
    pub(crate) fn step(&mut self) -> bool {
        let Some((at_us, number, what)) = self.queue.pop() else { return false };
        self.now_us = self.now_us.max(at_us);
        self.events += 1;
        self.trace = digest(&[self.trace, self.now_us, number]);
        self.happen(what);
        self.judge.violation.is_none()
    }

    fn happen(&mut self, what: SimEvent) {
        match what {
            SimEvent::Beat { process, beat } => self.beat(process, beat),
            SimEvent::Reach { process } => self.reach(process),
            SimEvent::Work { process, stint, work } => self.work(process, stint, work),
            SimEvent::Letter { from, to, letter } => self.letter(from, to, letter),
            SimEvent::Unanswered { from, to, until_us, generation } => {
                self.unanswered(from, to, until_us, generation);
            }
            SimEvent::Publish { process, stint, publish } => self.published(process, stint, *publish),
            SimEvent::Status { connection, status } => self.status_arrives(connection, status),
            SimEvent::DesiredState { connection, desired } => self.desired_arrives(connection, *desired),
            SimEvent::Closed { connection } => self.stream_closed(connection),
            SimEvent::Broken { connection } => self.stream_broken(connection),
            SimEvent::End { process } => self.end_process(process),
            SimEvent::Grace { process } => self.grace_is_over(process),
            SimEvent::Start { slot } => self.start_worker(slot),
            SimEvent::Tick { life, at_us } => self.tick(life, at_us),
            SimEvent::Look { life, job } => self.look(life, job),
            SimEvent::Found { life, job, result } => self.found(life, job, *result),
            SimEvent::Planned { life, planning } => self.planned(life, planning),
            SimEvent::Write { life } => self.write(life),
            SimEvent::Prune { directory, newest, keep } => self.prune(&directory, newest, keep),
            SimEvent::Boot => self.boot(),
            SimEvent::Flush => self.flush(),
            SimEvent::KeepAlive { connection } => self.keep_alive(connection),
            SimEvent::User { job } => self.submit(job),
            SimEvent::Cancel { number } => self.cancel(number),
            SimEvent::Incident { number } => self.incident(number),
        }
    }

    /// Whether a fault of this family may happen now.
    pub(crate) fn may(&self, family: FaultFamily) -> bool {
        !self.healed && self.swarm.on.has(family)
    }

    /// Tells a line of the story, if somebody listens.
    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            let (seconds, rest) = (self.now_us / SECOND_US, self.now_us % SECOND_US / 1000);
            story.push(format!("{seconds:5}.{rest:03} s  {}", line()));
        }
    }

    /// Notes that a rule was broken. The first one stays.
    pub(crate) fn broken(&mut self, rule: &'static str, text: String) {
        self.tell(|| format!("BROKEN: {rule}: {text}"));
        if self.judge.violation.is_none() {
            self.judge.violation = Some(RuleViolation { rule, text, at_us: self.now_us });
        }
    }

    /// The true state of a run's folder after a step.
    pub(crate) fn truth(&mut self, directory: &str, step: u64) -> u64 {
        self.truths.get_mut(directory).map_or(0, |lineage| lineage.state(step))
    }

    /// Whether this generation of the job is the one at work, as far as the coordinator says.
    pub(crate) fn at_work(&self, job: &str, generation: Generation) -> bool {
        self.coordinator.at_work().iter().any(|(id, at_work)| id == job && *at_work == generation)
    }
}
