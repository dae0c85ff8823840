//! All links of a rank, and the thread that moves their bytes.
//!
//! Two ranks are connected once one of them has a message for the other. Whichever comes first connects; where both
//! do at once, the connection of the higher rank counts.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use coxswain_native::net::{DeliveryFailure, HostBytes, MessageTransport, Pending};
use mio::{Events, Poll, Registry, Token, Waker};

use super::dial::dial;
use super::hello::{Endpoint, Hello};
use super::link::{Link, LinkPhase, MessageTicket, Then, words};
use super::locked;
use super::place::{RankAddress, meet};
use super::port::DataPort;
use super::stream::Stream;
use crate::rendezvous::Store;

/// How many bytes a link moves each way before the next has its turn.
const TURN_BYTES: usize = 4 << 20;
/// How many bytes the thread that starts a send moves itself: a short message is on its way at once, and a long one
/// leaves the thread to its work.
const AT_ONCE_BYTES: usize = 256 << 10;
/// How long a rank that leaves reads what the others still send, so that they get what it sent last. Only its thread
/// waits for that.
const LINGER: Duration = Duration::from_secs(20);

/// The token that wakes the thread.
const WAKE: Token = Token(usize::MAX);

/// What the threads of a rank share.
pub(crate) struct MeshState {
    pub(crate) rank: u32,
    pub(crate) endpoint: Endpoint,
    pub(crate) port: Arc<DataPort>,
    /// Where all ranks are found, once they are there.
    places: OnceLock<Vec<RankAddress>>,
    /// How long connecting may take.
    pub(crate) patience: Duration,
    links: Vec<Mutex<Link>>,
    registry: Registry,
    waker: Waker,
    /// Links with more to do, whose sockets have told so before.
    again: Mutex<Vec<u32>>,
    ended: AtomicBool,
    aborted: AtomicBool,
}

impl MeshState {
    fn link(&self, peer: u32) -> Result<&Mutex<Link>, DeliveryFailure> {
        let link = self.links.get(peer as usize);
        link.ok_or_else(|| DeliveryFailure::new(format!("there is no rank {peer} of {}", self.links.len())))
    }

    /// Whether this rank has ended what it has with the others.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// How many ranks there are.
    pub(crate) fn world(&self) -> usize {
        self.links.len()
    }

    /// Where a rank is found.
    pub(crate) fn place(&self, peer: u32) -> Option<&RankAddress> {
        self.places.get()?.get(peer as usize)
    }

    /// Whether a connection of another rank is wanted, which has proved who it is; then the number of this attempt. One
    /// that comes while an earlier one of the same rank is still being taken counts in its place: the rank has given
    /// that one up.
    pub(crate) fn takes(&self, hello: &Hello) -> Option<u64> {
        let mut link = locked(self.link(hello.from).ok()?);
        let attempt = match link.phase {
            LinkPhase::Idle => 1,
            LinkPhase::Dialing if hello.from > self.rank => 1,
            LinkPhase::Taking(before) => before + 1,
            LinkPhase::Dialing | LinkPhase::Up | LinkPhase::Down(_) => return None,
        };
        link.phase = LinkPhase::Taking(attempt);
        Some(attempt)
    }

    /// The connection that was to be taken broke off before the other end knew. It comes again, or else this end
    /// connects if it has something for the other.
    pub(crate) fn gives_back(self: &Arc<Self>, peer: u32, attempt: u64) {
        let Ok(link) = self.link(peer) else { return };
        let mut link = locked(link);
        if link.phase == LinkPhase::Taking(attempt) {
            link.phase = LinkPhase::Idle;
            if link.has_work() {
                self.begin_dialing(&mut link, peer);
            }
        }
    }

    fn begin_dialing(self: &Arc<Self>, link: &mut Link, peer: u32) {
        link.phase = LinkPhase::Dialing;
        let dialing = self.clone();
        let thread = std::thread::Builder::new().name("dial".to_owned());
        if let Err(error) = thread.spawn(move || dial(&dialing, peer)) {
            link.fail(DeliveryFailure::new(format!("no thread to connect to it: {error}")));
        }
    }

    /// Whether this end still looks for a connection to `peer`.
    pub(crate) fn dials(&self, peer: u32) -> bool {
        self.link(peer)
            .is_ok_and(|link| matches!(locked(link).phase, LinkPhase::Dialing | LinkPhase::Taking(_)))
    }

    /// The connection to `peer` stands: the one that was taken as this attempt, or the one that this end has made.
    pub(crate) fn connected(&self, peer: u32, attempt: Option<u64>, stream: io::Result<Stream>) {
        let Ok(link) = self.link(peer) else { return };
        // Under the lock, for the thread may be told of the first bytes at once.
        let mut link = locked(link);
        if link.phase != attempt.map_or(LinkPhase::Dialing, LinkPhase::Taking) {
            // It was aborted meanwhile, or the other end has come again.
            return;
        }
        let registered = stream.and_then(|mut stream| {
            stream.register(&self.registry, Token(peer as usize))?;
            Ok(stream)
        });
        match registered {
            Ok(stream) => {
                link.up(stream);
                self.keep(peer, link.advance(AT_ONCE_BYTES));
            }
            Err(error) => link.fail(words(&error)),
        }
    }

