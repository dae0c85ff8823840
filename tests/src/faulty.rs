//! A [`MessageTransport`] within this process that misbehaves as told: it holds messages back, lets those of different
//! tags overtake each other, keeps some for ever, and loses ranks. Without a plan for faults it only carries.
//!
//! Whoever waits delivers: a wait moves on what is ready, of whichever ranks, until its own message has arrived. So the
//! module has no thread, and what overtakes what is drawn from a seed.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use coxswain_native::net::{DeliveryFailure, HostBytes, MessageTransport, Pending};
use coxswain_types::hash::mix;

/// After so long without anything to deliver at once, what is held back moves on by one.
const TICK: Duration = Duration::from_millis(1);

/// What goes wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// What decides which message overtakes which.
    pub seed: u64,
    /// The most messages that may overtake one; 0 delivers each at once.
    pub held_back: u64,
    /// A rank that is lost as it starts its message of this number, counted from 0.
    pub lost: Option<(u32, u64)>,
    /// Messages from the first of these ranks to the second never arrive, and neither is told.
    pub silent: Option<(u32, u32)>,
}

/// What the ranks of a process send to each other.
#[derive(Clone)]
pub struct Hub(Arc<HubState>);

struct HubState {
    faults: Faults,
    inner: Mutex<Inner>,
    moved: Condvar,
}

#[derive(Default)]
struct Inner {
    /// From, to, tag.
    channels: BTreeMap<(u32, u32, u32), Channel>,
    /// Messages that have ended, until whoever waits for them has seen it.
    ended: HashMap<u64, Result<(), DeliveryFailure>>,
    /// Ranks that have left, in whichever way.
    gone: HashSet<u32>,
    /// Messages that each rank has started.
    started: HashMap<u32, u64>,
    next: u64,
    drawn: u64,
    bytes: HashMap<u32, u64>,
    /// What is done as a rank starts its message of a number.
    actions: HashMap<(u32, u64), Box<dyn FnOnce() + Send>>,
    /// Waits that were given up for want of time.
    given_up: u64,
}

/// Messages of one tag from one rank to another, in their order.
#[derive(Default)]
struct Channel {
    sends: VecDeque<Posted>,
    recvs: VecDeque<Posted>,
    /// How many deliveries of others the first message has to wait for; none where that is not drawn yet.
    held: Option<u64>,
}

struct Posted {
    number: u64,
    message: HostBytes,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hub")
    }
}

impl Hub {
    /// A hub with these faults.
    pub fn new(faults: Faults) -> Hub {
        Hub(Arc::new(HubState { faults, inner: Mutex::default(), moved: Condvar::new() }))
    }

    /// What carries the messages of `rank`. The rank leaves when it is dropped.
    pub fn transport(&self, rank: u32) -> FaultyTransport {
        FaultyTransport { hub: self.clone(), rank }
    }

    /// Does something once, as `rank` starts its message of this number.
    pub fn at(&self, rank: u32, message: u64, action: impl FnOnce() + Send + 'static) {
        self.lock().actions.insert((rank, message), Box::new(action));
    }

    /// Messages that a rank has started.
    pub fn messages(&self, rank: u32) -> u64 {
        self.lock().started.get(&rank).copied().unwrap_or(0)
    }

    /// Waits that ended for want of time.
    pub fn given_up(&self) -> u64 {
        self.lock().given_up
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A rank leaves: what it has pending ends, and what others have for it.
    fn leave(&self, rank: u32) {
        let mut inner = self.lock();
        inner.gone.insert(rank);
        let mut ended = Vec::new();
        for ((from, to, _), channel) in &mut inner.channels {
            if *from == rank || *to == rank {
                ended.extend(channel.sends.drain(..).chain(channel.recvs.drain(..)));
            }
        }
        for posted in ended {
            inner.ended.insert(posted.number, Err(left(rank)));
        }
        drop(inner);
        self.0.moved.notify_all();
    }
}

fn left(rank: u32) -> DeliveryFailure {
    DeliveryFailure::new(format!("rank {rank} has left"))
}

impl Inner {
    /// Delivers one message that nothing holds back, of all such the one that is drawn; whether there was one.
    fn deliver(&mut self, faults: &Faults) -> bool {
        let drawn = |state: &mut u64| {
            *state += 1;
            mix(faults.seed ^ *state)
        };
        let mut ready: Vec<_> = Vec::new();
        for (key, channel) in &mut self.channels {
            let silent = faults.silent.is_some_and(|(from, to)| (key.0, key.1) == (from, to));
            if silent || channel.sends.is_empty() || channel.recvs.is_empty() {
                continue;
            }
            let held = *channel.held.get_or_insert_with(|| drawn(&mut self.drawn) % (faults.held_back + 1));
            if held == 0 {
                ready.push(*key);
            }
        }
        if ready.is_empty() {
            return false;
        }
        let chosen = ready[(drawn(&mut self.drawn) % ready.len() as u64) as usize];
        let Some(channel) = self.channels.get_mut(&chosen) else { return false };
        channel.held = None;
        if let (Some(send), Some(recv)) = (channel.sends.pop_front(), channel.recvs.pop_front()) {
            let result = copied(&send.message, &recv.message);
            *self.bytes.entry(chosen.0).or_default() += send.message.bytes() as u64;
            *self.bytes.entry(chosen.1).or_default() += recv.message.bytes() as u64;
            self.ended.insert(send.number, result.clone());
            self.ended.insert(recv.number, result);
        }
        self.pass();
        true
    }

