//! Connections, from the listener to a caller who is known as far as they show who they are.

use std::net::SocketAddr;
use std::sync::{Arc, Once};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::authority::shown;
use super::connection::Connection;
use super::gate::{ConnectionGate, ConnectionPermit};
use crate::auth::members::Membership;
use crate::auth::user::{self, User};
use crate::auth::{Caller, Peer};

/// How long a TLS handshake may take. On one network it takes milliseconds.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Connections that have been accepted and not yet taken up by the server, which takes them at once.
const MAX_ACCEPTED: usize = 64;

/// How long nothing is accepted after the system had no more to give: it does not help to ask at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who may use a port.
#[derive(Clone)]
pub(crate) enum Door {
    /// Whoever reaches it.
    Open,
    /// The user who started this process, and root; it is a port of this machine.
    Owner,
    /// Who shows a certificate, and others as far as the table goes.
    Tls(Arc<ServerConfig>, Arc<Membership>),
}

/// The connections of a port.
pub(crate) fn connections(
    listener: TcpListener,
    door: Door,
    gate: Arc<ConnectionGate>,
) -> ReceiverStream<std::io::Result<Connection>> {
    let (accepted, connections) = mpsc::channel(MAX_ACCEPTED);
    tokio::spawn(accept(listener, door, gate, accepted));
    ReceiverStream::new(connections)
}

type Accepted = mpsc::Sender<std::io::Result<Connection>>;

async fn accept(listener: TcpListener, door: Door, gate: Arc<ConnectionGate>, accepted: Accepted) {
    loop {
        let (stream, address) = tokio::select! {
            connection = listener.accept() => match connection {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!("a connection cannot be accepted: {error}");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
            // The server has ended.
            () = accepted.closed() => return,
        };
        // Dropping the stream closes it, which costs nothing more.
        let Some(pass) = gate.enter(address.ip(), !matches!(door, Door::Open)) else { continue };
        tokio::spawn(establish(stream, address, door.clone(), pass, accepted.clone()));
    }
}

async fn establish(
    stream: TcpStream,
    address: SocketAddr,
    door: Door,
    mut pass: ConnectionPermit,
    accepted: Accepted,
) {
    // An error means that the connection is gone, which reading it will show.
    let _ = stream.set_nodelay(true);
    let (peer, address) = (address, address.ip());
    let connection = match door {
        Door::Open => Connection::plain(stream, Peer::new(address, Caller::Trusted), pass),
        Door::Owner => {
            let Some(caller) = local_caller(peer, &stream).await else { return };
            if matches!(caller, Caller::Trusted) {
                pass.known();
            }
            Connection::plain(stream, Peer::new(address, caller), pass)
        }
        Door::Tls(config, members) => {
            let mut dismissed = pass.dismissed();
            let handshake = timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream));
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                _ = dismissed.changed() => return tracing::debug!(%address, "another stranger has its place"),
            };
            let stream = match shaken {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%address, "a TLS handshake failed: {error}"),
                Err(_) => return tracing::debug!(%address, "a TLS handshake took too long"),
            };
            let caller = match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
                None => Caller::Anonymous,
                Some(certificate) => match shown(certificate) {
                    Ok(shown) => Caller::Known(members.met(shown)),
                    Err(error) => {
                        return tracing::warn!(%address, "a certificate of ours that says not who: {error:#}");
                    }
                },
            };
            if matches!(&caller, Caller::Known(known) if !known.is_revoked()) {
                pass.known();
            }
            Connection::tls(stream, Peer::new(address, caller), pass)
        }
    };
    // An error means that the server has ended.
    let _ = accepted.send(Ok(connection)).await;
}

/// Who of this machine's users calls; `None` where the connection is gone.
async fn local_caller(peer: SocketAddr, stream: &TcpStream) -> Option<Caller> {
    static TOLD: Once = Once::new();
    let own = stream.local_addr().ok()?;
    match tokio::task::spawn_blocking(move || user::of(peer, own)).await.ok()? {
        Ok(User::Owner) => Some(Caller::Trusted),
        Ok(User::Other(user)) => Some(Caller::OtherUser(user)),
        Ok(User::Gone) => None,
        Err(error) => {
            TOLD.call_once(|| {
                tracing::warn!(
                    "this system does not tell which user calls ({error}): calls of all its users are taken"
                );
            });
            Some(Caller::Trusted)
        }
    }
}
