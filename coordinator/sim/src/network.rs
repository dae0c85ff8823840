//! Connections between workers and the coordinator, and what lies between two workers. A connection is an
//! ordered stream in both directions; faults hold it up, break it, or lose and repeat its messages.

use std::collections::{BTreeMap, VecDeque};

use coxswain_types::ids::{Generation, Rank};
use coxswain_types::status::{DesiredState, Fault, WorkerStatus};

use crate::engine::Letter;
use crate::faults::FaultFamily;
use crate::world::{SECOND_US, SimEvent, World};

/// Statuses that wait in a stream which is held up; the sender drops what is beyond.
const HELD_MAX: usize = 4;

/// When a link over which nothing passes is given up, at the earliest and at the latest: the interval and
/// the time-out of the keep-alive that both sides send.
const KEEPALIVE_US: (u64, u64) = (3 * SECOND_US, 5 * SECOND_US);

/// When a rank gives up another that answers nothing.
const UNANSWERED_US: u64 = 10 * SECOND_US;

/// How late a message can be that was under way when its connection broke.
const LATE_US: u64 = 3 * SECOND_US;

/// A worker's stream.
pub(crate) struct SimConnection {
    pub(crate) process: usize,
    /// The coordinator's life that it leads to.
    pub(crate) life: u32,
    /// Whether the coordinator has not heard of its end.
    pub(crate) heard: bool,
    /// Whether the worker has ended it or heard of its end.
    pub(crate) over: bool,
    /// Whether the coordinator has read anything on it.
    pub(crate) spoken: bool,
    /// When the last message that was sent arrives, up and down.
    up_us: u64,
    down_us: u64,
    held_up: VecDeque<Box<WorkerStatus>>,
    held_down: Option<Box<DesiredState>>,
    /// Whether it broke, so that what is under way is lost.
    torn: bool,
    /// Whether the last that was said before it breaks arrives late.
    late: bool,
}

/// All connections, and what is cut.
#[derive(Default)]
pub(crate) struct SimNetwork {
    pub(crate) connections: Vec<SimConnection>,
    /// Until when nothing passes from a slot to the coordinator, and to a slot from it.
    pub(crate) cut_up: BTreeMap<usize, u64>,
    pub(crate) cut_down: BTreeMap<usize, u64>,
    /// Until when nothing passes between two slots, the lesser first.
    pub(crate) cut_peers: BTreeMap<(usize, usize), u64>,
    held_letters: Vec<(usize, usize, Letter)>,
    /// When the last letter from one process to another arrives.
    letters_us: BTreeMap<(usize, usize), u64>,
}

impl World {
    fn slot_of(&self, connection: usize) -> usize {
        self.processes[self.network.connections[connection].process].slot
    }

    fn is_cut(&self, cuts: &BTreeMap<usize, u64>, slot: usize) -> bool {
        cuts.get(&slot).is_some_and(|until_us| self.now_us < *until_us)
    }

    /// Whether a worker can reach the coordinator and hear from it.
    pub(crate) fn reaches(&self, slot: usize) -> bool {
        !self.is_cut(&self.network.cut_up, slot) && !self.is_cut(&self.network.cut_down, slot)
    }

    /// How long a message takes.
    pub(crate) fn delay_us(&mut self) -> u64 {
        let most_us = self.swarm.delay_us;
        let usual_us = 50 + self.chance.network.below(most_us);
        if self.may(FaultFamily::Delay) && self.chance.network.happens(self.swarm.message_faults) {
            self.counts.count(FaultFamily::Delay);
            return usual_us + self.chance.network.below(2 * SECOND_US);
        }
        usual_us
    }

    /// A stream from a worker to the coordinator that lives now.
    pub(crate) fn connect(&mut self, process: usize) -> usize {
        let late = self.may(FaultFamily::Late) && self.chance.network.below(2) == 0;
        self.network.connections.push(SimConnection {
            process,
            life: self.coordinator.life,
            heard: true,
            over: false,
            spoken: false,
            up_us: self.now_us,
            down_us: self.now_us,
            held_up: VecDeque::new(),
            held_down: None,
            torn: false,
            late,
        });
        self.network.connections.len() - 1
    }

