//! A name, a role and jobs, as a certificate carries them: `coxswain://ROLE/NAME/job/JOBS`.

use std::fmt;
use std::str::FromStr;

use coxswain_types::status::id_matches;
use serde::{Deserialize, Serialize};

/// The longest name. Names are in certificates, logs and messages.
const MAX_NAME: usize = 63;

/// The longest pattern of jobs: the name of a job and its number.
const MAX_JOBS: usize = 128;

/// What a caller is there for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, clap::ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Does everything that people do, and makes tokens.
    Admin,
    /// Submits jobs, looks at them and cancels them.
    Submitter,
    /// Looks at jobs.
    Viewer,
    /// Computes.
    Worker,
}

impl Role {
    pub(crate) const ALL: [Role; 4] = [Role::Admin, Role::Submitter, Role::Viewer, Role::Worker];

    pub(crate) fn word(self) -> &'static str {
        match self {
            Role::Admin => "admin",
            Role::Submitter => "submitter",
            Role::Viewer => "viewer",
            Role::Worker => "worker",
        }
    }
}

impl FromStr for Role {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Role, Malformed> {
        let of = Role::ALL.into_iter().find(|role| role.word() == text);
        of.ok_or_else(|| Malformed(format!("unknown role `{text}`; use admin, submitter, viewer or worker")))
    }
}

/// A text that is not what it should be, with what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(String);

impl Malformed {
    /// What is wrong with a text, and what it should be.
    pub(crate) fn new(why: String) -> Malformed {
        Malformed(why)
    }
}

/// The jobs that a caller may touch: one id, all ids with one beginning (`demo-*`), or all (`*`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Jobs(String);

impl TryFrom<String> for Jobs {
    type Error = Malformed;

    fn try_from(text: String) -> Result<Jobs, Malformed> {
        text.parse()
    }
}

impl From<Jobs> for String {
    fn from(jobs: Jobs) -> String {
        jobs.0
    }
}

impl Jobs {
    /// All of them.
    pub(crate) fn all() -> Jobs {
        Jobs("*".to_owned())
    }

    /// Whether the job of this id is one of them.
    pub(crate) fn matches(&self, job: &str) -> bool {
        id_matches(&self.0, job)
    }

    /// Whether every job of this name is one of them: ids are the name, a dash and a number.
    pub(crate) fn covers(&self, name: &str) -> bool {
        self.0.strip_suffix('*').is_some_and(|beginning| format!("{name}-").starts_with(beginning))
    }
}

impl FromStr for Jobs {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Jobs, Malformed> {
        let beginning = text.strip_suffix('*').unwrap_or(text);
        let fits = !text.is_empty() && text.len() <= MAX_JOBS && beginning.chars().all(is_plain);
        let malformed = || {
            Malformed(format!(
                "`{text}` names no jobs: write an id such as demo-1, a beginning such as demo-*, or * for all"
            ))
        };
        if fits { Ok(Jobs(text.to_owned())) } else { Err(malformed()) }
    }
}

impl fmt::Display for Jobs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a caller is, as its certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Principal {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) jobs: Jobs,
}

/// Refuses a text that cannot be the name of a caller.
pub(crate) fn check_name(name: &str) -> Result<(), Malformed> {
    let starts = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts && name.len() <= MAX_NAME && name.chars().all(is_plain) {
        return Ok(());
    }
    Err(Malformed(format!(
        "the name `{}` has to be of letters, digits, `.`, `_` and `-`, begin with a letter or digit, and \
         have at most {MAX_NAME} of them",
        super::shown(name)
    )))
}

const SCHEME: &str = "coxswain://";

impl Principal {
    /// # Errors
    /// The name cannot be one ([`check_name`]).
    pub(crate) fn new(role: Role, name: &str, jobs: Jobs) -> Result<Principal, Malformed> {
        check_name(name)?;
        Ok(Principal { role, name: name.to_owned(), jobs })
    }

    /// As it stands in a certificate.
    pub(crate) fn uri(&self) -> String {
        format!("{SCHEME}{}/{}/job/{}", self.role.word(), self.name, self.jobs)
    }

    pub(crate) fn from_uri(uri: &str) -> Result<Principal, Malformed> {
        let parts: Vec<&str> = uri.strip_prefix(SCHEME).unwrap_or_default().split('/').collect();
        match parts[..] {
            [role, name, "job", jobs] => Principal::new(role.parse()?, name, jobs.parse()?),
            _ => Err(Malformed(format!("`{uri}` is not {SCHEME}ROLE/NAME/job/JOBS"))),
        }
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role.word(), self.name)?;
        if self.jobs == Jobs::all() { Ok(()) } else { write!(f, " (jobs {})", self.jobs) }
    }
}

/// Whether a name of a caller or of a job can have this letter.
pub(super) fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_read_as_it_is_written_and_nothing_else_is() {
        for (role, name, jobs) in [
            (Role::Worker, "node-7.rack_2", "demo-*"),
            (Role::Admin, "a", "*"),
            (Role::Viewer, "Bo", "demo-1"),
        ] {
            let identity = Principal::new(role, name, jobs.parse().unwrap()).unwrap();
            assert_eq!(Principal::from_uri(&identity.uri()), Ok(identity));
        }
        for uri in [
            "coxswain://worker/a/job/*/more",
            "coxswain://worker/a/job/",
            "coxswain://worker//job/*",
            "coxswain://worker/a b/job/*",
            "coxswain://worker/../job/*",
            "coxswain://boss/a/job/*",
            "coxswain://worker/a/job/a*b",
            "https://worker/a/job/*",
            "",
        ] {
            assert!(Principal::from_uri(uri).is_err(), "{uri}");
        }
        assert!(Principal::new(Role::Worker, &"a".repeat(MAX_NAME + 1), Jobs::all()).is_err());
    }

    #[test]
    fn jobs_are_one_or_those_with_a_beginning() {
        // Jobs, the id of one, whether it is among them; whether a submission of the name `demo` is.
        for (jobs, id, matches, covers) in [
            ("*", "demo-1", true, true),
            ("demo-*", "demo-17", true, true),
            ("demo-*", "demo2-1", false, true),
            ("de*", "demo-1", true, true),
            ("demo-1", "demo-1", true, false),
            ("demo-1", "demo-11", false, false),
            ("demo-1*", "demo-11", true, false),
            ("other-*", "demo-1", false, false),
        ] {
            let jobs: Jobs = jobs.parse().unwrap();
            assert_eq!((jobs.matches(id), jobs.covers("demo")), (matches, covers), "{jobs} {id}");
        }
    }
}
