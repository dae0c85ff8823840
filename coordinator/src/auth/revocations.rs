//! Names whose certificates are refused before they expire.
//!
//! A revocation refuses every certificate that was made until then, also after it is lifted: lifting lets the
//! name have new ones. One that is lifted is forgotten once the certificates that it refuses have expired.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Shown;
use super::chains::WORKER_LIFE;
use super::identity::Role;

/// The most names that are revoked at once, in all roles: the largest cluster has as many workers.
const MAX_NAMES: usize = 16_384;

/// The most that are revoked at once. A name that is revoked in all of its roles takes one for each.
const MAX_REVOKED: usize = MAX_NAMES * Role::ALL.len();

/// The most that are remembered, with those of people that were lifted: their certificates may live for
/// years.
const MAX_REMEMBERED: usize = 2 * MAX_REVOKED;

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

impl Revocation {
    /// Whether it refuses nothing any more: it was lifted, and a worker's certificates of before have
    /// expired. How long those of people live is not known.
    fn is_over(&self, role: Role, now_s: u64) -> bool {
        let ended_s = self.at_s.saturating_add(WORKER_LIFE.as_secs());
        self.lifted && role == Role::Worker && ended_s < now_s
    }
}

/// Why nothing is revoked or lifted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RevokeError {
    #[error("{0} would lock itself out; ask another admin")]
    Own(String),
    #[error("{0} is not revoked; `coxswain certs revoke --list` shows who is")]
    NotRevoked(String),
    #[error(
        "{MAX_NAMES} names are revoked or were, which is the most; a new CA (`coxswain certs init`) refuses \
         all certificates of before"
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

    /// How long a certificate that the name gets now would be refused, in seconds: the clock may have been
    /// set back since it was revoked.
    pub(crate) fn refuses_for_s(&self, role: Role, name: &str, now_s: u64) -> u64 {
        let revoked = self.0.get(&(role, name.to_owned()));
        revoked.map_or(0, |revoked| revoked.at_s.saturating_add(1).saturating_sub(now_s))
    }

    /// A revocation of this name; what is revoked already stays as it is. It refuses no less than an earlier
    /// one.
    pub(crate) fn revoke(
        &self,
        role: Role,
        name: &str,
        now_s: u64,
        by: &str,
    ) -> Result<Revocation, RevokeError> {
        let key = (role, name.to_owned());
        let new = |at_s| Revocation { at_s, by: by.to_owned(), lifted: false };
        match self.0.get(&key) {
            Some(revoked) if !revoked.lifted => return Ok(revoked.clone()),
            Some(lifted) => return self.has_room(now_s).map(|()| new(now_s.max(lifted.at_s))),
            None => {}
        }
        self.has_room(now_s)?;
        Ok(new(now_s))
    }

    fn has_room(&self, now_s: u64) -> Result<(), RevokeError> {
        let all = self.0.iter();
        let (mut revoked, mut remembered) = (0, 0);
        for ((role, _), revocation) in all {
            revoked += usize::from(!revocation.lifted);
            remembered += usize::from(!revocation.is_over(*role, now_s));
        }
        if revoked < MAX_REVOKED && remembered < MAX_REMEMBERED { Ok(()) } else { Err(RevokeError::TooMany) }
    }

    /// The revocation of this name as it is once it is lifted: certificates of before stay refused.
    pub(crate) fn lift(&self, role: Role, name: &str, by: &str) -> Option<Revocation> {
        let revoked = self.0.get(&(role, name.to_owned())).filter(|revoked| !revoked.lifted)?;
        Some(Revocation { lifted: true, by: by.to_owned(), ..revoked.clone() })
    }

    /// The revocation of this name is like this from now on.
    pub(crate) fn set(&mut self, role: Role, name: String, revocation: Revocation, now_s: u64) {
        if self.0.len() >= MAX_REMEMBERED {
            self.0.retain(|(role, _), revocation| !revocation.is_over(*role, now_s));
        }
        self.0.insert((role, name), revocation);
    }

    /// Those that a restart has to know.
    pub(crate) fn kept(&self, now_s: u64) -> impl Iterator<Item = (Role, &String, &Revocation)> {
        self.iter().filter(move |(role, _, revocation)| !revocation.is_over(*role, now_s))
    }

    /// All of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Role, &String, &Revocation)> {
        self.0.iter().map(|((role, name), revocation)| (*role, name, revocation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revoke(all: &mut Revocations, role: Role, name: &str, now_s: u64) -> Result<u64, RevokeError> {
        let revocation = all.revoke(role, name, now_s, "admin ann")?;
        let at_s = revocation.at_s;
        all.set(role, name.to_owned(), revocation, now_s);
        Ok(at_s)
    }

    fn lift(all: &mut Revocations, role: Role, name: &str, now_s: u64) {
        let revocation = all.lift(role, name, "admin ann").unwrap();
        all.set(role, name.to_owned(), revocation, now_s);
    }

    #[test]
    fn a_later_revocation_refuses_no_less_than_an_earlier_one() {
        let mut all = Revocations::default();
        for (now_s, at_s) in [(100, 100), (50, 100), (200, 200)] {
            assert_eq!(revoke(&mut all, Role::Worker, "w0", now_s), Ok(at_s), "at {now_s}");
            lift(&mut all, Role::Worker, "w0", now_s);
        }
    }

    #[test]
    fn what_was_lifted_leaves_room_and_is_forgotten_with_its_certificates() {
        let mut all = Revocations::default();
        for (role, name) in [(Role::Worker, "w0"), (Role::Viewer, "vic")] {
            revoke(&mut all, role, name, 100).unwrap();
            lift(&mut all, role, name, 100);
        }
        let life_s = WORKER_LIFE.as_secs();
        assert_eq!([all.kept(100 + life_s).count(), all.kept(101 + life_s).count()], [2, 1]);
        // Every name in every role.
        for n in 0..MAX_NAMES {
            for role in Role::ALL {
                let revocation = Revocation { at_s: 100, by: String::new(), lifted: false };
                all.set(role, format!("n{n}"), revocation, 100);
            }
        }
        assert_eq!(revoke(&mut all, Role::Worker, "w0", 100), Err(RevokeError::TooMany));
        lift(&mut all, Role::Worker, "n0", 100);
        revoke(&mut all, Role::Worker, "w0", 100).unwrap();
    }
}
