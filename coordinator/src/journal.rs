//! The journal: an append-only file of what must survive a restart, synced before anyone can see a
//! consequence of it.
//!
//! A line holds an entry (`line`): `123 89abcdef {"at_ms":...,"entry":...}`. What a crash tore off at the
//! end was never acted on and is cut off. Damage anywhere else is refused, since what follows from it is not known.
//!
//! A journal that has grown has its older part written shorter, when it is opened and while it is written: a new file
//! beside it, synced, gets its name. Whatever is cut off there, one whole journal is under that name.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use coxswain_core::cluster::{Entry, compact};
use coxswain_files::atomic::{create_folder, sync_folder};
use coxswain_files::regular;

use line::encode;
use read::read;
pub(crate) use read::{Replayed, each};

pub(crate) mod line;
mod read;
#[cfg(test)]
mod tests;

/// The name of the journal in the coordinator's folder.
const NAME: &str = "journal";

/// The name of one that is on its way.
const NEW: &str = "journal.new";

/// The first line: the format. A later program that writes another one changes the number.
const HEADER: &[u8] = b"coxswain journal 2\n";

/// How much of the newest history a compaction leaves as it is, for people: some ten thousand checkpoints
/// of a run of four ranks. It is read in a tenth of a second.
const KEPT_BYTES: u64 = 8 << 20;

/// A journal is read again to be made shorter once it is this many times as long as what stays of it, and then once it is
/// twice as long as it was left: so each byte is read again a few times at most.
const GROWN_TIMES: u64 = 3;

/// How often the file under the journal's name may change while it is being locked: each compaction by
/// another coordinator changes it once, and it holds the lock of the new one.
const LOCKS_TRIED: u32 = 8;

/// How long a lock is tried again: a child process that is just being started holds what its parent has let go of,
/// until it runs its own program.
const LET_GO: Duration = Duration::from_millis(200);
/// Between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// What can be wrong with a journal.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JournalError {
    /// The disk says no.
    #[error("{path}: {cause}", path = path.display())]
    Io { path: PathBuf, cause: io::Error },
    /// Two coordinators would write one journal.
    #[error("{path} is in use by another coordinator; end it, or give another folder", path = path.display())]
    InUse { path: PathBuf },
    /// Something else, or something newer.
    #[error("{path} is not a journal of this version of coxswain; give another folder", path = path.display())]
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
    /// Bytes that are whole and synced.
    end: u64,
    /// A write or sync failed: what is on the disk is not known, so nothing may follow.
    broken: bool,
    /// How much of the newest history stays as it is.
    kept_bytes: u64,
    /// The length at which it is tried next to make it shorter.
    shorten_at: u64,
}

impl Journal {
    /// Opens the journal in `folder`, or makes it.
    pub(crate) fn open(folder: &Path) -> Result<(Journal, Replayed), JournalError> {
        Journal::open_keeping(folder, KEPT_BYTES)
    }

    /// As [`Journal::open`]; a compaction leaves the newest `kept_bytes` as they are.
    fn open_keeping(folder: &Path, kept_bytes: u64) -> Result<(Journal, Replayed), JournalError> {
        let path = folder.join(NAME);
        let io = |cause| JournalError::Io { path: path.clone(), cause };
        create_folder(folder).map_err(io)?;
        let file = lock(&path)?;
        let (replayed, end) = read(&path, &file, kept_bytes)?;
        let mut journal = Journal { path: path.clone(), file, end, broken: false, kept_bytes, shorten_at: 0 };
        if replayed.cut_bytes > 0 {
            journal.file.set_len(end).map_err(io)?;
        }
        // What an earlier coordinator wrote and did not come to sync is about to be acted on.
        journal.file.sync_all().map_err(io)?;
        if end == 0 {
            journal.write(HEADER)?;
            sync_folder(folder).map_err(io)?;
        }
        journal.shorten(&replayed)?;
        Ok((journal, replayed))
    }

    /// Writes the older part of what `replayed` holds of it shorter, if that saves enough.
    fn shorten(&mut self, replayed: &Replayed) -> Result<(), JournalError> {
        let path = self.path.clone();
        let io = |cause| JournalError::Io { path: path.clone(), cause };
        let folder = path.parent().unwrap_or(Path::new("."));
        if let Some(short) = shorter(replayed, self.end, self.kept_bytes).map_err(io)? {
            match self.replace(folder, short) {
                // Until the name is synced a crash may bring the longer one back, without what follows.
                Ok(()) => sync_folder(folder).map_err(io)?,
                // The long one is as good, and takes up more room.
                Err(error) => {
                    tracing::warn!("the journal {} stays as long as it is: {error}", path.display());
                    // Nothing more can be done about a leftover.
                    let _ = fs::remove_file(folder.join(NEW));
                }
            }
        }
        self.shorten_at = (2 * self.end).max(GROWN_TIMES * self.kept_bytes);
        Ok(())
    }

