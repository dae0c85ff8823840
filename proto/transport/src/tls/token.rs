//! The text of a join token: `id.secret.cahash`. The id may be shown and names the token in logs. The
//! secret is what the coordinator asks for. The hash is that of the cluster's CA, by which who joins
//! knows the coordinator before it says the secret.

use std::fmt::Write;
use std::str::FromStr;

use super::credentials::Secret;

/// Bytes of a token's id: enough to tell apart those that are open at once.
pub const ID_BYTES: usize = 4;
/// Bytes of a token's secret: 128 bits cannot be guessed.
pub const SECRET_BYTES: usize = 16;

/// A join token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinToken {
    id: String,
    secret: Secret,
    ca_hash: String,
}

/// A text that is not a join token. It does not repeat the text, which may be one with a slip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a join token; one has three parts of hexadecimal digits, `id.secret.cahash`, as \
     `coxswain token create` prints it"
)]
pub struct NoToken;

impl JoinToken {
    /// A token of these parts, the CA being given as DER.
    pub fn new(id: [u8; ID_BYTES], secret: [u8; SECRET_BYTES], ca: &[u8]) -> JoinToken {
        JoinToken { id: hex(&id), secret: Secret::new(hex(&secret)), ca_hash: ca_hash(ca) }
    }

    /// What names it in logs.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its secret part.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    /// The hash of the CA of the coordinator that made it.
    pub fn ca_hash(&self) -> &str {
        &self.ca_hash
    }

    /// What the coordinator is told of it: `id.secret`.
    pub fn spoken(&self) -> Secret {
        Secret::new(format!("{}.{}", self.id, self.secret.expose()))
    }

    /// The whole of it.
    pub fn text(&self) -> Secret {
        Secret::new(format!("{}.{}.{}", self.id, self.secret.expose(), self.ca_hash))
    }
}

impl FromStr for JoinToken {
    type Err = NoToken;

    fn from_str(text: &str) -> Result<JoinToken, NoToken> {
        let parts: Vec<&str> = text.trim().split('.').collect();
        let [id, secret, ca_hash] = parts[..] else { return Err(NoToken) };
        let is_hex = |part: &str, bytes: usize| {
            part.len() == 2 * bytes && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        if !is_hex(id, ID_BYTES) || !is_hex(secret, SECRET_BYTES) || !is_hex(ca_hash, blake3::OUT_LEN) {
            return Err(NoToken);
        }
        Ok(JoinToken { id: id.to_owned(), secret: Secret::new(secret), ca_hash: ca_hash.to_owned() })
    }
}

/// The hash by which a token names a CA, given as DER.
pub fn ca_hash(ca: &[u8]) -> String {
    blake3::hash(ca).to_hex().to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a text cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_written_and_nothing_else_is() {
        let token = JoinToken::new([1; ID_BYTES], [0xab; SECRET_BYTES], b"ca");
        let text = token.text().expose().to_owned();
        assert_eq!(format!(" {text}\n").parse(), Ok(token.clone()));
        assert_eq!(text.len(), 8 + 1 + 32 + 1 + 64);
        assert!(!format!("{token:?}").contains(token.secret().expose()));
        for bad in
            ["", "a.b", &text[1..], &text.to_uppercase(), &format!("{text}.00"), &text.replace('.', "")]
        {
            let error = bad.parse::<JoinToken>().unwrap_err().to_string();
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
    }
}
