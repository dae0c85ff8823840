//! A worker's process, as `worker/src/agent.rs` behaves: it says how it is, hears what is wanted, and makes
//! it so; without a coordinator it goes on for a while.

use std::collections::VecDeque;
use std::sync::Arc;

use coxswain_types::Assignment;
use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::status::{
    DesiredState, Directive, Fault, Leave, Phase, Publish, Published, Saved, WorkerInfo, WorkerStatus,
};

use crate::engine::SimEngine;
use crate::faults::FaultFamily;
use crate::memory::SimHeld;
use crate::world::{Publishing, SECOND_US, SimEvent, World};

/// A heartbeat, and the pause between two tries to reach the coordinator.
const BEAT_US: u64 = SECOND_US;
const RETRY_US: u64 = SECOND_US / 2;
/// How long a worker that was never taken in looks for its coordinator.
const PATIENCE_US: u64 = 60 * SECOND_US;
/// How long a process that ends takes to say why.
pub(crate) const GOODBYE_US: u64 = SECOND_US / 10;
/// How long an engine that does not end is waited for.
const ENGINE_END_US: u64 = 3 * SECOND_US;
/// Checkpoints that may wait to be told.
const SAVED_MAX: usize = 16;
/// The most reports in one status.
const REPORTS_MAX: usize = 256;

/// A worker's process.
pub(crate) struct SimProcess {
    pub(crate) slot: usize,
    pub(crate) alive: bool,
    /// The machine is gone without a sign.
    pub(crate) vanished: bool,
    pub(crate) paused_until_us: u64,
    pub(crate) slow_until_us: u64,
    /// A second lasts so many millionths of one on its clock.
    clock: u64,
    pub(crate) connection: Option<usize>,
    /// Whether a coordinator has taken it in.
    known: bool,
    alone_since_us: Option<u64>,
    beat: u32,
    /// Grows with each assignment that it takes or lets go.
    pub(crate) stint: u32,
    generation: Generation,
    pub(crate) status: WorkerStatus,
    /// The newest directive.
    pub(crate) directive: Directive,
    saved: VecDeque<Saved>,
    pub(crate) assignment: Option<Arc<Assignment>>,
    publishing: Option<Step>,
    pub(crate) engine: Option<SimEngine>,
    /// What its last engine held.
    pub(crate) remains: Option<SimHeld>,
    /// Whether it was asked to stop.
    leaving: bool,
    /// The newest generation that it was asked for, by any coordinator.
    pub(crate) asked: Generation,
}

impl SimProcess {
    /// How long `us` of its clock take.
    pub(crate) fn lasts(&self, us: u64) -> u64 {
        us * self.clock / 1_000_000
    }

    /// A checkpoint that it wrote waits to be told.
    pub(crate) fn has_saved(&mut self, saved: Saved) {
        self.saved.push_back(saved);
        if self.saved.len() > SAVED_MAX {
            self.saved.pop_front();
        }
        self.status.saved = self.saved.front().cloned();
    }

    /// Takes in a desired state. Returns whether there is something new to say.
    fn hear(&mut self, desired: &DesiredState) -> bool {
        self.status.reports.retain(|report| report.step > desired.acknowledged.0);
        let told = self.saved.front().is_some_and(|saved| saved.step <= desired.decided);
        if told {
            self.saved.retain(|saved| saved.step > desired.decided);
            self.status.saved = self.saved.front().cloned();
        }
        if self.directive.revision < desired.revision {
            self.directive = desired.directive();
        }
        told
    }

    /// A new assignment, or none.
    fn takes(&mut self, generation: Generation) {
        self.generation = generation;
        self.stint += 1;
        self.assignment = None;
        self.engine = None;
        self.directive = Directive::NONE;
        self.saved.clear();
        self.status = WorkerStatus::idle(self.status.info.clone(), generation);
    }
}

impl World {
    /// A process's name, for people.
    pub(crate) fn name(&self, process: usize) -> String {
        let info = &self.processes[process].status.info;
        format!("{} (pid {})", info.id, info.pid)
    }

