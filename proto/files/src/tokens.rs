//! Token files: little-endian `u32`s, written once, memory-mapped where the store can, and checked block by block as they are read.
//!
//! Beside a token file lies the list of the digests of its blocks, and a token file's own digest is that of the list.
//! So a rank opens a file of any size at once and still trains on no token that was not checked: the first read of a
//! block hashes it.
//!
//! Where tokens come from is [`mod@crate::prepare`]'s matter; which are read when, [`crate::samples`]'.

use std::borrow::Cow;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use coxswain_types::assignment;

use crate::atomic::{count_hashed, digest_bytes};
use crate::store::{MappedObject, ObjectWriter, StoreFolder, is_key};

/// Bytes of a token.
const TOKEN_BYTES: u64 = 4;

/// Tokens that are turned into bytes at a time when a file is written.
const CHUNK_TOKENS: usize = 1 << 16;

/// What is checked at once. A sample of a few thousand tokens costs 0.1 ms, and the list is 1/4096 of the file.
const BLOCK_BYTES: usize = 128 << 10;

/// What the name of the list of digests ends with.
const LIST: &str = ".digests";

/// What can be wrong with a token file.
#[derive(Debug, thiserror::Error)]
pub enum TokensError {
    /// The file could not be read or written.
    #[error("token file {path}: {cause}; all workers must see the run's folder under the same path", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The path leads out of the run's folder.
    #[error("token file `{0}` is not a path below the run's folder")]
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
    /// Some of the tokens are not those that were prepared.
    #[error(
        "token file {path}: the tokens from {first} to {last} are not those that were prepared for this job; look at \
         the disk, and start again, upon which the file is made anew",
        path = path.display()
    )]
    Block {
        /// The file.
        path: PathBuf,
        /// The first token of the block.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// Tokens were asked for that the job does not have.
    #[error("the job has {tokens} synthetic tokens, but {len} from {start} on were asked for")]
    SyntheticRange {
        /// The first token asked for.
        start: u64,
        /// How many were asked for.
        len: u64,
        /// How many there are.
        tokens: u64,
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

/// An open token file, of the agreed length and list of digests.
#[derive(Debug)]
pub struct OpenTokenFile {
    path: PathBuf,
    map: MappedObject,
    tokens: u64,
    /// The digests of its blocks.
    list: Vec<u8>,
    /// Which blocks were found to have their digests.
    checked: Box<[AtomicBool]>,
}

impl OpenTokenFile {
    /// Opens the file below the run's folder. Its blocks are checked when they are first read.
    ///
    /// # Errors
    /// [`TokensError`] where the file is missing or is not the one that was prepared, as far as its length and
    /// its list of digests tell.
    pub fn open(run: &StoreFolder, file: &assignment::TokenFile) -> Result<OpenTokenFile, TokensError> {
        let path = below(run, &file.path)?;
        let map = run.open(&file.path).and_then(|object| object.map()).map_err(failed(&path))?;
        let (expected, found) = (file.tokens.saturating_mul(TOKEN_BYTES), map.size());
        if expected != found {
            return Err(TokensError::Length { path, expected, found });
        }
        let blocks = map.size().div_ceil(BLOCK_BYTES as u64) as usize;
        let list = read_list(run, file, blocks)?;
        let checked = (0..blocks).map(|_| AtomicBool::new(false)).collect();
        Ok(OpenTokenFile { path, map, tokens: file.tokens, list, checked })
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
    /// Those of [`OpenTokenFile::window`]; `out` is untouched then.
    pub fn read(&self, start: u64, out: &mut [i64]) -> Result<(), TokensError> {
        let bytes = self.window(start, out.len() as u64)?;
        let (tokens, _) = bytes.as_chunks::<4>();
        for (out, token) in out.iter_mut().zip(tokens) {
            *out = i64::from(u32::from_le_bytes(*token));
        }
        Ok(())
    }

    /// The bytes of the `len` tokens from token `start` on.
    ///
    /// # Errors
    /// [`TokensError::Range`] where the file ends before, and [`TokensError::Block`] where they are others than
    /// were prepared.
    fn window(&self, start: u64, len: u64) -> Result<Cow<'_, [u8]>, TokensError> {
        let range = || TokensError::Range { path: self.path.clone(), start, len, tokens: self.tokens };
        let end = start.checked_add(len).filter(|&end| end <= self.tokens).ok_or_else(range)?;
        let (start, end) = ((start * TOKEN_BYTES) as usize, (end * TOKEN_BYTES) as usize);
        // Whole blocks, so that what is returned is what was checked, wherever it comes from.
        let first = start / BLOCK_BYTES;
        let blocks = first * BLOCK_BYTES..self.blocks_end(end);
        let bytes = self.map.range(blocks.clone()).map_err(failed(&self.path))?;
        for (block, bytes) in (first..).zip(bytes.chunks(BLOCK_BYTES)) {
            self.check(block, bytes)?;
        }
        let (start, end) = (start - blocks.start, end - blocks.start);
        Ok(match bytes {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[start..end]),
            Cow::Owned(bytes) => Cow::Owned(bytes[start..end].to_vec()),
        })
    }

    /// Where the blocks end that hold the bytes before `end`.
    fn blocks_end(&self, end: usize) -> usize {
        end.next_multiple_of(BLOCK_BYTES).min((self.tokens * TOKEN_BYTES) as usize)
    }

    /// Checks a block that was not read before.
    fn check(&self, block: usize, bytes: &[u8]) -> Result<(), TokensError> {
        if self.checked[block].load(Ordering::Relaxed) {
            return Ok(());
        }
        let wanted = &self.list[block * blake3::OUT_LEN..(block + 1) * blake3::OUT_LEN];
        count_hashed(bytes.len());
        if blake3::hash(bytes).as_bytes() != wanted {
            let first = (block * BLOCK_BYTES) as u64 / TOKEN_BYTES;
            let last = first + bytes.len() as u64 / TOKEN_BYTES - 1;
            return Err(TokensError::Block { path: self.path.clone(), first, last });
        }
        self.checked[block].store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// Where the list of digests of the token file at `path` lies, below the run's folder as it is.
pub(crate) fn list_of(path: &str) -> String {
    format!("{path}{LIST}")
}

/// The digests of the blocks of a token file, which are so many.
fn read_list(run: &StoreFolder, file: &assignment::TokenFile, blocks: usize) -> Result<Vec<u8>, TokensError> {
    let name = list_of(&file.path);
    let path = below(run, &name)?;
    let expected = (blocks * blake3::OUT_LEN) as u64;
    let list = run.read(&name, expected).map_err(failed(&path))?;
    count_hashed(list.len());
    let found = digest_bytes(&list);
    if found != file.digest || list.len() as u64 != expected {
        return Err(TokensError::Digest { path, expected: file.digest.clone(), found });
    }
    Ok(list)
}

/// Hands the digests of the blocks of what is written to it to `list`.
#[derive(Debug)]
struct BlockDigester<L> {
    hasher: blake3::Hasher,
    /// Bytes of the block at hand.
    filled: usize,
    list: L,
}

impl<L: Write> BlockDigester<L> {
    fn new(list: L) -> BlockDigester<L> {
        BlockDigester { hasher: blake3::Hasher::new(), filled: 0, list }
    }

    fn update(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.filled));
            self.hasher.update(now);
            self.filled += now.len();
            if self.filled == BLOCK_BYTES {
                self.end()?;
            }
            bytes = rest;
        }
        Ok(())
    }

    fn end(&mut self) -> io::Result<()> {
        self.list.write_all(self.hasher.finalize().as_bytes())?;
        self.hasher.reset();
        self.filled = 0;
        Ok(())
    }

    /// The whole list.
    fn finish(mut self) -> io::Result<L> {
        if self.filled > 0 {
            self.end()?;
        }
        Ok(self.list)
    }
}

