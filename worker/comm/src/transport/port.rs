//! The one port of a worker at which its peers connect. It stays open while the worker lives; whoever connects has a
//! few seconds to prove that it is a rank of a generation that this worker takes part in, and costs nothing after.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ServerConfig, ServerConnection};
use socket2::{Domain, SockRef, Socket, Type};

use super::dial::{Timed, channel, prepare};
use super::hello::{self, Hello};
use super::locked;
use super::mesh::MeshState;
use super::place::Encrypts;
use super::stream::Stream;

/// How long somebody who connects has to prove who it is.
const PROOF: Duration = Duration::from_secs(5);
/// How many may be at it at once. One more, and the oldest of them has to go: a rank is done within milliseconds.
const STRANGERS: usize = 256;
/// How many connections may wait to be accepted, where the system allows it. Past it, one who connects tries again
/// after a second.
const BACKLOG: i32 = 4096;
/// After a connection could not be accepted: it does not help to ask at once.
const PAUSE: Duration = Duration::from_millis(50);

/// The errors of Linux for too few descriptors (ENFILE, EMFILE) and too little memory (ENOMEM, ENOBUFS).
const SHORT: [i32; 4] = [23, 24, 12, 105];

/// The first byte of a connection over TLS.
const TLS: u8 = 0x16;

/// By what tensors are encrypted: TLS 1.3 with the worker's certificate on both ends.
#[derive(Clone, Debug)]
pub struct TensorTls {
    /// For connections to others.
    pub client: Arc<ClientConfig>,
    /// For connections of others.
    pub server: Arc<ServerConfig>,
    /// Whether tensors between ranks of one machine are encrypted too, though they do not leave it.
    pub on_one_host: bool,
}

/// A worker's port for tensors.
pub struct DataPort {
    address: SocketAddr,
    inner: Arc<PortState>,
}

struct PortState {
    listener: TcpListener,
    tls: OnceLock<TensorTls>,
    endpoints: Mutex<HashMap<[u8; 16], Weak<MeshState>>>,
    strangers: Mutex<VecDeque<Arc<TcpStream>>>,
    closed: AtomicBool,
}

impl std::fmt::Debug for DataPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DataPort({})", self.address)
    }
}

impl DataPort {
    /// Listens on `listen`; port 0 is one that the system chooses. Others reach a port of all addresses at `seen_as`.
    ///
    /// # Errors
    /// Where the address is taken, or is none of this machine.
    pub fn open(listen: SocketAddr, seen_as: IpAddr) -> io::Result<Arc<DataPort>> {
        let listener = listener(listen)?;
        let mut address = listener.local_addr()?;
        if address.ip().is_unspecified() {
            address.set_ip(seen_as);
        }
        let inner = Arc::new(PortState {
            listener,
            tls: OnceLock::new(),
            endpoints: Mutex::default(),
            strangers: Mutex::default(),
            closed: AtomicBool::new(false),
        });
        let accepting = inner.clone();
        std::thread::Builder::new().name("data-port".to_owned()).spawn(move || accept(&accepting))?;
        Ok(Arc::new(DataPort { address, inner }))
    }

    /// A port of this machine for ranks that are its threads or processes.
    ///
    /// # Errors
    /// As [`DataPort::open`].
    pub fn local() -> io::Result<Arc<DataPort>> {
        let loopback = IpAddr::from([127, 0, 0, 1]);
        DataPort::open(SocketAddr::new(loopback, 0), loopback)
    }

    /// From now on connections with other machines are encrypted, and those that are not are refused. To be called
    /// before a rank joins; a second call changes nothing.
    pub fn encrypt(&self, tls: TensorTls) {
        let _ = self.inner.tls.set(tls);
    }

    /// Where others reach it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn tls(&self) -> Option<&TensorTls> {
        self.inner.tls.get()
    }

    pub(crate) fn add(&self, shared: &Arc<MeshState>) {
        locked(&self.inner.endpoints).insert(shared.endpoint.id, Arc::downgrade(shared));
    }

    pub(crate) fn remove(&self, id: &[u8; 16]) {
        locked(&self.inner.endpoints).remove(id);
    }
}

impl Drop for DataPort {
    fn drop(&mut self) {
        self.inner.closed.store(true, Ordering::SeqCst);
        // Ends the wait of the thread, which alone holds the listener then.
        let _ = SockRef::from(&self.inner.listener).shutdown(Shutdown::Both);
    }
}

