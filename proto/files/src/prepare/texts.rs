//! The files of a job's text: what they are, looked at before anything is made.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use coxswain_types::job::DataSpec;

use super::PrepareError;
use crate::digests::Digests;
use crate::regular::{self, NonRegular};

/// The most text that is read: about what one machine tokenizes in the two days that the coordinator gives it.
/// Each rank holds the digests of the blocks of its tokens, which are then up to a gigabyte.
pub(super) const MAX_TEXT_BYTES: u64 = 1 << 40;

/// How much of the beginning of a file is looked at.
const HEAD_BYTES: u64 = 64 << 10;

/// The mark with which some programs begin a text; it is not a part of it.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What is wrong with a file of text.
#[derive(Debug, thiserror::Error)]
pub enum TextFault {
    /// There is none.
    #[error(
        "does not exist (a relative path starts at the job file's folder, or at the coordinator's --data-root)"
    )]
    Missing,
    /// The system refuses to read it.
    #[error("cannot be read: {0}")]
    Read(io::Error),
    /// It is something else.
    #[error("is {found}; {remedy}")]
    Kind {
        /// What it is.
        found: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// It holds bytes that are not text.
    #[error(
        "is not valid UTF-8 (line {line}, invalid byte at offset {offset}); convert it first, such as with \
         `iconv -f LATIN1 -t UTF-8`"
    )]
    NotUtf8 {
        /// The first byte that belongs to no letter, from the beginning of the file.
        offset: u64,
        /// Its line, from 1 on.
        line: u64,
    },
    /// Its contents are others than a moment ago.
    #[error("changed while it was read; submit the job again once nothing writes to the file")]
    Changed,
    /// It holds nothing.
    #[error("is empty; leave it out")]
    Empty,
}

/// Size of a job's texts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Looked {
    /// How many files.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Their lines, an estimate from the beginning of each.
    pub lines: u64,
}

/// Looks at the files of a job's text, without reading more than the beginning of each; `None` where it has none.
///
/// # Errors
/// [`PrepareError`] for the first that is missing, is not a regular file or is not text.
pub fn look(data: &DataSpec) -> Result<Option<Looked>, PrepareError> {
    let Some((key, files)) = data.files() else { return Ok(None) };
    look_at(key, files).map(Some)
}

/// As [`look`], of the files that `key` names.
pub(super) fn look_at(key: &'static str, files: &[String]) -> Result<Looked, PrepareError> {
    if files.is_empty() {
        return Err(PrepareError::NoFile { key });
    }
    let mut looked = Looked { files: files.len(), ..Looked::default() };
    for file in files {
        let path = Path::new(file);
        let (_, bytes, head) = open(path).map_err(|fault| text_error(key, path, fault))?;
        let newlines = head.iter().filter(|byte| **byte == b'\n').count() as f64;
        looked.bytes = looked.bytes.saturating_add(bytes);
        looked.lines += (newlines * bytes as f64 / head.len().max(1) as f64).ceil() as u64;
    }
    if looked.bytes > MAX_TEXT_BYTES {
        return Err(PrepareError::TooMuchText { key, most: MAX_TEXT_BYTES });
    }
    Ok(looked)
}

/// The digest of a file's bytes.
pub(super) fn digest(data: &DataSpec, file: &str, digests: &Digests) -> Result<String, PrepareError> {
    let path = Path::new(file);
    let key = data.files().map_or("data", |(key, _)| key);
    digests.of_file(path).map_err(|error| text_error(key, path, TextFault::Read(error)))
}

/// Says which file has a fault, and which key names it.
pub(super) fn text_error(key: &'static str, path: &Path, fault: TextFault) -> PrepareError {
    PrepareError::Text { key, path: PathBuf::from(path), fault }
}

/// A regular file whose beginning may be one of a text, with its length and that beginning. Nothing here waits:
/// opening a pipe for reading would, until somebody writes to it.
pub(super) fn open(path: &Path) -> Result<(File, u64, Vec<u8>), TextFault> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => TextFault::Missing,
        _ => TextFault::Read(error),
    };
    regular(&fs::metadata(path).map_err(failed)?)?;
    let (mut file, metadata) = regular::open(path).map_err(failed)?;
    let mut head = Vec::new();
    file.by_ref().take(HEAD_BYTES).read_to_end(&mut head).map_err(TextFault::Read)?;
    plain(&head)?;
    if head.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&head).is_empty() {
        return Err(TextFault::Empty);
    }
    io::Seek::rewind(&mut file).map_err(TextFault::Read)?;
    Ok((file, metadata.len(), head))
}

fn regular(metadata: &fs::Metadata) -> Result<(), TextFault> {
    let to_a_file = "write the text to a file and name that";
    let Some(other) = NonRegular::of(metadata) else { return Ok(()) };
    let (found, remedy) = match other {
        NonRegular::Folder => (other.name(), "name the files in it, as a list"),
        NonRegular::Pipe => ("a named pipe, which can be read only once", to_a_file),
        NonRegular::Link | NonRegular::Device | NonRegular::Socket | NonRegular::Unknown => {
            (other.name(), to_a_file)
        }
    };
    Err(TextFault::Kind { found, remedy })
}

