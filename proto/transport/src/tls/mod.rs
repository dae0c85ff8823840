//! Transport security as those who call see it. What the coordinator's side of it is, and who may do
//! what, is the coordinator's.
//!
//! - [`credentials`]: a certificate, its key and its CA, in memory and in files; texts that are not shown.
//! - [`client`]: a TLS connection by them, or to a coordinator of which only the CA's hash is known.
//! - [`peers`]: TLS between workers, by the same credentials.
//! - [`token`]: the text of a join token.
//! - [`enroll`]: a token, or an older certificate, for a certificate.
//! - [`args`]: the options by which every program is told its credentials.

pub mod args;
pub mod client;
pub mod credentials;
pub mod enroll;
mod peers;
pub mod token;

pub use args::TlsArgs;
pub use client::{ClientTls, TlsError, Transport, why};
pub use credentials::{Credentials, Secret};
pub use token::JoinToken;
