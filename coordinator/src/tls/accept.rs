//! Connections, bounded before anyone has said who they are. Whoever shows no certificate competes for
//! few places with others who show none, so that no number of strangers takes a place from a worker.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, Once};
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;

use super::authority::shown;
use super::connection::Connection;
use crate::auth::members::Members;
use crate::auth::user::{self, User};
use crate::auth::{Caller, Peer};
use crate::lock::lock;

/// How long a TLS handshake may take. On one network it takes milliseconds.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Files that the coordinator needs beside its connections: journals, metrics, its own folder.
const FILES_KEPT: u64 = 256;

/// Connections that have been accepted and not yet taken up by the server, which takes them at once.
const MAX_ACCEPTED: usize = 64;

/// How long nothing is accepted after the system had no more to give: it does not help to ask at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

/// Connections from one address: all, and strangers among them.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    all: u32,
    strangers: u32,
}

#[derive(Debug, Default)]
struct Counts {
    total: Count,
    of: HashMap<IpAddr, Count>,
}

/// Counts connections and keeps to the bounds.
#[derive(Debug)]
pub(crate) struct Gate {
    bounds: Bounds,
    counts: Mutex<Counts>,
}

impl Gate {
    pub(crate) fn new(bounds: Bounds) -> Arc<Gate> {
        Arc::new(Gate { bounds, counts: Mutex::new(Counts::default()) })
    }

    /// A place for a connection from this address, if there is one.
    pub(crate) fn enter(self: &Arc<Gate>, address: IpAddr, stranger: bool) -> Option<Pass> {
        let mut counts = self.lock();
        let (total, of, bounds) = (counts.total, counts.of.get(&address).copied(), &self.bounds);
        let of = of.unwrap_or_default();
        let full = total.all >= bounds.all || of.all >= bounds.of_address;
        let strange = total.strangers >= bounds.strangers || of.strangers >= bounds.strangers_of_address;
        if full || (stranger && strange) {
            return None;
        }
        let more =
            |count: Count| Count { all: count.all + 1, strangers: count.strangers + u32::from(stranger) };
        counts.total = more(total);
        counts.of.insert(address, more(of));
        Some(Pass { gate: self.clone(), address, stranger })
    }

    fn leave(&self, address: IpAddr, all: u32, strangers: u32) {
        let less = |count: Count| Count {
            all: count.all.saturating_sub(all),
            strangers: count.strangers.saturating_sub(strangers),
        };
        let mut counts = self.lock();
        counts.total = less(counts.total);
        if let Some(of) = counts.of.get_mut(&address) {
            *of = less(*of);
            if of.all == 0 {
                counts.of.remove(&address);
            }
        }
    }

    /// Nothing panics while it holds the lock, so what it guards is whole.
    fn lock(&self) -> MutexGuard<'_, Counts> {
        lock(&self.counts)
    }
}

/// A connection's place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Pass {
    gate: Arc<Gate>,
    address: IpAddr,
    stranger: bool,
}

impl Pass {
    /// The connection has shown a certificate, and is no stranger any more.
    fn known(&mut self) {
        if std::mem::take(&mut self.stranger) {
            self.gate.leave(self.address, 0, 1);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.gate.leave(self.address, 1, u32::from(self.stranger));
    }
}

/// Who may use a port.
#[derive(Clone)]
pub(crate) enum Door {
    /// Whoever reaches it.
    Open,
    /// The user who started this process, and root; it is a port of this machine.
    Owner,
    /// Who shows a certificate, and others as far as the table goes.
    Tls(Arc<ServerConfig>, Arc<Members>),
}

/// The connections of a port.
pub(crate) fn connections(
    listener: TcpListener,
    door: Door,
    gate: Arc<Gate>,
) -> ReceiverStream<std::io::Result<Connection>> {
    let (accepted, connections) = mpsc::channel(MAX_ACCEPTED);
    tokio::spawn(accept(listener, door, gate, accepted));
    ReceiverStream::new(connections)
}

type Accepted = mpsc::Sender<std::io::Result<Connection>>;

async fn accept(listener: TcpListener, door: Door, gate: Arc<Gate>, accepted: Accepted) {
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

async fn establish(stream: TcpStream, address: SocketAddr, door: Door, mut pass: Pass, accepted: Accepted) {
    // An error means that the connection is gone, which reading it will show.
    let _ = stream.set_nodelay(true);
    let (peer, address) = (address, address.ip());
    let connection = match door {
        Door::Open => Connection::plain(stream, Peer { address, caller: Caller::Trusted }, pass),
        Door::Owner => {
            let Some(caller) = local_caller(peer, &stream).await else { return };
            if matches!(caller, Caller::Trusted) {
                pass.known();
            }
            Connection::plain(stream, Peer { address, caller }, pass)
        }
        Door::Tls(config, members) => {
            let stream = match timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return tracing::debug!(%address, "a TLS handshake failed: {error}"),
                Err(_) => return tracing::debug!(%address, "a TLS handshake took too long"),
            };
            let caller = match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
                None => Caller::Nobody,
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
            Connection::tls(stream, Peer { address, caller }, pass)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_take_no_place_from_those_who_are_known() {
        let bounds = Bounds { all: 9, of_address: 6, strangers: 4, strangers_of_address: 2 };
        let gate = Gate::new(bounds);
        let (here, there): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let enter = |address| gate.enter(address, true);
        let mut passes: Vec<Pass> =
            [here, here, there, there].into_iter().map(|a| enter(a).unwrap()).collect();
        assert!(enter(here).is_none() && enter([10, 0, 0, 3].into()).is_none());
        passes[0].known();
        passes[0].known();
        let mut more = vec![enter(here).unwrap()];
        assert!(enter(here).is_none());
        more.extend((0..3).map(|_| gate.enter(here, false).unwrap()));
        assert!(gate.enter(here, false).is_none(), "of one address");
        more.push(gate.enter(there, false).unwrap());
        assert!(gate.enter([10, 0, 0, 3].into(), false).is_none(), "in all");
        drop((passes, more));
        let counts = gate.lock();
        assert_eq!((counts.total.all, counts.total.strangers, counts.of.len()), (0, 0, 0));
    }
}
