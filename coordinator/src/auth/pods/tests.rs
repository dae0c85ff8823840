//! Tokens of service accounts by a key that the tests make.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};

use super::*;

fn encoded(bytes: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

/// A Kubernetes that signs tokens.
pub(crate) struct Signer {
    pair: EcdsaKeyPair,
}

impl Signer {
    pub(crate) fn new() -> Signer {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Signer { pair: EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap() }
    }

    /// Its keys, as a JWK set.
    pub(crate) fn keys(&self) -> Value {
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        json!({"keys": [
            {"kty": "oct", "kid": "1", "k": encoded("secret")},
            {"kty": "EC", "kid": "1", "crv": "P-256", "alg": "ES256", "use": "sig",
             "x": encoded(x), "y": encoded(y)},
        ]})
    }

    pub(crate) fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", encoded(header.to_string()), encoded(claims.to_string()));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", encoded(signature))
    }
}

/// The rules of these tests, with the keys in this file.
pub(crate) fn pods(keys: PathBuf) -> Pods {
    Pods {
        keys,
        issuer: "https://kubernetes.default.svc".to_owned(),
        audience: "coxswain".to_owned(),
        subjects: vec!["system:serviceaccount:train:worker=demo-*".parse().unwrap()],
    }
}

/// What a token of the pod `worker-1` says that ends at `exp`.
pub(crate) fn claims(exp: u64) -> Value {
    json!({
        "aud": ["coxswain"], "exp": exp, "iat": 0, "nbf": 50, "iss": "https://kubernetes.default.svc",
        "sub": "system:serviceaccount:train:worker",
        "kubernetes.io": {"namespace": "train", "pod": {"name": "worker-1", "uid": "u"}},
    })
}

pub(crate) fn header() -> Value {
    json!({"alg": "ES256", "kid": "1"})
}

/// `value` with another one at `key`.
fn with(mut value: Value, key: &str, other: Value) -> Value {
    value[key] = other;
    value
}

#[test]
fn a_token_is_taken_that_says_all_that_it_should() {
    let signer = Signer::new();
    let keys: JwkSet = serde_json::from_value(signer.keys()).unwrap();
    let pods = pods(PathBuf::new());
    let judge = |token: &str, name: &str, now_s| match pods.identity_by(&keys, token, name, now_s) {
        Ok(joiner) => joiner.identity.uri(),
        Err(error) => error.to_string(),
    };
    let good = signer.sign(&header(), &claims(100));
    // The name of the worker, the time, and what comes of it.
    for (name, now_s, says) in [
        ("worker-1", 50, "coxswain://worker/worker-1/job/demo-*"),
        ("worker-1-7", 99, "coxswain://worker/worker-1-7/job/demo-*"),
        ("worker-10", 50, "has to be called worker-1, or"),
        ("worker-2", 50, "has to be called worker-1, or"),
        ("worker-1-", 50, "has to be called worker-1, or"),
        ("worker-1-x", 50, "has to be called worker-1, or"),
        ("worker-1-7-7", 50, "has to be called worker-1, or"),
        ("worker-1/", 50, "has to be called worker-1, or"),
        ("worker-1", 100, "has expired"),
    ] {
        let found = judge(&good, name, now_s);
        assert!(found.contains(says), "{name} at {now_s}: {found}");
    }
    // What the token says in place of the good one, and what comes of it.
    let header_with = |key: &str, value| (with(header(), key, value), claims(100));
    let claims_with = |key: &str, value| (header(), with(claims(100), key, value));
    for ((header, claims), says) in [
        (claims_with("aud", json!("coxswain")), "coxswain://worker/"),
        (claims_with("kubernetes.io", Value::Null), "coxswain://worker/"),
        (header_with("kid", Value::Null), "coxswain://worker/"),
        (claims_with("aud", json!(["other"])), "its audience has to be `coxswain`"),
        (claims_with("aud", Value::Null), "it does not say"),
        (claims_with("exp", Value::Null), "it does not say"),
        (claims_with("exp", json!("100")), "it does not say"),
        (claims_with("nbf", json!("50")), "it does not say"),
        (claims_with("nbf", json!(111)), "not good yet"),
        (claims_with("iss", json!("https://other")), "not by the issuer"),
        (claims_with("sub", json!("system:serviceaccount:train:other")), "is not allowed to join"),
        (header_with("alg", json!("none")), "signed by `none`"),
        (header_with("alg", json!("HS256")), "signed by `HS256`"),
        (header_with("alg", json!("RS256")), "signature is not by a key"),
        (header_with("kid", json!("2")), "signature is not by a key"),
        (header_with("crit", json!(["x"])), "`crit`"),
    ] {
        let found = judge(&signer.sign(&header, &claims), "worker-1", 50);
        assert!(found.contains(says), "{header} {claims}: {found}");
    }
    // Other texts, and tokens by other keys or that were changed.
    let (message, signature) = good.rsplit_once('.').unwrap();
    let changed = format!("{}A.{signature}", &message[..message.len() - 1]);
    let long = format!("{good}{}", "A".repeat(MAX_TOKEN_BYTES));
    for (token, says) in [
        ("", "no parts"),
        ("a.b", "not three"),
        ("a.b.c", "its header"),
        (&format!("{message}."), "signature is not by a key"),
        (&changed, "signature is not by a key"),
        (&long, "too long"),
        (&Signer::new().sign(&header(), &claims(100)), "signature is not by a key"),
    ] {
        let found = judge(token, "worker-1", 50);
        assert!(found.contains(says), "{token}: {found}");
    }
}

