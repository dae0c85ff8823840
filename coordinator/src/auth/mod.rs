//! Who calls, and what they may do. Nothing here touches a socket or a certificate's bytes: the
//! transport says who the caller is, and one table decides.
//!
//! - [`identity`]: a name, a role and jobs, as a certificate carries them.
//! - [`table`]: which role may make which call; what is not in it is denied.
//! - [`layer`]: holds every call to the table and to its caller's rate.
//! - [`rates`]: how often a caller may call.
//! - [`scope`]: hides the names of jobs from callers that may not see them.
//! - [`streams`]: how many streams a caller may hold open.
//! - [`user`]: which user of this machine a loopback connection comes from.
//! - [`register`]: what is remembered of those who may call: [`tokens`] to join by, the [`chains`] of workers'
//!   certificates, [`revocations`].
//! - [`pods`]: the tokens of Kubernetes' service accounts, by which pods join.
//! - [`members`]: the register with its file ([`record`]) and its open connections.

pub(crate) mod chains;
pub(crate) mod digest;
pub(crate) mod identity;
pub(crate) mod layer;
pub(crate) mod members;
pub(crate) mod pods;
pub(crate) mod rates;
pub(crate) mod record;
pub(crate) mod register;
pub(crate) mod revocations;
pub(crate) mod scope;
pub(crate) mod streams;
pub(crate) mod table;
pub(crate) mod tokens;
pub(crate) mod user;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::UNIX_EPOCH;

use coxswain_core::code::ErrorCode;
use coxswain_proto::limits;
use coxswain_types::status::DesiredState;
use serde::Deserialize;
use tokio::sync::watch;
use tonic::{Code, Request, Status};

use crate::lock::lock;
use crate::refusal::denied_status;
use chains::IssuedCertificate;
use digest::Digest;
use identity::{Jobs, Principal, Role};

/// The beginning of a caller's text, as much as a message repeats.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(limits::MAX_SHOWN_CHARS).collect()
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    pub(crate) caller: Caller,
    /// Who a caller without a certificate has turned out to be, by a session of the page.
    pub(crate) turned_out: Arc<OnceLock<Arc<Known>>>,
}

impl Peer {
    pub(crate) fn new(address: IpAddr, caller: Caller) -> Peer {
        Peer { address, caller, turned_out: Arc::default() }
    }
}

/// Who calls.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// The port has no certificates: whoever reaches it may do everything.
    Trusted,
    /// Someone without a certificate.
    Anonymous,
    /// A user of this machine (the number that Linux knows them by), whose port it is not.
    OtherUser(u32),
    /// The holder of a certificate of the cluster's CA.
    Known(Arc<Known>),
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) identity: Principal,
    /// Of the whole certificate.
    pub(crate) digest: Digest,
    /// When it was made, in seconds of Unix time.
    pub(crate) made_s: u64,
    /// Until when it is good, in seconds of Unix time.
    pub(crate) ends_s: u64,
}

/// The holder of a certificate, on one connection.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) identity: Principal,
    shown: Shown,
    /// Given out over this connection: the certificate that was renewed last, and the newest. The answer with
    /// the newest may be lost; then the caller still has the other.
    given: Mutex<[Option<IssuedCertificate>; 2]>,
    ends_s: AtomicU64,
    revoked: watch::Sender<bool>,
}

impl Known {
    pub(crate) fn new(shown: Shown) -> Known {
        Known {
            identity: shown.identity.clone(),
            given: Mutex::new([None; 2]),
            ends_s: AtomicU64::new(shown.ends_s),
            revoked: watch::Sender::new(false),
            shown,
        }
    }

    /// The certificate that was shown when the connection was made.
    pub(crate) fn shown(&self) -> &Shown {
        &self.shown
    }

    /// Until when the caller is let in, in seconds of Unix time: until the newest certificate ends that it
    /// is known to have. It proves that it has one by renewing it.
    pub(crate) fn expires_s(&self) -> u64 {
        self.ends_s.load(Ordering::Relaxed)
    }

    /// Whether this is a certificate that the caller showed, or one of the last two of this connection.
    pub(crate) fn holds(&self, digest: Digest) -> bool {
        self.held(digest).is_some()
    }

    fn held(&self, digest: Digest) -> Option<IssuedCertificate> {
        let shown = IssuedCertificate { digest: self.shown.digest, ends_s: self.shown.ends_s };
        let given = *lock(&self.given);
        given.into_iter().flatten().chain([shown]).find(|made| made.digest == digest)
    }

    /// The caller was given a newer certificate for the one that `by` names. Whether the answer arrives is
    /// not known, but the caller has the one that it renewed.
    pub(crate) fn renewed(&self, by: Digest, made: IssuedCertificate) {
        let held = self.held(by);
        *lock(&self.given) = [held, Some(made)];
        if let Some(held) = held {
            self.ends_s.fetch_max(held.ends_s, Ordering::Relaxed);
        }
    }

    /// The caller's certificates are revoked.
    pub(crate) fn revoke(&self) {
        self.revoked.send_replace(true);
    }

    pub(crate) fn is_revoked(&self) -> bool {
        *self.revoked.borrow()
    }

    /// Has something to say once the caller is revoked.
    pub(crate) fn revocation(&self) -> watch::Receiver<bool> {
        self.revoked.subscribe()
    }
}

