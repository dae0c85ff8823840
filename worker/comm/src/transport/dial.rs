//! The end that connects to another rank: in a thread of its own, which ends once there is a connection or a reason
//! why there is none.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use coxswain_native::net::DeliveryFailure;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ConnectionCommon};
use socket2::{SockRef, TcpKeepalive};

use super::hello::{self, Hello};
use super::link::words;
use super::mesh::MeshState;
use super::place::RankAddress;
use super::port::TensorTls;
use super::stream::Stream;

/// Between two tries to connect.
const RETRY: Duration = Duration::from_millis(20);
/// How long a peer, or the network to it, may leave what was sent without an answer.
const UNANSWERED: Duration = Duration::from_secs(10);

/// What the secret proof is bound to on a connection over TLS.
const CHANNEL: &[u8] = b"EXPORTER-coxswain-tensors";

/// Connects to `peer`, and says in its link how that went.
pub(crate) fn dial(shared: &Arc<MeshState>, peer: u32) {
    let end = Instant::now() + shared.patience;
    let place = shared.place(peer).ok_or_else(|| DeliveryFailure::new("where it is was not told yet"));
    match place.and_then(|place| reach(shared, place, end)) {
        Ok(Some(stream)) => shared.connected(peer, None, Ok(stream)),
        Ok(None) => await_other(shared, peer, end),
        Err(failure) => shared.unreachable(peer, failure),
    }
}

/// The other end has another connection for this pair, which is on its way; unless that one breaks off.
fn await_other(shared: &MeshState, peer: u32, end: Instant) {
    while shared.dials(peer) {
        if Instant::now() >= end {
            let why = "it refused this connection for another one, which did not come";
            return shared.unreachable(peer, DeliveryFailure::new(why));
        }
        std::thread::sleep(RETRY);
    }
}

fn reach(shared: &MeshState, place: &RankAddress, end: Instant) -> Result<Option<Stream>, DeliveryFailure> {
    let tls = place.security(shared.port.tls()).map_err(DeliveryFailure::new)?;
    loop {
        let error = match attempt(shared, place, tls, end) {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        let left = end.saturating_duration_since(Instant::now());
        let DeliveryFailure { why, no_answer } = match error.kind() {
            // Every rank listens before it says where.
            io::ErrorKind::ConnectionRefused => DeliveryFailure::new("its process has ended"),
            io::ErrorKind::PermissionDenied => DeliveryFailure::new(error.to_string()),
            io::ErrorKind::InvalidData => DeliveryFailure::new(format!(
                "TLS failed ({error}); are the certificates of both workers by one CA, and good now?"
            )),
            _ if left < RETRY || shared.has_ended() => words(&error),
            _ => {
                std::thread::sleep(RETRY);
                continue;
            }
        };
        return Err(DeliveryFailure { why: format!("no connection to {}: {why}", place.address), no_answer });
    }
}

fn attempt(
    shared: &MeshState,
    place: &RankAddress,
    tls: Option<&TensorTls>,
    end: Instant,
) -> io::Result<Option<Stream>> {
    let left = end.saturating_duration_since(Instant::now()).max(RETRY);
    let socket = TcpStream::connect_timeout(&place.address, left)?;
    prepare(&socket)?;
    let hello = Hello::new(place.endpoint.id, shared.rank)?;
    let mut timed = Timed { socket: &socket, end };
    let Some(tls) = tls else {
        let taken = hello::connect(&mut timed, &hello, &place.endpoint.secret, &[0; 32])?;
        return taken.then(|| Stream::new(socket, None)).transpose();
    };
    // Which worker it is, the proof says; its certificate says that it is one of the cluster.
    let name = ServerName::from(place.address.ip());
    let mut connection = ClientConnection::new(tls.client.clone(), name).map_err(io::Error::other)?;
    while connection.is_handshaking() {
        connection.complete_io(&mut timed)?;
    }
    let channel = channel(&connection)?;
    let mut stream = rustls::Stream::new(&mut connection, &mut timed);
    let taken = hello::connect(&mut stream, &hello, &place.endpoint.secret, &channel)?;
    taken.then(|| Stream::new(socket, Some(connection.into()))).transpose()
}

/// Has the system find out when the other end is gone without a word.
pub(crate) fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_tcp_user_timeout(Some(UNANSWERED))?;
    let probes = TcpKeepalive::new().with_time(UNANSWERED / 2).with_interval(UNANSWERED / 10).with_retries(5);
    socket.set_tcp_keepalive(&probes)
}

/// What the proof is bound to.
pub(crate) fn channel<Side>(connection: &ConnectionCommon<Side>) -> io::Result<[u8; 32]> {
    connection.export_keying_material([0; 32], CHANNEL, None).map_err(io::Error::other)
}

/// A socket whose reads and writes all end at one time.
pub(crate) struct Timed<'a> {
    pub(crate) socket: &'a TcpStream,
    pub(crate) end: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.end.saturating_duration_since(Instant::now()) {
            left if left.is_zero() => Err(io::Error::new(io::ErrorKind::TimedOut, "it does not answer")),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.left()?)?;
        self.socket.read(buffer)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        self.socket.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