/// The digest of a token file, in hex: that of the list of the digests of its blocks.
///
/// # Errors
/// Those of opening and reading the file.
pub fn digest_blocks(folder: &StoreFolder, name: &str) -> io::Result<String> {
    let mut file = folder.reader(name)?;
    let (mut blocks, mut chunk) = (BlockDigester::new(blake3::Hasher::new()), vec![0; BLOCK_BYTES]);
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(blocks.finish()?.finalize().to_hex().to_string()),
            Ok(n) => {
                count_hashed(n);
                blocks.update(&chunk[..n])?;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        }
    }
}

/// Writes the file `name`, a path below the run's folder.
///
/// # Errors
/// [`TokensError::Io`] and [`TokensError::Path`].
pub fn write_tokens(
    run: &StoreFolder,
    name: &str,
    tokens: &[u32],
) -> Result<assignment::TokenFile, TokensError> {
    let mut writer = TokenWriter::create(run, name)?;
    writer.write(tokens)?;
    writer.finish()
}

/// A token file on its way, with its list of digests. Neither is there before [`TokenWriter::finish`].
#[derive(Debug)]
pub(crate) struct TokenWriter {
    name: String,
    path: PathBuf,
    file: ObjectWriter,
    list_path: PathBuf,
    blocks: BlockDigester<ObjectWriter>,
    /// Tokens as bytes that are not written yet.
    chunk: Vec<u8>,
    tokens: u64,
}