impl Caller {
    /// Who makes this call. A call with no known peer address is unauthenticated.
    pub(crate) fn of<T>(request: &Request<T>) -> Caller {
        request.extensions().get::<Peer>().map_or(Caller::Anonymous, |peer| peer.caller.clone())
    }

    /// Whether the caller may see this job.
    pub(crate) fn sees(&self, job: &str) -> bool {
        match self {
            Caller::Trusted => true,
            Caller::Anonymous | Caller::OtherUser(_) => false,
            Caller::Known(known) => known.identity.jobs.matches(job),
        }
    }

    /// Refuses a call about a job that is not the caller's.
    pub(crate) fn job(&self, job: &str) -> Result<(), Status> {
        if self.sees(job) { Ok(()) } else { Err(self.other_job(&format!("job {}", shown(job)))) }
    }

    /// Refuses what is about jobs of all kinds to a caller who is bound to some.
    pub(crate) fn all_jobs(&self, what: &str) -> Result<(), Status> {
        let may = match self {
            Caller::Trusted => true,
            Caller::Anonymous | Caller::OtherUser(_) => false,
            Caller::Known(known) => known.identity.jobs == Jobs::all(),
        };
        if may { Ok(()) } else { Err(self.other_job(what)) }
    }

    /// Refuses a submission by a name whose jobs are not the caller's.
    pub(crate) fn submits(&self, name: &str) -> Result<(), Status> {
        let may = match self {
            Caller::Trusted => true,
            Caller::Anonymous | Caller::OtherUser(_) => false,
            Caller::Known(known) => known.identity.jobs.covers(name),
        };
        if may { Ok(()) } else { Err(self.other_job(&format!("jobs of the name {name}"))) }
    }

    /// The jobs that a worker is bound to, if it is.
    pub(crate) fn serves(&self) -> Option<String> {
        match self {
            Caller::Known(known) if known.identity.jobs != Jobs::all() => {
                Some(known.identity.jobs.to_string())
            }
            Caller::Trusted | Caller::Anonymous | Caller::OtherUser(_) | Caller::Known(_) => None,
        }
    }

    /// Refuses to show an assignment of a job that is not the caller's.
    pub(crate) fn assigned(&self, desired: &DesiredState) -> Result<(), Status> {
        #[derive(Deserialize)]
        struct AssignmentJob {
            job: String,
        }
        match &desired.assignment {
            Some(assignment) if self.serves().is_some() => {
                let of: AssignmentJob = serde_json::from_str(assignment)
                    .map_err(|_| Status::internal("an assignment without a job"))?;
                self.job(&of.job)
            }
            _ => Ok(()),
        }
    }

    /// Why the caller is not the worker that it says it is, if so.
    pub(crate) fn not_worker(&self, worker: &str) -> Option<String> {
        match self {
            Caller::Trusted => None,
            Caller::Anonymous => Some("it shows no certificate".to_owned()),
            Caller::OtherUser(user) => Some(format!("it is of user {user}, whose coordinator this is not")),
            Caller::Known(known) => {
                let identity = &known.identity;
                let is_it = identity.role == Role::Worker && identity.name == worker;
                (!is_it).then(|| format!("it calls itself {worker}, and its certificate is for {identity}"))
            }
        }
    }

    fn other_job(&self, what: &str) -> Status {
        let who = match self {
            Caller::Known(known) => known.identity.to_string(),
            Caller::OtherUser(user) => format!("user {user}"),
            Caller::Trusted | Caller::Anonymous => "a caller without a certificate".to_owned(),
        };
        let message = format!("{what}: {who} may not touch it");
        denied_status(Code::PermissionDenied, ErrorCode::AccessJob, message)
    }
}

/// Now, in seconds of Unix time.
pub(crate) fn now_s() -> u64 {
    UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs())
}

/// What a certificate for this identity (as a URI) says, made at 0 and good until then.
#[cfg(test)]
pub(crate) fn shown_by(uri: &str, ends_s: u64) -> Shown {
    let identity = Principal::from_uri(uri).unwrap();
    Shown { identity, digest: Digest::of(uri.as_bytes()), made_s: 0, ends_s }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_holds_the_last_two_and_lasts_as_long_as_what_was_renewed() {
        let made = |n: u8, ends_s| IssuedCertificate { digest: Digest::of(&[n]), ends_s };
        let known = Known::new(shown_by("coxswain://worker/w0/job/*", 60));
        let shown = known.shown().digest;
        let [second, third, lost, again] = [made(2, 80), made(3, 100), made(4, 120), made(5, 121)];
        // What is renewed for what, which are held then, and until when the connection lasts.
        for (by, newer, held, ends_s) in [
            (shown, second, vec![second], 60),
            (second.digest, third, vec![second, third], 80),
            (third.digest, lost, vec![third, lost], 100),
            (third.digest, again, vec![third, again], 100),
        ] {
            assert!(known.holds(by));
            known.renewed(by, newer);
            let holds: Vec<_> =
                [second, third, lost, again].into_iter().filter(|of| known.holds(of.digest)).collect();
            let digests =
                |all: Vec<IssuedCertificate>| all.into_iter().map(|made| made.digest).collect::<Vec<_>>();
            assert_eq!(digests(holds), digests(held));
            assert!(known.holds(shown));
            assert_eq!(known.expires_s(), ends_s);
        }
    }
}
