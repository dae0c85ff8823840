//! Those who look at the page by a viewer's token: each is known by a random cookie for half a day. Kept in memory only:
//! after a restart of the coordinator the token is asked for again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::http::{HeaderMap, header};
use coxswain_transport::tls::client::provider;

use crate::auth::digest::Digest;
use crate::auth::members::Membership;
use crate::auth::{Known, now_s};
use crate::lock::lock;

/// The cookie's name.
const COOKIE: &str = "coxswain";

/// How long a session lasts, in seconds: a day at work.
pub(super) const LIFE_S: u64 = 12 * 3600;

/// The most sessions at once; a token is good for so many uses, and people have a few browsers.
const MAX_SESSIONS: usize = 1024;

/// Bytes of a cookie: 256 bits cannot be guessed.
const COOKIE_BYTES: usize = 32;

/// The sessions of a port with certificates.
#[derive(Clone)]
pub(super) struct Sessions {
    members: Arc<Membership>,
    /// By the cookies' digests.
    open: Arc<Mutex<BTreeMap<String, Arc<Known>>>>,
}

impl Sessions {
    pub(super) fn new(members: Arc<Membership>) -> Sessions {
        Sessions { members, open: Arc::default() }
    }

    /// Opens a session by a viewer's token, given as its whole text or as `id.secret`; returns the line that sets its
    /// cookie.
    ///
    /// # Errors
    /// In words: the token is not a viewer's, or is not good any more.
    pub(super) fn open(&self, token: &str) -> Result<String, String> {
        let spoken: Vec<&str> = token.trim().split('.').take(2).collect();
        let mut bytes = [0; COOKIE_BYTES];
        let filled = provider().secure_random.fill(&mut bytes);
        filled.map_err(|_| "the system gives no random bytes".to_owned())?;
        let cookie = Digest::of(&bytes).to_string();
        let own = Digest::of(cookie.as_bytes());
        let now_s = now_s();
        let is_full = {
            let mut open = lock(&self.open);
            open.retain(|_, known| is_good(known, now_s));
            open.len() >= MAX_SESSIONS
        };
        if is_full {
            return Err(format!("{MAX_SESSIONS} people look at the page already"));
        }
        // This writes to the disk, which requests of others do not wait for.
        let known = self.members.look(&spoken.join("."), own, LIFE_S).map_err(|error| error.to_string())?;
        lock(&self.open).insert(own.to_string(), known);
        Ok(format!("{COOKIE}={cookie}; Path=/; Max-Age={LIFE_S}; HttpOnly; Secure; SameSite=Strict"))
    }

    /// Whose request this is, by its cookie.
    pub(super) fn of(&self, headers: &HeaderMap) -> Option<Arc<Known>> {
        let cookies = headers.get(header::COOKIE)?.to_str().ok()?.split(';');
        let mut own = cookies.filter_map(|cookie| cookie.trim().strip_prefix(COOKIE)?.strip_prefix('='));
        let known = lock(&self.open).get(&Digest::of(own.next()?.as_bytes()).to_string()).cloned()?;
        is_good(&known, now_s()).then_some(known)
    }
}

fn is_good(known: &Known, now_s: u64) -> bool {
    !known.is_revoked() && known.expires_s() > now_s
}
