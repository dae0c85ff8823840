//! Messages between the ranks of a generation over TCP, encrypted where they leave a machine of a cluster with
//! certificates.
//!
//! - [`port`]: the one port at which a worker's peers connect, and strangers with them.
//! - [`hello`]: how the two ends of a connection prove to each other that they are ranks of one generation.
//! - [`place`]: where ranks are found.
//! - [`dial`]: the end that connects.
//! - [`stream`]: bytes in plain text or over TLS, without waiting.
//! - [`link`]: what two ranks have for each other, as frames on one connection.
//! - [`mesh`]: all links of a rank, and the thread that moves their bytes.
//!
//! What the messages are for is [`crate::links`]' matter.

mod dial;
mod hello;
mod link;
mod mesh;
mod place;
mod port;
mod stream;

pub(crate) use mesh::PeerMesh;
pub use port::{DataPort, TensorTls};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Nothing panics while it holds one of these locks, so what they guard is whole.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