    /// There is no way to `peer`, unless it has come by itself meanwhile.
    pub(crate) fn unreachable(&self, peer: u32, failure: DeliveryFailure) {
        let Ok(link) = self.link(peer) else { return };
        let mut link = locked(link);
        if matches!(link.phase, LinkPhase::Dialing | LinkPhase::Taking(_)) {
            link.fail(failure);
        }
    }

    /// Moves bytes of a link.
    fn serve(&self, peer: u32) {
        let Ok(link) = self.link(peer) else { return };
        let then = locked(link).advance(TURN_BYTES);
        if then == Then::Again {
            locked(&self.again).push(peer);
        }
    }

    /// Has the thread go on with a link whose turn is over.
    fn keep(&self, peer: u32, then: Then) {
        if then == Then::Again {
            locked(&self.again).push(peer);
            self.wake();
        }
    }

    fn wake(&self) {
        // It fails where the thread's own descriptor is gone, and the thread with it.
        let _ = self.waker.wake();
    }

    fn fail_all(&self, why: &str) {
        self.links.iter().for_each(|link| locked(link).fail(DeliveryFailure::new(why)));
    }
}

/// A rank's connections to the others of its generation.
pub(crate) struct PeerMesh(Arc<MeshState>);

impl PeerMesh {
    /// The mesh of rank `rank` of `world`, once all ranks are there, which find each other by `store`. Connecting to one
    /// of them may take as long as `patience`.
    ///
    /// # Errors
    /// In words: what this system lacks, or who is not there.
    pub(crate) fn join(
        store: &dyn Store,
        rank: u32,
        world: u32,
        port: &Arc<DataPort>,
        patience: Duration,
    ) -> Result<PeerMesh, String> {
        let mesh = PeerMesh::alone(rank, world, port, patience);
        let mesh = mesh.map_err(|error| format!("opening this rank's network: {error}"))?;
        let places = meet(store, rank, world, &RankAddress::of(&mesh.0.endpoint, port))?;
        // It is set once, here.
        let _ = mesh.0.places.set(places);
        Ok(mesh)
    }

    /// A mesh that knows of no other rank yet.
    fn alone(rank: u32, world: u32, port: &Arc<DataPort>, patience: Duration) -> io::Result<PeerMesh> {
        let poll = Poll::new()?;
        let shared = Arc::new(MeshState {
            rank,
            endpoint: Endpoint::random()?,
            port: port.clone(),
            places: OnceLock::new(),
            patience,
            links: (0..world).map(|_| Mutex::new(Link::new())).collect(),
            registry: poll.registry().try_clone()?,
            waker: Waker::new(poll.registry(), WAKE)?,
            again: Mutex::default(),
            ended: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
        });
        let mover = shared.clone();
        std::thread::Builder::new().name("tensors".to_owned()).spawn(move || move_all(&mover, poll))?;
        // From here on the thread ends with the mesh.
        let mesh = PeerMesh(shared);
        port.add(&mesh.0);
        Ok(mesh)
    }

    fn start(
        &self,
        peer: u32,
        start: impl FnOnce(&mut Link) -> Result<MessageTicket, DeliveryFailure>,
    ) -> Result<Box<dyn Pending>, DeliveryFailure> {
        let shared = &self.0;
        let mut link = locked(shared.link(peer)?);
        let ticket = start(&mut link)?;
        match link.phase {
            LinkPhase::Idle if peer == shared.rank => {
                return Err(DeliveryFailure::new("a rank sends itself nothing"));
            }
            LinkPhase::Idle => shared.begin_dialing(&mut link, peer),
            _ => shared.keep(peer, link.flush(AT_ONCE_BYTES)),
        }
        Ok(Box::new(ticket))
    }

    fn end(&self, aborted: bool) {
        let shared = &self.0;
        if aborted {
            shared.aborted.store(true, Ordering::SeqCst);
        }
        shared.ended.store(true, Ordering::SeqCst);
        shared.port.remove(&shared.endpoint.id);
        if aborted {
            shared.fail_all("the exchange was aborted");
        }
        shared.wake();
    }
}

impl MessageTransport for PeerMesh {
    fn send(&self, message: HostBytes, peer: u32, tag: u32) -> Result<Box<dyn Pending>, DeliveryFailure> {
        self.start(peer, |link| link.send(message, tag))
    }

    fn recv(&self, message: HostBytes, peer: u32, tag: u32) -> Result<Box<dyn Pending>, DeliveryFailure> {
        self.start(peer, |link| link.recv(message, tag))
    }

