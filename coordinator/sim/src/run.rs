//! The phases of a history: faults, with rules after every event; then all is healed, and every job has to
//! come to its end in bounded time; then every promise is looked at, and the journal is replayed.

use coxswain_core::cluster::JobState;

use crate::RuleViolation;
use crate::faults::Counts;
use crate::swarm::{SimCase, probe};
use crate::world::{SECOND_US, SimEvent, World};

/// The safety phase ends after so much time, whatever has happened: clusters of one worker have few events.
const MAX_SAFETY_US: u64 = 2 * 3600 * SECOND_US;

/// How long after the heal a job runs at the latest, if any is left: three times the longest detection.
const RUNS_AFTER_US: u64 = 3 * 10 * SECOND_US;

/// Generations of a job after the heal: one for what was broken then, one for what it broke, and one without
/// the workers that leave.
const MAX_FORMED: u32 = 4;
/// More of a job that shrank, each of them larger than the one before.
const MAX_GROWN: u32 = 8;

/// How long after the heal a worker that was drained may be here: no step and no way back takes as long.
const DRAINED_US: u64 = 90 * SECOND_US;

/// What became of a seed.
#[derive(Clone, Debug)]
pub struct SimOutcome {
    /// Events in all.
    pub events: u64,
    /// Simulated time.
    pub simulated_us: u64,
    /// How often each family happened.
    pub counts: Counts,
    /// A digest of all that happened.
    pub trace: u64,
    /// The rule that was broken, if one was.
    pub violation: Option<RuleViolation>,
    /// The incidents that happened, by number.
    pub incidents: Vec<u64>,
    /// The story, if it was asked for.
    pub story: Vec<String>,
}

/// Lets a history happen; with its story if `told`.
pub fn run(case: &SimCase, told: bool) -> SimOutcome {
    let mut world = World::new(case, told);
    while world.events < world.swarm.events && world.now_us < MAX_SAFETY_US && world.step() {}
    if world.judge.violation.is_none() {
        world.heal();
        world.settle();
    }
    if world.judge.violation.is_none() {
        world.judge_promises();
    }
    SimOutcome {
        events: world.events,
        simulated_us: world.now_us,
        counts: world.counts,
        trace: world.trace,
        violation: world.judge.violation,
        incidents: world.judge.incidents,
        story: world.story.unwrap_or_default(),
    }
}

impl World {
    /// Faults end. What they did stays.
    fn heal(&mut self) {
        self.tell(|| "all is healed".to_owned());
        self.healed = true;
        self.network.cut_up.clear();
        self.network.cut_down.clear();
        self.network.cut_peers.clear();
        self.coordinator.full_until_us = 0;
        self.flush();
        // What is stopped goes on at its time, and what ended is started again.
        let stopped = self.processes.iter().filter(|process| process.alive);
        let stopped_us = stopped.map(|process| process.paused_until_us).max().unwrap_or_default();
        let away_us =
            if self.coordinator.up { self.coordinator.stalled_until_us } else { self.coordinator.boot_us };
        let quiet_us = stopped_us.max(away_us).max(self.now_us + self.swarm.restart_us);
        while self.now_us <= quiet_us && self.step() {}
    }

    /// Tells how every worker is.
    fn describe(&mut self) {
        for process in 0..self.processes.len() {
            let me = &self.processes[process];
            if !me.alive {
                continue;
            }
            let (status, name) = (me.status.clone(), self.name(process));
            let (linked, engine) = (me.connection.is_some(), me.engine.is_some());
            self.tell(|| {
                let (generation, step, phase) = (status.generation, status.step, status.phase);
                format!("worker {name}: generation {generation}, step {step}, {phase:?}, engine {engine}, connected {linked}")
            });
        }
    }

    /// Every job comes to its end in time.
    fn settle(&mut self) {
        self.judge.formed_since.clear();
        let started_us = self.now_us;
        let job = self.add_job(probe(self.swarm.workers));
        self.after(0, SimEvent::User { job });
        // Each job may be interrupted, prepared and formed, and then takes its steps.
        let each_us =
            |plan: &crate::swarm::JobPlan| 120 * SECOND_US + plan.steps * (plan.step_us * 2 + 200_000);
        let bound_us = started_us + self.jobs.iter().map(each_us).sum::<u64>();
        let mut has_run = false;
        while self.judge.violation.is_none() {
            if !self.step() {
                break;
            }
            // Looking at all jobs at every event would be most of the work.
            if !self.events.is_multiple_of(32) {
                continue;
            }
            let submitted = self.judge.accepted_all(self.jobs.len());
            let jobs = self.coordinator.cluster.jobs();
            has_run |= jobs.iter().any(|job| job.state == JobState::Running);
            let over = jobs.iter().all(|job| job.state.is_over());
            if submitted && over {
                break;
            }
            let waits = jobs.iter().find(|job| !job.state.is_over()).map(|job| job.reason.clone());
            // Workers that did not reach each other are tried again when their time is over.
            let apart = self.coordinator.cluster.apart_until_ms();
            let apart =
                apart.is_some_and(|until_ms| self.coordinator.now_ms() < until_ms + RUNS_AFTER_US / 1000);
            if !over && !has_run && !apart && self.now_us > started_us + RUNS_AFTER_US {
                self.broken("L1", format!("nothing runs 30 s after all was healed: {waits:?}"));
            }
            if self.now_us > started_us + DRAINED_US {
                self.judge_drained();
            }
            if self.now_us > bound_us {
                self.describe();
                self.broken("L1", format!("jobs are not over in time after all was healed: {waits:?}"));
            }
        }
        let most = |job: &String| MAX_FORMED + if self.judge.shrinks(job) { MAX_GROWN } else { 0 };
        let formed = self.judge.formed_since.clone();
        if let Some((job, times)) = formed.iter().find(|(job, times)| **times > most(job)) {
            let text = format!("{job} was formed {times} times after all was healed");
            self.broken("L2", text);
        }
    }
}
