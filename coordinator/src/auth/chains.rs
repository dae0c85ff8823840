//! The certificates of workers: each name has one chain of them, from its join on. A renewal is for the
//! newest of the chain. If two certificates of one chain are renewed, one of them is in the wrong hands.
//!
//! An answer can get lost: then the worker renews the certificate that it has once more. So the one before
//! the newest can be renewed as well, until somebody shows the newest.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Shown;
use super::digest::Digest;
use super::identity::Jobs;

/// How long a worker's certificate lives. It is renewed before half of that, so a coordinator may be away for
/// half an hour.
pub(crate) const WORKER_LIFE: Duration = Duration::from_secs(3600);

/// Renewals for each half of a certificate's life. A worker makes 1.6 at most; the others are for lost
/// answers.
const RENEWALS_PER_HALF_LIFE: u64 = 2;

/// The most names of workers that are remembered: four of each of a large cluster's.
const MAX_NAMES: usize = 1 << 16;

/// How long a chain is kept on disk after its newest certificate has ended: the clock of a start may be fast.
const KEPT_LONGER: Duration = Duration::from_secs(24 * 3600);

/// The most names of one pod with certificates at once: a token of it can be used under any of its names, and
/// a machine has a worker for each of its devices, of which it has 16 at most. Restarts under other names
/// come on top.
const MAX_NAMES_OF_POD: usize = 64;

/// What to do when a worker's chain has come to its end.
const JOIN_AGAIN: &str = "start the worker again with a join token (`coxswain token create --role worker`)";

/// Why a worker gets no newer certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RenewError {
    #[error("this coordinator remembers no join of worker {0}; {JOIN_AGAIN}")]
    Unknown(String),
    #[error(
        "worker {0} has joined again since this certificate was made, and the newer process has the name; \
         if none was started, somebody else has joined under its name: `coxswain certs revoke {0} --role \
         worker` ends it"
    )]
    JoinedAgain(String),
    #[error(
        "two certificates of worker {0} were renewed, so one of them is in the wrong hands, and neither is \
         renewed any more: `coxswain certs revoke {0} --role worker` ends both at once, and `--undo` lets \
         the name join again"
    )]
    Split(String),
    #[error("worker {name} joined {days} days ago, and renewals end then; {JOIN_AGAIN}")]
    TooOld { name: String, days: u64 },
    #[error("worker {name} has renewed its certificate {renewals} times, which is the most; {JOIN_AGAIN}")]
    TooOften { name: String, renewals: u64 },
    #[error(
        "{MAX_NAMES} names of workers have certificates, which is the most; wait until some have expired"
    )]
    TooMany,
    #[error(
        "the pod {pod} has {MAX_NAMES_OF_POD} names with certificates, which is the most; use one of those \
         names, or wait until some have expired"
    )]
    TooManyOfPod { pod: String },
    #[error(
        "the name {name} is held by a worker for other jobs ({jobs}) until its certificate expires; take \
         another"
    )]
    Taken { name: String, jobs: Jobs },
}

/// The certificates of one name since it joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Chain {
    jobs: Jobs,
    /// When the worker joined, in seconds of Unix time; later than the making of all certificates of the
    /// name's earlier chain.
    joined_s: u64,
    /// Until when the newest is good.
    ends_s: u64,
    /// The newest one that was given out.
    newest: Digest,
    /// The certificate before the newest, until the newest has been shown.
    before: Option<Digest>,
    renewals: u64,
    /// Two of its certificates were renewed.
    split: bool,
}

/// A certificate that was just made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IssuedCertificate {
    pub(crate) digest: Digest,
    /// Until when it is good, in seconds of Unix time.
    pub(crate) ends_s: u64,
}

impl Chain {
    /// How a chain begins, in place of the `earlier` one of its name. A certificate of that one tells by its
    /// date that it is not of this one, also where the clock was set back or both were made in one second.
    pub(crate) fn joined(jobs: Jobs, made: IssuedCertificate, now_s: u64, earlier: Option<&Chain>) -> Chain {
        let IssuedCertificate { digest: newest, ends_s } = made;
        let last_made_s = earlier.map(|earlier| earlier.ends_s.saturating_sub(WORKER_LIFE.as_secs()));
        let joined_s = last_made_s.map_or(now_s, |made_s| now_s.max(made_s.saturating_add(1)));
        Chain { jobs, joined_s, ends_s, newest, before: None, renewals: 0, split: false }
    }

    /// How it goes on with a certificate for the one that `by` names.
    pub(crate) fn renewed(self, by: Digest, made: IssuedCertificate) -> Chain {
        let IssuedCertificate { digest: newest, ends_s } = made;
        Chain { ends_s, newest, before: Some(by), renewals: self.renewals + 1, ..self }
    }