    /// Sends a status.
    pub(crate) fn send_up(&mut self, connection: usize, status: Box<WorkerStatus>) {
        if self.may(FaultFamily::Drop) && self.chance.network.happens(self.swarm.message_faults) {
            return self.counts.count(FaultFamily::Drop);
        }
        if self.is_cut(&self.network.cut_up, self.slot_of(connection)) {
            let held = &mut self.network.connections[connection].held_up;
            if held.len() < HELD_MAX {
                held.push_back(status);
            }
            return;
        }
        let twice =
            self.may(FaultFamily::Duplicate) && self.chance.network.happens(self.swarm.message_faults);
        if twice {
            self.counts.count(FaultFamily::Duplicate);
            self.deliver_up(connection, status.clone());
        }
        self.deliver_up(connection, status);
    }

    fn deliver_up(&mut self, connection: usize, status: Box<WorkerStatus>) {
        let arrival_us = self.now_us + self.delay_us();
        let last_us = &mut self.network.connections[connection].up_us;
        *last_us = arrival_us.max(*last_us);
        let arrival_us = *last_us;
        self.at(arrival_us, SimEvent::Status { connection, status });
    }

    /// Sends a desired state.
    pub(crate) fn send_down(&mut self, connection: usize, desired: Box<DesiredState>) {
        // The last word to a worker closes its stream, so it is not lost alone.
        let can_drop = desired.leave.is_none() && self.may(FaultFamily::Drop);
        if can_drop && self.chance.network.happens(self.swarm.message_faults) {
            return self.counts.count(FaultFamily::Drop);
        }
        if self.is_cut(&self.network.cut_down, self.slot_of(connection)) {
            self.network.connections[connection].held_down = Some(desired);
            return;
        }
        let twice =
            self.may(FaultFamily::Duplicate) && self.chance.network.happens(self.swarm.message_faults);
        if twice {
            self.counts.count(FaultFamily::Duplicate);
            self.deliver_down(connection, desired.clone());
        }
        self.deliver_down(connection, desired);
    }

    fn deliver_down(&mut self, connection: usize, desired: Box<DesiredState>) {
        let arrival_us = self.now_us + self.delay_us();
        let last_us = &mut self.network.connections[connection].down_us;
        *last_us = arrival_us.max(*last_us);
        let arrival_us = *last_us;
        self.at(arrival_us, SimEvent::DesiredState { connection, desired });
    }

    /// A worker's end of a stream closes; the coordinator hears of it, late where the machine is gone.
    pub(crate) fn close_up(&mut self, connection: usize, silent: bool) {
        self.network.connections[connection].over = true;
        let cut = silent || !self.reaches(self.slot_of(connection));
        let (soonest, latest) = if cut { KEEPALIVE_US } else { (100, 20_000) };
        let up_us = self.network.connections[connection].up_us;
        let at_us = self.now_us.max(up_us) + self.chance.network.between(soonest, latest);
        self.at(at_us, SimEvent::Closed { connection });
    }

    /// Both ends of a stream learn that it is broken. What is under way is lost, but the last that was said
    /// may have been read by then, and be handled late.
    pub(crate) fn reset(&mut self, connection: usize) {
        let link = &mut self.network.connections[connection];
        link.torn = true;
        let (late, process) = (link.late, link.process);
        let mut closed_us = self.now_us + self.chance.network.between(100, 20_000);
        if late {
            let status = self.processes[process].status.clone();
            closed_us += self.chance.network.below(LATE_US);
            self.at(closed_us, SimEvent::Status { connection, status: Box::new(status) });
        }
        self.at(closed_us, SimEvent::Closed { connection });
        let soon_us = self.chance.network.between(100, 20_000);
        self.after(soon_us, SimEvent::Broken { connection });
    }

