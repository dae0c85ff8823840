//! Digests of whole files, remembered for as long as a file looks the same: an interrupted run does not read its
//! corpus again.
//!
//! A file counts as the same while its path, device, inode, size and times of change are. Bytes that rot on a disk change
//! none of these: what is trained on is checked against its digest by whoever reads it ([`crate::tokens`],
//! [`crate::checkpoint`]), and this memory lasts no longer than a job.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::atomic::digest_file;
use crate::store::StoreFolder;
use crate::tokens::digest_blocks;

/// A file that changed less than this long ago may change again without its times changing, so its digest is not
/// remembered. Times of the file systems in use advance at least this often.
const SETTLED: Duration = Duration::from_secs(2);

/// Which digest of a file is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum DigestKind {
    /// Of its bytes.
    Bytes,
    /// Of the digests of its blocks.
    Blocks,
}

/// What a file looks like without being read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileStamp {
    pub(crate) fn of(metadata: &Metadata) -> FileStamp {
        FileStamp {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Of a store that counts its changes.
    #[cfg(any(test, feature = "memory-store"))]
    pub(crate) fn of_change(change: u64, bytes: u64) -> FileStamp {
        FileStamp { device: 0, inode: change, bytes, modified: (0, 0), changed: (0, 0) }
    }

    /// Whether every later change will show. A time in the future says nothing.
    fn is_settled(&self, now: SystemTime) -> bool {
        let (newest, _) = self.modified.max(self.changed);
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let settled = u64::try_from(newest).ok().and_then(|at| at.checked_add(SETTLED.as_secs() + 1));
        settled.is_some_and(|settled| settled <= now)
    }
}

/// What a file looked like at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DatedStamp {
    stamp: FileStamp,
    at: SystemTime,
}

fn file_stamp(path: &Path) -> io::Result<FileStamp> {
    Ok(FileStamp::of(&fs::metadata(path)?))
}

/// Digests as one process hands them to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remembered(Vec<(PathBuf, DigestKind, FileStamp, String)>);

/// The digests that are remembered, and how much was read for them.
#[derive(Debug, Default)]
pub struct Digests {
    known: Mutex<BTreeMap<(PathBuf, DigestKind), (FileStamp, String)>>,
    read_bytes: AtomicU64,
}

impl Digests {
    /// The digests that another process found.
    pub fn with(Remembered(known): Remembered) -> Digests {
        let known = known.into_iter().map(|(path, kind, stamp, digest)| ((path, kind), (stamp, digest)));
        Digests { known: Mutex::new(known.collect()), read_bytes: AtomicU64::default() }
    }

    /// All that are known, for another process.
    pub fn remembered(&self) -> Remembered {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            known.iter().map(|((path, kind), (stamp, digest))| (path.clone(), *kind, *stamp, digest.clone()));
        Remembered(known.collect())
    }

    /// The digest of the bytes of a user's file, as [`digest_file`] gives it.
    ///
    /// # Errors
    /// Those of reading the file.
    pub fn of_file(&self, path: &Path) -> io::Result<String> {
        self.get(path, DigestKind::Bytes, || file_stamp(path), || digest_file(path))
    }

    /// The digest of an object's bytes, as [`StoreFolder::digest`] gives it.
    ///
    /// # Errors
    /// Those of reading the object.
    pub fn of(&self, folder: &StoreFolder, name: &str) -> io::Result<String> {
        let stamp = || folder.stamp(name);
        self.get(&folder.place(name), DigestKind::Bytes, stamp, || folder.digest(name))
    }

    /// The digest of a token file's blocks, as [`digest_blocks`] gives it.
    ///
    /// # Errors
    /// Those of reading the object.
    pub fn of_blocks(&self, folder: &StoreFolder, name: &str) -> io::Result<String> {
        let stamp = || folder.stamp(name);
        self.get(&folder.place(name), DigestKind::Blocks, stamp, || digest_blocks(folder, name))
    }

    /// Remembers the digest of an object that this process has just written whole.
    pub(crate) fn wrote(&self, folder: &StoreFolder, name: &str, digest: &str) {
        self.wrote_as(folder, name, DigestKind::Bytes, digest);
    }

    /// As [`Digests::wrote`], of a token file's blocks.
    pub(crate) fn wrote_blocks(&self, folder: &StoreFolder, name: &str, digest: &str) {
        self.wrote_as(folder, name, DigestKind::Blocks, digest);
    }

    fn wrote_as(&self, folder: &StoreFolder, name: &str, kind: DigestKind, digest: &str) {
        // If this fails, the next lookup reads the object.
        if let Ok(stamp) = folder.stamp(name) {
            self.remember(&folder.place(name), kind, stamp, digest);
        }
    }