    /// How it is once two of its certificates were renewed.
    pub(crate) fn split(self) -> Chain {
        Chain { split: true, ..self }
    }

    fn may_renew(
        &self,
        name: &str,
        by: Digest,
        made_s: u64,
        now_s: u64,
        life_s: u64,
    ) -> Result<(), RenewError> {
        let name = || name.to_owned();
        if self.split {
            return Err(RenewError::Split(name()));
        }
        if by != self.newest && self.before != Some(by) {
            let earlier = made_s < self.joined_s;
            return Err(if earlier { RenewError::JoinedAgain(name()) } else { RenewError::Split(name()) });
        }
        if now_s.saturating_sub(self.joined_s) >= life_s {
            return Err(RenewError::TooOld { name: name(), days: life_s / (24 * 3600) });
        }
        let most = RENEWALS_PER_HALF_LIFE * (1 + life_s / (WORKER_LIFE.as_secs() / 2));
        if self.renewals >= most {
            return Err(RenewError::TooOften { name: name(), renewals: most });
        }
        Ok(())
    }
}

/// The chains of all workers, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chains(BTreeMap<String, Chain>);

impl Chains {
    /// Whether a worker of this name may join for these jobs: while a name is held for some jobs, no process
    /// with others takes it and ends its run.
    pub(crate) fn may_join(&self, name: &str, jobs: &Jobs, now_s: u64) -> Result<(), RenewError> {
        match self.0.get(name) {
            Some(chain) if chain.jobs != *jobs && chain.ends_s > now_s => {
                Err(RenewError::Taken { name: name.to_owned(), jobs: chain.jobs.clone() })
            }
            Some(_) => Ok(()),
            None if self.0.len() < MAX_NAMES => Ok(()),
            None if self.0.values().any(|chain| chain.ends_s <= now_s) => Ok(()),
            None => Err(RenewError::TooMany),
        }
    }

    /// Whether a worker of `pod` may join by this name, if those of other names are too many.
    pub(crate) fn may_join_of_pod(&self, name: &str, pod: &str, now_s: u64) -> Result<(), RenewError> {
        let begin_so = self.0.range(pod.to_owned()..).take_while(|(other, _)| other.starts_with(pod));
        let live = begin_so.filter(|(other, chain)| {
            chain.ends_s > now_s && other.as_str() != name && is_name_of_pod(other, pod)
        });
        if live.count() < MAX_NAMES_OF_POD {
            Ok(())
        } else {
            Err(RenewError::TooManyOfPod { pod: pod.to_owned() })
        }
    }

    /// The chain of `shown`, whose holder asks for a newer one than the certificate `by`. A chain lives
    /// `life_s` from its join on.
    pub(crate) fn may_renew(
        &self,
        shown: &Shown,
        by: Digest,
        now_s: u64,
        life_s: u64,
    ) -> Result<&Chain, RenewError> {
        let name = &shown.identity.name;
        let chain = self.0.get(name).ok_or_else(|| RenewError::Unknown(name.clone()))?;
        chain.may_renew(name, by, shown.made_s, now_s, life_s)?;
        Ok(chain)
    }

    /// The chain of this name.
    pub(crate) fn get(&self, name: &str) -> Option<&Chain> {
        self.0.get(name)
    }

    /// How the chain of `shown` is after it was shown, if that changes it.
    pub(crate) fn seen(&self, shown: &Shown) -> Option<Chain> {
        let chain = self.0.get(&shown.identity.name)?;
        let first = chain.newest == shown.digest && chain.before.is_some();
        first.then(|| Chain { before: None, ..chain.clone() })
    }

    /// The chain of this name is like this from now on.
    pub(crate) fn set(&mut self, name: String, chain: Chain, now_s: u64) {
        if self.0.len() >= MAX_NAMES {
            self.0.retain(|_, chain| chain.ends_s > now_s);
        }
        self.0.insert(name, chain);
    }

    /// Those that a restart has to know: an expired certificate is not let in, so it is not renewed.
    pub(crate) fn kept(&self, now_s: u64) -> impl Iterator<Item = (&String, &Chain)> {
        let over = move |chain: &Chain| chain.ends_s.saturating_add(KEPT_LONGER.as_secs()) <= now_s;
        self.0.iter().filter(move |(_, chain)| !over(chain))
    }
}

/// Whether a worker in this pod may have the name: the pod's, or the pod's with a dash and a number behind
/// it.
pub(crate) fn is_name_of_pod(name: &str, pod: &str) -> bool {
    match name.strip_prefix(pod).map(|rest| rest.strip_prefix('-').ok_or(rest)) {
        Some(Ok(number)) => !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()),
        Some(Err(rest)) => rest.is_empty(),
        None => false,
    }
}
