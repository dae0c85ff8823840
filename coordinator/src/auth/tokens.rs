//! Join tokens that are open: what each gives, until when and how often. Nothing here changes by itself: a
//! decision returns how the token is from then on, and that is written down before it counts.

use std::collections::BTreeMap;

use coxswain_transport::tls::JoinToken;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::identity::{Jobs, Role};

/// The most tokens at once. People make them by hand or one for each start of a set of workers.
const MAX_TOKENS: usize = 1024;

/// The longest that a token can be used, in seconds: 90 days. One that pods mount is made anew each quarter.
pub(crate) const MAX_TTL_S: u64 = 90 * 24 * 3600;

/// How often a token can be used at most: the workers of a large cluster.
pub(crate) const MAX_USES: u32 = 16_384;

const ANOTHER: &str = "ask who runs the cluster for another (`coxswain token create`)";

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("this join token is not known here: it is wrong, or expired long ago; {ANOTHER}")]
    Unknown,
    #[error("the join token {0} has expired; {ANOTHER}")]
    Expired(String),
    #[error("there is no join token {0}; its id is the first part of a token")]
    NoToken(String),
    #[error("the join token {0} is used up or was revoked; {ANOTHER}")]
    UsedUp(String),
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

/// A token as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenEntry {
    /// Of the secret, which itself is not kept.
    hash: Digest,
    pub(crate) role: Role,
    pub(crate) jobs: Jobs,
    /// Until when it can be used, in seconds of Unix time.
    expires_s: u64,
    /// How often it can still be used.
    left: u32,
}

impl TokenEntry {
    fn is_over(&self, now_s: u64) -> bool {
        self.left == 0 || self.expires_s <= now_s
    }
}

/// Tokens by their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenTable(BTreeMap<String, TokenEntry>);

impl TokenTable {
    /// What to remember of a token that has just been made.
    pub(crate) fn grant(
        &self,
        token: &JoinToken,
        grant: Grant,
        now_s: u64,
    ) -> Result<TokenEntry, TokenError> {
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
        let open = self.0.values().filter(|open| !open.is_over(now_s)).count();
        if open >= MAX_TOKENS {
            return Err(TokenError::TooMany(open));
        }
        let hash = Digest::of(token.secret().expose().as_bytes());
        Ok(TokenEntry { hash, role, jobs, expires_s: now_s.saturating_add(ttl_s), left: uses })
    }

    /// The id of a token, given as `id.secret`, and how it is after one more use.
    pub(crate) fn redeem(&self, spoken: &str, now_s: u64) -> Result<(String, TokenEntry), TokenError> {
        let (id, secret) = spoken.split_once('.').ok_or(TokenError::Unknown)?;
        let hash = Digest::of(secret.as_bytes());
        let open = self.0.get(id).filter(|open| open.hash == hash).ok_or(TokenError::Unknown)?;
        if open.expires_s <= now_s {
            return Err(TokenError::Expired(id.to_owned()));
        }
        let Some(left) = open.left.checked_sub(1) else { return Err(TokenError::UsedUp(id.to_owned())) };
        Ok((id.to_owned(), TokenEntry { left, ..open.clone() }))
    }

    /// How the token of this id is once it is void.
    pub(crate) fn void(&self, id: &str) -> Result<TokenEntry, TokenError> {
        let open = self.0.get(id).ok_or_else(|| TokenError::NoToken(super::shown(id)))?;
        Ok(TokenEntry { left: 0, ..open.clone() })
    }

    /// The token is like this from now on.
    pub(crate) fn set(&mut self, id: String, open: TokenEntry, now_s: u64) {
        if self.0.len() >= MAX_TOKENS {
            // Those that are over are kept while there is room, so that who uses one is told why.
            self.0.retain(|_, open| !open.is_over(now_s));
        }
        self.0.insert(id, open);
    }

    /// Those that a restart has to know.
    pub(crate) fn kept(&self, now_s: u64) -> impl Iterator<Item = (&String, &TokenEntry)> {
        self.0.iter().filter(move |(_, open)| open.expires_s > now_s)
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

    fn add(tokens: &mut TokenTable, token: &JoinToken, grant: Grant, now_s: u64) -> Result<(), TokenError> {
        let open = tokens.grant(token, grant, now_s)?;
        tokens.set(token.id().to_owned(), open, now_s);
        Ok(())
    }

    fn redeem(tokens: &mut TokenTable, spoken: &str, now_s: u64) -> Result<String, TokenError> {
        let (id, open) = tokens.redeem(spoken, now_s)?;
        tokens.set(id.clone(), open, now_s);
        Ok(id)
    }

    #[test]
    fn a_token_is_good_for_its_time_its_uses_and_its_secret() {
        let mut tokens = TokenTable::default();
        add(&mut tokens, &token(1), grant("demo-*", 900, 2), 100).unwrap();
        let spoken = token(1).spoken();
        assert_eq!(redeem(&mut tokens, spoken.expose(), 100).unwrap(), "01010101");
        let other = format!("{}.{}", token(1).id(), token(2).secret().expose());
        for (spoken, at, expected) in [
            ("", 100, TokenError::Unknown),
            (other.as_str(), 100, TokenError::Unknown),
            (token(2).spoken().expose(), 100, TokenError::Unknown),
            (spoken.expose(), 1000, TokenError::Expired("01010101".to_owned())),
        ] {
            assert_eq!(tokens.redeem(spoken, at), Err(expected));
        }
        redeem(&mut tokens, spoken.expose(), 999).unwrap();
        let error = tokens.redeem(spoken.expose(), 999).unwrap_err();
        assert_eq!(error, TokenError::UsedUp("01010101".to_owned()));
        assert!(error.to_string().contains("coxswain token create"), "{error}");
        add(&mut tokens, &token(2), grant("*", 900, 9), 0).unwrap();
        tokens.set(token(2).id().to_owned(), tokens.void(token(2).id()).unwrap(), 0);
        let void = tokens.redeem(token(2).spoken().expose(), 0);
        assert_eq!(void, Err(TokenError::UsedUp("02020202".to_owned())));
        assert_eq!(tokens.void("03"), Err(TokenError::NoToken("03".to_owned())));
        assert!(!format!("{tokens:?}").contains(token(1).secret().expose()));
    }

    #[test]
    fn what_is_asked_for_is_bounded() {
        let mut tokens = TokenTable::default();
        let mut add = |token: &JoinToken, grant, now_s| add(&mut tokens, token, grant, now_s);
        for bad in
            [grant("*", 0, 1), grant("*", MAX_TTL_S + 1, 1), grant("*", 1, 0), grant("*", 1, MAX_USES + 1)]
        {
            assert!(matches!(add(&token(1), bad, 0), Err(TokenError::Grant(_))));
        }
        let admin = Grant { role: Role::Admin, ..grant("*", 1, 1) };
        assert!(matches!(add(&token(1), admin, 0), Err(TokenError::Grant(_))));
        for n in 0..MAX_TOKENS {
            let id = u32::try_from(n).unwrap().to_be_bytes();
            add(&JoinToken::new(id, [0; 16], b"ca"), grant("*", 10, 1), 0).unwrap();
        }
        let more = JoinToken::new([0xff; 4], [0; 16], b"ca");
        assert_eq!(add(&more, grant("*", 10, 1), 9), Err(TokenError::TooMany(MAX_TOKENS)));
        add(&more, grant("*", 10, 1), 10).unwrap();
        assert_eq!((tokens.0.len(), tokens.kept(10).count(), tokens.kept(20).count()), (1, 1, 0));
    }
}
