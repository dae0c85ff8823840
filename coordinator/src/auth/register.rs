//! What the coordinator remembers of those who may call: join tokens, the certificates of workers, names that
//! are revoked. A question changes nothing; what it leads to is a list of [`Change`]s, which are written down
//! before they are applied ([`super::members`]).

use coxswain_transport::tls::JoinToken;
use serde::{Deserialize, Serialize};

use super::Shown;
use super::chains::{Chain, Chains, IssuedCertificate, RenewError};
use super::digest::Digest;
use super::identity::{Malformed, Principal, Role, check_name};
use super::revocations::{Revocation, Revocations, RevokeError};
use super::tokens::{Grant, TokenEntry, TokenError, TokenTable};

/// How something that is remembered is from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub(crate) enum Change {
    /// A join token.
    Token { id: String, token: TokenEntry },
    /// The certificates of a worker.
    Chain { name: String, chain: Chain },
    /// A revocation.
    Revocation { role: Role, name: String, revocation: Revocation },
}

/// Why somebody gets no certificate, or a name is not revoked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AccessRefusal {
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error(transparent)]
    Name(#[from] Malformed),
    #[error(transparent)]
    Renew(#[from] RenewError),
    #[error(
        "{role} {name} was revoked; an admin can let the name join again: `coxswain certs revoke {name} \
         --role {role} --undo`",
        role = .0.word(),
        name = .1
    )]
    Revoked(Role, String),
    #[error(
        "{role} {name} was revoked, and what is made in the next {wait_s} s would be refused with what was \
         made before that; try again then",
        role = .role.word()
    )]
    TooEarly { role: Role, name: String, wait_s: u64 },
    #[error(transparent)]
    Revoke(#[from] RevokeError),
}

/// What is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Register {
    tokens: TokenTable,
    chains: Chains,
    revocations: Revocations,
}

impl Register {
    /// Remembers a change.
    pub(crate) fn apply(&mut self, change: Change, now_s: u64) {
        match change {
            Change::Token { id, token } => self.tokens.set(id, token, now_s),
            Change::Chain { name, chain } => self.chains.set(name, chain, now_s),
            Change::Revocation { role, name, revocation } => {
                self.revocations.set(role, name, revocation, now_s)
            }
        }
    }

    /// All that a restart has to know, as changes of an empty register.
    pub(crate) fn snapshot(&self, now_s: u64) -> Vec<Change> {
        let tokens = self.tokens.kept(now_s);
        let tokens = tokens.map(|(id, token)| Change::Token { id: id.clone(), token: token.clone() });
        let chains = self.chains.kept(now_s);
        let chains = chains.map(|(name, chain)| Change::Chain { name: name.clone(), chain: chain.clone() });
        let revoked = self.revocations.kept(now_s).map(|(role, name, revocation)| Change::Revocation {
            role,
            name: name.clone(),
            revocation: revocation.clone(),
        });
        tokens.chain(chains).chain(revoked).collect()
    }

    /// A token that has just been made.
    pub(crate) fn grant(&self, token: &JoinToken, grant: Grant, now_s: u64) -> Result<Change, AccessRefusal> {
        let open = self.tokens.grant(token, grant, now_s)?;
        Ok(Change::Token { id: token.id().to_owned(), token: open })
    }

    /// The token of this id gives nothing from now on.
    pub(crate) fn void(&self, id: &str) -> Result<Change, AccessRefusal> {
        Ok(Change::Token { id: id.to_owned(), token: self.tokens.void(id)? })
    }

    /// Who somebody of this name is by a token, given as `id.secret`, and how the token is after this use.
    pub(crate) fn redeem(
        &self,
        spoken: &str,
        name: &str,
        now_s: u64,
    ) -> Result<(Principal, Change), AccessRefusal> {
        let (id, token) = self.tokens.redeem(spoken, now_s)?;
        let identity = Principal::new(token.role, name, token.jobs.clone())?;
        self.may_join(&identity, now_s)?;
        Ok((identity, Change::Token { id, token }))
    }

    /// Whether somebody may have a first certificate.
    pub(crate) fn may_join(&self, identity: &Principal, now_s: u64) -> Result<(), AccessRefusal> {
        let Principal { role, name, jobs } = identity;
        if self.revocations.bars(*role, name) {
            return Err(AccessRefusal::Revoked(*role, name.clone()));
        }
        let wait_s = self.revocations.refuses_for_s(*role, name, now_s);
        if wait_s > 0 {
            return Err(AccessRefusal::TooEarly { role: *role, name: name.clone(), wait_s });
        }
        if *role == Role::Worker {
            self.chains.may_join(name, jobs, now_s)?;
        }
        Ok(())
    }

