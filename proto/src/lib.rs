//! The wire form of what coordinator and worker agree on. Only the two shells know it: everything
//! inside them speaks the checked types of `coxswain-types`.
//!
//! - [`wire`]: generated from the .proto files.
//! - [`convert`]: wire messages to checked types and back.
//! - [`limits`]: the bounds that both ends of a call must share.
//! - [`device`]: what `--device` may be.

pub mod convert;
pub mod device;
pub mod limits;

/// The messages, clients and servers of package `coxswain.v1`; see the .proto files.
#[allow(missing_docs, unreachable_pub, clippy::all)]
pub mod wire {
    tonic::include_proto!("coxswain.v1");
}

/// The path of every call of the .proto files, such as `/coxswain.v1.Jobs/List`.
pub const RPCS: &[&str] = include!(concat!(env!("OUT_DIR"), "/rpcs.rs"));

/// The version of the protocol between programs: what the calls of the .proto files and the documents in them mean.
/// A change that an older program would misread raises it.
pub const PROTOCOL: u32 = 2;

pub use prost::Message;

pub use convert::WireError;