impl TokenWriter {
    /// Begins the file `name`, a path below the run's folder.
    ///
    /// # Errors
    /// [`TokensError::Io`] and [`TokensError::Path`].
    pub(crate) fn create(run: &StoreFolder, name: &str) -> Result<TokenWriter, TokensError> {
        let list = list_of(name);
        let (path, list_path) = (below(run, name)?, below(run, &list)?);
        let file = run.create(name).map_err(failed(&path))?;
        let list = run.create(&list).map_err(failed(&list_path))?;
        let (blocks, chunk) =
            (BlockDigester::new(list), Vec::with_capacity(CHUNK_TOKENS * TOKEN_BYTES as usize));
        Ok(TokenWriter { name: name.to_owned(), path, file, list_path, blocks, chunk, tokens: 0 })
    }

    /// How many tokens were written.
    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Adds tokens.
    ///
    /// # Errors
    /// [`TokensError::Io`].
    pub(crate) fn write(&mut self, tokens: &[u32]) -> Result<(), TokensError> {
        for tokens in tokens.chunks(CHUNK_TOKENS) {
            self.chunk.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
            self.tokens += tokens.len() as u64;
            if self.chunk.len() >= CHUNK_TOKENS * TOKEN_BYTES as usize {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), TokensError> {
        self.blocks.update(&self.chunk).map_err(failed(&self.list_path))?;
        self.file.write_all(&self.chunk).map_err(failed(&self.path))?;
        self.chunk.clear();
        Ok(())
    }

    /// Gives the file and its list their names.
    ///
    /// # Errors
    /// [`TokensError::Io`].
    pub(crate) fn finish(mut self) -> Result<assignment::TokenFile, TokensError> {
        self.flush()?;
        self.file.commit().map_err(failed(&self.path))?;
        let list = self.blocks.finish().and_then(ObjectWriter::commit).map_err(failed(&self.list_path))?;
        Ok(assignment::TokenFile { path: self.name, tokens: self.tokens, digest: list.digest })
    }
}

/// Adds the path to an error.
fn failed(path: &Path) -> impl FnOnce(io::Error) -> TokensError {
    let path = path.to_owned();
    move |cause| TokensError::Io { path, cause }
}

/// What messages call a file below the run's folder. Its path comes from another process and must not lead elsewhere.
fn below(run: &StoreFolder, path: &str) -> Result<PathBuf, TokensError> {
    if is_key(path) { Ok(run.place(path)) } else { Err(TokensError::Path(path.to_owned())) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn tokens_are_read_as_they_were_written() {
        let dir = tempfile::tempdir().unwrap();
        let tokens: Vec<u32> = (0..200_000u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        let file = write_tokens(&dir.path().into(), "data/t.tokens", &tokens).unwrap();
        assert_eq!((file.path.as_str(), file.tokens), ("data/t.tokens", 200_000));
        let open = OpenTokenFile::open(&dir.path().into(), &file).unwrap();
        assert_eq!(open.len(), 200_000);
        assert_eq!(
            open.window(0, 200_000).unwrap().as_ref(),
            tokens.iter().flat_map(|token| token.to_le_bytes()).collect::<Vec<_>>()
        );
        let mut out = [0i64; 3];
        open.read(199_997, &mut out).unwrap();
        assert_eq!(out, [199_997, 199_998, 199_999].map(|i| i64::from(tokens[i])));
        assert_eq!(fs::read(dir.path().join("data/t.tokens")).unwrap()[4..8], tokens[1].to_le_bytes());
    }

    #[test]
    fn nothing_is_read_past_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let open = |tokens: &[u32]| {
            OpenTokenFile::open(&dir.path().into(), &write_tokens(&dir.path().into(), "t", tokens).unwrap())
                .unwrap()
        };
        let file = open(&[1, 2, 3]);
        let mut out = [7i64; 2];
        let error = file.read(2, &mut out).unwrap_err();
        assert!(error.to_string().ends_with("t has 3 tokens, but 2 from 2 on were asked for"), "{error}");
        assert_eq!(out, [7, 7]);
        assert!(file.window(u64::MAX, 2).is_err());
        assert!(file.window(3, 0).is_ok());
        assert!(open(&[]).is_empty());
    }

    #[test]
    fn another_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let good = write_tokens(&dir.path().into(), "t", &[1, 2, 3]).unwrap();
        let error = |file: &assignment::TokenFile| OpenTokenFile::open(&dir.path().into(), file).unwrap_err();
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
        let other = write_tokens(&dir.path().into(), "t", &[1, 2, 4]).unwrap();
        let text = error(&good).to_string();
        assert!(text.contains(&good.digest) && text.contains(&other.digest), "{text}");
        fs::remove_file(dir.path().join("t.digests")).unwrap();
        assert!(error(&good).to_string().contains("t.digests"));
    }

    #[test]
    fn a_block_is_checked_when_it_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let block = BLOCK_BYTES as u64 / TOKEN_BYTES;
        // Three blocks, the last one short.
        let tokens: Vec<u32> = (0..2 * block as u32 + 5).collect();
        let file = write_tokens(&dir.path().into(), "t", &tokens).unwrap();
        let path = dir.path().join("t");
        assert_eq!(digest_blocks(&dir.path().into(), "t").unwrap(), file.digest);
        for (byte, first, last) in
            [(BLOCK_BYTES + 9, block, 2 * block - 1), (2 * BLOCK_BYTES, 2 * block, 2 * block + 4)]
        {
            let mut bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
            bytes[byte] ^= 4;
            fs::write(&path, &bytes).unwrap();
            assert_ne!(digest_blocks(&dir.path().into(), "t").unwrap(), file.digest);
            let open = OpenTokenFile::open(&dir.path().into(), &file).unwrap();
            assert_eq!(open.window(0, block).unwrap().len() as u64, block * TOKEN_BYTES);
            for (start, len) in [(first, 1), (first - 1, 2), (last, 1), (0, last + 1)] {
                let error = open.window(start, len).err().unwrap();
                let named =
                    matches!(error, TokensError::Block { first: f, last: l, .. } if (f, l) == (first, last));
                assert!(named, "{start}+{len}: {error}");
            }
        }
    }
}
