//! Incidents: what goes wrong at times of its own. Each is drawn from the seed and its number alone, so
//! that leaving one out changes no other.

use coxswain_types::WorkerId;

use crate::faults::FaultFamily;
use crate::random::{Random, digest};
use crate::swarm::stream;
use crate::world::{SimEvent, World};

/// The families that incidents are of.
const INCIDENTS: [FaultFamily; 17] = [
    FaultFamily::Kill,
    FaultFamily::Vanish,
    FaultFamily::Terminate,
    FaultFamily::Pause,
    FaultFamily::Slow,
    FaultFamily::Zombie,
    FaultFamily::Cut,
    FaultFamily::PeerCut,
    FaultFamily::PeerReset,
    FaultFamily::Clog,
    FaultFamily::Reset,
    FaultFamily::Crash,
    FaultFamily::Stall,
    FaultFamily::DiskFull,
    FaultFamily::Torn,
    FaultFamily::Drain,
    FaultFamily::Break,
];

/// How many workers a clog holds up, at most.
const CLOGGED_MAX: u64 = 8;

impl World {
    fn draw(&self, number: u64) -> Random {
        Random::new(digest(&[self.case.seed, number]), stream::CHAOS)
    }

    pub(crate) fn pause_between_incidents(&self, number: u64) -> u64 {
        self.draw(number).between(self.swarm.incident_us / 10, 2 * self.swarm.incident_us)
    }

    /// Something goes wrong, and the next thing is put on its way.
    pub(crate) fn incident(&mut self, number: u64) {
        if self.healed {
            return;
        }
        let next_us = self.pause_between_incidents(number + 1);
        self.after(next_us, SimEvent::Incident { number: number + 1 });
        let on: Vec<_> = INCIDENTS.into_iter().filter(|family| self.swarm.on.has(*family)).collect();
        if on.is_empty() || self.case.skip.contains(&number) {
            return;
        }
        let mut random = self.draw(number);
        // The pause before it was drawn from the same numbers.
        random.number();
        let family = random.pick(&on);
        let slot = random.below(self.slots.len() as u64) as usize;
        let until_us = self.now_us + 1000 + random.below(self.swarm.longest_us);
        let happened = match family {
            FaultFamily::Crash | FaultFamily::Torn | FaultFamily::Stall | FaultFamily::DiskFull => {
                self.coordinator_incident(family, until_us)
            }
            FaultFamily::Clog => self.clog(&mut random, until_us),
            _ => self.worker_incident(family, slot, until_us, &mut random),
        };
        if happened {
            self.counts.count(family);
            self.judge.incidents.push(number);
        }
    }

    fn coordinator_incident(&mut self, family: FaultFamily, until_us: u64) -> bool {
        if !self.coordinator.up {
            return false;
        }
        match family {
            FaultFamily::Crash => {
                self.judge_replay();
                self.crash("it is killed");
            }
            FaultFamily::Stall => {
                self.tell(|| "the coordinator is stopped for a while".to_owned());
                self.coordinator.stalled_until_us = until_us;
                self.coordinator.stopped_us.get_or_insert(self.now_us);
            }
            FaultFamily::DiskFull => {
                self.tell(|| "the disk of the journal is full".to_owned());
                self.coordinator.full_until_us = until_us;
            }
            // It has to hit while an entry is written, so it waits for one.
            _ => return false,
        }
        true
    }

    fn clog(&mut self, random: &mut Random, until_us: u64) -> bool {
        self.tell(|| "the network is clogged".to_owned());
        for _ in 0..random.between(1, CLOGGED_MAX) {
            let slot = random.below(self.slots.len() as u64) as usize;
            let other = random.below(self.slots.len() as u64) as usize;
            // Workers are freed one after the other.
            let until_us = until_us + random.below(self.swarm.longest_us);
            self.network.cut_up.insert(slot, until_us);
            self.network.cut_down.insert(slot, until_us);
            self.network.cut_peers.insert((slot.min(other), slot.max(other)), until_us);
            self.at(until_us, SimEvent::Flush);
            self.watch_cut(slot);
        }
        true
    }

