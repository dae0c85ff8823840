//! Tensors between the ranks of a generation, safe, over [`coxswain_native`].
//!
//! - [`Links`]: this rank's connection to all others, and the tags that keep their traffic apart.
//! - [`Pipe`]: sends that no thread waits for, so that compute goes on.
//! - [`Links::close`]: one small exchange over all ranks.
//! - [`DataPort`]: the port at which a worker's peers connect to it.
//!
//! Who exchanges what, and when, is left to `coxswain-engine`; how ranks find each other is a
//! [`Store`], which the worker's shell provides ([`MemoryStore`] serves ranks of one process, [`FileStore`]
//! those of one machine).

mod files;
mod links;
mod pipe;
mod rendezvous;
mod transport;
mod tree;

pub use coxswain_native::TorchError;
pub use coxswain_native::net::{Group, Op, Transfer};
pub use files::FileStore;
pub use links::{Axis, Links, RankActivity, SHARED_MAX_BYTES};
pub use pipe::Pipe;
pub use rendezvous::{MemoryStore, Store};
pub use transport::{DataPort, TensorTls};
