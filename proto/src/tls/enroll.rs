//! A token, or an older certificate, for a certificate. The key is made here and stays here: what
//! travels is a request that holds its public half.

use std::path::Path;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tonic::Status;
use tonic::transport::Channel;

use super::client::{ClientTls, TlsError, Transport, why};
use super::credentials::{Credentials, FileError, Secret, read_ca};
use super::token::{JoinToken, NoToken, ca_hash};
use crate::{ConnectError, access_client, connect_over, wire};

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    /// The coordinator could not be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It says no.
    #[error("{}", why(.0).unwrap_or_else(|| .0.message().to_owned()))]
    Refused(Box<Status>),
    /// No key or request can be made.
    #[error("a key and a certificate request cannot be made: {0}")]
    Key(rcgen::Error),
    /// What came back cannot be used.
    #[error("the coordinator's answer cannot be used: {0}")]
    Reply(TlsError),
}

impl From<rcgen::Error> for EnrollError {
    fn from(why: rcgen::Error) -> EnrollError {
        EnrollError::Key(why)
    }
}

impl From<TlsError> for EnrollError {
    fn from(why: TlsError) -> EnrollError {
        EnrollError::Reply(why)
    }
}

impl From<Status> for EnrollError {
    fn from(status: Status) -> EnrollError {
        EnrollError::Refused(Box::new(status))
    }
}

/// A certificate that has just been signed.
#[derive(Clone, Debug)]
pub struct Enrolled {
    /// What to call with.
    pub credentials: Credentials,
    /// How long the certificate lives.
    pub lives: Duration,
}

/// A key that was made here, and the request for its certificate.
struct Asking {
    key: Secret,
    request: String,
}

impl Asking {
    fn new() -> Result<Asking, EnrollError> {
        let key = KeyPair::generate()?;
        let request = CertificateParams::default().serialize_request(&key)?.pem()?;
        Ok(Asking { key: Secret::new(key.serialize_pem()), request })
    }

    fn take(self, reply: wire::CertificateReply) -> Enrolled {
        let wire::CertificateReply { chain, ca, lives_s } = reply;
        let credentials = Credentials { ca, chain, key: self.key };
        Enrolled { credentials, lives: Duration::from_secs(lives_s) }
    }
}

/// What a worker joins by.
#[derive(Clone, Debug)]
pub enum Ticket {
    /// A join token.
    Token(JoinToken),
    /// The token of its pod's service account, and the cluster's CA (PEM), which that token does not name.
    ServiceAccount {
        /// The token, a JWT.
        token: Secret,
        /// The CA.
        ca: String,
    },
}

/// Why a text is not a ticket.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// It is no token.
    #[error(transparent)]
    Token(#[from] NoToken),
    /// A service account's token has no CA with it.
    #[error(
        "this is a service account's token, which does not name the cluster's CA; give ca.pem by --tls-ca"
    )]
    NoCa,
    /// The CA cannot be read.
    #[error("--tls-ca: {0}")]
    Ca(#[from] FileError),
}

impl Ticket {
    /// Reads a join token, or a service account's token, for which `ca` is the file of the CA.
    ///
    /// # Errors
    /// The text is neither, or the CA cannot be read.
    pub fn read(text: &str, ca: Option<&Path>) -> Result<Ticket, TicketError> {
        let text = text.trim();
        // A JWT begins with a JSON object in base64.
        if !text.starts_with("eyJ") {
            return Ok(Ticket::Token(text.parse()?));
        }
        let ca = read_ca(ca.ok_or(TicketError::NoCa)?)?;
        Ok(Ticket::ServiceAccount { token: Secret::new(text), ca })
    }

    /// Exchanges it for a certificate for `name`.
    ///
    /// # Errors
    /// The coordinator cannot be reached, or refuses.
    pub async fn join(&self, url: &str, name: &str) -> Result<Enrolled, EnrollError> {
        match self {
            Ticket::Token(token) => join(url, token, name).await,
            Ticket::ServiceAccount { token, ca } => {
                let channel = connect_over(url, &Transport::Tls(ClientTls::trusting(ca)?)).await?;
                let asking = Asking::new()?;
                let request = wire::JoinRequest {
                    name: name.to_owned(),
                    request: asking.request.clone(),
                    service_account: token.expose().to_owned(),
                    ..wire::JoinRequest::default()
                };
                let reply = access_client(channel).join(request).await?.into_inner();
                Ok(asking.take(wire::CertificateReply { ca: ca.clone(), ..reply }))
            }
        }
    }
}

/// Exchanges a token for a certificate for `name`.
pub async fn join(url: &str, token: &JoinToken, name: &str) -> Result<Enrolled, EnrollError> {
    let tls = ClientTls::pinned(token.ca_hash())?;
    let channel = connect_over(url, &Transport::Tls(tls)).await?;
    let asking = Asking::new()?;
    let request = wire::JoinRequest {
        token: token.spoken().expose().to_owned(),
        name: name.to_owned(),
        request: asking.request.clone(),
        ..wire::JoinRequest::default()
    };
    let reply = access_client(channel).join(request).await?.into_inner();
    let ca = super::client::certificates("the CA", &reply.ca)?;
    if ca.iter().any(|ca| ca_hash(ca) != token.ca_hash()) {
        let why = "its hash is not the token's".to_owned();
        return Err(TlsError::Pem { what: "the CA", why }.into());
    }
    Ok(asking.take(reply))
}

/// A newer certificate for the newest that `tls` has, over a channel of it. From then on `tls` shows the
/// newer one.
pub async fn renew(channel: Channel, tls: &ClientTls) -> Result<Enrolled, EnrollError> {
    let asking = Asking::new()?;
    let by = tls.digest().unwrap_or_default();
    let request = wire::RenewRequest { request: asking.request.clone(), by };
    let reply = access_client(channel).renew(request).await?.into_inner();
    let enrolled = asking.take(reply);
    tls.replace(&enrolled.credentials.chain, &enrolled.credentials.key)?;
    Ok(enrolled)
}
