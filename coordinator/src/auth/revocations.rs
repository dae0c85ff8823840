//! Names whose certificates are refused before they expire.
//!
//! A revocation refuses every certificate that was made until then, also after it is lifted: lifting lets the
//! name have new ones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Shown;
use super::identity::Role;

/// The most names that are remembered; there are as many workers as that in the largest cluster.
const MAX_REVOKED: usize = 16_384;

/// That a name is revoked, or was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Revocation {
    /// When, in seconds of Unix time.
    pub(crate) at_s: u64,
    /// Who revoked or lifted it.
    pub(crate) by: String,
    /// The name may have new certificates.
    pub(crate) lifted: bool,
}

/// Why nothing is revoked or lifted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RevokeError {
    #[error("{0} would lock itself out; ask another admin")]
    Own(String),
    #[error("{0} is not revoked; `coxswain certs revoke --list` shows who is")]
    NotRevoked(String),
    #[error(
        "{MAX_REVOKED} names are revoked, which is the most; a new CA (`coxswain certs init`) refuses all \
         certificates of before"
    )]
    TooMany,
}

/// Revocations by role and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Revocations(BTreeMap<(Role, String), Revocation>);

impl Revocations {
    /// Whether this certificate is refused.
    pub(crate) fn refuses(&self, shown: &Shown) -> bool {
        let identity = &shown.identity;
        let revoked = self.0.get(&(identity.role, identity.name.clone()));
        revoked.is_some_and(|revoked| !revoked.lifted || shown.made_s <= revoked.at_s)
    }

    /// Whether the name can have no certificate.
    pub(crate) fn bars(&self, role: Role, name: &str) -> bool {
        self.0.get(&(role, name.to_owned())).is_some_and(|revoked| !revoked.lifted)
    }

    /// A revocation of this name; what is revoked already stays as it is.
    pub(crate) fn revoke(
        &self,
        role: Role,
        name: &str,
        now_s: u64,
        by: &str,
    ) -> Result<Revocation, RevokeError> {
        let key = (role, name.to_owned());
        match self.0.get(&key) {
            Some(revoked) if !revoked.lifted => Ok(revoked.clone()),
            None if self.0.len() >= MAX_REVOKED => Err(RevokeError::TooMany),
            _ => Ok(Revocation { at_s: now_s, by: by.to_owned(), lifted: false }),
        }
    }

    /// The revocation of this name as it is once it is lifted: certificates of before stay refused.
    pub(crate) fn lift(&self, role: Role, name: &str, by: &str) -> Option<Revocation> {
        let revoked = self.0.get(&(role, name.to_owned())).filter(|revoked| !revoked.lifted)?;
        Some(Revocation { lifted: true, by: by.to_owned(), ..revoked.clone() })
    }

    /// The revocation of this name is like this from now on.
    pub(crate) fn set(&mut self, role: Role, name: String, revocation: Revocation) {
        self.0.insert((role, name), revocation);
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Role, &String, &Revocation)> {
        self.0.iter().map(|((role, name), revocation)| (*role, name, revocation))
    }
}
