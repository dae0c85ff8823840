//! The service that gives certificates: wire -> a token or a certificate -> a newer certificate.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use coxswain_proto::tls::JoinToken;
use coxswain_proto::tls::client::provider;
use coxswain_proto::tls::token::{ID_BYTES, SECRET_BYTES};
use coxswain_proto::wire;
use tonic::{Request, Response, Status};

use crate::auth::identity::{Identity, Role};
use crate::auth::tokens::{Grant, TokenError, Tokens};
use crate::auth::{Caller, Known, now_s};
use crate::lock::lock;
use crate::tls::authority::{Authority, DAY, requested_key};

/// How long a worker's certificate lives. It is renewed at half of that, so a coordinator may be away for
/// half an hour, and a stolen one is good for an hour.
pub(crate) const WORKER_LIFE: Duration = Duration::from_secs(3600);

/// How long a person's certificate by a token lives; nobody renews it by itself.
pub(crate) const PERSON_LIFE: Duration = Duration::from_secs(30 * DAY.as_secs());

/// The cluster's CA and what it remembers.
#[derive(Debug)]
pub(crate) struct Security {
    authority: Authority,
    tokens: Mutex<Tokens>,
}

impl Security {
    pub(crate) fn new(authority: Authority) -> Security {
        Security { authority, tokens: Mutex::default() }
    }

    /// Makes a token and remembers it.
    pub(crate) fn token(&self, grant: Grant) -> Result<JoinToken, Status> {
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        let random = provider();
        let filled = random.secure_random.fill(&mut id).and_then(|()| random.secure_random.fill(&mut secret));
        filled.map_err(|_| Status::internal("the system gives no random bytes"))?;
        let token = JoinToken::new(id, secret, self.authority.der());
        self.tokens().add(&token, grant, now_s()).map_err(refused)?;
        Ok(token)
    }

    /// Signs a certificate; returns it and its end.
    fn certificate(
        &self,
        identity: &Identity,
        request: &str,
        life: Duration,
    ) -> Result<(wire::CertificateReply, u64), Status> {
        let key = requested_key(request).map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        let chain = self.authority.client(identity, &key, life).map_err(broken)?;
        let until_s = now_s() + life.as_secs();
        self.tokens().holds(identity, until_s, now_s());
        let ca = self.authority.pem().to_owned();
        Ok((wire::CertificateReply { chain, ca, lives_s: life.as_secs() }, until_s))
    }

    fn tokens(&self) -> MutexGuard<'_, Tokens> {
        lock(&self.tokens)
    }
}

/// The service; without [`Security`] it says that there are no certificates here.
pub(crate) struct AccessService {
    pub(crate) security: Option<Arc<Security>>,
}

impl AccessService {
    fn security(&self) -> Result<&Security, Status> {
        self.security.as_deref().ok_or_else(|| {
            Status::failed_precondition(
                "this coordinator has no certificates: `coxswain certs init` makes some, and \
                 `serve --tls-dir` uses them",
            )
        })
    }
}

#[tonic::async_trait]
impl wire::access_server::Access for AccessService {
    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::CertificateReply>, Status> {
        let security = self.security()?;
        let wire::JoinRequest { token, name, request } = request.into_inner();
        // Looked at first, so that a request that makes no sense uses no token up.
        requested_key(&request).map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        let identity = security.tokens().redeem(&token, &name, now_s()).map_err(refused)?;
        let life = if identity.role == Role::Worker { WORKER_LIFE } else { PERSON_LIFE };
        let (reply, _) = security.certificate(&identity, &request, life)?;
        tracing::info!("{identity} joins by the token {}", token.split('.').next().unwrap_or_default());
        Ok(Response::new(reply))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::CertificateReply>, Status> {
        let security = self.security()?;
        let known = known(&request)?;
        let (reply, until_s) =
            security.certificate(&known.identity, &request.get_ref().request, WORKER_LIFE)?;
        known.renewed(until_s);
        tracing::debug!("{} renews its certificate", known.identity);
        Ok(Response::new(reply))
    }

    async fn create_token(
        &self,
        request: Request<wire::CreateTokenRequest>,
    ) -> Result<Response<wire::CreateTokenReply>, Status> {
        let security = self.security()?;
        let by = known(&request)?.identity.to_string();
        let wire::CreateTokenRequest { role, jobs, ttl_s, uses } = request.into_inner();
        let malformed = |error: crate::auth::identity::Malformed| Status::invalid_argument(error.to_string());
        let grant = Grant {
            role: role.parse().map_err(malformed)?,
            jobs: jobs.parse().map_err(malformed)?,
            ttl_s,
            uses,
        };
        tracing::info!("{by} makes a token for {uses} x {role} of jobs {jobs}, good for {ttl_s} s");
        let token = security.token(grant)?;
        Ok(Response::new(wire::CreateTokenReply { token: token.text().expose().to_owned() }))
    }
}

/// The certificate that a call comes with. The table has let no other through.
fn known<T>(request: &Request<T>) -> Result<Arc<Known>, Status> {
    match Caller::of(request) {
        Caller::Known(known) => Ok(known),
        Caller::Trusted | Caller::Nobody | Caller::OtherUser(_) => {
            Err(Status::unauthenticated("this call needs a certificate"))
        }
    }
}

fn refused(error: TokenError) -> Status {
    let message = error.to_string();
    match error {
        TokenError::Unknown | TokenError::Expired(_) | TokenError::UsedUp(_) => {
            Status::unauthenticated(message)
        }
        TokenError::Name(_) | TokenError::Grant(_) => Status::invalid_argument(message),
        TokenError::Taken { .. } => Status::permission_denied(message),
        TokenError::TooMany(_) => Status::resource_exhausted(message),
    }
}

fn broken(error: anyhow::Error) -> Status {
    tracing::error!("a certificate cannot be made: {error:#}");
    Status::internal("a certificate cannot be made; the coordinator's log says why")
}
