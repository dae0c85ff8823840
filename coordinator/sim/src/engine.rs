//! A rank at work, as `worker/engine` behaves: it meets the others, finds out with them where to go on, and
//! takes steps that one exchange closes for all. What it computes is a pure function of its state and its samples.

use std::collections::BTreeMap;
use std::sync::Arc;

use coxswain_types::Assignment;
use coxswain_types::ids::{Generation, Step};
use coxswain_types::status::{Begun, Directive, Fault, Origin, Pace, Phase, Saved, StepReport};

use crate::faults::FaultFamily;
use crate::memory::{SimHeld, SimRoster, SimStart, decide, roster};
use crate::random::digest;
use crate::truth;
use crate::worker::GOODBYE_US;
use crate::world::{SECOND_US, SimEvent, World};

/// Between two looks for the other ranks in the rendezvous.
const LOOK_US: u64 = 150_000;

/// What an engine comes to the end of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SimWork {
    /// It looks whether the others are there.
    Meet,
    /// Its stage is built.
    Load,
    /// Its part of a step is computed.
    Compute,
    /// Its part of a checkpoint is on disk.
    Save,
}

/// What ranks say to each other.
#[derive(Clone, Debug)]
pub(crate) enum Letter {
    /// What a rank holds in memory.
    Roster { generation: Generation, rank: u32, roster: Box<SimRoster> },
    /// Where all go on from; without, from their checkpoint.
    Begin { generation: Generation, start: Option<Box<SimStart>> },
    /// A rank's part of a step.
    Vote { generation: Generation, rank: u32, vote: SimVote },
    /// What all ranks make of a step.
    Close { generation: Generation, step: u64, closing: SimClosing },
    /// The connection to a rank has closed.
    Hang { generation: Generation },
}

/// A rank's part of a step.
#[derive(Clone, Debug)]
pub(crate) struct SimVote {
    step: u64,
    /// The newest directive that it has seen.
    directive: Directive,
    state: u64,
    /// The micro-batches whose loss it brings.
    micro_batches: Vec<u32>,
}

/// What all ranks agree on.
#[derive(Clone, Debug)]
pub(crate) struct SimClosing {
    directive: Directive,
    state: u64,
}

/// A rank at work.
pub(crate) struct SimEngine {
    pub(crate) generation: Generation,
    job: String,
    /// The processes by rank, once all have met.
    pub(crate) peers: Vec<usize>,
    /// Until when they have to have met.
    rendezvous_until_us: u64,
    joined: bool,
    /// Once it trains: what it holds.
    held: Option<SimHeld>,
    /// The newest step of which it has written its part.
    saved: u64,
    rosters: BTreeMap<u32, SimRoster>,
    votes: BTreeMap<u64, BTreeMap<u32, SimVote>>,
    run_to: u64,
    save_after: u64,
    /// How long it computed its part of the step at hand.
    busy_us: u64,
    /// It has taken its last step.
    done: bool,
}

/// How much of a step's work a rank has, where an even share is 100.
fn share_percent(assignment: &Assignment) -> u64 {
    let (train, layout) = (&assignment.spec.train, &assignment.spec.layout);
    let runs = assignment.owned_runs.start as usize..assignment.owned_runs.end as usize;
    let micro_batches: u32 = assignment.runs[runs].iter().map(|run| run.end - run.start).sum();
    let layers: u32 = assignment.stages.iter().map(|stage| stage.layers.end - stage.layers.start).sum();
    let all = u64::from(train.global_micro_batches) * u64::from(assignment.spec.model.layers);
    let ranks = u64::from(layout.data) * u64::from(layout.pipeline);
    (100 * u64::from(micro_batches) * u64::from(layers) * ranks).div_ceil(all.max(1))
}

impl SimEngine {
    fn step(&self) -> u64 {
        self.held.as_ref().map_or(0, |held| held.step)
    }
}

/// What the peers of an engine see when its connections close.
pub(crate) fn hang(engine: &SimEngine) -> Letter {
    Letter::Hang { generation: engine.generation }
}