    /// Writes an entry down with the time; when this returns it survives a crash.
    pub(crate) fn append(&mut self, entry: &Entry, at_ms: u64) -> Result<(), JournalError> {
        let line =
            encode(entry, at_ms).map_err(|cause| JournalError::Io { path: self.path.clone(), cause })?;
        self.write(&line)?;
        if self.end < self.shorten_at {
            return Ok(());
        }
        let (replayed, end) = read(&self.path, &self.file, self.kept_bytes)?;
        if end != self.end {
            let what = "what was written here cannot be read back".to_owned();
            return Err(JournalError::Damaged { path: self.path.clone(), offset: end, what });
        }
        self.shorten(&replayed)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        let io = |cause| JournalError::Io { path: self.path.clone(), cause };
        if self.broken {
            return Err(io(io::Error::other("an earlier write failed, so what is on the disk is not known")));
        }
        self.broken = true;
        if let Err(error) = self.file.write_all(bytes).and_then(|()| self.file.sync_data()) {
            // Nothing was done because of it, and whoever opens the journal next shall not act on it: after a failed sync the
            // system may show bytes that the disk never got.
            let _ = self.file.set_len(self.end);
            return Err(io(error));
        }
        self.broken = false;
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Puts a shorter journal in place of this one. A crash leaves the one or the other under its name, and
    /// the lock passes from file to file while both are held.
    fn replace(&mut self, folder: &Path, short: Short) -> io::Result<()> {
        let new = folder.join(NEW);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&new)?;
        file.try_lock()?;
        // What a crash may have left there.
        file.set_len(0)?;
        file.write_all(&short.head)?;
        self.file.seek(SeekFrom::Start(short.tail_start))?;
        io::copy(&mut Read::by_ref(&mut self.file).take(self.end - short.tail_start), &mut file)?;
        file.sync_all()?;
        let end = file.metadata()?.len();
        fs::rename(&new, &self.path)?;
        (self.file, self.end) = (file, end);
        Ok(())
    }
}

/// The file under the journal's name, made if need be, and locked.
fn lock(path: &Path) -> Result<File, JournalError> {
    let io = |cause| JournalError::Io { path: path.to_owned(), cause };
    let in_use = || JournalError::InUse { path: path.to_owned() };
    let start = Instant::now();
    let mut tried = 0;
    while tried < LOCKS_TRIED {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true);
        let file = regular::open_own(path, &mut options).map_err(io)?;
        match file.try_lock() {
            Ok(()) => tried += 1,
            Err(TryLockError::WouldBlock) if start.elapsed() < LET_GO => {
                thread::sleep(TRY_AGAIN);
                continue;
            }
            Err(TryLockError::WouldBlock) => return Err(in_use()),
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        // It may have been replaced by a shorter one between the two.
        let of = |data: fs::Metadata| (data.dev(), data.ino());
        let own = file.metadata().map(of).map_err(io)?;
        match fs::metadata(path).map(of) {
            Ok(named) if named == own => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io(error)),
        }
    }
    Err(in_use())
}

/// A journal that says the same in fewer bytes.
struct Short {
    /// How it begins.
    head: Vec<u8>,
    /// From where on it is as the longer one.
    tail_start: u64,
}

/// The journal in short, if that saves half of its bytes: so each byte is written again once at most for
/// each that is appended.
fn shorter(replayed: &Replayed, end: u64, kept_bytes: u64) -> io::Result<Option<Short>> {
    let older = replayed.older(end, kept_bytes);
    let tail_start = replayed.starts.get(older).copied().unwrap_or(end);
    if tail_start < end / 2 {
        return Ok(None);
    }
    let mut head = HEADER.to_vec();
    for (at_ms, entry) in compact(&replayed.entries[..older]) {
        head.extend(encode(&entry, at_ms)?);
    }
    let bytes = head.len() as u64 + (end - tail_start);
    Ok((bytes <= end / 2).then_some(Short { head, tail_start }))
}
