//! The options by which every program is told its credentials: of the commands that talk to a
//! coordinator, and of workers.

use std::path::PathBuf;

use super::client::{ClientTls, TlsError, Transport};
use super::credentials::Credentials;

/// The environment variable that names the folder of credentials.
pub const TLS_DIR: &str = "COXSWAIN_TLS_DIR";

/// Who calls.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct TlsArgs {
    /// The folder of this caller's ca.pem, cert.pem and key.pem
    #[arg(long, env = TLS_DIR, value_name = "DIR")]
    pub tls_dir: Option<PathBuf>,
    /// The cluster's CA: with --tls-cert and --tls-key in place of a folder, or alone for a worker that joins
    /// by its service account's token
    #[arg(long, value_name = "FILE")]
    pub tls_ca: Option<PathBuf>,
    /// The caller's certificate
    #[arg(long, value_name = "FILE", requires_all = ["tls_ca", "tls_key"])]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's key
    #[arg(long, value_name = "FILE", requires_all = ["tls_ca", "tls_cert"])]
    pub tls_key: Option<PathBuf>,
}

impl TlsArgs {
    /// The credentials, if any are named; three files go before a folder.
    pub fn credentials(&self) -> Result<Option<Credentials>, TlsError> {
        match (&self.tls_ca, &self.tls_cert, &self.tls_key, &self.tls_dir) {
            (Some(ca), Some(cert), Some(key), _) => Ok(Some(Credentials::read_files(ca, cert, key)?)),
            (Some(_), ..) => Err(TlsError::OnlyCa),
            (.., Some(folder)) => Ok(Some(Credentials::read(folder).map_err(TlsError::Folder)?)),
            _ => Ok(None),
        }
    }

    /// Whether options name a certificate. The variable does not count: a shell may have it for other commands.
    pub fn names_certificate(&self) -> bool {
        let variable = std::env::var_os(TLS_DIR).map(PathBuf::from);
        self.tls_dir.as_ref().is_some_and(|folder| Some(folder) != variable.as_ref())
            || self.tls_cert.is_some()
    }

    /// How the coordinator is called with them.
    pub fn transport(&self) -> Result<Transport, TlsError> {
        let credentials = self.credentials()?;
        Ok(match credentials {
            Some(credentials) => Transport::Tls(ClientTls::new(&credentials)?),
            None => Transport::Plain,
        })
    }
}
