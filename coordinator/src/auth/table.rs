//! Which role may make which call. What has no row is denied to everyone who needs a certificate.

use coxswain_core::code::ErrorCode;
use tonic::Code;

use super::Caller;
use super::identity::Role;

/// Who may make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Everyone, also without a certificate: the call has a proof of its own.
    Anyone,
    /// Holders of a certificate with one of these roles.
    Roles(&'static [Role]),
}

use Role::{Admin, Submitter, Viewer, Worker};

/// Every call and who may make it. Which jobs a call may be about is checked by the call itself.
pub(crate) const TABLE: &[(&str, Rule)] = &[
    ("/coxswain.v1.Cluster/Register", Rule::Roles(&[Worker])),
    ("/coxswain.v1.Cluster/Sync", Rule::Roles(&[Worker])),
    ("/coxswain.v1.Cluster/StoreSet", Rule::Roles(&[Worker])),
    ("/coxswain.v1.Cluster/StoreGet", Rule::Roles(&[Worker])),
    ("/coxswain.v1.Jobs/Submit", Rule::Roles(&[Admin, Submitter])),
    ("/coxswain.v1.Jobs/Get", Rule::Roles(&[Admin, Submitter, Viewer])),
    ("/coxswain.v1.Jobs/List", Rule::Roles(&[Admin, Submitter, Viewer])),
    ("/coxswain.v1.Jobs/Cancel", Rule::Roles(&[Admin, Submitter])),
    ("/coxswain.v1.Jobs/Watch", Rule::Roles(&[Admin, Submitter, Viewer])),
    ("/coxswain.v1.Jobs/Drain", Rule::Roles(&[Admin, Submitter])),
    ("/coxswain.v1.Jobs/Explain", Rule::Roles(&[Admin, Submitter, Viewer])),
    ("/coxswain.v1.Jobs/View", Rule::Roles(&[Admin, Submitter, Viewer])),
    ("/coxswain.v1.Jobs/Events", Rule::Roles(&[Admin, Submitter, Viewer])),
    // Its proof is the token.
    ("/coxswain.v1.Access/Join", Rule::Anyone),
    ("/coxswain.v1.Access/Renew", Rule::Roles(&[Worker])),
    ("/coxswain.v1.Access/CreateToken", Rule::Roles(&[Admin])),
    ("/coxswain.v1.Access/VoidToken", Rule::Roles(&[Admin])),
    ("/coxswain.v1.Access/Revoke", Rule::Roles(&[Admin])),
    ("/coxswain.v1.Access/Revoked", Rule::Roles(&[Admin])),
];

/// Why a call is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denied {
    pub(crate) status: Code,
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
}

/// Whether `caller` may make the call `rpc` at `now_s`.
pub(crate) fn decide(rpc: &str, caller: &Caller, now_s: u64) -> Result<(), Denied> {
    let rule = TABLE.iter().find(|(path, _)| *path == rpc).map(|(_, rule)| *rule);
    let denied = |status, code, message: String| Err(Denied { status, code, message });
    match (caller, rule) {
        (Caller::OtherUser(user), _) => denied(
            Code::PermissionDenied,
            ErrorCode::AccessUser,
            format!(
                "this coordinator takes calls of the user who started it and of root only, and this one is of user \
                 {user}; with certificates it knows other callers (docs/security.md), and `serve --any-user` takes \
                 calls of all users of its machine"
            ),
        ),
        (Caller::Trusted, _) | (_, Some(Rule::Anyone)) => Ok(()),
        (Caller::Anonymous, _) => denied(
            Code::Unauthenticated,
            ErrorCode::AccessCertificateMissing,
            "this call needs a certificate: name its folder by --tls-dir or COXSWAIN_TLS_DIR; a worker gets one \
             by a join token"
                .to_owned(),
        ),
        (Caller::Known(known), _) if known.is_revoked() => denied(
            Code::PermissionDenied,
            ErrorCode::AccessCertificateRevoked,
            format!(
                "the certificate of {} was revoked; whoever runs the cluster can let the name have a new one \
                 (`coxswain certs revoke --undo`)",
                known.identity
            ),
        ),
        (Caller::Known(known), _) if known.expires_s() <= now_s => denied(
            Code::Unauthenticated,
            ErrorCode::AccessCertificateExpired,
            format!("the certificate of {} has expired; get a new one", known.identity),
        ),
        (Caller::Known(known), Some(Rule::Roles(roles))) if roles.contains(&known.identity.role) => Ok(()),
        (Caller::Known(known), rule) => {
            let call = rpc.rsplit('/').next().unwrap_or_default();
            let call = super::shown(call);
            let words = |roles: &[Role]| roles.iter().map(|role| role.word()).collect::<Vec<_>>().join(" or ");
            let may = match rule {
                Some(Rule::Roles(roles)) => words(roles),
                Some(Rule::Anyone) | None => "no caller".to_owned(),
            };
            let message = format!("{} may not call {call}: {may} may", known.identity);
            denied(Code::PermissionDenied, ErrorCode::AccessRole, message)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::auth::{Known, shown_by};

    /// A call that is new in the .proto files needs a row before it can be made.
    #[test]
    fn the_table_has_every_call_once_and_no_other() {
        let mut rows: Vec<&str> = TABLE.iter().map(|(path, _)| *path).collect();
        let mut calls = coxswain_proto::RPCS.to_vec();
        rows.sort_unstable();
        calls.sort_unstable();
        assert_eq!(rows, calls);
    }

    #[test]
    fn what_is_in_no_row_is_denied() {
        let denied = decide("/coxswain.v1.Jobs/Drop", &Caller::Anonymous, 0).unwrap_err();
        assert_eq!(
            (denied.status, denied.code),
            (Code::Unauthenticated, ErrorCode::AccessCertificateMissing)
        );
        let known = Arc::new(Known::new(shown_by("coxswain://admin/a/job/*", 10)));
        let admin = Caller::Known(known.clone());
        let denied = decide("/coxswain.v1.Jobs/Drop", &admin, 9).unwrap_err();
        assert_eq!(
            (denied.code, denied.message.as_str()),
            (ErrorCode::AccessRole, "admin a may not call Drop: no caller may")
        );
        assert_eq!(decide("/coxswain.v1.Jobs/List", &admin, 9), Ok(()));
        let denied = decide("/coxswain.v1.Jobs/List", &admin, 10).unwrap_err();
        assert_eq!(denied.code, ErrorCode::AccessCertificateExpired);
        assert_eq!(denied.message, "the certificate of admin a has expired; get a new one");
        known.revoke();
        let denied = decide("/coxswain.v1.Jobs/List", &admin, 9).unwrap_err();
        assert_eq!(
            (denied.status, denied.code),
            (Code::PermissionDenied, ErrorCode::AccessCertificateRevoked)
        );
        assert!(denied.message.starts_with("the certificate of admin a was revoked"), "{}", denied.message);
    }
}
