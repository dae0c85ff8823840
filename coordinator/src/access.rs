//! The service that gives certificates: wire -> a token or a certificate -> a newer certificate.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use coxswain_proto::wire;
use coxswain_transport::tls::JoinToken;
use coxswain_transport::tls::client::{certificates, provider};
use coxswain_transport::tls::token::{ID_BYTES, SECRET_BYTES};
use rcgen::PublicKeyData;
use tokio::task::block_in_place;
use tonic::{Request, Response, Status};

use crate::auth::chains::{IssuedCertificate, RenewError, WORKER_LIFE};
use crate::auth::digest::Digest;
use crate::auth::identity::{Malformed, Principal, Role};
use crate::auth::members::{MemberError, Membership, Signed};
use crate::auth::pods::{Joiner, PodError, Pods};
use crate::auth::record::RecordError;
use crate::auth::register::AccessRefusal;
use crate::auth::revocations::RevokeError;
use crate::auth::tokens::{Grant, TokenError};
use crate::auth::{Caller, Known, now_s};
use crate::tls::authority::{Authority, DAY, requested_key, shown};

/// How long a person's certificate by a token lives; it is not renewed automatically.
pub(crate) const PERSON_LIFE: Duration = Duration::from_secs(30 * DAY.as_secs());

/// The cluster's CA and those who may call.
#[derive(Debug)]
pub(crate) struct Security {
    authority: Authority,
    pub(crate) members: Arc<Membership>,
    /// Whose service accounts' tokens are taken.
    pods: Option<Pods>,
}

/// How workers join and go on.
#[derive(Clone, Debug)]
pub(crate) struct Joining {
    /// How long a worker can renew its certificate after it joined.
    pub(crate) chain_life: Duration,
    /// Whose service accounts' tokens are taken.
    pub(crate) pods: Option<Pods>,
}

impl Security {
    /// Remembers in the coordinator's `folder` who may call.
    ///
    /// # Errors
    /// What is remembered there cannot be read or written.
    pub(crate) fn open(
        authority: Authority,
        folder: &Path,
        joining: Joining,
    ) -> Result<Security, RecordError> {
        let members = Arc::new(Membership::open(folder, joining.chain_life)?);
        Ok(Security { authority, members, pods: joining.pods })
    }

    /// Makes a token and remembers it.
    pub(crate) fn token(&self, grant: Grant) -> Result<JoinToken, Status> {
        let (mut id, mut secret) = ([0; ID_BYTES], [0; SECRET_BYTES]);
        let random = provider();
        let filled = random.secure_random.fill(&mut id).and_then(|()| random.secure_random.fill(&mut secret));
        filled.map_err(|_| Status::internal("the system gives no random bytes"))?;
        let token = JoinToken::new(id, secret, self.authority.der());
        self.members.grant(&token, grant).map_err(refused)?;
        Ok(token)
    }

    /// Who a pod is.
    fn pod(&self, token: &str, name: &str) -> Result<Joiner, Status> {
        let joiner = match &self.pods {
            Some(pods) => pods.identity(token, name, now_s()),
            None => Err(PodError::NotTaken),
        };
        joiner.map_err(|error| {
            let message = error.to_string();
            match error {
                PodError::Keys { .. } => {
                    tracing::error!("{message}");
                    Status::unavailable(
                        "the keys of service accounts cannot be read; the coordinator's log says why",
                    )
                }
                PodError::NotTaken => Status::failed_precondition(message),
                PodError::Name(_) | PodError::Pod { .. } => Status::invalid_argument(message),
                PodError::Subject(_) => Status::permission_denied(message),
                _ => Status::unauthenticated(message),
            }
        })
    }

    /// Signs a certificate for this key.
    fn sign(&self, identity: &Principal, key: &impl PublicKeyData) -> anyhow::Result<Signed> {
        let pem = self.authority.client(identity, key, life(identity.role))?;
        let der = certificates("the certificate", &pem)?.swap_remove(0);
        let shown = shown(&der)?;
        Ok(Signed { pem, made: IssuedCertificate { digest: shown.digest, ends_s: shown.ends_s } })
    }

    fn reply(&self, identity: &Principal, chain: String) -> Response<wire::CertificateReply> {
        let lives_s = life(identity.role).as_secs();
        Response::new(wire::CertificateReply { chain, ca: self.authority.pem().to_owned(), lives_s })
    }
}

