//! How a client reaches the coordinator. Each channel has a connect time-out, a deadline and
//! keep-alive probes; each client and server has the message bound. Trying again is the caller's.

use tonic::transport::{Channel, Endpoint};

use crate::limits;
use crate::wire::cluster_client::ClusterClient;
use crate::wire::cluster_server::{Cluster, ClusterServer};
use crate::wire::jobs_client::JobsClient;
use crate::wire::jobs_server::{Jobs, JobsServer};

/// The coordinator could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address makes no sense.
    #[error("`{url}` is no coordinator address ({source}); write it as http://HOST:PORT")]
    Address {
        /// What was given.
        url: String,
        /// What is wrong with it.
        source: tonic::transport::Error,
    },
    /// Nobody answers there.
    #[error("no coordinator answers at {url}: {why}; is `coxswain serve` running there?")]
    Unreachable {
        /// What was tried.
        url: String,
        /// The innermost cause.
        why: String,
        /// The whole of it.
        source: tonic::transport::Error,
    },
}

/// A channel to the coordinator at `url`, such as `http://127.0.0.1:7070`; `http://` may be left out.
///
/// Returns when the connection stands. A channel whose connection breaks connects again with the
/// next call.
pub async fn connect(url: &str) -> Result<Channel, ConnectError> {
    let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    let endpoint = Endpoint::from_shared(full)
        .map_err(|source| ConnectError::Address { url: url.to_owned(), source })?
        .connect_timeout(limits::CONNECT_TIMEOUT)
        .timeout(limits::RPC_DEADLINE)
        .http2_keep_alive_interval(limits::KEEPALIVE_INTERVAL)
        .keep_alive_timeout(limits::KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    endpoint.connect().await.map_err(|source| ConnectError::Unreachable {
        url: url.to_owned(),
        why: innermost(&source),
        source,
    })
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
