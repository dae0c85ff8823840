//! Join tokens that are open. They live in memory: a coordinator that is started again knows none.

use std::collections::BTreeMap;

use coxswain_proto::tls::JoinToken;

use super::identity::{Identity, Jobs, Malformed, Role};

/// The most tokens at once. People make them by hand or one for each start of a set of workers.
const MAX_TOKENS: usize = 1024;

/// The longest that a token can be used, in seconds: a day. What starts workers later makes another.
pub(crate) const MAX_TTL_S: u64 = 24 * 3600;

/// How often a token can be used at most: the workers of a large cluster.
pub(crate) const MAX_USES: u32 = 16_384;

/// The most names of workers that are remembered: four of each of a large cluster's.
const MAX_NAMES: usize = 1 << 16;

const ANOTHER: &str = "ask who runs the cluster for another (`coxswain token create`)";

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error(
        "this join token is not known here: it is wrong, or the coordinator was started again since it was \
         made; {ANOTHER}"
    )]
    Unknown,
    #[error("the join token {0} has expired; {ANOTHER}")]
    Expired(String),
    #[error("the join token {0} is used up; {ANOTHER}")]
    UsedUp(String),
    #[error(transparent)]
    Name(#[from] Malformed),
    #[error(
        "the name {name} is held by a worker for other jobs ({jobs}) until its certificate expires; take \
         another"
    )]
    Taken { name: String, jobs: Jobs },
    #[error("there are {0} join tokens open, which is the most; wait until some have expired")]
    TooMany(usize),
    #[error("{0}")]
    Grant(String),
}

/// What a token gives, to whom and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) role: Role,
    pub(crate) jobs: Jobs,
    pub(crate) ttl_s: u64,
    pub(crate) uses: u32,
}

#[derive(Debug)]
struct Open {
    /// Of the secret; comparing two takes the same time wherever they differ.
    hash: blake3::Hash,
    role: Role,
    jobs: Jobs,
    expires_s: u64,
    left: u32,
}

impl Open {
    fn is_over(&self, now_s: u64) -> bool {
        self.left == 0 || self.expires_s <= now_s
    }
}

/// Tokens by their ids, and names of workers that have a certificate.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    open: BTreeMap<String, Open>,
    names: BTreeMap<String, (Jobs, u64)>,
}

impl Tokens {
    /// Remembers a token that has just been made.
    pub(crate) fn add(&mut self, token: &JoinToken, grant: Grant, now_s: u64) -> Result<(), TokenError> {
        let Grant { role, jobs, ttl_s, uses } = grant;
        let wrong = |text: String| Err(TokenError::Grant(text));
        if role == Role::Admin {
            return wrong(
                "no token makes an admin; `coxswain certs issue --role admin` does, where the CA is"
                    .to_owned(),
            );
        }
        if !(1..=MAX_TTL_S).contains(&ttl_s) {
            return wrong(format!("a token lives from 1 to {MAX_TTL_S} seconds, not {ttl_s}"));
        }
        if !(1..=MAX_USES).contains(&uses) {
            return wrong(format!("a token can be used from 1 to {MAX_USES} times, not {uses}"));
        }
        if self.open.len() >= MAX_TOKENS {
            // Those that are over are kept while there is room, so that who uses one is told why.
            self.open.retain(|_, open| !open.is_over(now_s));
        }
        if self.open.len() >= MAX_TOKENS {
            return Err(TokenError::TooMany(self.open.len()));
        }
        let hash = blake3::hash(token.secret().expose().as_bytes());
        let open = Open { hash, role, jobs, expires_s: now_s + ttl_s, left: uses };
        self.open.insert(token.id().to_owned(), open);
        Ok(())
    }

    /// Uses a token, given as `id.secret`, once for someone of this name.
    pub(crate) fn redeem(&mut self, spoken: &str, name: &str, now_s: u64) -> Result<Identity, TokenError> {
        let (id, secret) = spoken.split_once('.').ok_or(TokenError::Unknown)?;
        let hash = blake3::hash(secret.as_bytes());
        let open = self.open.get(id).filter(|open| open.hash == hash).ok_or(TokenError::Unknown)?;
        if open.expires_s <= now_s {
            return Err(TokenError::Expired(id.to_owned()));
        }
        if open.left == 0 {
            return Err(TokenError::UsedUp(id.to_owned()));
        }
        let identity = Identity::new(open.role, name, open.jobs.clone())?;
        if identity.role == Role::Worker
            && let Some((jobs, until_s)) = self.names.get(name)
            && *jobs != identity.jobs
            && *until_s > now_s
        {
            return Err(TokenError::Taken { name: name.to_owned(), jobs: jobs.clone() });
        }
        if let Some(open) = self.open.get_mut(id) {
            open.left -= 1;
        }
        Ok(identity)
    }