impl World {
    /// Takes an assignment.
    pub(crate) fn begin(&mut self, process: usize, assignment: Assignment) {
        let rendezvous_us = self.processes[process].lasts(assignment.rendezvous_ms * 1000);
        self.processes[process].engine = Some(SimEngine {
            generation: assignment.generation,
            job: assignment.job.clone(),
            peers: Vec::new(),
            rendezvous_until_us: self.now_us + rendezvous_us,
            joined: false,
            held: None,
            saved: assignment.resume.as_ref().map_or(0, |resume| resume.step.0),
            rosters: BTreeMap::new(),
            votes: BTreeMap::new(),
            run_to: assignment.spec.train.steps,
            save_after: 0,
            busy_us: 0,
            done: false,
        });
        self.processes[process].assignment = Some(Arc::new(assignment));
        let soon_us = self.delay_us();
        self.later(process, soon_us, SimWork::Meet);
    }

    /// Returns how long it takes this process.
    fn later(&mut self, process: usize, while_us: u64, work: SimWork) -> u64 {
        let me = &self.processes[process];
        let slow = if self.now_us < me.slow_until_us && !self.healed { 5 } else { 1 };
        let (stint, while_us) = (me.stint, me.lasts(while_us) * slow);
        self.after(while_us, SimEvent::Work { process, stint, work });
        while_us
    }

    pub(crate) fn work(&mut self, process: usize, stint: u32, work: SimWork) {
        let me = &self.processes[process];
        if !me.alive || me.stint != stint || me.engine.is_none() {
            return;
        }
        if self.now_us < me.paused_until_us {
            let until_us = me.paused_until_us;
            return self.at(until_us, SimEvent::Work { process, stint, work });
        }
        match work {
            SimWork::Meet => self.meet(process),
            SimWork::Load => self.load(process),
            SimWork::Compute => self.computed(process),
            SimWork::Save => self.saved(process),
        }
    }

    /// The rendezvous: a key for each rank, and all of them have to be there.
    fn meet(&mut self, process: usize) {
        let (slot, now_us) = (self.processes[process].slot, self.now_us);
        let Some(assignment) = self.processes[process].assignment.clone() else { return };
        let Some(engine) = &mut self.processes[process].engine else { return };
        if now_us >= engine.rendezvous_until_us {
            return self.fail(process, "the ranks did not find each other".to_owned(), Fault::Peer);
        }
        let joined = engine.joined;
        if !self.coordinator.serves(self.now_us) || !self.reaches(slot) {
            // A call that cannot be made fails, and with it the joining.
            return self.fail(process, "the rendezvous cannot be reached".to_owned(), Fault::Peer);
        }
        if !self.at_work(&assignment.job, assignment.generation) {
            return self.fail(process, "another generation is at work".to_owned(), Fault::Peer);
        }
        if !joined {
            self.coordinator.join(&assignment.job, assignment.generation, assignment.rank.0, process);
            if let Some(engine) = &mut self.processes[process].engine {
                engine.joined = true;
            }
        }
        let peers = self.coordinator.met(&assignment.job, assignment.generation, assignment.world);
        let Some(peers) = peers else {
            self.later(process, LOOK_US, SimWork::Meet);
            return;
        };
        let gone = |peer: &usize| {
            let engine = self.processes[*peer].engine.as_ref();
            engine.is_none_or(|engine| engine.generation != assignment.generation)
        };
        if peers.iter().any(gone) {
            return self.fail(process, "a peer is not there any more".to_owned(), Fault::Peer);
        }
        if let Some(engine) = &mut self.processes[process].engine {
            engine.peers = peers;
        }
        let takes_us = self.chance.workers.between(1000, 800_000);
        self.later(process, takes_us, SimWork::Load);
    }

    fn load(&mut self, process: usize) {
        let Some(assignment) = self.processes[process].assignment.clone() else { return };
        if self.swarm.cursed && assignment.world > 1 && self.may(FaultFamily::PeerReset) {
            self.counts.count(FaultFamily::PeerReset);
            return self.fail(process, "a peer closed its connection".to_owned(), Fault::Peer);
        }
        let me = &self.processes[process];
        let roster = roster(&assignment, me.remains.as_ref());
        let (generation, rank) = (assignment.generation, assignment.rank.0);
        match me.engine.as_ref().and_then(|engine| engine.peers.first().copied()) {
            Some(lead) if rank > 0 => {
                self.post(process, lead, Letter::Roster { generation, rank, roster: Box::new(roster) });
            }
            _ => self.gather(process, rank, roster),
        }
    }

