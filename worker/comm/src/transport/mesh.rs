//! All links of a rank, and the thread that moves their bytes.
//!
//! Two ranks are connected once one of them has a message for the other. Whichever comes first connects; where both
//! do at once, the connection of the higher rank counts.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use coxswain_native::net::{Failure, Memory, Pending, Transport};
use mio::{Events, Poll, Registry, Token, Waker};
use serde::{Deserialize, Serialize};

use super::dial::dial;
use super::hello::{self, Endpoint, Hello};
use super::link::{Link, Phase, Then, Ticket, words};
use super::port::DataPort;
use super::stream::Stream;
use super::{TensorTls, locked};
use crate::rendezvous::Store;

/// How many bytes a link moves each way before the next has its turn.
const TURN_BYTES: usize = 4 << 20;
/// How many bytes the thread that starts a send moves itself: a short message is on its way at once, and a long one
/// leaves the thread to its work.
const AT_ONCE_BYTES: usize = 256 << 10;
/// How long a rank that leaves reads what the others still send, so that they get what it sent last.
const LINGER: Duration = Duration::from_secs(1);

/// The token that wakes the thread.
const WAKE: Token = Token(usize::MAX);

/// Where a rank is found, as it tells the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) address: SocketAddr,
    id: String,
    secret: String,
    host: String,
    encrypts: Encrypts,
}

/// Which connections a rank encrypts. Two ranks have to agree about theirs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Encrypts {
    None,
    BetweenHosts,
    All,
}

impl Encrypts {
    /// What a port encrypts.
    pub(crate) fn of(tls: Option<&TensorTls>) -> Encrypts {
        match tls {
            None => Encrypts::None,
            Some(tls) if tls.on_one_host => Encrypts::All,
            Some(_) => Encrypts::BetweenHosts,
        }
    }

    /// Whether it encrypts a connection with a rank of `host`.
    pub(crate) fn with(self, host: &[u8; 16]) -> bool {
        match self {
            Encrypts::None => false,
            Encrypts::BetweenHosts => *host != hello::host(),
            Encrypts::All => true,
        }
    }
}

impl Place {
    fn of(endpoint: &Endpoint, port: &DataPort) -> Place {
        Place {
            address: port.address(),
            id: hex(&endpoint.id),
            secret: hex(&endpoint.secret),
            host: hex(&hello::host()),
            encrypts: Encrypts::of(port.tls()),
        }
    }

    /// The endpoint; `None` where the text is of another version.
    pub(crate) fn endpoint(&self) -> Option<Endpoint> {
        Some(Endpoint { id: unhex(&self.id)?, secret: unhex(&self.secret)? })
    }

    /// By what this process connects to it: `None` is plain text.
    ///
    /// # Errors
    /// In words, where one of the two encrypts and the other does not.
    pub(crate) fn security<'a>(&self, own: Option<&'a TensorTls>) -> Result<Option<&'a TensorTls>, String> {
        let host = unhex(&self.host).ok_or("its machine was told in another form; is it another version?")?;
        let text = match (self.encrypts.with(&host), Encrypts::of(own).with(&host)) {
            (false, false) => return Ok(None),
            (true, true) => return Ok(own),
            (true, false) => {
                "it takes encrypted tensors only, and this worker was started with --trust-network, or without a \
                 certificate"
            }
            (false, true) => {
                "it was started with --trust-network, or without a certificate, and this worker sends encrypted \
                 tensors only"
            }
        };
        Err(text.to_owned())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N || !text.is_ascii() {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}

/// The key under which a rank tells its place.
pub(crate) fn place_key(rank: u32) -> Vec<u8> {
    format!("place/{rank}").into_bytes()
}

/// What the threads of a rank share.
pub(crate) struct Shared {
    pub(crate) rank: u32,
    pub(crate) endpoint: Endpoint,
    pub(crate) port: Arc<DataPort>,
    pub(crate) store: Box<dyn Store>,
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

impl Shared {
    fn link(&self, peer: u32) -> Result<&Mutex<Link>, Failure> {
        let link = self.links.get(peer as usize);
        link.ok_or_else(|| Failure::new(format!("there is no rank {peer} of {}", self.links.len())))
    }