    /// One delivery, or one tick, less to wait for all that are held back.
    fn pass(&mut self) {
        for channel in self.channels.values_mut() {
            channel.held = channel.held.map(|held| held.saturating_sub(1));
        }
    }
}

fn copied(from: &HostBytes, to: &HostBytes) -> Result<(), DeliveryFailure> {
    if from.bytes() != to.bytes() {
        let (sent, wanted) = (from.bytes(), to.bytes());
        return Err(DeliveryFailure::new(format!("{sent} bytes were sent and {wanted} expected")));
    }
    let bytes = from.read(0, <[u8]>::to_vec);
    let written = bytes.and_then(|bytes| to.write(0, |target| target.copy_from_slice(&bytes)));
    written.ok_or_else(|| DeliveryFailure::new("one side has given up its message"))
}

/// What carries the messages of a rank.
pub struct FaultyTransport {
    hub: Hub,
    rank: u32,
}

impl FaultyTransport {
    fn start(
        &self,
        message: HostBytes,
        (from, to, tag): (u32, u32, u32),
        sending: bool,
    ) -> Result<Box<dyn Pending>, DeliveryFailure> {
        let mut inner = self.hub.lock();
        let started = inner.started.entry(self.rank).or_default();
        let own = (self.rank, *started);
        *started += 1;
        let action = inner.actions.remove(&own);
        drop(inner);
        if let Some(action) = action {
            action();
        }
        if self.hub.0.faults.lost == Some(own) {
            self.hub.leave(self.rank);
        }
        let mut inner = self.hub.lock();
        if let Some(rank) = [self.rank, from, to].into_iter().find(|rank| inner.gone.contains(rank)) {
            return Err(left(rank));
        }
        inner.next += 1;
        let number = inner.next;
        let channel = inner.channels.entry((from, to, tag)).or_default();
        let list = if sending { &mut channel.sends } else { &mut channel.recvs };
        list.push_back(Posted { number, message });
        drop(inner);
        self.hub.0.moved.notify_all();
        Ok(Box::new(Wait { hub: self.hub.clone(), number, channel: (from, to, tag) }))
    }
}

impl MessageTransport for FaultyTransport {
    fn send(&self, message: HostBytes, peer: u32, tag: u32) -> Result<Box<dyn Pending>, DeliveryFailure> {
        self.start(message, (self.rank, peer, tag), true)
    }

    fn recv(&self, message: HostBytes, peer: u32, tag: u32) -> Result<Box<dyn Pending>, DeliveryFailure> {
        self.start(message, (peer, self.rank, tag), false)
    }

    fn abort(&self) {
        self.hub.leave(self.rank);
    }

    fn moved_bytes(&self) -> u64 {
        self.hub.lock().bytes.get(&self.rank).copied().unwrap_or(0)
    }
}

impl Drop for FaultyTransport {
    fn drop(&mut self) {
        self.hub.leave(self.rank);
    }
}

struct Wait {
    hub: Hub,
    number: u64,
    channel: (u32, u32, u32),
}

impl Pending for Wait {
    fn wait(&mut self, limit: Duration) -> Result<(), DeliveryFailure> {
        let end = Instant::now() + limit;
        let mut inner = self.hub.lock();
        loop {
            if let Some(result) = inner.ended.remove(&self.number) {
                return result;
            }
            if inner.deliver(&self.hub.0.faults) {
                self.hub.0.moved.notify_all();
                continue;
            }
            if Instant::now() >= end {
                inner.given_up += 1;
                let why = format!("nothing happened for {} ms", limit.as_millis());
                return Err(DeliveryFailure { why, no_answer: true });
            }
            let moved = &self.hub.0.moved;
            let (back, waited) = moved.wait_timeout(inner, TICK).unwrap_or_else(PoisonError::into_inner);
            inner = back;
            if waited.timed_out() {
                inner.pass();
            }
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        let mut inner = self.hub.lock();
        inner.ended.remove(&self.number);
        if let Some(channel) = inner.channels.get_mut(&self.channel) {
            channel.sends.retain(|posted| posted.number != self.number);
            channel.recvs.retain(|posted| posted.number != self.number);
        }
    }
}
