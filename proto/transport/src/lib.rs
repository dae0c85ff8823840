//! How programs reach the coordinator and each other: connections, who stands at their ends, and the bounds that both
//! ends of a call keep. What is said over them is `coxswain-proto`'s.
//!
//! - [`channel`]: how a client reaches the coordinator; clients and servers with their bounds in place.
//! - [`tls`]: transport security as those who call see it.

pub mod channel;
pub mod tls;

pub use channel::{
    ConnectError, access_client, access_server, cluster_client, cluster_server, connect, connect_over,
    expect_protocol, jobs_client, jobs_server,
};