    /// Starts a worker of this name, unless one lives.
    pub(crate) fn start_worker(&mut self, slot: usize) {
        if self.slots[slot].is_some_and(|process| self.processes[process].alive) {
            return;
        }
        self.spawn(slot);
    }

    /// Starts a process under this name, whoever has it.
    pub(crate) fn spawn(&mut self, slot: usize) {
        let process = self.processes.len();
        let liar = slot as u64 >= self.swarm.workers;
        let lie = if liar { slot as u64 % 3 } else { u64::MAX };
        let drift = self.swarm.drift;
        let clock = match self.may(FaultFamily::Drift) {
            true => {
                self.counts.count(FaultFamily::Drift);
                1_000_000 - drift + self.chance.workers.below(2 * drift)
            }
            false => 1_000_000,
        };
        let info = WorkerInfo {
            id: WorkerId(format!("w{slot}")),
            // The coordinator gives it one when it is reached.
            incarnation: 0,
            host: format!("h{}", slot as u64 % self.swarm.hosts),
            pid: process as u32 + 100,
            cores: 8,
            device: "cpu".to_owned(),
            runtime: match lie {
                0 => "libtorch 2.12".to_owned(),
                1 => String::new(),
                _ => "libtorch 2.11".to_owned(),
            },
            serves: None,
        };
        if liar {
            self.counts.count(FaultFamily::Liar);
        }
        // One from another cluster speaks of what this one never formed.
        let generation = Generation(if lie == 2 { 1000 } else { 0 });
        let mut status = WorkerStatus::idle(info.clone(), generation);
        if lie == 2 {
            status.phase = Phase::Done;
            status.assignment_digest = Some("of another cluster".to_owned());
        }
        self.processes.push(SimProcess {
            slot,
            alive: true,
            vanished: false,
            paused_until_us: 0,
            slow_until_us: 0,
            clock,
            connection: None,
            known: false,
            alone_since_us: Some(self.now_us),
            beat: 0,
            stint: 0,
            generation,
            status,
            directive: Directive::NONE,
            saved: VecDeque::new(),
            assignment: None,
            publishing: None,
            engine: None,
            remains: None,
            leaving: false,
            asked: Generation(0),
        });
        self.slots[slot] = Some(process);
        self.tell(|| format!("worker w{slot} starts (pid {})", process + 100));
        self.after(1000, SimEvent::Reach { process });
    }

    /// Puts off what happens to a process that is stopped; `false` where it is dead.
    fn runs(&mut self, process: usize, what: impl FnOnce() -> SimEvent) -> bool {
        let SimProcess { alive, paused_until_us, .. } = self.processes[process];
        if alive && self.now_us < paused_until_us {
            self.at(paused_until_us, what());
            return false;
        }
        alive
    }

    pub(crate) fn beat(&mut self, process: usize, beat: u32) {
        if !self.runs(process, || SimEvent::Beat { process, beat }) || self.processes[process].beat != beat {
            return;
        }
        if self.leaves(process) {
            return;
        }
        self.say(process);
        let next_us = self.processes[process].lasts(BEAT_US);
        self.after(next_us, SimEvent::Beat { process, beat });
    }

    /// Sends how the worker is.
    pub(crate) fn say(&mut self, process: usize) {
        let Some(connection) = self.processes[process].connection else { return };
        let mut status = self.processes[process].status.clone();
        status.reports.truncate(REPORTS_MAX);
        status.leaving = self.processes[process].leaving.then(|| "it was asked to stop (SIGTERM)".to_owned());
        self.send_up(connection, Box::new(status));
    }