    /// Whether a status that arrives now is read.
    pub(crate) fn is_read(&mut self, connection: usize) -> bool {
        let link = &self.network.connections[connection];
        let (torn, read) = (link.torn, link.heard && (!link.torn || link.late));
        if torn && read {
            self.counts.count(FaultFamily::Late);
        }
        read
    }

    /// Cuts start: streams that stay cut are given up.
    pub(crate) fn watch_cut(&mut self, slot: usize) {
        let streams: Vec<_> = (0..self.network.connections.len())
            .rev()
            .take(256)
            .filter(|connection| self.slot_of(*connection) == slot)
            .filter(|connection| !self.network.connections[*connection].over)
            .collect();
        for connection in streams {
            let after_us = self.chance.network.between(KEEPALIVE_US.0, KEEPALIVE_US.1);
            self.after(after_us, SimEvent::KeepAlive { connection });
        }
    }

    pub(crate) fn keep_alive(&mut self, connection: usize) {
        let link = &self.network.connections[connection];
        if (link.heard || !link.over) && !self.reaches(self.slot_of(connection)) {
            let soon_us = self.chance.network.below(SECOND_US);
            self.after(soon_us, SimEvent::Closed { connection });
            let soon_us = self.chance.network.below(SECOND_US);
            self.after(soon_us, SimEvent::Broken { connection });
        }
    }

    /// Sends a message to another rank.
    pub(crate) fn post(&mut self, from: usize, to: usize, letter: Letter) {
        let (one, other) = (self.processes[from].slot, self.processes[to].slot);
        let cut = self.network.cut_peers.get(&(one.min(other), one.max(other))).copied();
        if let Some(until_us) = cut.filter(|until_us| self.now_us < *until_us) {
            if let Some(engine) = &self.processes[from].engine {
                let generation = engine.generation;
                self.after(UNANSWERED_US, SimEvent::Unanswered { from, to, until_us, generation });
            }
            self.network.held_letters.push((from, to, letter));
            return;
        }
        let arrival_us = self.now_us + 20 + self.delay_us();
        let last_us = self.network.letters_us.entry((from, to)).or_default();
        *last_us = arrival_us.max(*last_us);
        let arrival_us = *last_us;
        self.at(arrival_us, SimEvent::Letter { from, to, letter });
    }

    /// A rank has had no answer of another for long, unless the way is free by now.
    pub(crate) fn unanswered(&mut self, from: usize, to: usize, until_us: u64, generation: Generation) {
        let Some(engine) = &self.processes[from].engine else { return };
        let peer = engine.peers.iter().position(|peer| *peer == to);
        let (one, other) = (self.processes[from].slot, self.processes[to].slot);
        let cut = self.network.cut_peers.get(&(one.min(other), one.max(other)));
        if self.now_us >= until_us || cut != Some(&until_us) || engine.generation != generation {
            return;
        }
        if let Some(peer) = peer {
            let fault = Fault::Path { peer: Rank(peer as u32) };
            self.fail(from, "a peer does not answer".to_owned(), fault);
        }
    }

    /// What was held up until now passes.
    pub(crate) fn flush(&mut self) {
        let letters = std::mem::take(&mut self.network.held_letters);
        for (from, to, letter) in letters {
            self.post(from, to, letter);
        }
        for connection in 0..self.network.connections.len() {
            let link = &self.network.connections[connection];
            if link.over || (link.held_up.is_empty() && link.held_down.is_none()) {
                continue;
            }
            let slot = self.slot_of(connection);
            if !self.is_cut(&self.network.cut_up, slot) {
                let held = std::mem::take(&mut self.network.connections[connection].held_up);
                held.into_iter().for_each(|status| self.deliver_up(connection, status));
            }
            if !self.is_cut(&self.network.cut_down, slot)
                && let Some(desired) = self.network.connections[connection].held_down.take()
            {
                self.deliver_down(connection, desired);
            }
        }
    }
}