    /// The lead takes in what a rank holds, and decides when it knows of all.
    fn gather(&mut self, process: usize, rank: u32, roster: SimRoster) {
        let Some(assignment) = self.processes[process].assignment.clone() else { return };
        let Some(engine) = &mut self.processes[process].engine else { return };
        engine.rosters.insert(rank, roster);
        if engine.rosters.len() < assignment.world as usize || engine.held.is_some() {
            return;
        }
        let least = assignment.resume.as_ref().map_or(0, |resume| resume.step.0);
        let start = decide(&engine.rosters, least);
        let (generation, peers) = (engine.generation, engine.peers.clone());
        for peer in peers.into_iter().skip(1) {
            self.post(process, peer, Letter::Begin { generation, start: start.clone().map(Box::new) });
        }
        self.train(process, start);
    }

    /// Begins to train, from what is in memory or from the checkpoint.
    fn train(&mut self, process: usize, start: Option<SimStart>) {
        let Some(assignment) = self.processes[process].assignment.clone() else { return };
        let begun = |step, state| SimStart { step, state, reports: Vec::new() };
        let origin = match (&start, &assignment.resume) {
            (Some(_), _) => Origin::Memory,
            (None, Some(_)) => Origin::Checkpoint,
            (None, None) => Origin::Initial,
        };
        let start = match (start, &assignment.resume) {
            (Some(start), _) => Ok(start),
            (None, None) => Ok(begun(0, truth::born(&assignment.directory))),
            (None, Some(resume)) => {
                let folder = self.folders.entry(assignment.directory.clone()).or_default();
                folder.read(resume.step, Some(&resume.digest)).map(|state| begun(resume.step.0, state))
            }
        };
        let start = match start {
            Ok(start) => start,
            Err(why) => {
                // A generation that was given up may still publish the same step anew: a worker that finds another
                // manifest than it was told of calls the checkpoint damaged, and the folder is looked at again.
                let folder = self.folders.entry(assignment.directory.clone()).or_default();
                let whole =
                    assignment.resume.as_ref().is_some_and(|resume| folder.read(resume.step, None).is_ok());
                let fault = if whole { Fault::Checkpoint } else { Fault::Own };
                return self.fail(process, why, fault);
            }
        };
        let me = &mut self.processes[process];
        me.remains = None;
        me.status.phase = Phase::Running;
        me.status.step = Step(start.step);
        me.status.begun = Some(Begun { step: Step(start.step), origin });
        if assignment.rank.0 == 0 {
            me.status.reports.clone_from(&start.reports);
        }
        if let Some(engine) = &mut me.engine {
            let held = engine.held.insert(SimHeld::new(&assignment));
            held.begin(start);
        }
        self.say(process);
        self.settle_step(process);
    }

    /// Saves where that is due after a step, and goes on.
    fn settle_step(&mut self, process: usize) {
        let me = &mut self.processes[process];
        let (Some(assignment), Some(engine)) = (&me.assignment, &mut me.engine) else { return };
        let (step, every) = (engine.step(), assignment.spec.checkpoint.every);
        let asked = engine.saved < engine.save_after && engine.save_after <= step;
        let due = asked || step >= engine.run_to || (every > 0 && step.is_multiple_of(every));
        if due && engine.saved < step {
            engine.saved = step;
            let takes_us = self.chance.workers.between(1000, 120_000);
            self.later(process, takes_us, SimWork::Save);
            return;
        }
        self.next(process);
    }

    /// Goes on to the next step, or to the end.
    fn next(&mut self, process: usize) {
        let Some(assignment) = self.processes[process].assignment.clone() else { return };
        let Some(engine) = &mut self.processes[process].engine else { return };
        if engine.step() >= engine.run_to {
            engine.done = true;
            self.processes[process].status.phase = Phase::Done;
            return self.say(process);
        }
        let step_us = self.step_us(&assignment.directory) * share_percent(&assignment) / 100;
        let takes_us = step_us * self.chance.workers.between(90, 110) / 100;
        let busy_us = self.later(process, takes_us, SimWork::Compute);
        if let Some(engine) = &mut self.processes[process].engine {
            engine.busy_us = busy_us;
        }
    }

