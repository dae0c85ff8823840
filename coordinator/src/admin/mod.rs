//! The admin port: a page on which people see the cluster, the same as JSON, numbers for Prometheus, and probes.
//!
//! - [`port`]: where it listens, and how its connections are served.
//! - [`guard`]: who may ask for what. It is a port of its own, of HTTP/1.1, with the rules of the other port's table.
//! - [`sessions`]: those who look by a token.
//! - [`routes`]: the answers; [`stream`]: the one that goes on, as server-sent events.
//! - [`prometheus`]: the numbers.
//! - [`assets`]: the page itself.
//!
//! Nothing here decides: answers come from [`crate::view::hub`].

mod assets;
mod guard;
mod port;
mod prometheus;
mod routes;
mod sessions;
mod stream;

pub(crate) use port::{AdminArgs, PlainDoor, beside};