    /// A worker has a certificate until then, so nobody with other jobs can take its name and end its run.
    pub(crate) fn holds(&mut self, identity: &Identity, until_s: u64, now_s: u64) {
        if identity.role != Role::Worker {
            return;
        }
        if self.names.len() >= MAX_NAMES {
            self.names.retain(|_, (_, until_s)| *until_s > now_s);
        }
        if self.names.len() < MAX_NAMES {
            self.names.insert(identity.name.clone(), (identity.jobs.clone(), until_s));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(n: u8) -> JoinToken {
        JoinToken::new([n; 4], [n; 16], b"ca")
    }

    fn grant(jobs: &str, ttl_s: u64, uses: u32) -> Grant {
        Grant { role: Role::Worker, jobs: jobs.parse().unwrap(), ttl_s, uses }
    }

    #[test]
    fn a_token_is_good_for_its_time_its_uses_and_its_secret() {
        let mut tokens = Tokens::default();
        tokens.add(&token(1), grant("demo-*", 900, 2), 100).unwrap();
        let spoken = token(1).spoken();
        let identity = tokens.redeem(spoken.expose(), "w0", 100).unwrap();
        assert_eq!(identity.uri(), "coxswain://worker/w0/job/demo-*");
        let other = format!("{}.{}", token(1).id(), token(2).secret().expose());
        for (spoken, name, at, expected) in [
            ("", "w1", 100, TokenError::Unknown),
            (other.as_str(), "w1", 100, TokenError::Unknown),
            (token(2).spoken().expose(), "w1", 100, TokenError::Unknown),
            (spoken.expose(), "w1", 1000, TokenError::Expired("01010101".to_owned())),
        ] {
            assert_eq!(tokens.redeem(spoken, name, at), Err(expected));
        }
        assert!(matches!(tokens.redeem(spoken.expose(), "a/b", 100), Err(TokenError::Name(_))));
        tokens.redeem(spoken.expose(), "w1", 999).unwrap();
        let error = tokens.redeem(spoken.expose(), "w2", 999).unwrap_err();
        assert_eq!(error, TokenError::UsedUp("01010101".to_owned()));
        assert!(error.to_string().contains("coxswain token create"), "{error}");
        assert!(!format!("{tokens:?}").contains(token(1).secret().expose()));
    }

    #[test]
    fn a_name_stays_with_its_jobs_while_its_certificate_lives() {
        let mut tokens = Tokens::default();
        tokens.add(&token(1), grant("a-*", 900, 9), 0).unwrap();
        tokens.add(&token(2), grant("b-*", 900, 9), 0).unwrap();
        let first = tokens.redeem(token(1).spoken().expose(), "w0", 0).unwrap();
        tokens.holds(&first, 60, 0);
        let taken = tokens.redeem(token(2).spoken().expose(), "w0", 59).unwrap_err().to_string();
        assert!(taken.contains("held by a worker for other jobs (a-*)"), "{taken}");
        tokens.redeem(token(1).spoken().expose(), "w0", 59).unwrap();
        tokens.redeem(token(2).spoken().expose(), "w0", 60).unwrap();
    }

    #[test]
    fn what_is_asked_for_is_bounded() {
        let mut tokens = Tokens::default();
        for bad in
            [grant("*", 0, 1), grant("*", MAX_TTL_S + 1, 1), grant("*", 1, 0), grant("*", 1, MAX_USES + 1)]
        {
            assert!(matches!(tokens.add(&token(1), bad, 0), Err(TokenError::Grant(_))));
        }
        let admin = Grant { role: Role::Admin, ..grant("*", 1, 1) };
        assert!(matches!(tokens.add(&token(1), admin, 0), Err(TokenError::Grant(_))));
        for n in 0..MAX_TOKENS {
            let id = u32::try_from(n).unwrap().to_be_bytes();
            tokens.add(&JoinToken::new(id, [0; 16], b"ca"), grant("*", 10, 1), 0).unwrap();
        }
        let more = JoinToken::new([0xff; 4], [0; 16], b"ca");
        assert_eq!(tokens.add(&more, grant("*", 10, 1), 9), Err(TokenError::TooMany(MAX_TOKENS)));
        tokens.add(&more, grant("*", 10, 1), 10).unwrap();
    }
}