/// How long a certificate lives.
fn life(role: Role) -> Duration {
    if role == Role::Worker { WORKER_LIFE } else { PERSON_LIFE }
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
        let wire::JoinRequest { token, name, request, service_account } = request.into_inner();
        // Looked at first, so that a request that cannot be used does not use a token up.
        let key = requested_key(&request).map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        let sign = |identity: &Principal| security.sign(identity, &key);
        if !service_account.is_empty() {
            let joiner = block_in_place(|| security.pod(&service_account, &name))?;
            let chain = security.members.join_as(&joiner, sign).map_err(refused)?;
            tracing::info!("{} joins by its service account", joiner.identity);
            return Ok(security.reply(&joiner.identity, chain));
        }
        let (identity, chain) = security.members.join(&token, &name, sign).map_err(refused)?;
        tracing::info!("{identity} joins by the token {}", token.split('.').next().unwrap_or_default());
        Ok(security.reply(&identity, chain))
    }

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::CertificateReply>, Status> {
        let security = self.security()?;
        let known = known(&request)?;
        let wire::RenewRequest { request, by } = request.into_inner();
        let key = requested_key(&request).map_err(|error| Status::invalid_argument(format!("{error:#}")))?;
        let by = held(&known, by)?;
        let sign = |identity: &Principal| security.sign(identity, &key);
        let chain = security.members.renew(&known, by, sign).map_err(refused)?;
        tracing::debug!("{} renews its certificate", known.identity);
        Ok(security.reply(&known.identity, chain))
    }

    async fn create_token(
        &self,
        request: Request<wire::CreateTokenRequest>,
    ) -> Result<Response<wire::CreateTokenReply>, Status> {
        let security = self.security()?;
        let by = known(&request)?.identity.to_string();
        let wire::CreateTokenRequest { role, jobs, ttl_s, uses } = request.into_inner();
        let grant = Grant {
            role: role.parse().map_err(malformed)?,
            jobs: jobs.parse().map_err(malformed)?,
            ttl_s,
            uses,
        };
        tracing::info!(
            "{by} makes a token for {uses} x {} of jobs {}, good for {ttl_s} s",
            grant.role.word(),
            grant.jobs
        );
        let token = security.token(grant)?;
        Ok(Response::new(wire::CreateTokenReply { token: token.text().expose().to_owned() }))
    }

    async fn void_token(
        &self,
        request: Request<wire::VoidTokenRequest>,
    ) -> Result<Response<wire::VoidTokenReply>, Status> {
        let security = self.security()?;
        let by = known(&request)?.identity.to_string();
        let wire::VoidTokenRequest { id } = request.into_inner();
        security.members.void(&id).map_err(refused)?;
        tracing::warn!("{by} revokes the join token {}", crate::auth::shown(&id));
        Ok(Response::new(wire::VoidTokenReply {}))
    }

    async fn revoke(
        &self,
        request: Request<wire::RevokeRequest>,
    ) -> Result<Response<wire::RevokeReply>, Status> {
        let security = self.security()?;
        let known = known(&request)?;
        let wire::RevokeRequest { name, role, undo } = request.into_inner();
        let roles = match role.as_str() {
            "" => Role::ALL.to_vec(),
            role => vec![role.parse().map_err(malformed)?],
        };
        let (members, by) = (&security.members, &known.identity);
        let done = if undo { members.lift(&roles, &name, by) } else { members.revoke(&roles, &name, by) };
        done.map_err(refused)?;
        let what = if undo { "lets have certificates again" } else { "revokes the certificates of" };
        let words: Vec<_> = roles.iter().map(|role| role.word()).collect();
        tracing::warn!("{by} {what} {name} ({})", words.join(", "));
        Ok(Response::new(wire::RevokeReply {}))
    }

    async fn revoked(
        &self,
        _: Request<wire::RevokedRequest>,
    ) -> Result<Response<wire::RevokedReply>, Status> {
        let revoked = self.security()?.members.revoked().into_iter();
        let revoked = revoked.map(|(role, name, revocation)| wire::Revocation {
            role: role.word().to_owned(),
            name,
            at_s: revocation.at_s,
            by: revocation.by,
        });
        Ok(Response::new(wire::RevokedReply { revoked: revoked.collect() }))
    }
}

/// The certificate that a call comes with. The table has let no other through.
fn known<T>(request: &Request<T>) -> Result<Arc<Known>, Status> {
    match Caller::of(request) {
        Caller::Known(known) => Ok(known),
        Caller::Trusted | Caller::Anonymous | Caller::OtherUser(_) => {
            Err(Status::unauthenticated("this call needs a certificate"))
        }
    }
}

/// The certificate that a caller wants renewed: the one it showed, or one of the last two of this connection.
fn held(known: &Known, by: String) -> Result<Digest, Status> {
    if by.is_empty() {
        return Ok(known.shown().digest);
    }
    let digest = Digest::try_from(by).map_err(|error| Status::invalid_argument(format!("by: {error}")))?;
    let other =
        || Status::permission_denied("by: this connection is of another certificate; connect by that one");
    if known.holds(digest) { Ok(digest) } else { Err(other()) }
}

fn malformed(error: Malformed) -> Status {
    Status::invalid_argument(error.to_string())
}

fn refused(error: MemberError) -> Status {
    let message = error.to_string();
    match error {
        MemberError::Refused(refusal) => Status::new(code(&refusal), message),
        MemberError::Record(_) => {
            tracing::error!("{message}");
            Status::unavailable(
                "what the coordinator remembers of certificates cannot be written; its log says why",
            )
        }
        MemberError::Sign(_) => {
            tracing::error!("{message}");
            Status::internal("a certificate cannot be made; the coordinator's log says why")
        }
    }
}

fn code(refusal: &AccessRefusal) -> tonic::Code {
    use tonic::Code;
    match refusal {
        AccessRefusal::Token(TokenError::Unknown | TokenError::Expired(_) | TokenError::UsedUp(_)) => {
            Code::Unauthenticated
        }
        AccessRefusal::Name(_) | AccessRefusal::Token(TokenError::Grant(_)) => Code::InvalidArgument,
        AccessRefusal::Token(TokenError::TooMany(_))
        | AccessRefusal::Renew(RenewError::TooMany | RenewError::TooManyOfPod { .. })
        | AccessRefusal::Revoke(RevokeError::TooMany) => Code::ResourceExhausted,
        AccessRefusal::TooEarly { .. } => Code::Unavailable,
        AccessRefusal::Renew(_) | AccessRefusal::Revoked(..) => Code::PermissionDenied,
        AccessRefusal::Revoke(RevokeError::NotRevoked(_)) | AccessRefusal::Token(TokenError::NoToken(_)) => {
            Code::NotFound
        }
        AccessRefusal::Revoke(RevokeError::Own(_)) => Code::FailedPrecondition,
    }
}