    fn computed(&mut self, process: usize) {
        let me = &self.processes[process];
        let (Some(assignment), Some(engine)) = (&me.assignment, &me.engine) else { return };
        let brings = assignment.tensor_index == 0 && assignment.stages.iter().any(|stage| stage.head);
        let runs = assignment.owned_runs.start as usize..assignment.owned_runs.end as usize;
        let owned = assignment.runs[runs].iter().flat_map(|run| run.clone());
        let Some(held) = &engine.held else { return };
        let vote = SimVote {
            step: held.step + 1,
            directive: me.directive,
            state: held.state,
            micro_batches: if brings { owned.collect() } else { Vec::new() },
        };
        let (generation, rank, lead) = (engine.generation, assignment.rank.0, engine.peers[0]);
        if let Some(held) = self.processes[process].engine.as_mut().and_then(|engine| engine.held.as_mut()) {
            held.voted = true;
        }
        if rank == 0 {
            return self.vote(process, rank, vote);
        }
        self.post(process, lead, Letter::Vote { generation, rank, vote });
    }

    /// The lead takes in a vote, and closes the step when all are there.
    fn vote(&mut self, process: usize, rank: u32, vote: SimVote) {
        let Some(assignment) = self.processes[process].assignment.clone() else { return };
        let Some(engine) = &mut self.processes[process].engine else { return };
        let step = engine.step() + 1;
        engine.votes.entry(vote.step).or_default().insert(rank, vote);
        if engine.votes.get(&step).is_none_or(|votes| votes.len() < assignment.world as usize) {
            return;
        }
        let votes = engine.votes.remove(&step).unwrap_or_default();
        let mut micro_batches: Vec<_> = votes.values().flat_map(|vote| vote.micro_batches.clone()).collect();
        micro_batches.sort_unstable();
        let mut states: Vec<_> = votes.values().map(|vote| vote.state).collect();
        states.dedup();
        // Ranks whose parts do not belong together make numbers that belong to nothing.
        let before = if let [state] = states.as_slice() { *state } else { digest(&states) };
        let closing = SimClosing {
            directive: votes.values().map(|vote| vote.directive).min().unwrap_or_default(),
            state: truth::advance(before, step, &micro_batches),
        };
        let (generation, peers) = (engine.generation, engine.peers.clone());
        for peer in peers.into_iter().skip(1) {
            self.post(process, peer, Letter::Close { generation, step, closing: closing.clone() });
        }
        self.apply(process, closing);
    }

    /// Takes the step.
    fn apply(&mut self, process: usize, closing: SimClosing) {
        let me = &mut self.processes[process];
        let Some(assignment) = me.assignment.clone() else { return };
        let Some(engine) = &mut me.engine else { return };
        engine.run_to = closing.directive.run_to.0.min(assignment.spec.train.steps);
        engine.save_after = closing.directive.save_after.0;
        let Some(held) = &mut engine.held else { return };
        let step = held.step + 1;
        let report = report(step, closing.state);
        held.close(closing.state, report.clone());
        me.status.step = Step(step);
        me.status.pace = Some(Pace { step: Step(step), busy_us: engine.busy_us });
        if assignment.rank.0 == 0 {
            me.status.reports.push(report);
        }
        self.say(process);
        self.settle_step(process);
    }

    fn saved(&mut self, process: usize) {
        let me = &self.processes[process];
        let (Some(assignment), Some(engine)) = (me.assignment.clone(), &me.engine) else { return };
        let Some(held) = &engine.held else { return };
        let (step, state, generation) = (Step(held.step), held.state, engine.generation);
        if self.may(FaultFamily::SaveFails) && self.chance.workers.happens(2_000) {
            self.counts.count(FaultFamily::SaveFails);
            self.judge.excuse(&assignment.job);
            return self.fail(process, "no space left on device".to_owned(), Fault::Own);
        }
        let folder = self.folders.entry(assignment.directory.clone()).or_default();
        let file = folder.write(step, generation, assignment.rank.0, state);
        self.processes[process].has_saved(Saved { step, files: vec![file] });
        self.say(process);
        self.next(process);
    }