fn listener(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM, None)?;
    // A port that connections of an earlier process still name is free.
    socket.set_reuse_address(true)?;
    socket.bind(&listen.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The thread that accepts connections.
fn accept(inner: &Arc<PortState>) {
    loop {
        let accepted = inner.listener.accept();
        if inner.closed.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((socket, _)) => admit(inner, socket),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                // Where descriptors or memory are short, those of strangers come back.
                if error.raw_os_error().is_some_and(|code| SHORT.contains(&code)) {
                    evict(inner, 0);
                }
                std::thread::sleep(PAUSE);
            }
        }
    }
}

/// Lets the oldest strangers go until there are at most so many.
fn evict(inner: &PortState, most: usize) {
    let mut strangers = locked(&inner.strangers);
    while strangers.len() > most {
        if let Some(oldest) = strangers.pop_front() {
            let _ = oldest.shutdown(Shutdown::Both);
        }
    }
}

/// Gives one who connects a thread in which to prove who it is.
fn admit(inner: &Arc<PortState>, socket: TcpStream) {
    let socket = Arc::new(socket);
    locked(&inner.strangers).push_back(socket.clone());
    // All ranks of the generations here may come at once.
    let endpoints = locked(&inner.endpoints);
    let ranks: usize = endpoints.values().filter_map(Weak::upgrade).map(|shared| shared.world()).sum();
    drop(endpoints);
    evict(inner, STRANGERS + ranks);
    let which = Arc::as_ptr(&socket);
    let (own, stranger) = (inner.clone(), socket);
    let thread = std::thread::Builder::new().name("hello".to_owned()).stack_size(256 << 10);
    let started = thread.spawn(move || {
        // Who is a stranger goes.
        let _ = meet(&own, stranger);
    });
    if started.is_err() {
        known(inner, which);
    }
}

/// Takes one off the list of those who may have to go.
fn known(inner: &PortState, which: *const TcpStream) {
    locked(&inner.strangers).retain(|other| Arc::as_ptr(other) != which);
}

/// Takes one off the list of strangers when it is dropped.
struct Stranger<'a> {
    inner: &'a PortState,
    which: *const TcpStream,
}

impl Drop for Stranger<'_> {
    fn drop(&mut self) {
        known(self.inner, self.which);
    }
}

/// Finds out who connects, and takes its connection where it is a rank of a generation and that is wanted.
fn meet(inner: &PortState, socket: Arc<TcpStream>) -> io::Result<()> {
    let stranger = Stranger { inner, which: Arc::as_ptr(&socket) };
    prepare(&socket)?;
    let mut timed = Timed { socket: &socket, end: Instant::now() + PROOF };
    let mut first = [0];
    socket.set_read_timeout(Some(PROOF))?;
    if socket.peek(&mut first)? == 0 {
        return Ok(());
    }
    let address = socket.peer_addr()?.ip();
    let find = |encrypted: bool| {
        move |hello: &Hello| {
            let shared = locked(&inner.endpoints).get(&hello.endpoint)?.upgrade()?;
            let secret = shared.endpoint.secret;
            let plain = !Encrypts::of(inner.tls.get()).with(&hello.host, address);
            (encrypted || plain).then_some((shared, secret))
        }
    };
    let (shared, from, attempt, connection) = match (inner.tls.get(), first[0]) {
        (Some(tls), TLS) => {
            let mut connection = ServerConnection::new(tls.server.clone()).map_err(io::Error::other)?;
            while connection.is_handshaking() {
                connection.complete_io(&mut timed)?;
            }
            let channel = channel(&connection)?;
            let mut stream = rustls::Stream::new(&mut connection, &mut timed);
            let (shared, hello) = hello::listen(&mut stream, &channel, find(true))?;
            let attempt = decide(stranger, &mut stream, &shared, &hello)?;
            (shared, hello.from, attempt, Some(connection.into()))
        }
        _ => {
            let (shared, hello) = hello::listen(&mut timed, &[0; 32], find(false))?;
            let attempt = decide(stranger, &mut timed, &shared, &hello)?;
            (shared, hello.from, attempt, None)
        }
    };
    if attempt.is_some() {
        let socket = Arc::into_inner(socket).ok_or_else(|| io::Error::other("it is being sent away"));
        shared.connected(from, attempt, socket.and_then(|socket| Stream::new(socket, connection)));
    }
    Ok(())
}

/// Tells a rank whether its connection is taken; then the number of the attempt.
fn decide(
    stranger: Stranger<'_>,
    stream: &mut impl Write,
    shared: &Arc<MeshState>,
    hello: &Hello,
) -> io::Result<Option<u64>> {
    // It is none any more, so it cannot be sent away to make room.
    drop(stranger);
    let attempt = shared.takes(hello);
    let answered = hello::answer(stream, attempt.is_some());
    if let (Err(_), Some(attempt)) = (&answered, attempt) {
        shared.gives_back(hello.from, attempt);
    }
    answered.map(|()| attempt)
}