    /// Whether a worker may have a first certificate by the token of its pod. Who is revoked under the pod's
    /// name joins by no other name of the pod.
    pub(crate) fn may_join_of_pod(
        &self,
        identity: &Principal,
        pod: &str,
        now_s: u64,
    ) -> Result<(), AccessRefusal> {
        if self.revocations.bars(Role::Worker, pod) {
            return Err(AccessRefusal::Revoked(Role::Worker, pod.to_owned()));
        }
        self.chains.may_join_of_pod(&identity.name, pod, now_s)?;
        self.may_join(identity, now_s)
    }

    /// Somebody has their first certificate; that of a person is not remembered.
    pub(crate) fn joined(&self, identity: &Principal, made: IssuedCertificate, now_s: u64) -> Option<Change> {
        let earlier = self.chains.get(&identity.name);
        let chain = || Chain::joined(identity.jobs.clone(), made, now_s, earlier);
        (identity.role == Role::Worker).then(|| Change::Chain { name: identity.name.clone(), chain: chain() })
    }

    /// The chain of the caller who showed this certificate and asks for a newer one than `by`.
    pub(crate) fn may_renew(
        &self,
        shown: &Shown,
        by: Digest,
        now_s: u64,
        life_s: u64,
    ) -> Result<Chain, AccessRefusal> {
        if self.refuses(shown) {
            return Err(AccessRefusal::Revoked(shown.identity.role, shown.identity.name.clone()));
        }
        Ok(self.chains.may_renew(shown, by, now_s, life_s)?.clone())
    }

    /// What has to be remembered of a refused renewal: that a chain is split.
    pub(crate) fn refused(&self, shown: &Shown, why: &AccessRefusal) -> Option<Change> {
        let name = &shown.identity.name;
        let chain =
            self.chains.get(name).filter(|_| matches!(why, AccessRefusal::Renew(RenewError::Split(_))))?;
        let split = chain.clone().split();
        (split != *chain).then(|| Change::Chain { name: name.clone(), chain: split })
    }

    /// What changes when a certificate is shown: once the newest is, those before it are of no use.
    pub(crate) fn seen(&self, shown: &Shown) -> Option<Change> {
        let worker = shown.identity.role == Role::Worker;
        let chain = worker.then(|| self.chains.seen(shown)).flatten()?;
        Some(Change::Chain { name: shown.identity.name.clone(), chain })
    }

    /// Whether this certificate is refused though it has not expired.
    pub(crate) fn refuses(&self, shown: &Shown) -> bool {
        self.revocations.refuses(shown)
    }

    /// Revokes all certificates that this name has in these roles.
    pub(crate) fn revoke(
        &self,
        roles: &[Role],
        name: &str,
        by: &Principal,
        now_s: u64,
    ) -> Result<Vec<Change>, AccessRefusal> {
        check_name(name)?;
        if name == by.name && roles.contains(&by.role) {
            return Err(RevokeError::Own(by.to_string()).into());
        }
        let revoke = |role: &Role| {
            let revocation = self.revocations.revoke(*role, name, now_s, &by.to_string())?;
            Ok(Change::Revocation { role: *role, name: name.to_owned(), revocation })
        };
        roles.iter().map(revoke).collect()
    }

    /// Lets this name have new certificates in those of these roles in which it is revoked.
    pub(crate) fn lift(
        &self,
        roles: &[Role],
        name: &str,
        by: &Principal,
    ) -> Result<Vec<Change>, AccessRefusal> {
        check_name(name)?;
        let lift = |role: &Role| {
            let revocation = self.revocations.lift(*role, name, &by.to_string())?;
            Some(Change::Revocation { role: *role, name: name.to_owned(), revocation })
        };
        let lifted: Vec<_> = roles.iter().filter_map(lift).collect();
        if lifted.is_empty() { Err(RevokeError::NotRevoked(name.to_owned()).into()) } else { Ok(lifted) }
    }

    /// The names that are revoked.
    pub(crate) fn revoked(&self) -> impl Iterator<Item = (Role, &String, &Revocation)> {
        self.revocations.iter().filter(|(_, _, revocation)| !revocation.lifted)
    }
}

#[cfg(test)]
mod tests;
