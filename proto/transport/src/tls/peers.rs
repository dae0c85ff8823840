//! TLS between workers, each by its own certificate: 1.3 only, and each end has to be of the same CA. Which worker the
//! other one is, those who connect settle themselves.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme, version,
};

use super::client::{Current, TlsError, provider};

/// The two ends of connections between workers, by the certificate that `current` has at each.
pub(super) fn configs(
    roots: &Arc<RootCertStore>,
    current: &Arc<Current>,
) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), TlsError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build();
    let verifier = verifier.map_err(|error| TlsError::Unfit(Error::General(error.to_string())))?;
    let mut client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(WorkerVerifier(verifier.clone())))
        .with_client_cert_resolver(current.clone());
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(current.clone());
    // Each connection shows a certificate that is good now.
    client.resumption = rustls::client::Resumption::disabled();
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok((Arc::new(client), Arc::new(server)))
}

/// Takes the certificate of a worker, which is one for callers, from the end that is called as well.
#[derive(Debug)]
struct WorkerVerifier(Arc<dyn ClientCertVerifier>);

impl ServerCertVerifier for WorkerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.0.verify_client_cert(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
