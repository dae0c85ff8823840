//! TLS connections to the coordinator: 1.3 only, by credentials that can be replaced while a channel
//! lives, or to a coordinator of which only the CA's hash is known.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore,
    ServerConfig, SignatureScheme, version,
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::credentials::{Credentials, FileError, Secret};
use super::peers::configs;
use super::token::ca_hash;

/// Credentials that are of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A folder has not the files of a caller.
    #[error(
        "{0}; --tls-dir and COXSWAIN_TLS_DIR name a folder with ca.pem, cert.pem and key.pem, as `coxswain certs \
         init` and `issue` make them below people/"
    )]
    Folder(FileError),
    /// A text is not what it should be.
    #[error("{what} is not one in PEM form ({why})")]
    Pem {
        /// What it should be.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// There is a CA, and nothing to show.
    #[error(
        "--tls-ca without --tls-cert and --tls-key is for a worker that joins by its service account's token \
         (--join-file)"
    )]
    OnlyCa,
    /// The parts do not fit, or are of a kind that is not taken.
    #[error("the certificate, its key and its CA cannot be used: {0}")]
    Unfit(Error),
}

impl From<Error> for TlsError {
    fn from(why: Error) -> TlsError {
        TlsError::Unfit(why)
    }
}

/// How the coordinator is called.
#[derive(Clone, Debug)]
pub enum Transport {
    /// In plain text, as on one machine.
    Plain,
    /// Over TLS.
    Tls(ClientTls),
}

/// One side of TLS connections. Clones share their credentials.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    current: Arc<Current>,
    roots: Arc<RootCertStore>,
}

impl ClientTls {
    /// Connections by these credentials.
    pub fn new(credentials: &Credentials) -> Result<ClientTls, TlsError> {
        let current = Arc::new(Current(RwLock::new(Some(certified(&credentials.chain, &credentials.key)?))));
        let roots = Arc::new(roots(&credentials.ca)?);
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])?
            .with_root_certificates(roots.clone());
        let config = builder.with_client_cert_resolver(current.clone());
        Ok(ClientTls { config: h2(config), current, roots })
    }

    /// The two ends of connections between workers, by this certificate and those that replace it.
    ///
    /// # Errors
    /// Where the CA cannot be used, as without one.
    pub fn between_workers(&self) -> Result<(Arc<ClientConfig>, Arc<ServerConfig>), TlsError> {
        configs(&self.roots, &self.current)
    }

    /// Connections without a certificate, to a coordinator whose CA has this hash.
    pub fn pinned(ca_hash: &str) -> Result<ClientTls, TlsError> {
        let verifier = Arc::new(Pinned { ca_hash: ca_hash.to_owned(), provider: provider() });
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let current = Arc::new(Current(RwLock::new(None)));
        let config = h2(builder.with_client_cert_resolver(current.clone()));
        Ok(ClientTls { config, current, roots: Arc::new(RootCertStore::empty()) })
    }

    /// Connections without a certificate, to a coordinator whose certificate is by this CA (PEM).
    pub fn trusting(ca: &str) -> Result<ClientTls, TlsError> {
        let roots = Arc::new(roots(ca)?);
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&version::TLS13])?
            .with_root_certificates(roots.clone());
        let current = Arc::new(Current(RwLock::new(None)));
        Ok(ClientTls { config: h2(builder.with_client_cert_resolver(current.clone())), current, roots })
    }

    /// Connections from now on show this certificate.
    pub fn replace(&self, chain: &str, key: &Secret) -> Result<(), TlsError> {
        let newer = certified(chain, key)?;
        *self.current.0.write().unwrap_or_else(PoisonError::into_inner) = Some(newer);
        Ok(())
    }

    /// The BLAKE3 hash, in hexadecimal, of the certificate that connections show from now on, if there is
    /// one.
    pub fn digest(&self) -> Option<String> {
        let current = self.current.0.read().unwrap_or_else(PoisonError::into_inner);
        let certificate = current.as_ref().and_then(|certified| certified.cert.first());
        certificate.map(|der| blake3::hash(der).to_hex().to_string())
    }

    /// A connection; the name or address of the other end has to be in its certificate.
    pub async fn connect(&self, host: &str, port: u16) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let stream = TcpStream::connect((host, port)).await?;
        stream.set_nodelay(true)?;
        TlsConnector::from(self.config.clone()).connect(name, stream).await
    }
}

