//! Places for connections. Whoever shows no certificate competes for few places with others who show none. When these
//! are taken, a new stranger gets the place of the oldest one of the address that has most of them: an honest caller is a
//! stranger for the milliseconds of a handshake, and so is not shut out by those who stay.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::watch;

use crate::lock::lock;

/// Files that the coordinator needs beside its connections: journals, metrics, its own folder.
const FILES_KEPT: u64 = 256;

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// In all: those of a large cluster's workers and people.
    pub(crate) all: u32,
    /// From one address: three quarters, so that one machine gone wrong leaves room for others.
    pub(crate) of_address: u32,
    /// Without a certificate, handshakes in flight among them.
    pub(crate) strangers: u32,
    /// Of these, from one address. A machine that starts its workers has a handshake or two for each.
    pub(crate) strangers_of_address: u32,
}

impl Bounds {
    /// As many as the system lets this process have, up to what any cluster needs.
    pub(crate) fn of_system() -> Bounds {
        let most = 16_384;
        let files = raise_files().map_or(most, |files| files.saturating_sub(FILES_KEPT).min(most));
        let all = u32::try_from(files).unwrap_or(u32::MAX).max(16);
        let strangers = (all / 4).clamp(4, 512);
        Bounds { all, of_address: all - all / 4, strangers, strangers_of_address: strangers.div_ceil(2) }
    }
}

/// Lets this process have as many open files as it may, and says how many; `None` for no bound.
fn raise_files() -> Option<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(_) => current,
    }
}

/// A connection that has shown no certificate.
#[derive(Debug)]
struct UnverifiedConnection {
    number: u64,
    address: IpAddr,
    /// Tells it to go.
    dismissed: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Places {
    all: u32,
    of: HashMap<IpAddr, u32>,
    /// The oldest first.
    strangers: VecDeque<UnverifiedConnection>,
    /// The number of the newest stranger.
    newest: u64,
}

impl Places {
    fn strangers_of(&self, address: IpAddr) -> usize {
        self.strangers.iter().filter(|stranger| stranger.address == address).count()
    }

    /// The address with the most strangers, of several the one with the oldest.
    fn busiest(&self) -> Option<IpAddr> {
        let mut of: HashMap<IpAddr, u32> = HashMap::new();
        self.strangers.iter().for_each(|stranger| *of.entry(stranger.address).or_default() += 1);
        // The last of equals is the greatest.
        let addresses = self.strangers.iter().rev().map(|stranger| stranger.address);
        addresses.max_by_key(|address| of.get(address).copied())
    }

    /// Sends the oldest stranger of an address away.
    fn dismiss(&mut self, address: IpAddr) {
        let oldest = self.strangers.iter().position(|stranger| stranger.address == address);
        if let Some(stranger) = oldest.and_then(|at| self.strangers.remove(at)) {
            stranger.dismissed.send_replace(true);
        }
    }
}

/// Counts connections and keeps to the bounds.
#[derive(Debug)]
pub(crate) struct ConnectionGate {
    bounds: Bounds,
    places: Mutex<Places>,
}

impl ConnectionGate {
    pub(crate) fn new(bounds: Bounds) -> Arc<ConnectionGate> {
        Arc::new(ConnectionGate { bounds, places: Mutex::default() })
    }

    /// A place for a connection from this address, if there is one.
    pub(crate) fn enter(
        self: &Arc<ConnectionGate>,
        address: IpAddr,
        stranger: bool,
    ) -> Option<ConnectionPermit> {
        let (mut places, bounds) = (self.lock(), &self.bounds);
        let of = places.of.get(&address).copied().unwrap_or_default();
        if places.all >= bounds.all || of >= bounds.of_address {
            return None;
        }
        places.all += 1;
        places.of.insert(address, of + 1);
        let (dismissed, told) = watch::channel(false);
        let number = stranger.then(|| {
            if places.strangers_of(address) >= bounds.strangers_of_address as usize {
                places.dismiss(address);
            } else if places.strangers.len() >= bounds.strangers as usize
                && let Some(busiest) = places.busiest()
            {
                places.dismiss(busiest);
            }
            places.newest += 1;
            let number = places.newest;
            places.strangers.push_back(UnverifiedConnection { number, address, dismissed });
            number
        });
        Some(ConnectionPermit { gate: self.clone(), address, stranger: number, told })
    }

    /// Nothing panics while it holds the lock, so what it guards is whole.
    fn lock(&self) -> MutexGuard<'_, Places> {
        lock(&self.places)
    }
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    gate: Arc<ConnectionGate>,
    address: IpAddr,
    /// Its number, while it is one.
    stranger: Option<u64>,
    told: watch::Receiver<bool>,
}

impl ConnectionPermit {
    /// The connection has shown a certificate, and belongs to a known caller now.
    pub(crate) fn known(&mut self) {
        if let Some(number) = self.stranger.take() {
            self.gate.lock().strangers.retain(|stranger| stranger.number != number);
        }
    }

    /// Changes once another stranger has its place.
    pub(crate) fn dismissed(&self) -> watch::Receiver<bool> {
        self.told.clone()
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.known();
        let mut places = self.gate.lock();
        places.all = places.all.saturating_sub(1);
        if let Some(of) = places.of.get_mut(&self.address) {
            *of = of.saturating_sub(1);
            if *of == 0 {
                places.of.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { all: 9, of_address: 6, strangers: 4, strangers_of_address: 3 };

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn gone(passes: &[ConnectionPermit]) -> Vec<usize> {
        (0..passes.len()).filter(|at| *passes[*at].dismissed().borrow()).collect()
    }

    #[test]
    fn strangers_take_no_place_from_those_who_are_known() {
        let gate = ConnectionGate::new(BOUNDS);
        let (here, there) = (address(1), address(2));
        let mut known: Vec<ConnectionPermit> = (0..3).map(|_| gate.enter(here, true).unwrap()).collect();
        known.iter_mut().for_each(|pass| (pass.known(), pass.known()).0);
        let mut strangers: Vec<ConnectionPermit> = (0..3).map(|_| gate.enter(there, true).unwrap()).collect();
        strangers.extend((0..3).map(|_| gate.enter(there, true).unwrap()));
        assert_eq!((gone(&known), gone(&strangers)), (vec![], vec![0, 1, 2]));
        // Those who were sent away count until they are gone.
        assert!(gate.enter(address(3), true).is_none(), "in all");
        strangers.drain(..3);
        assert!(gate.enter(there, false).is_some(), "of one address");
        known.extend((0..3).map(|_| gate.enter(here, false).unwrap()));
        assert!(gate.enter(here, false).is_none(), "of one address");
        drop((known, strangers));
        let places = gate.lock();
        assert_eq!((places.all, places.of.len(), places.strangers.len()), (0, 0, 0));
    }

    #[test]
    fn a_new_stranger_gets_the_oldest_place_of_the_busiest_address() {
        let gate = ConnectionGate::new(BOUNDS);
        let enter = |last| gate.enter(address(last), true).unwrap();
        let mut passes = vec![enter(1), enter(2), enter(2), enter(2)];
        for (last, expected) in [(3, vec![1]), (1, vec![1, 2]), (1, vec![0, 1, 2]), (4, vec![0, 1, 2, 5])] {
            passes.push(enter(last));
            assert_eq!(gone(&passes), expected, "{last}");
            // The places of those who are gone are free.
            assert_eq!(gate.lock().strangers.len(), 4);
            if passes.len() == 6 {
                gate.lock().all -= 2;
            }
        }
    }
}
