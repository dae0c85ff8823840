//! Texts, read chunk by chunk: a text of any size takes the memory of a chunk.

use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::PrepareError;
use super::texts::{BYTE_ORDER_MARK, TextFault, open, text_error};
use crate::atomic::count_hashed;

/// How much is read between two looks at whether to go on.
const CHUNK_BYTES: u64 = 1 << 20;

/// A text that was read to its end.
#[derive(Debug, PartialEq)]
pub(super) struct Whole {
    /// Its size, without the mark at its beginning.
    pub(super) bytes: u64,
    /// The digest of all bytes of the file.
    pub(super) digest: String,
}

/// Reads the text of a file, without the mark at its beginning. `each` gets the next chunk, of whole letters.
///
/// # Errors
/// [`PrepareError::Text`] where the file cannot be read or is not text, and those of `each`.
pub(super) fn read(
    key: &'static str,
    path: &Path,
    each: impl FnMut(&str) -> Result<(), PrepareError>,
) -> Result<Whole, PrepareError> {
    let (file, ..) = open(path).map_err(|fault| text_error(key, path, fault))?;
    read_chunks(file, CHUNK_BYTES, |fault| text_error(key, path, fault), each)
}

fn read_chunks(
    mut file: impl Read,
    chunk_bytes: u64,
    failed: impl Fn(TextFault) -> PrepareError,
    mut each: impl FnMut(&str) -> Result<(), PrepareError>,
) -> Result<Whole, PrepareError> {
    let mut hasher = blake3::Hasher::new();
    // What is not handed on yet, its offset in the file, and the line it is in.
    let (mut bytes, mut offset, mut line) = (Vec::new(), 0, 1);
    let mut mark = None;
    loop {
        let kept = bytes.len();
        let read = file.by_ref().take(chunk_bytes).read_to_end(&mut bytes);
        let read = read.map_err(|error| failed(TextFault::Read(error)))?;
        count_hashed(read);
        hasher.update(bytes.get(kept..).unwrap_or_default());
        if mark.is_none() && (bytes.len() >= BYTE_ORDER_MARK.len() || read == 0) {
            let len = if bytes.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
            bytes.drain(..len);
            (mark, offset) = (Some(len as u64), len as u64);
        }
        let Some(mark) = mark else { continue };
        let text = whole_letters(&bytes, read == 0);
        let text = text.map_err(|at| {
            let before = bytes.get(..at).unwrap_or_default();
            failed(TextFault::NotUtf8 { offset: offset + at as u64, line: line + newlines(before) })
        })?;
        if !text.is_empty() {
            each(text)?;
        }
        (offset, line) = (offset + text.len() as u64, line + newlines(text.as_bytes()));
        let used = text.len();
        bytes.drain(..used);
        if read == 0 {
            let digest = hasher.finalize().to_hex().to_string();
            return Ok(Whole { bytes: offset - mark, digest });
        }
    }
}

/// The text at the beginning of `bytes`. A letter at their end may lack bytes where they are not the `last`.
///
/// # Errors
/// The place of the first byte that belongs to no letter.
fn whole_letters(bytes: &[u8], last: bool) -> Result<&str, usize> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) if error.error_len().is_some() || last => Err(error.valid_up_to()),
        Err(error) => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            std::str::from_utf8(valid).map_err(|error| error.valid_up_to())
        }
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Where the validation part of a text starts, of a file of `len` bytes of text: `share` of its bytes from the
/// end, moved on to the start of a letter, and to the start of a line where one starts in the first half of
/// the part. The other half bounds what a text of very long lines would lose.
///
/// # Errors
/// [`PrepareError::Text`] where the file cannot be read.
pub(super) fn validation_start(
    key: &'static str,
    path: &Path,
    len: u64,
    share: f64,
) -> Result<u64, PrepareError> {
    let failed = |fault| text_error(key, path, fault);
    let (mut file, _, head) = open(path).map_err(failed)?;
    let mark = if head.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() as u64 } else { 0 };
    start_in(&mut file, mark, len, share).map_err(|error| failed(TextFault::Read(error)))
}

/// As [`validation_start`], of a text that begins `mark` bytes after the file does.
fn start_in(file: &mut (impl Read + Seek), mark: u64, len: u64, share: f64) -> io::Result<u64> {
    let validation = (len as f64 * share) as u64;
    let mut start = len - validation.min(len);
    // A letter has at most three bytes after its first.
    let mut letter = Vec::new();
    file.seek(SeekFrom::Start(mark + start))?;
    file.by_ref().take((len - start).min(3)).read_to_end(&mut letter)?;
    start += letter.iter().take_while(|byte| **byte & 0xc0 == 0x80).count() as u64;
    // The byte before counts too: a part that starts with a line stays as it is.
    let from = start.saturating_sub(1);
    file.seek(SeekFrom::Start(mark + from))?;
    let most = (validation / 2 + 1).min(len - from);
    let skipped = newline_within(&mut io::BufReader::new(file.take(most)))?;
    Ok(start + skipped.unwrap_or(0))
}

