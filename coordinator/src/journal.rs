//! The journal: an append-only file of what must survive a restart, synced before anyone can see a
//! consequence of it.
//!
//! A line holds the length of an entry's JSON in bytes, its CRC-32, and the JSON:
//! `123 89abcdef {"at_ms":...,"entry":...}`. What a crash tore off at the end was never acted on and is cut
//! off. Damage anywhere else is refused, since what follows from it is not known.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use coxswain_core::cluster::Entry;
use coxswain_files::atomic::{create_folder, sync_folder};
use serde::{Deserialize, Serialize};

/// The name of the journal in the coordinator's folder.
const NAME: &str = "journal";

/// The first line: the format. A later program that writes another one changes the number.
const HEADER: &[u8] = b"coxswain journal 1\n";

/// The longest line. The longest entry is a commit, some 200 bytes for each of a checkpoint's files.
const MAX_LINE_BYTES: usize = 64 << 20;

/// What can be wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// The disk says no.
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    /// Two coordinators would write one journal.
    #[error("{path} is in use by another coordinator; end it, or give another folder", path = path.display())]
    InUse { path: PathBuf },
    /// Something else, or something newer.
    #[error("{path} is no journal of this version of coxswain; give another folder", path = path.display())]
    Foreign { path: PathBuf },
    /// It was changed or the disk lost something.
    #[error(
        "{path} is damaged at byte {offset}: {what}; restore it from a copy, or move it away to start with \
         an empty one (checkpoints on disk stay readable)",
        path = path.display()
    )]
    Damaged { path: PathBuf, offset: u64, what: String },
}

/// A journal that is open for appending.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    /// An append that failed half-way leaves a torn line that nothing may follow.
    torn: bool,
}

/// What a journal held when it was opened.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    pub(crate) entries: Vec<Entry>,
    /// Bytes that a crash had torn off and that were cut.
    pub(crate) cut_bytes: u64,
}

impl Journal {
    /// Opens the journal in `folder`, or makes it.
    pub(crate) fn open(folder: &Path) -> Result<(Journal, Replayed), JournalError> {
        let path = folder.join(NAME);
        let io = |source| JournalError::Io { path: path.clone(), source };
        create_folder(folder).map_err(io)?;
        let options = || OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = options().map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse { path }),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        let (replayed, end) = read(&path, &file)?;
        let mut journal = Journal { path: path.clone(), file, torn: false };
        if replayed.cut_bytes > 0 {
            journal.file.set_len(end).map_err(io)?;
            journal.file.sync_all().map_err(io)?;
        }
        if end == 0 {
            journal.write(HEADER)?;
            sync_folder(folder).map_err(io)?;
        }
        Ok((journal, replayed))
    }

    /// Writes an entry down with the time; when this returns it survives a crash.
    pub(crate) fn append(&mut self, entry: &Entry, at_ms: u64) -> Result<(), JournalError> {
        let line =
            encode(entry, at_ms).map_err(|source| JournalError::Io { path: self.path.clone(), source })?;
        self.write(&line)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        let io = |source| JournalError::Io { path: self.path.clone(), source };
        if self.torn {
            return Err(io(io::Error::other("an earlier write failed half-way")));
        }
        self.torn = true;
        self.file.write_all(bytes).map_err(io)?;
        self.file.sync_data().map_err(io)?;
        self.torn = false;
        Ok(())
    }
}

/// An entry with the time at which it was written, by the wall clock. Nothing is decided by that.
#[derive(Serialize)]
struct Stamped<'a> {
    at_ms: u64,
    #[serde(flatten)]
    entry: &'a Entry,
}

/// The time of an entry; 0 where an older program wrote it.
#[derive(Deserialize)]
struct Stamp {
    #[serde(default)]
    at_ms: u64,
}

/// Reads the journal in `folder`, which a coordinator may be writing to: up to a line that is not complete.
pub(crate) fn each(folder: &Path, mut take: impl FnMut(u64, &Entry)) -> Result<(), JournalError> {
    let path = folder.join(NAME);
    let io = |source| JournalError::Io { path: path.clone(), source };
    let mut reader = BufReader::new(File::open(&path).map_err(io)?);
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).map_err(io)?;
    if line != HEADER {
        return Err(JournalError::Foreign { path });
    }
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line).map_err(io)?;
        let Ok(entry) = decode(&line) else { return Ok(()) };
        let json = line.splitn(3, |byte| *byte == b' ').nth(2).unwrap_or_default();
        let stamp = serde_json::from_slice(json).unwrap_or(Stamp { at_ms: 0 });
        take(stamp.at_ms, &entry);
        if length == 0 {
            return Ok(());
        }
    }
}

fn encode(entry: &Entry, at_ms: u64) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(&Stamped { at_ms, entry })?;
    let mut line = format!("{} {:08x} ", json.len(), crc32fast::hash(&json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    if line.len() > MAX_LINE_BYTES {
        return Err(io::Error::other(format!(
            "an entry of {} bytes is longer than {MAX_LINE_BYTES}",
            line.len()
        )));
    }
    Ok(line)
}

/// All entries, and where the next one goes.
fn read(path: &Path, file: &File) -> Result<(Replayed, u64), JournalError> {
    let io = |source| JournalError::Io { path: path.to_owned(), source };
    let size = file.metadata().map_err(io)?.len();
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut replayed = Replayed::default();
    let mut line = Vec::new();
    let mut offset = 0;
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line).map_err(io)? as u64;
        let damaged = |what| JournalError::Damaged { path: path.to_owned(), offset, what };
        if offset == 0 && line != HEADER && !HEADER.starts_with(&line) {
            return Err(JournalError::Foreign { path: path.to_owned() });
        }
        // Blocks that were never written read as zeros.
        if line.last() != Some(&b'\n') || line.contains(&0) {
            if any_entry(&mut reader).map_err(io)? {
                return Err(damaged("zeros where an entry was".to_owned()));
            }
            replayed.cut_bytes = size - offset;
            return Ok((replayed, offset));
        }
        if offset > 0 {
            replayed.entries.push(decode(&line).map_err(damaged)?);
        }
        offset += length;
    }
}

