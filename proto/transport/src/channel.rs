//! How a client reaches the coordinator. Each channel has a connect time-out, a deadline and
//! keep-alive probes; each client and server has the message bound. Trying again is the caller's.

use std::time::Duration;

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::tls::client::{Transport, explain, tls_error};
use coxswain_proto::wire::access_client::AccessClient;
use coxswain_proto::wire::access_server::{Access, AccessServer};
use coxswain_proto::wire::cluster_client::ClusterClient;
use coxswain_proto::wire::cluster_server::{Cluster, ClusterServer};
use coxswain_proto::wire::jobs_client::JobsClient;
use coxswain_proto::wire::jobs_server::{Jobs, JobsServer};
use coxswain_proto::{PROTOCOL, limits};

/// The coordinator could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address is invalid.
    #[error("`{url}` is not a coordinator address ({why}); write it as HOST:PORT")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: String,
    },
    /// Nothing answers there.
    #[error("no coordinator answers at {url}: {why}; is `coxswain serve` running there?")]
    Unreachable {
        /// What was tried.
        url: String,
        /// The innermost cause.
        why: String,
    },
    /// Somebody answers, whom this caller does not trust or who does not speak TLS.
    #[error("no secure connection to {url}: {why}")]
    Insecure {
        /// What was tried.
        url: String,
        /// What is wrong, and what to do about it.
        why: String,
    },
}

/// A channel to a coordinator that speaks plain text, as those on one machine do.
pub async fn connect(url: &str) -> Result<Channel, ConnectError> {
    connect_over(url, &Transport::Plain).await
}

/// A channel to the coordinator at `url`: `HOST:PORT`, which with credentials means `https://` and
/// without them `http://`. An address that says the other of the two is refused.
///
/// Returns when the connection stands. A channel whose connection breaks connects again with the
/// next call.
pub async fn connect_over(url: &str, transport: &Transport) -> Result<Channel, ConnectError> {
    let address = |why: String| ConnectError::Address { url: url.to_owned(), why };
    let place = match (url.split_once("://"), transport) {
        (None, _) => url,
        (Some(("http", place)), Transport::Plain) | (Some(("https", place)), Transport::Tls(_)) => place,
        (Some(("http", _)), Transport::Tls(_)) => {
            let why =
                "http:// is plain text, and there are credentials for TLS: say https://, or leave them out";
            return Err(ConnectError::Insecure { url: url.to_owned(), why: why.to_owned() });
        }
        (Some(("https", _)), Transport::Plain) => {
            let why = "https:// needs credentials: --tls-dir or COXSWAIN_TLS_DIR, the folder that \
                       `coxswain certs` made, or a join token for a worker";
            return Err(ConnectError::Insecure { url: url.to_owned(), why: why.to_owned() });
        }
        (Some((scheme, _)), _) => return Err(address(format!("the scheme {scheme} is not known"))),
    };
    // TLS is made below by the connector, so that HTTP sees a plain connection in both cases.
    let endpoint = Endpoint::from_shared(format!("http://{place}"))
        .map_err(|error| address(error.to_string()))?
        .connect_timeout(limits::CONNECT_TIMEOUT)
        .timeout(limits::RPC_DEADLINE)
        .http2_keep_alive_interval(limits::KEEPALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true)
        .user_agent(agent())
        .map_err(|error| address(error.to_string()))?;
    let connected = match transport {
        Transport::Plain => endpoint.connect().await,
        Transport::Tls(tls) => {
            let tls = tls.clone();
            let connector = tower::service_fn(move |uri: Uri| {
                let tls = tls.clone();
                async move {
                    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
                    let connecting = tls.connect(host, uri.port_u16().unwrap_or(DEFAULT_PORT));
                    within(limits::CONNECT_TIMEOUT, connecting).await.map(TokioIo::new)
                }
            });
            endpoint.connect_with_connector(connector).await
        }
    };
    connected.map_err(|source| match tls_error(&source) {
        Some(error) => ConnectError::Insecure { url: url.to_owned(), why: explain(error) },
        None => ConnectError::Unreachable { url: url.to_owned(), why: innermost(&source) },
    })
}