    pub(crate) fn reach(&mut self, process: usize) {
        if !self.runs(process, || SimEvent::Reach { process }) || self.processes[process].connection.is_some()
        {
            return;
        }
        let slot = self.processes[process].slot;
        if self.coordinator.serves(self.now_us) && self.reaches(slot) {
            if self.processes[process].status.info.incarnation == 0 {
                let Some(given) = self.coordinator.cluster.register() else {
                    return self.after(RETRY_US, SimEvent::Reach { process });
                };
                self.processes[process].status.info.incarnation = given;
            }
            let connection = self.connect(process);
            let me = &mut self.processes[process];
            me.connection = Some(connection);
            me.known = true;
            me.beat += 1;
            let beat = me.beat;
            return self.beat(process, beat);
        }
        let me = &self.processes[process];
        let alone_us = self.now_us - me.alone_since_us.unwrap_or(self.now_us);
        let patience_us = if me.known { self.swarm.coordinator_timeout_us } else { PATIENCE_US };
        if alone_us >= patience_us {
            self.tell(|| format!("worker w{slot} gives up looking for its coordinator"));
            return self.end_process(process);
        }
        let retry_us = self.processes[process].lasts(RETRY_US);
        self.after(retry_us, SimEvent::Reach { process });
    }

    /// A worker's stream has ended.
    pub(crate) fn stream_broken(&mut self, connection: usize) {
        let process = self.network.connections[connection].process;
        if self.processes[process].connection != Some(connection)
            || !self.runs(process, || SimEvent::Broken { connection })
        {
            return;
        }
        self.network.connections[connection].over = true;
        let now_us = self.now_us;
        let me = &mut self.processes[process];
        me.connection = None;
        me.beat += 1;
        me.alone_since_us = Some(now_us);
        self.reach(process);
    }

    /// A process ends, by itself or not.
    pub(crate) fn end_process(&mut self, process: usize) {
        if !self.processes[process].alive {
            return;
        }
        self.stop_engine(process);
        let me = &mut self.processes[process];
        me.alive = false;
        let (slot, silent) = (me.slot, me.vanished);
        if let Some(connection) = me.connection.take() {
            self.close_up(connection, silent);
        }
        if self.slots[slot] == Some(process) {
            let away_us = 1000 + self.chance.workers.below(self.swarm.restart_us);
            self.after(away_us, SimEvent::Start { slot });
        }
    }

    /// A process is asked to stop: it says so, and ends with the step at which its run lets it go. The second
    /// time it ends at once.
    pub(crate) fn terminate(&mut self, process: usize) {
        let me = &mut self.processes[process];
        if !me.alive {
            return;
        }
        if std::mem::replace(&mut me.leaving, true) {
            return self.grace_is_over(process);
        }
        if me.connection.is_none() {
            return self.end_process(process);
        }
        if !self.leaves(process) {
            self.say(process);
            let grace_us = self.swarm.grace_us;
            self.after(grace_us, SimEvent::Grace { process });
        }
    }

    /// Ends a process that was asked to stop and has nothing to do; `false` for any other.
    fn leaves(&mut self, process: usize) -> bool {
        let me = &self.processes[process];
        let free = me.leaving && me.assignment.is_none();
        if free {
            self.end_process(process);
        }
        free
    }

    /// A process that was asked to stop waits no more: it says so, and ends.
    pub(crate) fn grace_is_over(&mut self, process: usize) {
        if !self.runs(process, || SimEvent::Grace { process }) {
            return;
        }
        let me = &mut self.processes[process];
        if me.connection.is_none() {
            return self.end_process(process);
        }
        if me.assignment.is_some() {
            let message = "its time to leave is over".to_owned();
            me.status.phase = Phase::Failed { message, fault: Fault::Leaving };
            self.say(process);
        }
        self.after(GOODBYE_US, SimEvent::End { process });
    }

    pub(crate) fn desired_arrives(&mut self, connection: usize, desired: DesiredState) {
        let process = self.network.connections[connection].process;
        if self.processes[process].connection != Some(connection) {
            return;
        }
        let again = desired.clone();
        if !self.runs(process, || SimEvent::DesiredState { connection, desired: Box::new(again) }) {
            return;
        }
        if let Some(Leave { reason, .. }) = &desired.leave {
            let name = self.name(process);
            self.tell(|| format!("worker {name} is sent away: {reason}"));
            return self.end_process(process);
        }
        self.obey(process, desired);
        if !self.leaves(process) {
            self.say(process);
        }
    }

