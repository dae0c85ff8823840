//! Where the admin port listens, and how its connections are served: HTTP/1.1 with bounds on heads, bodies,
//! connections and time.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::{Extension, Router};
use clap::Args;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_stream::StreamExt as _;
use tonic::transport::server::Connected as _;

use super::guard::{Guard, Hosts};
use super::routes::routes;
use super::sessions::Sessions;
use crate::auth::members::Membership;
use crate::tls::accept::{Door, connections};
use crate::tls::gate::{Bounds, ConnectionGate};
use crate::view::hub::Hub;

/// How many connections there may be: people with a few pages each, and what scrapes.
const BOUNDS: Bounds = Bounds { all: 512, of_address: 384, strangers: 64, strangers_of_address: 32 };

/// How long a request's head may take, and how long a connection may rest between two requests.
const HEAD: Duration = Duration::from_secs(30);

/// The most bytes of a request's head.
const MAX_HEAD_BYTES: usize = 32 << 10;

/// The word for no admin port.
const OFF: &str = "off";

/// Where the page is.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct AdminArgs {
    /// Where to serve the page, /metrics and /healthz; `off` for nowhere. Without certificates an address of this
    /// machine only.
    #[arg(long, value_name = "HOST:PORT|off", env = "COXSWAIN_ADMIN_LISTEN")]
    admin_listen: Option<String>,
}

/// Who may use an admin port without certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlainDoor {
    /// The user who started this process, and root.
    Owner,
    /// Every user of this machine.
    AnyUser,
}

/// An admin port that is open.
pub(crate) struct AdminPort {
    listener: TcpListener,
    address: SocketAddr,
}

/// The certificates of the other port, and those who may call.
pub(crate) type PortTls<'a> = (&'a Arc<ServerConfig>, &'a Arc<Membership>);

impl AdminArgs {
    /// Opens the port: the one that is asked for, or `default`. `None` where none is wanted, or where it cannot be had,
    /// which is said and stops nothing.
    ///
    /// # Errors
    /// The address is invalid, or other machines reach it and there are no certificates.
    pub(crate) async fn open(
        &self,
        default: SocketAddr,
        has_certificates: bool,
    ) -> anyhow::Result<Option<AdminPort>> {
        let asked = self.admin_listen.as_deref();
        if asked == Some(OFF) {
            return Ok(None);
        }
        let address = match asked {
            // Calls need certificates, and a page of this machine would let its user in without one.
            None if has_certificates => return Ok(None),
            None => default,
            Some(asked) => resolved(asked).await?,
        };
        if !address.ip().is_loopback() && !has_certificates {
            anyhow::bail!(
                "--admin-listen {address} can be reached from other machines, and there are no certificates: whoever \
                 reaches the page could cancel every run. Listen on 127.0.0.1 and reach it by `ssh -L`; or make \
                 certificates by `coxswain certs init --host NAME` and name them by --tls-dir"
            );
        }
        match TcpListener::bind(address).await {
            Ok(listener) => {
                let address = listener.local_addr().context("the address of the admin port")?;
                Ok(Some(AdminPort { listener, address }))
            }
            Err(error) => {
                tracing::warn!(
                    "no page: cannot listen on {address} ({error}); training goes on without it. Name another \
                     address by --admin-listen, such as 127.0.0.1:0 for a port that is free, or `off`"
                );
                Ok(None)
            }
        }
    }
}

async fn resolved(asked: &str) -> anyhow::Result<SocketAddr> {
    let mut addresses = tokio::net::lookup_host(asked).await.with_context(|| {
        format!("--admin-listen {asked} cannot be resolved; write it as HOST:PORT, or `off`")
    })?;
    addresses.next().with_context(|| format!("--admin-listen {asked} resolves to no address"))
}

/// The TLS of the other port, for HTTP/1.1.
fn of_http(config: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Arc::new(config)
}

impl AdminPort {
    /// Where the page is.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.address.ip().is_loopback() { "http" } else { "https" };
        format!("{scheme}://{}/", self.address)
    }

    /// Serves it for as long as this process lives, or until the task is aborted: on this machine to those of `plain`,
    /// elsewhere over TLS.
    pub(crate) fn serve(self, hub: Arc<Hub>, plain: PlainDoor, tls: Option<PortTls<'_>>) -> JoinHandle<()> {
        let own = Guard { hosts: Hosts::OfMachine(self.address.ip()), sessions: None };
        let (door, guard) = match (self.address.ip().is_loopback(), tls) {
            (false, Some((config, members))) => {
                // Its certificate names it.
                let guard = Guard { hosts: Hosts::Any, sessions: Some(Sessions::new(members.clone())) };
                (Door::Tls(of_http(config), members.clone()), guard)
            }
            (true, _) if plain == PlainDoor::AnyUser => (Door::Open, own),
            _ => (Door::Owner, own),
        };
        tokio::spawn(serve(self.listener, door, routes(hub, guard)))
    }
}

async fn serve(listener: TcpListener, door: Door, routes: Router) {
    let mut incoming = connections(listener, door, ConnectionGate::new(BOUNDS));
    while let Some(connection) = incoming.next().await {
        let Ok(connection) = connection else { continue };
        let service = routes.clone().layer(Extension(connection.connect_info()));
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(MAX_HEAD_BYTES);
        let served = http.serve_connection(TokioIo::new(connection), TowerToHyperService::new(service));
        tokio::spawn(async move {
            if let Err(error) = served.await {
                tracing::debug!("a connection of the admin port broke: {error}");
            }
        });
    }
}

/// How far the admin port is from that of calls where none is named. Workers of the same machine often have the ports in
/// between.
const BESIDE: u16 = 10;

/// The admin port where none is named: of this machine, beside the port of `listen`.
pub(crate) fn beside(listen: SocketAddr) -> SocketAddr {
    let port = if listen.port() == 0 { 0 } else { listen.port().checked_add(BESIDE).unwrap_or(0) };
    SocketAddr::new(IpAddr::from([127, 0, 0, 1]), port)
}
