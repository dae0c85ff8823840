//! The coordinator's side of transport security.
//!
//! - [`authority`]: a CA: the cluster's, or that of one generation; and what its certificates say.
//! - [`config`]: the coordinator's own folder, and the TLS of its port.
//! - [`accept`]: connections, until it is known who calls.
//! - [`gate`]: how many of them there may be, and who has to go.
//! - [`connection`]: one of them, with its caller and the time until which it may be used.
//! - [`certs`]: `coxswain certs` and `coxswain token`.

pub(crate) mod accept;
pub(crate) mod authority;
pub(crate) mod certs;
pub(crate) mod config;
pub(crate) mod connection;
pub(crate) mod gate;