/// The certificate that the next connection shows.
pub(super) struct Current(RwLock<Option<Arc<CertifiedKey>>>);

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Current")
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_certs(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Trusts the CA whose hash it knows, which the coordinator sends along.
#[derive(Debug)]
struct Pinned {
    ca_hash: String,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates.iter().find(|ca| ca_hash(ca) == self.ca_hash).ok_or_else(|| {
            let why = "its CA is not the one that the token names: another coordinator answers there; check the \
                       address, or ask for a token of that one";
            Error::General(why.to_owned())
        })?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        let verifier = verifier.map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 only".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The one library of ciphers on both sides.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The CAs of a PEM text, of which there has to be one.
pub fn roots(ca: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for ca in certificates("the CA", ca)? {
        roots.add(ca)?;
    }
    Ok(roots)
}

/// The certificates of a PEM text, of which there has to be one.
pub fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(TlsError::Pem { what, why: "it holds no certificate".to_owned() }),
        Err(error) => Err(TlsError::Pem { what, why: error.to_string() }),
    }
}

/// A key of a PEM text.
pub fn private_key(key: &Secret) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(key.expose().as_bytes())
        .map_err(|error| TlsError::Pem { what: "the key", why: error.to_string() })
}

fn certified(chain: &str, key: &Secret) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = certificates("the certificate", chain)?;
    Ok(Arc::new(CertifiedKey::from_der(chain, private_key(key)?, &provider())?))
}

/// Calls go over HTTP/2 only.
fn h2(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config)
}

/// Why a call failed, where it was the TLS below it that did.
pub fn why(status: &tonic::Status) -> Option<String> {
    status.source().and_then(tls_error).map(explain)
}

/// The error of TLS that is a cause of `error`.
pub(crate) fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    let mut next = Some(error);
    while let Some(cause) = next {
        // An I/O error hides the error that it is made of, and names that one's cause as its own.
        let hidden: Option<&'a (dyn StdError + Send + Sync + 'static)> =
            cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let found = cause.downcast_ref().or_else(|| hidden.and_then(|hidden| hidden.downcast_ref()));
        if found.is_some() {
            return found;
        }
        next = match hidden {
            Some(hidden) => Some(hidden),
            None => cause.source(),
        };
    }
    None
}

/// What an error of TLS means here, and what to do about it.
pub(crate) fn explain(error: &Error) -> String {
    use CertificateError as Bad;
    match error {
        Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature) => {
            "the coordinator's certificate is not by the CA given here: is this ca.pem of another cluster?"
                .to_owned()
        }
        Error::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. }) => {
            "the coordinator's certificate is not for this address; `coxswain certs renew --host NAME` on \
             its machine makes one that is"
                .to_owned()
        }
        Error::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. }) => {
            "the coordinator's certificate has expired; `coxswain certs renew` on its machine makes a new one"
                .to_owned()
        }
        Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "the certificate given here has expired; get a new one by a join token or `coxswain certs issue`"
                .to_owned()
        }
        Error::AlertReceived(
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::DecryptError
            | AlertDescription::CertificateUnknown,
        ) => "the coordinator does not accept the certificate given here: it is not by its CA".to_owned(),
        Error::InvalidMessage(_) => {
            "what answers there speaks no TLS; was `coxswain serve` started without --tls-dir?".to_owned()
        }
        Error::General(text) => text.clone(),
        other => other.to_string(),
    }
}
