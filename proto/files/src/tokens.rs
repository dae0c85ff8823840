//! Token files: little-endian `u32`s, written once, memory-mapped, checked by digest when opened.
//!
//! Where tokens come from is [`mod@crate::prepare`]'s matter; which are read when, [`crate::samples`]'.

use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use coxswain_types::assignment;

use crate::atomic::{AtomicFile, create_folder, digest_bytes};
use crate::map::Map;

/// Bytes of a token.
const TOKEN_BYTES: u64 = 4;

/// Tokens that are turned into bytes at a time when a file is written.
const CHUNK_TOKENS: usize = 1 << 16;

/// What can be wrong with a token file.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The file could not be read or written.
    #[error("token file {path}: {source}; all workers must see the run's folder under the same path", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path leads out of the run's folder.
    #[error("token file `{0}` is no path below the run's folder")]
    Path(String),
    /// The file has another length than it was prepared with.
    #[error("token file {path} has {found} bytes where {expected} are expected; it is not the file that was prepared for this job", path = path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Bytes that it should have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// The file has other contents than it was prepared with.
    #[error("token file {path} has digest {found} where {expected} is expected; it is not the file that was prepared for this job", path = path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// The digest that it should have.
        expected: String,
        /// The digest that it has.
        found: String,
    },
    /// Tokens were asked for that the file does not have.
    #[error("token file {path} has {tokens} tokens, but {len} from {start} on were asked for", path = path.display())]
    Range {
        /// The file.
        path: PathBuf,
        /// The first token asked for.
        start: u64,
        /// How many were asked for.
        len: u64,
        /// How many there are.
        tokens: u64,
    },
}

/// An open token file whose length and digest are as agreed.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    map: Map,
    tokens: u64,
}

impl TokenFile {
    /// Opens the file below the run's folder `dir`, and reads it once to check its digest.
    ///
    /// # Errors
    /// [`TokensError`] where the file is missing or is not the one that was prepared.
    pub fn open(dir: &Path, file: &assignment::TokenFile) -> Result<TokenFile, TokensError> {
        let path = below(dir, &file.path)?;
        let map = Map::open(&path).map_err(|source| TokensError::Io { path: path.clone(), source })?;
        let (expected, found) = (file.tokens.saturating_mul(TOKEN_BYTES), map.len() as u64);
        if expected != found {
            return Err(TokensError::Length { path, expected, found });
        }
        let found = digest_bytes(&map);
        if found != file.digest {
            return Err(TokensError::Digest { path, expected: file.digest.clone(), found });
        }
        Ok(TokenFile { path, map, tokens: file.tokens })
    }

    /// How many tokens it holds.
    pub fn len(&self) -> u64 {
        self.tokens
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// Reads `out.len()` tokens from token `start` on, as the `i64`s that an embedding takes.
    ///
    /// # Errors
    /// [`TokensError::Range`] where the file ends before; `out` is untouched then.
    pub fn read(&self, start: u64, out: &mut [i64]) -> Result<(), TokensError> {
        let len = out.len() as u64;
        let window = self.window(start, len).ok_or_else(|| TokensError::Range {
            path: self.path.clone(),
            start,
            len,
            tokens: self.tokens,
        })?;
        for (out, token) in out.iter_mut().zip(window) {
            *out = i64::from(token);
        }
        Ok(())
    }

    /// The `len` tokens from token `start` on; `None` where the file ends before.
    pub fn window(&self, start: u64, len: u64) -> Option<impl Iterator<Item = u32> + '_> {
        let end = start.checked_add(len).filter(|&end| end <= self.tokens)?;
        // Both are at most the length of the map, which is a usize.
        let bytes = self.map.get((start * TOKEN_BYTES) as usize..(end * TOKEN_BYTES) as usize)?;
        let (tokens, _) = bytes.as_chunks::<4>();
        Some(tokens.iter().map(|token| u32::from_le_bytes(*token)))
    }
}

/// Writes the file `name`, a path below the run's folder `dir`.
///
/// # Errors
/// [`TokensError::Io`] and [`TokensError::Path`].
pub fn write_tokens(dir: &Path, name: &str, tokens: &[u32]) -> Result<assignment::TokenFile, TokensError> {
    write_token_stream(dir, name, tokens.iter().copied())
}