    fn worker_incident(
        &mut self,
        family: FaultFamily,
        slot: usize,
        until_us: u64,
        random: &mut Random,
    ) -> bool {
        let Some(process) = self.slots[slot].filter(|process| self.processes[*process].alive) else {
            return false;
        };
        let name = self.name(process);
        match family {
            FaultFamily::Kill => {
                self.tell(|| format!("worker {name} is killed"));
                self.end_process(process);
            }
            FaultFamily::Vanish => {
                self.tell(|| format!("the machine of worker {name} is gone"));
                self.processes[process].vanished = true;
                self.end_process(process);
            }
            FaultFamily::Terminate => {
                self.tell(|| format!("worker {name} is asked to stop"));
                self.terminate(process);
            }
            FaultFamily::Pause => {
                let ms = (until_us - self.now_us) / 1000;
                self.tell(|| format!("worker {name} is stopped for {ms} ms"));
                self.processes[process].paused_until_us = until_us;
            }
            FaultFamily::Slow => {
                self.tell(|| format!("worker {name} is slow for a while"));
                // Longer than what else goes wrong: work is divided anew only after a while.
                self.processes[process].slow_until_us = until_us + 3 * (until_us - self.now_us);
                self.judge.slow.insert(WorkerId(format!("w{slot}")));
            }
            FaultFamily::Zombie => {
                self.tell(|| format!("a second process takes the name of worker {name}"));
                if random.below(2) == 0 {
                    // The first one hears of it late, from another coordinator perhaps.
                    self.processes[process].paused_until_us = until_us + 4 * (until_us - self.now_us);
                }
                self.spawn(slot);
            }
            FaultFamily::Drain => return self.drain(process),
            FaultFamily::Break => return self.breaks(process),
            FaultFamily::Cut => self.cut(slot, until_us, random.below(3)),
            FaultFamily::PeerCut | FaultFamily::PeerReset => {
                let other = random.below(self.slots.len() as u64) as usize;
                return self.between_peers(family, slot, other, until_us);
            }
            FaultFamily::Reset => {
                let Some(connection) = self.processes[process].connection else { return false };
                self.tell(|| format!("the connection of worker {name} to the coordinator breaks"));
                self.reset(connection);
            }
            _ => return false,
        }
        true
    }

    fn cut(&mut self, slot: usize, until_us: u64, direction: u64) {
        let text = ["to", "from", "to and from"][direction as usize];
        self.tell(|| format!("nothing passes {text} worker w{slot} and the coordinator"));
        if direction != 1 {
            self.network.cut_up.insert(slot, until_us);
        }
        if direction != 0 {
            self.network.cut_down.insert(slot, until_us);
        }
        self.at(until_us, SimEvent::Flush);
        self.watch_cut(slot);
    }

    fn between_peers(&mut self, family: FaultFamily, slot: usize, other: usize, until_us: u64) -> bool {
        let (Some(one), Some(two)) = (self.slots[slot], self.slots[other]) else { return false };
        if slot == other {
            return false;
        }
        if family == FaultFamily::PeerCut {
            self.tell(|| format!("nothing passes between workers w{slot} and w{other}"));
            self.network.cut_peers.insert((slot.min(other), slot.max(other)), until_us);
            self.at(until_us, SimEvent::Flush);
            return true;
        }
        let hung = |process: usize, peer: usize| {
            let engine = self.processes[process].engine.as_ref()?;
            engine.peers.contains(&peer).then(|| crate::engine::hang(engine))
        };
        let letters = [(two, one, hung(one, two)), (one, two, hung(two, one))];
        let mut any = false;
        for (from, to, letter) in letters {
            if let Some(letter) = letter {
                any = true;
                self.post(from, to, letter);
            }
        }
        if any {
            self.tell(|| format!("the connection between workers w{slot} and w{other} breaks"));
        }
        any
    }
}