    fn moved_bytes(&self) -> u64 {
        self.0.links.iter().map(|link| locked(link).moved_bytes()).sum()
    }

    fn abort(&self) {
        self.end(true);
    }
}

impl Drop for PeerMesh {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// The thread that moves the bytes of all links, until the rank has ended.
fn move_all(shared: &MeshState, mut poll: Poll) {
    let mut events = Events::with_capacity(256);
    while !shared.has_ended() {
        let again = std::mem::take(&mut *locked(&shared.again));
        let limit = (!again.is_empty()).then_some(Duration::ZERO);
        match poll.poll(&mut events, limit) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                shared.fail_all(&format!("this rank's sockets cannot be watched: {error}"));
                return;
            }
            _ => {}
        }
        let told = events.iter().map(|event| event.token()).filter(|token| *token != WAKE);
        let mut peers: Vec<u32> = told.map(|token| token.0 as u32).collect();
        peers.extend(again.into_iter().filter(|peer| !peers.contains(peer)).collect::<Vec<_>>());
        peers.into_iter().for_each(|peer| shared.serve(peer));
    }
    if !shared.aborted.load(Ordering::SeqCst) {
        linger(shared, &mut poll, &mut events);
    }
}

/// Ends each link in order: a socket that is closed with something unread takes back what was sent last.
fn linger(shared: &MeshState, poll: &mut Poll, events: &mut Events) {
    let end = Instant::now() + LINGER;
    let mut open: Vec<_> = shared.links.iter().collect();
    open.iter().for_each(|link| locked(link).end());
    loop {
        open.retain(|link| locked(link).drain());
        let left = end.saturating_duration_since(Instant::now());
        if open.is_empty() || left.is_zero() || poll.poll(events, Some(left)).is_err() {
            break;
        }
    }
    shared.fail_all("this rank has left");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use coxswain_native::TorchError;
    use coxswain_native::net::Network;
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::MemoryStore;

    /// Two ranks that know of each other, and what is behind them.
    fn pair(patience: Duration) -> [(Network, Arc<MeshState>); 2] {
        let store = MemoryStore::default();
        let join = |rank: u32| {
            let (store, port) = (store.clone(), DataPort::local().unwrap());
            std::thread::spawn(move || PeerMesh::join(&store, rank, 2, &port, patience).unwrap())
        };
        [join(0), join(1)].map(|mesh| {
            let mesh = mesh.join().unwrap();
            let shared = mesh.0.clone();
            (Network::new(mesh, Duration::from_secs(10)), shared)
        })
    }

    /// What `from` sends to `to`.
    fn sent(ranks: &[(Network, Arc<MeshState>); 2], from: usize, to: usize) -> Result<(), TorchError> {
        let (x, y) = (Tensor::from_slice(&[7.0_f32]), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
        let receives = ranks[to].0.recv(&y, from as u32, 1)?;
        ranks[from].0.send(&x, to as u32, 1)?.wait()?;
        receives.wait()?;
        assert_eq!(y, x);
        Ok(())
    }

    fn hello(ranks: &[(Network, Arc<MeshState>); 2], from: u32, to: usize) -> Hello {
        Hello::new(ranks[to].1.endpoint.id, from).unwrap()
    }

    #[test]
    fn a_connection_that_broke_off_while_it_was_taken_comes_again() {
        for (from, to) in [(0, 1), (1, 0)] {
            // The other end never heard that it was taken.
            let ranks = pair(Duration::from_secs(5));
            assert_eq!(ranks[to].1.takes(&hello(&ranks, from as u32, to)), Some(1));
            sent(&ranks, from, to).unwrap();
            // And where this end noticed that, and has something for the other meanwhile.
            let ranks = pair(Duration::from_secs(5));
            assert_eq!(ranks[to].1.takes(&hello(&ranks, from as u32, to)), Some(1));
            let y = Tensor::zeros([1], (Kind::Float, Device::Cpu));
            let receives = ranks[to].0.recv(&y, from as u32, 1).unwrap();
            ranks[to].1.gives_back(from as u32, 1);
            ranks[from].0.send(&Tensor::from_slice(&[7.0_f32]), to as u32, 1).unwrap().wait().unwrap();
            receives.wait().unwrap();
        }
    }

    #[test]
    fn a_connection_that_is_refused_for_another_is_not_awaited_for_ever() {
        let ranks = pair(Duration::from_millis(300));
        // Its link is down, and no other rank knows.
        locked(ranks[0].1.link(1).unwrap()).fail(DeliveryFailure::new("it broke off"));
        let error = ranks[1].0.send(&Tensor::from_slice(&[1.0_f32]), 0, 1).unwrap().wait().unwrap_err();
        assert!(error.0.contains("for another one, which did not come"), "{error}");
    }
}