    /// Makes what is wanted so.
    fn obey(&mut self, process: usize, desired: DesiredState) {
        let me = &mut self.processes[process];
        me.asked = me.asked.max(desired.generation);
        if desired.generation < me.generation {
            return;
        }
        if desired.assignment_digest != me.status.assignment_digest {
            match (&desired.assignment_digest, &desired.assignment) {
                (None, _) => {
                    if !self.let_go(process) {
                        return;
                    }
                    self.processes[process].takes(desired.generation);
                }
                (Some(digest), Some(document)) => {
                    if !self.let_go(process) {
                        return;
                    }
                    self.processes[process].takes(desired.generation);
                    let me = &mut self.processes[process];
                    me.status.assignment_digest = Some(digest.clone());
                    me.status.phase = Phase::Preparing;
                    me.publishing = None;
                    match serde_json::from_str::<Assignment>(document) {
                        Ok(assignment) => {
                            self.check_assignment(process, digest, &assignment);
                            self.begin(process, assignment);
                        }
                        Err(error) => {
                            let message = format!("reading the assignment: {error}");
                            me.status.phase = Phase::Failed { message, fault: Fault::Own };
                        }
                    }
                }
                (Some(_), None) => return,
            }
        }
        self.processes[process].hear(&desired);
        if let Some(publish) = desired.publish {
            self.publish(process, publish);
        }
    }

    /// Ends the engine; `false` when it does not end, and the process will.
    fn let_go(&mut self, process: usize) -> bool {
        let works = self.processes[process].engine.is_some();
        self.stop_engine(process);
        if works && self.may(FaultFamily::Stuck) && self.chance.workers.happens(30_000) {
            self.counts.count(FaultFamily::Stuck);
            let name = self.name(process);
            self.tell(|| format!("the engine of worker {name} does not end"));
            let me = &mut self.processes[process];
            me.paused_until_us = self.now_us + ENGINE_END_US;
            me.stint += 1;
            self.after(ENGINE_END_US, SimEvent::End { process });
            return false;
        }
        true
    }

    /// Publishes a manifest, once for each time it is wanted and not yet done.
    fn publish(&mut self, process: usize, publish: Publish) {
        let me = &mut self.processes[process];
        let Some(assignment) = me.assignment.clone() else { return };
        let done = me.status.published.as_ref().map(|published| published.step);
        if done >= Some(publish.step) || me.publishing == Some(publish.step) {
            return;
        }
        me.publishing = Some(publish.step);
        let stint = me.stint;
        let publish = Publishing {
            directory: assignment.directory.clone(),
            step: publish.step,
            files: publish.files,
            world: assignment.world,
            threads: assignment.threads,
            runtime: me.status.info.runtime.clone(),
        };
        let takes_us = self.chance.workers.between(500, 60_000);
        self.after(takes_us, SimEvent::Publish { process, stint, publish: Box::new(publish) });
    }

    /// A manifest is renamed into place, by a thread that outlives its engine.
    pub(crate) fn published(&mut self, process: usize, stint: u32, publish: Publishing) {
        let SimProcess { alive, paused_until_us, .. } = self.processes[process];
        if alive && self.now_us < paused_until_us {
            return self
                .at(paused_until_us, SimEvent::Publish { process, stint, publish: Box::new(publish) });
        }
        if !alive {
            return;
        }
        let Publishing { directory, step, files, world, threads, runtime } = publish;
        let folder = self.folders.entry(directory.clone()).or_default();
        let result = folder.publish(step, &files, world, (threads, runtime));
        self.tell(|| match &result {
            Ok(digest) => format!("the manifest of step {step} in {directory} is published: {digest}"),
            Err(why) => format!("the manifest of step {step} in {directory} cannot be published: {why}"),
        });
        let me = &mut self.processes[process];
        if me.stint != stint {
            return;
        }
        match result {
            Ok(digest) => me.status.published = Some(Published { step, digest }),
            Err(why) => {
                let message = format!("publishing the checkpoint of step {step}: {why}");
                self.judge_fault(process, &message, Fault::Own);
                let me = &mut self.processes[process];
                me.status.phase = Phase::Failed { message, fault: Fault::Own };
            }
        }
        self.say(process);
    }
}
