//! Pods prove who they are by the token of their service account, a JWT that Kubernetes signs and renews in a
//! file. Which service accounts become workers, and for which jobs, the coordinator is told at its start.
//!
//! A token is taken if its signature is by one of the cluster's keys (RS256 or ES256), it is good now, and
//! its audience, issuer and subject are those that were configured. Where it names a pod, the worker's name
//! has to be the pod's, or that with a dash and a number. A coordinator that is a pod itself has a token of the same
//! issuer, and can take the issuer's name from it.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use coxswain_files::regular;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::chains::is_name_of_pod;
use super::identity::{Jobs, Malformed, Principal, Role};

/// The longest token that is looked at: those of Kubernetes have about 1 KiB.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// The largest file of keys. A key has about 500 bytes, and there are a few.
const MAX_KEYS_BYTES: u64 = 256 << 10;

/// How much the clocks of the coordinator and of Kubernetes may differ, in seconds.
const SKEW_S: u64 = 60;

/// A service account, and the jobs that its pods work for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    subject: String,
    jobs: Jobs,
}

impl FromStr for Subject {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Subject, Malformed> {
        let (subject, jobs) = text.split_once('=').unwrap_or((text, "*"));
        let parts: Vec<&str> = subject.split(':').collect();
        match parts[..] {
            ["system", "serviceaccount", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
                Ok(Subject { subject: subject.to_owned(), jobs: jobs.parse()? })
            }
            _ => Err(Malformed::new(format!(
                "`{text}` has to be system:serviceaccount:NAMESPACE:NAME, and may have `=JOBS` behind it"
            ))),
        }
    }
}

/// Who a token is of.
#[derive(Debug)]
pub(crate) struct Joiner {
    pub(crate) identity: Principal,
    /// The pod that the token names, if it does.
    pub(crate) pod: Option<String>,
}

/// Whose tokens are taken.
#[derive(Clone, Debug)]
pub(crate) struct Pods {
    /// The keys (a JWK set). It is read at each join, since Kubernetes may change its keys.
    pub(crate) keys: PathBuf,
    pub(crate) issuer: String,
    pub(crate) audience: String,
    pub(crate) subjects: Vec<Subject>,
}

/// Why a pod's token is not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PodError {
    #[error(
        "this coordinator takes no tokens of service accounts: `serve --join-jwks` names the keys that sign \
         them"
    )]
    NotTaken,
    #[error(
        "the keys that sign the tokens of service accounts cannot be read: {path}: {why}",
        path = path.display()
    )]
    Keys { path: PathBuf, why: String },
    #[error("this coordinator's own token cannot be read: {path}: {why}", path = path.display())]
    Own { path: PathBuf, why: String },
    #[error("this is not a service account's token: {0}")]
    Malformed(&'static str),
    #[error("the token is signed by `{0}`; only RS256 and ES256 are taken")]
    Algorithm(String),
    #[error(
        "the token's signature is not by a key in the coordinator's --join-jwks: is that file of this \
         Kubernetes, and does it have its newest keys?"
    )]
    Signature,
    #[error("the token has expired, or is not good yet; mount it as a projected volume, which renews it")]
    Time,
    #[error("the token is not for this coordinator: its audience has to be `{0}`")]
    Audience(String),
    #[error("the token is not by the issuer `{0}`")]
    Issuer(String),
    #[error("the service account {0} is not allowed to join; `serve --join-subject` names those that are")]
    Subject(String),
    #[error("a worker in the pod {pod} has to be called {pod}, or {pod}- and a number")]
    Pod { pod: String },
    #[error(transparent)]
    Name(#[from] Malformed),
}

#[derive(Deserialize)]
struct JwtHeader {
    alg: String,
    kid: Option<String>,
    /// What a reader has to understand beyond this.
    crit: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Some(Vec<String>),
}

#[derive(Deserialize)]
struct Claims {
    exp: u64,
    nbf: Option<u64>,
    aud: Audience,
    iss: String,
    sub: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<Kubernetes>,
}

#[derive(Deserialize)]
struct Kubernetes {
    pod: Option<Pod>,
}

#[derive(Deserialize)]
struct Pod {
    name: String,
}

/// A JWK set.
#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

