//! The coordinator's own folder, and the TLS of its port: version 1.3, certificates of callers checked
//! by the cluster's CA. A caller without one gets through the handshake, since it may join.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use coxswain_transport::tls::client::{certificates, private_key, provider, roots};
use coxswain_transport::tls::credentials::{CA, CHAIN, KEY};
use coxswain_transport::tls::{Credentials, Secret};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ServerConfig, version};

use super::authority::{Authority, expires_s};
use crate::auth::now_s;

/// The file of the CA's key, in the coordinator's folder only.
pub(crate) const CA_KEY: &str = "ca-key.pem";

/// How long before a certificate's end the coordinator says so at its start, in seconds: a month.
const WARN_S: u64 = 30 * 24 * 3600;

/// What `coxswain certs init` made.
#[derive(Debug)]
pub(crate) struct TlsFolder {
    pub(crate) authority: Authority,
    pub(crate) server: Credentials,
}

impl TlsFolder {
    pub(crate) fn open(folder: &Path) -> Result<TlsFolder> {
        let authority = open_authority(folder)?;
        let server = Credentials::read_files(&folder.join(CA), &folder.join(CHAIN), &folder.join(KEY))?;
        let left_s = expires_s(&server.chain)?.saturating_sub(now_s());
        if left_s < WARN_S {
            let days = left_s / (24 * 3600);
            tracing::warn!(
                "the coordinator's certificate is good for {days} more days; `coxswain certs renew` makes a \
                 new one"
            );
        }
        Ok(TlsFolder { authority, server })
    }

    /// The TLS of the port.
    pub(crate) fn server_config(&self) -> Result<Arc<ServerConfig>> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots(self.authority.pem())?), provider())
                .allow_unauthenticated()
                .build()
                .context("the CA")?;
        let mut chain = certificates("the certificate", &self.server.chain)?;
        // Who joins finds the CA by its hash among what the server sends.
        chain.push(self.authority.der().clone());
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, private_key(&self.server.key)?)
            .context("the coordinator's certificate and key")?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A session that is taken up again would not show its certificate anew, which may have expired.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }
}

/// The cluster's CA in the coordinator's folder.
pub(crate) fn open_authority(folder: &Path) -> Result<Authority> {
    let read = |name: &str| {
        let path = folder.join(name);
        std::fs::read_to_string(&path).with_context(|| {
            format!(
                "{} cannot be read; `coxswain certs init --dir {}` makes it",
                path.display(),
                folder.display()
            )
        })
    };
    Authority::open(read(CA)?, &Secret::new(read(CA_KEY)?))
}