/// Refuses files whose first bytes show that they are not UTF-8 text.
fn plain(head: &[u8]) -> Result<(), TextFault> {
    const KINDS: [(&[u8], &str, &str); 8] = [
        (b"\x1f\x8b", "a gzip archive", "unpack it first, such as with `gunzip --keep`"),
        (b"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it first, such as with `unzstd`"),
        (b"PK\x03\x04", "a zip archive", "unpack it first, such as with `unzip`"),
        (b"\xfd7zXZ\0", "an xz archive", "unpack it first, such as with `unxz --keep`"),
        (b"BZh91AY&SY", "a bzip2 archive", "unpack it first, such as with `bunzip2 --keep`"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first, such as with `7z x`"),
        (b"%PDF-", "a PDF document", "extract its text first, such as with `pdftotext`"),
        (b"PAR1", "a Parquet file", "export its text column to a file first"),
    ];
    let kind = |found, remedy| Err(TextFault::Kind { found, remedy });
    if let Some((_, found, remedy)) = KINDS.iter().find(|(magic, ..)| head.starts_with(magic)) {
        return kind(found, remedy);
    }
    if head.starts_with(b"\xff\xfe") || head.starts_with(b"\xfe\xff") {
        return kind("UTF-16 text", "convert it first, such as with `iconv -f UTF-16 -t UTF-8`");
    }
    // Without its mark: of text in Latin letters every other byte is zero.
    let zeros = |parity: usize| head.iter().skip(parity).step_by(2).filter(|byte| **byte == 0).count();
    let (even, odd, half) = (zeros(0), zeros(1), head.len() / 2);
    if half >= 2 && even.max(odd) * 4 > half * 3 && even.min(odd) * 8 < half {
        let order = if odd > even {
            "convert it first, such as with `iconv -f UTF-16LE -t UTF-8`"
        } else {
            "convert it first, such as with `iconv -f UTF-16BE -t UTF-8`"
        };
        return kind("UTF-16 text without a byte-order mark", order);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn looked(path: &Path) -> Result<Option<Looked>, PrepareError> {
        look(&DataSpec::Text { files: vec![path.to_str().unwrap().to_owned()], validation: 0.0 })
    }

    #[test]
    fn what_is_no_text_is_named_without_reading_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink(at("nowhere"), at("dangling")).unwrap();
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        let files: [(&str, Vec<u8>); 9] = [
            ("a.gz", b"\x1f\x8b\x08rest".to_vec()),
            ("a.zst", b"\x28\xb5\x2f\xfdrest".to_vec()),
            ("a.zip", b"PK\x03\x04rest".to_vec()),
            ("a.bz2", b"BZh91AY&SYrest".to_vec()),
            ("a.pdf", b"%PDF-1.7".to_vec()),
            ("mark", utf16("\u{feff}a text")),
            ("no-mark", utf16("a text of some letters")),
            ("empty", Vec::new()),
            ("only-mark", BYTE_ORDER_MARK.to_vec()),
        ];
        for (name, bytes) in &files {
            fs::write(at(name), bytes).unwrap();
        }
        for (name, told) in [
            ("pipe", "pipe is a named pipe, which can be read only once; write the text to a file"),
            ("zero", "zero is a device; write the text to a file"),
            ("dangling", "dangling does not exist"),
            ("", "is a folder; name the files in it"),
            ("a.gz", "a.gz is a gzip archive; unpack it first"),
            ("a.zst", "a.zst is a Zstandard archive"),
            ("a.zip", "a.zip is a zip archive"),
            ("a.bz2", "a.bz2 is a bzip2 archive"),
            ("a.pdf", "a.pdf is a PDF document"),
            ("mark", "mark is UTF-16 text; convert it first, such as with `iconv -f UTF-16 "),
            ("no-mark", "no-mark is UTF-16 text without a byte-order mark"),
            ("empty", "empty is empty"),
            ("only-mark", "only-mark is empty"),
        ] {
            let error = looked(&at(name)).unwrap_err().to_string();
            assert!(error.starts_with("data.text: ") && error.contains(told), "{error}");
        }
    }

    #[test]
    fn what_only_looks_like_something_else_is_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("text");
        for text in ["BZh is how this text begins", "PK", "a\0b and some zeros\0", "x", "größe"] {
            fs::write(&path, text).unwrap();
            let found = looked(&path).unwrap().unwrap();
            assert_eq!((found.files, found.bytes), (1, text.len() as u64), "{text:?}");
        }
        fs::write(&path, "0\ta line\n".repeat(100_000)).unwrap();
        let lines = looked(&path).unwrap().unwrap().lines;
        assert!(lines.abs_diff(100_000) < 100, "{lines}");
    }
}
