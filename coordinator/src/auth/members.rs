//! Those who may call: the register behind its lock, with its file and the connections that are open. What a
//! call leads to is on the disk before the call is answered.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use coxswain_transport::tls::JoinToken;
use tokio::task::block_in_place;

use super::chains::IssuedCertificate;
use super::digest::Digest;
use super::identity::{Principal, Role};
use super::pods::Joiner;
use super::record::{AuthRecord, RecordError, Sync};
use super::register::{AccessRefusal, Change, Register};
use super::revocations::Revocation;
use super::tokens::{Grant, TokenError};
use super::{Known, Shown, now_s};
use crate::lock::lock;

/// The most names with connections that are kept apart: twice as many as there can be connections, so that
/// half of them are over whenever they are looked through.
const MAX_OPEN: usize = 2 * 16_384;

/// Why a call about certificates is not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemberError {
    #[error(transparent)]
    Refused(#[from] AccessRefusal),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("a certificate cannot be made: {0:#}")]
    Sign(anyhow::Error),
}

/// A certificate (PEM) that was just signed.
pub(crate) struct Signed {
    pub(crate) pem: String,
    pub(crate) made: IssuedCertificate,
}

#[derive(Debug)]
struct MembershipState {
    register: Register,
    record: AuthRecord,
    /// The callers on open connections, and some on connections that have ended.
    open: BTreeMap<(Role, String), Vec<Weak<Known>>>,
}

impl MembershipState {
    /// Writes changes down and applies them.
    fn change(&mut self, changes: Vec<Change>, sync: Sync, now_s: u64) -> Result<(), RecordError> {
        if changes.is_empty() {
            return Ok(());
        }
        self.record.append(&changes, sync, &self.register, now_s)?;
        changes.into_iter().for_each(|change| self.register.apply(change, now_s));
        if let Err(error) = self.record.shorten(&self.register, now_s) {
            tracing::warn!("the file of tokens and certificates stays as long as it is: {error}");
        }
        Ok(())
    }

    /// The callers of this name, on connections that are open.
    fn on_connections(&mut self, role: Role, name: &str) -> Vec<Arc<Known>> {
        let of = self.open.get(&(role, name.to_owned()));
        of.into_iter().flatten().filter_map(Weak::upgrade).collect()
    }
}

/// Those who may call.
#[derive(Debug)]
pub(crate) struct Membership {
    inner: Mutex<MembershipState>,
    /// How long a worker's certificate can be renewed since its join, in seconds.
    chain_life_s: u64,
}

impl Membership {
    /// Knows what the file in the coordinator's `folder` holds. A worker joins anew after `chain_life`.
    ///
    /// # Errors
    /// The file cannot be read or written, or is damaged.
    pub(crate) fn open(folder: &Path, chain_life: Duration) -> Result<Membership, RecordError> {
        let (record, register) = AuthRecord::open(folder, now_s())?;
        let inner = Mutex::new(MembershipState { register, record, open: BTreeMap::new() });
        Ok(Membership { inner, chain_life_s: chain_life.as_secs() })
    }

    /// Remembers a token that has just been made.
    pub(crate) fn grant(&self, token: &JoinToken, grant: Grant) -> Result<(), MemberError> {
        self.with(|inner, now_s| {
            let change = inner.register.grant(token, grant, now_s)?;
            Ok(inner.change(vec![change], Sync::Now, now_s)?)
        })
    }

    /// Ends the token of this id.
    pub(crate) fn void(&self, id: &str) -> Result<(), MemberError> {
        self.with(|inner, now_s| {
            let change = inner.register.void(id)?;
            Ok(inner.change(vec![change], Sync::Now, now_s)?)
        })
    }

    /// A first certificate for somebody of this name, by a token given as `id.secret`.
    pub(crate) fn join(
        &self,
        spoken: &str,
        name: &str,
        sign: impl FnOnce(&Principal) -> anyhow::Result<Signed>,
    ) -> Result<(Principal, String), MemberError> {
        self.with(|inner, now_s| {
            let (identity, used) = inner.register.redeem(spoken, name, now_s)?;
            let signed = sign(&identity).map_err(MemberError::Sign)?;
            let joined = inner.register.joined(&identity, signed.made, now_s);
            inner.change([used].into_iter().chain(joined).collect(), Sync::Now, now_s)?;
            Ok((identity, signed.pem))
        })
    }

    /// Somebody who looks for `life_s` seconds, by a viewer's token given as `id.secret`. There is no certificate: `own`
    /// names what they show in place of one.
    pub(crate) fn look(&self, spoken: &str, own: Digest, life_s: u64) -> Result<Arc<Known>, MemberError> {
        let shown = self.with(|inner, now_s| {
            let name = format!("page-{}", spoken.split('.').next().unwrap_or_default());
            let (identity, used) = inner.register.redeem(spoken, &name, now_s)?;
            if identity.role != Role::Viewer {
                let why = format!(
                    "this token is for a {}, and the page takes one for a viewer: `coxswain token create --role viewer`",
                    identity.role.word()
                );
                return Err(AccessRefusal::Token(TokenError::Grant(why)).into());
            }
            inner.change(vec![used], Sync::Now, now_s)?;
            tracing::info!("{identity} looks at the page");
            Ok::<_, MemberError>(Shown { identity, digest: own, made_s: now_s, ends_s: now_s.saturating_add(life_s) })
        })?;
        Ok(self.met(shown))
    }