    /// A message from another rank.
    pub(crate) fn letter(&mut self, from: usize, to: usize, letter: Letter) {
        let me = &self.processes[to];
        if !me.alive {
            return;
        }
        if self.now_us < me.paused_until_us {
            let until_us = me.paused_until_us;
            return self.at(until_us, SimEvent::Letter { from, to, letter });
        }
        // A connection belongs to one generation's process of one rank.
        let Some(engine) = &me.engine else { return };
        // One that still looks for the others is connected all the same.
        if !engine.peers.is_empty() && !engine.peers.contains(&from) {
            return;
        }
        match letter {
            Letter::Roster { generation, rank, roster } if generation == engine.generation => {
                self.gather(to, rank, *roster);
            }
            Letter::Begin { generation, start } if generation == engine.generation => {
                self.train(to, start.map(|start| *start));
            }
            Letter::Vote { generation, rank, vote } if generation == engine.generation => {
                self.vote(to, rank, vote);
            }
            Letter::Close { generation, step, closing }
                if generation == engine.generation && step == engine.step() + 1 =>
            {
                self.apply(to, closing);
            }
            Letter::Hang { generation }
                if generation == engine.generation && engine.step() < engine.run_to =>
            {
                self.fail(to, "a peer closed its connection".to_owned(), Fault::Peer);
            }
            _ => {}
        }
    }

    /// The connections of an engine close, and its peers see it.
    pub(crate) fn stop_engine(&mut self, process: usize) {
        let silent = self.processes[process].vanished;
        let Some(engine) = self.processes[process].engine.take() else { return };
        let me = &mut self.processes[process];
        me.stint += 1;
        me.remains = engine.held.or(me.remains.take());
        if silent || engine.done {
            return;
        }
        for peer in engine.peers.iter().copied().filter(|peer| *peer != process) {
            self.post(process, peer, Letter::Hang { generation: engine.generation });
        }
    }

    /// A rank cannot go on.
    pub(crate) fn fail(&mut self, process: usize, message: String, fault: Fault) {
        let name = self.name(process);
        let job = self.processes[process].engine.as_ref().map(|engine| engine.job.clone());
        self.judge_fault(process, &message, fault);
        self.tell(|| format!("worker {name} cannot go on with {}: {message}", job.unwrap_or_default()));
        let stint = self.processes[process].stint;
        self.stop_engine(process);
        let me = &mut self.processes[process];
        // What is being published is published all the same.
        me.stint = stint;
        if !matches!(me.status.phase, Phase::Failed { .. }) {
            me.status.phase = Phase::Failed { message, fault };
        }
        self.say(process);
    }

    /// The device of a process that is at work fails: it says so, hears nothing any more, and ends.
    pub(crate) fn breaks(&mut self, process: usize) -> bool {
        let me = &self.processes[process];
        if me.engine.as_ref().is_none_or(|engine| engine.held.is_none()) || self.now_us < me.paused_until_us {
            return false;
        }
        self.fail(process, "the device does not answer".to_owned(), Fault::Device);
        self.processes[process].paused_until_us = self.now_us + GOODBYE_US;
        self.after(GOODBYE_US, SimEvent::End { process });
        true
    }

    fn step_us(&self, directory: &str) -> u64 {
        let plan = self.jobs.iter().find(|plan| plan.directory == directory);
        plan.map_or(SECOND_US, |plan| plan.step_us)
    }
}

fn report(step: u64, state: u64) -> StepReport {
    let (loss, grad_norm) = truth::measured(state);
    StepReport {
        step,
        loss,
        grad_norm,
        learning_rate: 1e-3,
        tokens: 64,
        tokens_per_second: 640.0,
        step_seconds: 0.1,
        skipped: false,
        loss_scale: None,
        parameter_norms: BTreeMap::new(),
        validation: None,
    }
}