/// Whether an entry follows.
fn any_entry(reader: &mut impl BufRead) -> io::Result<bool> {
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if decode(&line).is_ok() {
            return Ok(true);
        }
        line.clear();
    }
    Ok(false)
}

fn decode(line: &[u8]) -> Result<Entry, String> {
    let text = std::str::from_utf8(line).map_err(|_| "the line is no text".to_owned())?;
    let mut parts = text.trim_end_matches('\n').splitn(3, ' ');
    let (Some(length), Some(crc), Some(json)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("the line has no length and checksum".to_owned());
    };
    if length.parse() != Ok(json.len()) {
        return Err(format!("the line should hold {length} bytes and holds {}", json.len()));
    }
    let found = format!("{:08x}", crc32fast::hash(json.as_bytes()));
    if crc != found {
        return Err(format!("its checksum should be {crc} and is {found}"));
    }
    serde_json::from_str(json).map_err(|error| format!("its entry is not understood: {error}"))
}

#[cfg(test)]
mod tests {
    use coxswain_core::cluster::Ending;
    use std::fs;

    use super::*;

    fn entry(n: usize) -> Entry {
        Entry::Ended { job: format!("demo-{n}"), ending: Ending::Done, reason: "all\nis well".to_owned() }
    }

    /// A journal of three entries.
    fn written() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let (mut journal, replayed) = Journal::open(folder.path()).unwrap();
        assert!(replayed.entries.is_empty());
        for n in 0..3 {
            journal.append(&entry(n), 7).unwrap();
        }
        let path = folder.path().join(NAME);
        (folder, path)
    }

    #[test]
    fn what_is_written_is_read_and_goes_on() {
        let (folder, _) = written();
        let (mut journal, replayed) = Journal::open(folder.path()).unwrap();
        assert_eq!((replayed.entries, replayed.cut_bytes), (vec![entry(0), entry(1), entry(2)], 0));
        journal.append(&entry(3), 8).unwrap();
        drop(journal);
        assert_eq!(Journal::open(folder.path()).unwrap().1.entries.len(), 4);
        let mut read = Vec::new();
        each(folder.path(), |at_ms, entry| read.push((at_ms, entry.clone()))).unwrap();
        assert_eq!(read, [(7, entry(0)), (7, entry(1)), (7, entry(2)), (8, entry(3))]);
    }

    #[test]
    fn wherever_the_tail_is_torn_the_rest_is_kept() {
        let (folder, path) = written();
        let whole = fs::read(&path).unwrap();
        let ends: Vec<_> = (0..whole.len()).filter(|&i| whole[i] == b'\n').map(|i| i + 1).collect();
        for cut in 0..=whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let (mut journal, replayed) = Journal::open(folder.path()).unwrap();
            let complete = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(replayed.entries.len(), complete.saturating_sub(1), "cut at {cut}");
            journal.append(&entry(9), 9).unwrap();
            drop(journal);
            let again = Journal::open(folder.path()).unwrap().1;
            assert_eq!((again.entries.last(), again.cut_bytes), (Some(&entry(9)), 0), "cut at {cut}");
        }
        let mut zeros = whole.clone();
        zeros.extend([0; 100]);
        zeros.push(b'\n');
        fs::write(&path, &zeros).unwrap();
        let replayed = Journal::open(folder.path()).unwrap().1;
        assert_eq!((replayed.entries.len(), replayed.cut_bytes), (3, 101));
    }

    #[test]
    fn damage_is_refused_wherever_it_is() {
        let (folder, path) = written();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&path, &damaged).unwrap();
            // A damaged last newline looks like a torn tail; all else is seen.
            if at + 1 < whole.len() {
                let error = Journal::open(folder.path()).unwrap_err();
                let seen = matches!(error, JournalError::Damaged { offset, .. } if offset as usize <= at)
                    || matches!(error, JournalError::Foreign { .. } if at < HEADER.len());
                assert!(seen, "byte {at}: {error}");
            }
        }
    }

    #[test]
    fn a_damaged_middle_is_named_with_its_place() {
        let (folder, path) = written();
        let mut bytes = fs::read(&path).unwrap();
        let second = HEADER.len() + encode(&entry(0), 7).unwrap().len();
        bytes[second + 30] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let error = Journal::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("damaged at byte {second}: its checksum should be")), "{error}");
    }

    #[test]
    fn zeros_in_the_middle_are_no_torn_tail() {
        let (folder, path) = written();
        let mut bytes = fs::read(&path).unwrap();
        bytes[HEADER.len() + 30] = 0;
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(Journal::open(folder.path()), Err(JournalError::Damaged { .. })));
    }

    #[test]
    fn one_journal_has_one_coordinator() {
        let folder = tempfile::tempdir().unwrap();
        let _held = Journal::open(folder.path()).unwrap();
        assert!(matches!(Journal::open(folder.path()), Err(JournalError::InUse { .. })));
    }
}