/// The example of RFC 7515, appendix A.2. Its signature is valid; its claims are not those of a service account.
#[test]
fn the_rsa_signature_of_the_standard_is_good() {
    let n = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yR\
             T-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXB\
             dQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9ia\
             GNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
    let keys: JwkSet =
        serde_json::from_value(json!({"keys": [{"kty": "RSA", "n": n, "e": "AQAB"}]})).unwrap();
    let message = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS\
                   9pc19yb290Ijp0cnVlfQ";
    let signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGb\
                     ds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0\
                     GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6L\
                     bgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    let error = |token: String| verified(&keys, &token).err().unwrap().to_string();
    assert!(error(format!("{message}.{signature}")).contains("it does not say exp, aud"));
    let changed = format!("{message}.A{}", &signature[1..]);
    assert!(error(changed).contains("signature is not by a key"));
}

#[test]
fn keys_that_cannot_be_read_and_rules_that_say_nothing_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    let pods = pods(path.clone());
    for (text, says) in [
        ("{", "it is not a JWK set"),
        ("{\"keys\": []}", "it holds no key"),
        (&" ".repeat(MAX_KEYS_BYTES as usize + 1), "and may have 262144 at most"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = pods.check().unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    std::fs::write(&path, Signer::new().keys().to_string()).unwrap();
    pods.check().unwrap();
    for bad in
        ["worker", "system:serviceaccount:a", "system:serviceaccount:a:", "system:serviceaccount:a:b=a b"]
    {
        assert!(bad.parse::<Subject>().is_err(), "{bad}");
    }
    let all: Subject = "system:serviceaccount:a:b".parse().unwrap();
    assert_eq!(all.jobs, Jobs::all());
}

#[test]
fn the_coordinators_own_token_tells_the_issuer_if_it_is_by_the_same_keys() {
    let folder = tempfile::tempdir().unwrap();
    let [keys, token] = ["jwks.json", "token"].map(|name| folder.path().join(name));
    let signer = Signer::new();
    std::fs::write(&keys, signer.keys().to_string()).unwrap();
    let missing = issuer_of(&keys, &token).unwrap_err().to_string();
    assert!(missing.contains("own token cannot be read"), "{missing}");
    // One of before: its issuer is still the one.
    std::fs::write(&token, signer.sign(&header(), &claims(1)) + "\n").unwrap();
    assert_eq!(issuer_of(&keys, &token).unwrap(), "https://kubernetes.default.svc");
    std::fs::write(&keys, Signer::new().keys().to_string()).unwrap();
    let other = issuer_of(&keys, &token).unwrap_err().to_string();
    assert!(other.contains("is that file of this Kubernetes"), "{other}");
}