    /// Whether this rank has ended what it has with the others.
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Whether a connection of another rank is wanted, which has proved who it is.
    pub(crate) fn takes(&self, hello: &Hello) -> bool {
        let Ok(link) = self.link(hello.from) else { return false };
        let mut link = locked(link);
        let wanted = match link.phase {
            Phase::Idle => true,
            Phase::Dialing => hello.from > self.rank,
            Phase::Taking | Phase::Up | Phase::Down(_) => false,
        };
        if wanted {
            link.phase = Phase::Taking;
        }
        wanted
    }

    /// The connection to `peer` stands.
    pub(crate) fn connected(&self, peer: u32, stream: io::Result<Stream>) {
        let Ok(link) = self.link(peer) else { return };
        // Under the lock, for the thread may be told of the first bytes at once.
        let mut link = locked(link);
        if !matches!(link.phase, Phase::Dialing | Phase::Taking) {
            // It was aborted meanwhile.
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
    pub(crate) fn unreachable(&self, peer: u32, failure: Failure) {
        let Ok(link) = self.link(peer) else { return };
        let mut link = locked(link);
        if link.phase == Phase::Dialing {
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
        self.links.iter().for_each(|link| locked(link).fail(Failure::new(why)));
    }
}

/// A rank's connections to the others of its generation.
pub(crate) struct Mesh(Arc<Shared>);

impl Mesh {
    /// The mesh of rank `rank` of `world`, which is told to the others by `store`. Connecting to one of them may take
    /// as long as `patience`.
    pub(crate) fn new(
        store: impl Store,
        rank: u32,
        world: u32,
        port: &Arc<DataPort>,
        patience: Duration,
    ) -> io::Result<Mesh> {
        let poll = Poll::new()?;
        let shared = Arc::new(Shared {
            rank,
            endpoint: Endpoint::random()?,
            port: port.clone(),
            store: Box::new(store),
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
        let mesh = Mesh(shared);
        port.add(&mesh.0);
        let place = serde_json::to_vec(&Place::of(&mesh.0.endpoint, port)).map_err(io::Error::other)?;
        mesh.0.store.set(&place_key(rank), &place).map_err(io::Error::other)?;
        Ok(mesh)
    }

    pub(crate) fn store(&self) -> &dyn Store {
        &*self.0.store
    }

    fn start(
        &self,
        peer: u32,
        start: impl FnOnce(&mut Link) -> Result<Ticket, Failure>,
    ) -> Result<Box<dyn Pending>, Failure> {
        let shared = &self.0;
        let mut link = locked(shared.link(peer)?);
        let ticket = start(&mut link)?;
        match link.phase {
            Phase::Idle if peer == shared.rank => return Err(Failure::new("a rank sends itself nothing")),
            Phase::Idle => {
                link.phase = Phase::Dialing;
                let dialing = shared.clone();
                let thread = std::thread::Builder::new().name("dial".to_owned());
                if let Err(error) = thread.spawn(move || dial(&dialing, peer)) {
                    link.fail(Failure::new(format!("no thread to connect to it: {error}")));
                }
            }
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

impl Transport for Mesh {
    fn send(&self, message: Memory, peer: u32, tag: u32) -> Result<Box<dyn Pending>, Failure> {
        self.start(peer, |link| link.send(message, tag))
    }

    fn recv(&self, message: Memory, peer: u32, tag: u32) -> Result<Box<dyn Pending>, Failure> {
        self.start(peer, |link| link.recv(message, tag))
    }

    fn abort(&self) {
        self.end(true);
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// The thread that moves the bytes of all links, until the rank has ended.
fn move_all(shared: &Shared, mut poll: Poll) {
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
fn linger(shared: &Shared, poll: &mut Poll, events: &mut Events) {
    let end = Instant::now() + LINGER;
    let mut open: HashMap<u32, &Mutex<Link>> = (0..).zip(&shared.links).collect();
    open.values().for_each(|link| locked(link).end());
    loop {
        open.retain(|_, link| locked(link).drain());
        let left = end.saturating_duration_since(Instant::now());
        if open.is_empty() || left.is_zero() || poll.poll(events, Some(left)).is_err() {
            break;
        }
    }
    shared.fail_all("this rank has left");
}