/// What each call begins its user agent with, before the number of the [`PROTOCOL`].
const AGENT: &str = "coxswain-protocol/";

/// What this program says of itself with each call.
fn agent() -> String {
    format!("{AGENT}{PROTOCOL} coxswain/{}", env!("CARGO_PKG_VERSION"))
}

/// Refuses a program of another protocol, from the user agent of its call. Programs that are not of Coxswain name no
/// protocol, and speak for themselves.
///
/// # Errors
/// Which versions both have, and what to do.
pub fn expect_protocol(user_agent: &str) -> Result<(), String> {
    let Some(said) = user_agent.strip_prefix(AGENT) else { return Ok(()) };
    let (protocol, program) = said.split_once(' ').unwrap_or((said, ""));
    if protocol == PROTOCOL.to_string() {
        return Ok(());
    }
    let program = program.split(' ').next().unwrap_or_default();
    Err(format!(
        "this program ({}) speaks protocol {} and the coordinator (coxswain/{}) speaks {PROTOCOL}; use the same \
         version of Coxswain on all machines",
        program.escape_debug(),
        protocol.escape_debug(),
        env!("CARGO_PKG_VERSION")
    ))
}

/// The port of an address that names none.
const DEFAULT_PORT: u16 = 7070;

async fn within<T>(limit: Duration, work: impl Future<Output = std::io::Result<T>>) -> std::io::Result<T> {
    let late =
        || std::io::Error::new(std::io::ErrorKind::TimedOut, "the connection did not come about in time");
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(late()))
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// A client of the workers' service.
pub fn cluster_client(channel: Channel) -> ClusterClient<Channel> {
    ClusterClient::new(channel)
        .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_REQUEST_BYTES)
}

/// A client of the users' service.
pub fn jobs_client(channel: Channel) -> JobsClient<Channel> {
    JobsClient::new(channel)
        .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_REQUEST_BYTES)
}

/// A client of the service that gives certificates.
pub fn access_client(channel: Channel) -> AccessClient<Channel> {
    AccessClient::new(channel)
        .max_decoding_message_size(limits::MAX_ACCESS_BYTES)
        .max_encoding_message_size(limits::MAX_ACCESS_BYTES)
}

/// The service that gives certificates.
pub fn access_server<T: Access>(service: T) -> AccessServer<T> {
    AccessServer::new(service)
        .max_decoding_message_size(limits::MAX_ACCESS_BYTES)
        .max_encoding_message_size(limits::MAX_ACCESS_BYTES)
}

/// The workers' service.
pub fn cluster_server<T: Cluster>(service: T) -> ClusterServer<T> {
    ClusterServer::new(service)
        .max_decoding_message_size(limits::MAX_REQUEST_BYTES)
        .max_encoding_message_size(limits::MAX_MESSAGE_BYTES)
}

/// The users' service.
pub fn jobs_server<T: Jobs>(service: T) -> JobsServer<T> {
    JobsServer::new(service)
        .max_decoding_message_size(limits::MAX_REQUEST_BYTES)
        .max_encoding_message_size(limits::MAX_MESSAGE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_protocol_is_refused_with_both_versions() {
        // As tonic appends its own name.
        for agent in [format!("{} tonic/0.14", agent()), "grpcurl/1.9".to_owned(), String::new()] {
            assert_eq!(expect_protocol(&agent), Ok(()), "{agent}");
        }
        let newer = format!("{AGENT}{} coxswain/9.1.0 tonic/0.14", PROTOCOL + 1);
        let refused = expect_protocol(&newer).unwrap_err();
        let expected = format!(
            "this program (coxswain/9.1.0) speaks protocol 3 and the coordinator (coxswain/{}) speaks 2; use the \
             same version of Coxswain on all machines",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(refused, expected);
        assert!(expect_protocol(AGENT).is_err());
    }
}
