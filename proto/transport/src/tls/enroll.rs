//! A token, or an older certificate, for a certificate. The key is made here and stays here: what
//! travels is a request that holds its public half.

use std::path::Path;
use std::time::Duration;

use rcgen::{CertificateParams, KeyPair};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::client::{ClientTls, TlsError, Transport, why};
use super::credentials::{Credentials, FileError, Secret, read_ca};
use super::token::{JoinToken, NoToken, ca_hash};
use crate::channel::{ConnectError, access_client, connect_over};
use coxswain_proto::wire;

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

/// When a worker renews a certificate at the latest, in shares of its life.
const RENEWED_AFTER: f64 = 0.4;

/// What waits are cut by at most, so that many who began at once do not go on at once.
const SPREAD: f64 = 0.2;

impl EnrollError {
    /// Whether it may go well soon: the coordinator is away or busy.
    pub fn may_pass(&self) -> bool {
        match self {
            EnrollError::Connect(error) => matches!(error, ConnectError::Unreachable { .. }),
            EnrollError::Refused(status) => may_pass(status),
            EnrollError::Key(_) | EnrollError::Reply(_) => false,
        }
    }

    /// Whether the coordinator will not change its mind: it does not accept the certificate or the token any
    /// more.
    pub fn is_final(&self) -> bool {
        match self {
            EnrollError::Refused(status) => {
                why(status).is_none()
                    && matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated)
            }
            EnrollError::Connect(_) | EnrollError::Key(_) | EnrollError::Reply(_) => false,
        }
    }
}

/// Whether a call may go well soon that ended like this: the coordinator is away or busy.
pub fn may_pass(status: &Status) -> bool {
    let passes =
        matches!(status.code(), Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded);
    // A failure of TLS shows as a coordinator that is away.
    passes && why(status).is_none()
}

/// From 0.8 to 1 of `time`, by a random byte.
pub fn spread(time: Duration, random: u8) -> Duration {
    time.mul_f64(1.0 - SPREAD * f64::from(random) / f64::from(u8::MAX))
}

/// How long after its making a certificate is renewed that lives for `lives`. A coordinator ends a connection
/// with the newest certificate that was renewed over it, so two renewals in a row have to fit into one life.
pub fn renew_after(lives: Duration, random: u8) -> Duration {
    spread(lives.mul_f64(RENEWED_AFTER), random)
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
    /// It is not a token.
    #[error(transparent)]
    Token(#[from] NoToken),
    /// A service account's token has no CA with it.
    #[error(
        "this is a service account's token, which does not name the cluster's CA; give ca.pem by --tls-ca"
    )]
    NoCa,
    /// The CA cannot be read.
    #[error("--tls-ca: {cause}")]
    Ca {
        /// Why.
        cause: FileError,
    },
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
        let ca = read_ca(ca.ok_or(TicketError::NoCa)?).map_err(|cause| TicketError::Ca { cause })?;
        Ok(Ticket::ServiceAccount { token: Secret::new(text), ca })
    }

    /// Exchanges it for a certificate for `name`.
    ///
    /// # Errors
    /// The coordinator cannot be reached, or refuses.
    pub async fn join(&self, url: &str, name: &str) -> Result<Enrolled, EnrollError> {
        let asking = Asking::new()?;
        let request = wire::JoinRequest {
            name: name.to_owned(),
            request: asking.request.clone(),
            ..wire::JoinRequest::default()
        };
        let (tls, request) = match self {
            Ticket::Token(token) => {
                let token_text = token.spoken().expose().to_owned();
                (ClientTls::pinned(token.ca_hash())?, wire::JoinRequest { token: token_text, ..request })
            }
            Ticket::ServiceAccount { token, ca } => {
                let service_account = token.expose().to_owned();
                (ClientTls::trusting(ca)?, wire::JoinRequest { service_account, ..request })
            }
        };
        let channel = connect_over(url, &Transport::Tls(tls)).await?;
        let reply = access_client(channel).join(request).await?.into_inner();
        let ca = self.trusted_ca(&reply)?;
        Ok(asking.take(wire::CertificateReply { ca, ..reply }))
    }

    /// The CA that this ticket trusts, which the reply may hold.
    fn trusted_ca(&self, reply: &wire::CertificateReply) -> Result<String, TlsError> {
        let token = match self {
            Ticket::Token(token) => token,
            Ticket::ServiceAccount { ca, .. } => return Ok(ca.clone()),
        };
        let ca = super::client::certificates("the CA", &reply.ca)?;
        if ca.iter().any(|ca| ca_hash(ca) != token.ca_hash()) {
            let why = "its hash is not the token's".to_owned();
            return Err(TlsError::Pem { what: "the CA", why });
        }
        Ok(reply.ca.clone())
    }
}

/// Exchanges a token for a certificate for `name`.
///
/// # Errors
/// The coordinator cannot be reached, or refuses.
pub async fn join(url: &str, token: &JoinToken, name: &str) -> Result<Enrolled, EnrollError> {
    Ticket::Token(token.clone()).join(url, name).await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_renewals_in_a_row_fit_into_one_life_and_are_spread() {
        let life = Duration::from_secs(3600);
        let [first, last] = [u8::MAX, 0].map(|random| renew_after(life, random).as_secs());
        assert_eq!([first, last], [1152, 1440]);
        assert!(2 * last <= 3600 - 600, "ten minutes are left to try again");
    }

    #[test]
    fn a_busy_coordinator_is_asked_again_and_one_that_refuses_is_not() {
        let unreachable = ConnectError::Unreachable { url: String::new(), why: String::new() };
        let address = ConnectError::Address { url: String::new(), why: String::new() };
        let refused = |code| EnrollError::from(Status::new(code, "no"));
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired);
        let mut tls = Status::unavailable("tls");
        tls.set_source(std::sync::Arc::new(alert));
        // What happened; whether it may pass; whether it is final.
        for (error, passes, is_final) in [
            (EnrollError::from(unreachable), true, false),
            (address.into(), false, false),
            (refused(Code::Unavailable), true, false),
            (refused(Code::ResourceExhausted), true, false),
            (refused(Code::DeadlineExceeded), true, false),
            (refused(Code::InvalidArgument), false, false),
            (refused(Code::PermissionDenied), false, true),
            (refused(Code::Unauthenticated), false, true),
            (tls.into(), false, false),
        ] {
            assert_eq!((error.may_pass(), error.is_final()), (passes, is_final), "{error:?}");
        }
    }
}