/// How many bytes come before the first newline.
fn newline_within(file: &mut impl io::BufRead) -> io::Result<Option<u64>> {
    let mut before = 0;
    loop {
        let bytes = match file.fill_buf() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        match bytes.iter().position(|byte| *byte == b'\n') {
            Some(at) => return Ok(Some(before + at as u64)),
            None if bytes.is_empty() => return Ok(None),
            None => {}
        }
        let read = bytes.len();
        before += read as u64;
        file.consume(read);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::atomic::digest_bytes;

    /// The text that a file holds, when it is read in chunks.
    fn text_of(bytes: &[u8], chunk_bytes: u64) -> Result<(String, Whole), String> {
        let mut text = String::new();
        let failed = |fault| text_error("data.text", Path::new("a"), fault);
        let whole = read_chunks(bytes, chunk_bytes, failed, |chunk| {
            text.push_str(chunk);
            Ok(())
        });
        whole.map(|whole| (text, whole)).map_err(|error| error.to_string())
    }

    /// Where the validation part of a text starts.
    fn start_of(text: &str, share: f64) -> usize {
        start_in(&mut io::Cursor::new(text), 0, text.len() as u64, share).unwrap() as usize
    }

    proptest! {
        #[test]
        fn chunks_are_the_text(text in "[a\n\u{e4}\u{20ac}\u{1F6A3}\u{feff}]{0,20}", chunk in 1u64..9) {
            let (found, whole) = text_of(text.as_bytes(), chunk).unwrap();
            let wanted = text.strip_prefix('\u{feff}').unwrap_or(&text);
            prop_assert_eq!(&found, wanted);
            prop_assert_eq!(whole.bytes, wanted.len() as u64);
            prop_assert_eq!(whole.digest, digest_bytes(text.as_bytes()));
        }

        #[test]
        fn a_wrong_byte_is_named_whatever_the_chunks(
            bytes in prop::collection::vec(prop::sample::select(b"a\n\xc3\xa4\xe2\x82\xac\xf0\xff\xef\xbb\xbf".to_vec()), 0..12),
            chunk in 1u64..9,
        ) {
            let found = text_of(&bytes, chunk).map(|(text, _)| text);
            match String::from_utf8(bytes.clone()) {
                Ok(text) => prop_assert_eq!(found, Ok(text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned())),
                Err(error) => {
                    let at = error.utf8_error().valid_up_to();
                    let line = 1 + newlines(&bytes[..at]);
                    let told = format!("is not valid UTF-8 (line {line}, invalid byte at offset {at})");
                    prop_assert!(found.as_ref().is_err_and(|found| found.contains(&told)), "{found:?} {told}");
                }
            }
        }

        #[test]
        fn about_the_share_is_kept_for_validation(text in "[a\u{e4}\u{1F6A3}\n]{0,80}", share in 0.0f64..0.5) {
            let validation = text.len() - start_of(&text, share);
            let wanted = (text.len() as f64 * share) as usize;
            prop_assert!(validation <= wanted && validation + 4 >= wanted / 2, "{} of {}", validation, wanted);
            prop_assert!(text.is_char_boundary(text.len() - validation));
        }
    }

    #[test]
    fn a_part_is_cut_off_at_a_line_where_one_is_near() {
        let rows = [
            ("aaaa\nbbbb\ncccc\n", 0.4, "cccc\n"),
            ("aaaa\nbbbb\ncccc\n", 0.34, "cccc\n"),
            ("aaaabbbbccccdddd", 0.25, "dddd"),
            ("aaaaaaaaaaaaaaa\n", 0.25, "aaa\n"),
            ("äöüäöü", 0.25, "ü"),
            ("aaaa\nbbbb\n", 0.0, ""),
        ];
        for (text, share, expected) in rows {
            assert_eq!(&text[start_of(text, share)..], expected, "{text:?} {share}");
            let marked = "\u{feff}".to_owned() + text;
            let start = start_in(&mut io::Cursor::new(&marked), 3, text.len() as u64, share).unwrap();
            assert_eq!(&text[start as usize..], expected, "{text:?} {share} after a mark");
        }
    }
}