/// Like [`write_tokens`], for tokens that are never in memory all at once.
///
/// # Errors
/// [`TokensError::Io`] and [`TokensError::Path`].
pub fn write_token_stream(
    dir: &Path,
    name: &str,
    tokens: impl Iterator<Item = u32>,
) -> Result<assignment::TokenFile, TokensError> {
    let path = below(dir, name)?;
    let written = write_stream(&path, tokens).map_err(|source| TokensError::Io { path, source })?;
    Ok(assignment::TokenFile {
        path: name.to_owned(),
        tokens: written.bytes / TOKEN_BYTES,
        digest: written.digest,
    })
}

fn write_stream(path: &Path, tokens: impl Iterator<Item = u32>) -> io::Result<crate::atomic::Written> {
    if let Some(parent) = path.parent() {
        create_folder(parent)?;
    }
    let mut file =
        io::BufWriter::with_capacity(CHUNK_TOKENS * TOKEN_BYTES as usize, AtomicFile::create(path)?);
    for token in tokens {
        file.write_all(&token.to_le_bytes())?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.commit()
}

/// A path below the run's folder. The text comes from another process and must not lead elsewhere.
fn below(dir: &Path, path: &str) -> Result<PathBuf, TokensError> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || !plain { Err(TokensError::Path(path.to_owned())) } else { Ok(dir.join(path)) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn tokens_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let tokens: Vec<u32> = (0..200_000u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        let file = write_tokens(dir.path(), "data/t.tokens", &tokens).unwrap();
        assert_eq!((file.path.as_str(), file.tokens), ("data/t.tokens", 200_000));
        let open = TokenFile::open(dir.path(), &file).unwrap();
        assert_eq!(open.len(), 200_000);
        assert_eq!(open.window(0, 200_000).unwrap().collect::<Vec<_>>(), tokens);
        let mut out = [0i64; 3];
        open.read(199_997, &mut out).unwrap();
        assert_eq!(out, [199_997, 199_998, 199_999].map(|i| i64::from(tokens[i])));
        assert_eq!(fs::read(dir.path().join("data/t.tokens")).unwrap()[4..8], tokens[1].to_le_bytes());
    }

    #[test]
    fn nothing_is_read_past_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let open = |tokens: &[u32]| {
            TokenFile::open(dir.path(), &write_tokens(dir.path(), "t", tokens).unwrap()).unwrap()
        };
        let file = open(&[1, 2, 3]);
        let mut out = [7i64; 2];
        let error = file.read(2, &mut out).unwrap_err();
        assert!(error.to_string().ends_with("t has 3 tokens, but 2 from 2 on were asked for"), "{error}");
        assert_eq!(out, [7, 7]);
        assert!(file.window(u64::MAX, 2).is_none());
        assert!(file.window(3, 0).is_some());
        assert!(open(&[]).is_empty());
    }

    #[test]
    fn another_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let good = write_tokens(dir.path(), "t", &[1, 2, 3]).unwrap();
        let error = |file: &assignment::TokenFile| TokenFile::open(dir.path(), file).unwrap_err();
        assert!(matches!(
            error(&assignment::TokenFile { tokens: 4, ..good.clone() }),
            TokensError::Length { expected: 16, found: 12, .. }
        ));
        assert!(matches!(
            error(&assignment::TokenFile { tokens: u64::MAX, ..good.clone() }),
            TokensError::Length { .. }
        ));
        for path in ["../t", "/t", "", "a/../t", "./t"] {
            let file = assignment::TokenFile { path: path.into(), ..good.clone() };
            assert!(matches!(error(&file), TokensError::Path(_)), "{path}");
        }
        assert!(matches!(
            error(&assignment::TokenFile { path: "u".into(), ..good.clone() }),
            TokensError::Io { .. }
        ));
        let other = write_tokens(dir.path(), "t", &[1, 2, 4]).unwrap();
        let text = error(&good).to_string();
        assert!(text.contains(&good.digest) && text.contains(&other.digest), "{text}");
    }
}