    /// Bytes of all files that were read for their digests.
    #[cfg(test)]
    pub(crate) fn read_bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed)
    }

    fn get(
        &self,
        path: &Path,
        kind: DigestKind,
        stamp: impl Fn() -> io::Result<FileStamp>,
        read: impl Fn() -> io::Result<String>,
    ) -> io::Result<String> {
        let seen = DatedStamp { stamp: stamp()?, at: SystemTime::now() };
        if let Some(digest) = self.known(path, kind, seen.stamp) {
            return Ok(digest);
        }
        let digest = read()?;
        self.read_bytes.fetch_add(seen.stamp.bytes, Ordering::Relaxed);
        self.remember_unchanged(path, kind, seen, stamp, &digest);
        Ok(digest)
    }

    /// What a user's file looks like before it is read for another reason than its digest; `None` if the system does
    /// not say.
    pub(crate) fn see(&self, path: &Path) -> Option<DatedStamp> {
        file_stamp(path).ok().map(|stamp| DatedStamp { stamp, at: SystemTime::now() })
    }

    /// Remembers the digest of the bytes of a file that was `seen` before it was read, if it still looks the same.
    pub(crate) fn saw(&self, path: &Path, seen: Option<DatedStamp>, digest: &str) {
        if let Some(seen) = seen {
            self.remember_unchanged(path, DigestKind::Bytes, seen, || file_stamp(path), digest);
        }
    }

    fn remember_unchanged(
        &self,
        path: &Path,
        kind: DigestKind,
        seen: DatedStamp,
        stamp: impl Fn() -> io::Result<FileStamp>,
        digest: &str,
    ) {
        let same = || stamp().is_ok_and(|now| now == seen.stamp);
        if seen.stamp.is_settled(seen.at) && same() {
            self.remember(path, kind, seen.stamp, digest);
        }
    }

    fn known(&self, path: &Path, kind: DigestKind, stamp: FileStamp) -> Option<String> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (of, digest) = known.get(&(path.to_owned(), kind))?;
        (*of == stamp).then(|| digest.clone())
    }

    fn remember(&self, path: &Path, kind: DigestKind, stamp: FileStamp, digest: &str) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.insert((path.to_owned(), kind), (stamp, digest.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};

    use super::*;
    use crate::atomic::write_atomic;

    #[test]
    fn a_file_that_looks_the_same_is_not_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let run = &StoreFolder::from(folder.path());
        let digests = Digests::default();
        fs::write(&path, b"one").unwrap();
        digests.wrote(run, "a", &digest_file(&path).unwrap());
        assert_eq!(digests.of(run, "a").unwrap(), digest_file(&path).unwrap());
        assert_eq!(digests.read_bytes(), 0);

        // In place, of the same size and with the old time.
        let modified = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, b"two").unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_times(FileTimes::new().set_modified(modified))
            .unwrap();
        assert_eq!(digests.of(run, "a").unwrap(), digest_file(&path).unwrap());
        assert_eq!(digests.read_bytes(), 3);

        // Another process knows what this one does.
        let digests = Digests::with(digests.remembered());
        digests.wrote(run, "a", &digest_file(&path).unwrap());
        let other = Digests::with(digests.remembered());
        assert_eq!((other.of(run, "a").unwrap(), other.read_bytes()), (digest_file(&path).unwrap(), 0));
        digests.read_bytes.store(3, Ordering::Relaxed);

        // Another file under its name.
        digests.wrote(run, "a", &digest_file(&path).unwrap());
        write_atomic(&path, b"six").unwrap();
        assert_eq!(digests.of(run, "a").unwrap(), digest_file(&path).unwrap());
        assert_eq!(digests.read_bytes(), 6);

        // The other digest of the same file is another one.
        digests.wrote(run, "a", &digest_file(&path).unwrap());
        assert_eq!(digests.of_blocks(run, "a").unwrap(), digest_blocks(run, "a").unwrap());
        assert_eq!(digests.read_bytes(), 9);
        fs::remove_file(&path).unwrap();
        digests.of(run, "a").unwrap_err();
    }

    #[test]
    fn a_file_that_changed_a_moment_ago_is_read_again() {
        let stamp = |modified, changed| FileStamp { device: 1, inode: 1, bytes: 1, modified, changed };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let rows = [
            (stamp((900, 0), (900, 0)), true),
            (stamp((997, 0), (997, 0)), true),
            (stamp((998, 0), (900, 0)), false),
            (stamp((900, 0), (999, 0)), false),
            (stamp((2000, 0), (900, 0)), false),
            (stamp((-5, 0), (-5, 0)), false),
            (stamp((i64::MAX, 0), (0, 0)), false),
        ];
        for (stamp, settled) in rows {
            assert_eq!(stamp.is_settled(now), settled, "{stamp:?}");
        }
    }
}