/// A key of it. Those of other kinds stay unused.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwk {
    fn fits(&self, header: &JwtHeader) -> bool {
        let kid = header.kid.is_none() || header.kid == self.kid;
        kid && self.usage.as_deref().is_none_or(|usage| usage == "sig")
            && self.alg.as_ref().is_none_or(|alg| *alg == header.alg)
    }

    /// Whether `signature` of `message` is by this key; `None` where the key cannot sign so.
    fn signed(&self, alg: &str, message: &[u8], signature: &[u8]) -> Option<bool> {
        let part = |text: &Option<String>| BASE64_URL_SAFE_NO_PAD.decode(text.as_ref()?).ok();
        let verified = match (alg, self.kty.as_str()) {
            ("RS256", "RSA") => {
                let key = RsaPublicKeyComponents { n: part(&self.n)?, e: part(&self.e)? };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            ("ES256", "EC") if self.crv.as_deref() == Some("P-256") => {
                // An uncompressed point.
                let point = [vec![4], part(&self.x)?, part(&self.y)?].concat();
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            _ => return None,
        };
        Some(verified.is_ok())
    }
}

impl Pods {
    /// Who a pod with this token is, if its worker is to have this name.
    ///
    /// # Errors
    /// The token is not taken, or the name is not the pod's.
    pub(crate) fn identity(&self, token: &str, name: &str, now_s: u64) -> Result<Joiner, PodError> {
        self.identity_by(&self.keys()?, token, name, now_s)
    }

    /// Whether the keys can be read now.
    ///
    /// # Errors
    /// They cannot.
    pub(crate) fn check(&self) -> Result<(), PodError> {
        self.keys().map(drop)
    }

    fn keys(&self) -> Result<JwkSet, PodError> {
        read_keys(&self.keys)
    }

    fn identity_by(&self, keys: &JwkSet, token: &str, name: &str, now_s: u64) -> Result<Joiner, PodError> {
        let claims = verified(keys, token)?;
        if claims.exp <= now_s || claims.nbf.is_some_and(|nbf| nbf > now_s.saturating_add(SKEW_S)) {
            return Err(PodError::Time);
        }
        let ours = match &claims.aud {
            Audience::One(audience) => *audience == self.audience,
            Audience::Some(audiences) => audiences.contains(&self.audience),
        };
        if !ours {
            return Err(PodError::Audience(self.audience.clone()));
        }
        if claims.iss != self.issuer {
            return Err(PodError::Issuer(self.issuer.clone()));
        }
        let subject = self.subjects.iter().find(|subject| subject.subject == claims.sub);
        let subject = subject.ok_or_else(|| PodError::Subject(super::shown(&claims.sub)))?;
        let pod = claims.kubernetes.and_then(|kubernetes| kubernetes.pod).map(|pod| pod.name);
        if let Some(pod) = pod.clone().filter(|pod| !is_name_of_pod(name, pod)) {
            return Err(PodError::Pod { pod });
        }
        Ok(Joiner { identity: Principal::new(Role::Worker, name, subject.jobs.clone())?, pod })
    }
}

/// The issuer of the token in the file `token`, which one of the keys in the file `keys` has to have signed: a file of
/// another Kubernetes is noticed at the start.
///
/// # Errors
/// A file cannot be read, or the token is not by these keys.
pub(crate) fn issuer_of(keys: &Path, token: &Path) -> Result<String, PodError> {
    let failed = |why: String| PodError::Own { path: token.to_owned(), why };
    let text = regular::read(token, MAX_TOKEN_BYTES as u64).map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8(text).map_err(|_| PodError::Malformed("it is not text"))?;
    // It need not be good now: its issuer does not change.
    Ok(verified(&read_keys(keys)?, text.trim())?.iss)
}

fn read_keys(path: &Path) -> Result<JwkSet, PodError> {
    let failed = |why: String| PodError::Keys { path: path.to_owned(), why };
    let text = regular::read(path, MAX_KEYS_BYTES).map_err(|error| failed(error.to_string()))?;
    let keys: JwkSet = serde_json::from_slice(&text)
        .map_err(|error| failed(format!("it is not a JWK set, `{{\"keys\": [...]}}`: {error}")))?;
    if keys.keys.is_empty() { Err(failed("it holds no key".to_owned())) } else { Ok(keys) }
}

/// What a token says that is signed by one of these keys.
fn verified(keys: &JwkSet, token: &str) -> Result<Claims, PodError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(PodError::Malformed("it is too long"));
    }
    let (message, signature) = token.rsplit_once('.').ok_or(PodError::Malformed("it has no parts"))?;
    let (header, claims) =
        message.split_once('.').ok_or(PodError::Malformed("it has two parts, not three"))?;
    let header: JwtHeader = json(header, "its header cannot be read")?;
    if !matches!(header.alg.as_str(), "RS256" | "ES256") {
        return Err(PodError::Algorithm(super::shown(&header.alg)));
    }
    if header.crit.is_some() {
        return Err(PodError::Malformed("its header asks for more than is known here (`crit`)"));
    }
    let signature = BASE64_URL_SAFE_NO_PAD.decode(signature);
    let signature = signature.map_err(|_| PodError::Malformed("its signature cannot be read"))?;
    let by = |key: &Jwk| key.signed(&header.alg, message.as_bytes(), &signature) == Some(true);
    if !keys.keys.iter().filter(|key| key.fits(&header)).any(by) {
        return Err(PodError::Signature);
    }
    json(claims, "it does not say exp, aud, iss and sub")
}

fn json<T: DeserializeOwned>(part: &str, what: &'static str) -> Result<T, PodError> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| PodError::Malformed(what))?;
    serde_json::from_slice(&bytes).map_err(|_| PodError::Malformed(what))
}

#[cfg(test)]
pub(crate) mod tests;