    /// A first certificate for somebody who has proved who they are by the token of a service account.
    pub(crate) fn join_as(
        &self,
        joiner: &Joiner,
        sign: impl FnOnce(&Principal) -> anyhow::Result<Signed>,
    ) -> Result<String, MemberError> {
        self.with(|inner, now_s| {
            let Joiner { identity, pod } = joiner;
            match pod {
                Some(pod) => inner.register.may_join_of_pod(identity, pod, now_s)?,
                None => inner.register.may_join(identity, now_s)?,
            }
            let signed = sign(identity).map_err(MemberError::Sign)?;
            let joined = inner.register.joined(identity, signed.made, now_s);
            inner.change(joined.into_iter().collect(), Sync::Now, now_s)?;
            Ok(signed.pem)
        })
    }

    /// A newer certificate for the caller, in place of the one that `by` names: of those on this connection.
    pub(crate) fn renew(
        &self,
        known: &Known,
        by: Digest,
        sign: impl FnOnce(&Principal) -> anyhow::Result<Signed>,
    ) -> Result<String, MemberError> {
        self.with(|inner, now_s| {
            let chain = match inner.register.may_renew(known.shown(), by, now_s, self.chain_life_s) {
                Ok(chain) => chain,
                Err(refusal) => {
                    tracing::warn!("{} gets no newer certificate: {refusal}", known.identity);
                    let split = inner.register.refused(known.shown(), &refusal);
                    if let Err(error) = inner.change(split.into_iter().collect(), Sync::Now, now_s) {
                        // It is a refusal all the same.
                        tracing::error!("{error}");
                    }
                    return Err(refusal.into());
                }
            };
            let Signed { pem, made } = sign(&known.identity).map_err(MemberError::Sign)?;
            let change = Change::Chain { name: known.identity.name.clone(), chain: chain.renewed(by, made) };
            inner.change(vec![change], Sync::Now, now_s)?;
            known.renewed(by, made);
            Ok(pem)
        })
    }

    /// A caller has connected.
    pub(crate) fn met(&self, shown: Shown) -> Arc<Known> {
        let known = Arc::new(Known::new(shown));
        self.with(|inner, now_s| {
            let shown = known.shown();
            if inner.register.refuses(shown) {
                tracing::warn!("{} shows a certificate that was revoked", shown.identity);
                known.revoke();
            }
            if let Some(seen) = inner.register.seen(shown)
                && let Err(error) = inner.change(vec![seen], Sync::Later, now_s)
            {
                tracing::warn!("{error}");
            }
            if inner.open.len() >= MAX_OPEN {
                inner.open.retain(|_, open| open.iter().any(|known| known.strong_count() > 0));
            }
            let key = (shown.identity.role, shown.identity.name.clone());
            let open = inner.open.entry(key).or_default();
            open.retain(|known| known.strong_count() > 0);
            open.push(Arc::downgrade(&known));
        });
        known
    }

    /// Refuses all certificates of this name in these roles from now on, and ends its connections.
    pub(crate) fn revoke(&self, roles: &[Role], name: &str, by: &Principal) -> Result<(), MemberError> {
        self.with(|inner, now_s| {
            let changes = inner.register.revoke(roles, name, by, now_s)?;
            inner.change(changes, Sync::Now, now_s)?;
            let ended = roles.iter().flat_map(|role| inner.on_connections(*role, name));
            ended.for_each(|known| known.revoke());
            Ok(())
        })
    }

    /// Lets this name have new certificates again.
    pub(crate) fn lift(&self, roles: &[Role], name: &str, by: &Principal) -> Result<(), MemberError> {
        self.with(|inner, now_s| {
            let changes = inner.register.lift(roles, name, by)?;
            Ok(inner.change(changes, Sync::Now, now_s)?)
        })
    }

    /// The names that are revoked.
    pub(crate) fn revoked(&self) -> Vec<(Role, String, Revocation)> {
        self.with(|inner, _| {
            let revoked = inner.register.revoked();
            revoked.map(|(role, name, revoked)| (role, name.clone(), revoked.clone())).collect()
        })
    }

    /// Does something with the register, which may wait for the disk.
    fn with<T>(&self, what: impl FnOnce(&mut MembershipState, u64) -> T) -> T {
        block_in_place(|| {
            let mut inner = lock(&self.inner);
            // Under the lock, so that times follow each other as changes do.
            what(&mut inner, now_s())
        })
    }
}
