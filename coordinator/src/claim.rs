//! A run's folder belongs to one job of one coordinator at a time. The coordinator holds a lock on a file in it, which
//! the system releases when the process ends. The lock is on the file itself, so another path or a link leads to the
//! same lock; other machines see it if the file system shares locks, as NFS does.
//!
//! The file also says who holds it, with a random number of the claim. Before a checkpoint is committed the holder reads
//! it again: where the file was replaced, or the file system does not share locks, another run may have taken the folder.

use std::fmt;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use coxswain_files::atomic::create_folder;
use coxswain_files::regular;
use coxswain_transport::tls::client::provider;
use serde::{Deserialize, Serialize};

/// The name of the file in the run's folder.
pub(crate) const LOCK: &str = "run.lock";

/// How long to wait between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// How much of the record is read.
const MAX_RECORD_BYTES: u64 = 4096;

/// Why a folder cannot be claimed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClaimError {
    /// Another job writes there.
    #[error("it is in use by {0}; wait for its end, cancel it, or give another folder")]
    InUse(String),
    /// It was taken in spite of the lock.
    #[error(
        "it was taken by {0} while this job was in it: {LOCK} was replaced, or this file system does not share locks; \
         look which of the two wrote the checkpoints there, and give one of them another folder"
    )]
    Taken(String),
    /// The record is gone, and what others are held up by with it.
    #[error(
        "{LOCK} in it was removed, so another run may write there too; leave the file where it is, and submit again"
    )]
    Removed,
    /// The system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The holder of a folder, for messages.
#[derive(Debug, Serialize, Deserialize)]
struct ClaimHolder {
    job: String,
    pid: u32,
    host: String,
    /// Tells this claim from every other.
    nonce: String,
}

/// A claim on a folder, released when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    /// Locked, unless the file system does not support locks.
    file: File,
    nonce: String,
}

impl Claim {
    /// Claims the folder for a job and creates it if needed. If another job holds it, waits for up to `patience`.
    pub(crate) fn of(directory: &Path, job: &str, patience: Duration) -> Result<Claim, ClaimError> {
        create_folder(directory)?;
        let path = directory.join(LOCK);
        let mut options = OpenOptions::new();
        let mut file = regular::open_own(&path, options.read(true).write(true).create(true))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if start.elapsed() < patience => thread::sleep(TRY_AGAIN),
                Err(TryLockError::WouldBlock) => return Err(ClaimError::InUse(holder(&mut file))),
                Err(TryLockError::Error(error)) if has_no_locks(&error) => {
                    tracing::warn!(
                        job,
                        "{} cannot be locked, so other jobs could write there too: {error}",
                        directory.display()
                    );
                    break;
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let nonce = random()?;
        let record = ClaimHolder { job: job.to_owned(), pid: std::process::id(), host, nonce: nonce.clone() };
        let mut text = serde_json::to_vec(&record).map_err(io::Error::other)?;
        text.push(b'\n');
        file.set_len(0)?;
        file.write_all(&text)?;
        Ok(Claim { path, file, nonce })
    }

    /// Whether the folder is still this claim's.
    pub(crate) fn check(&self) -> Result<(), ClaimError> {
        let mut now = match regular::open_own(&self.path, OpenOptions::new().read(true)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ClaimError::Removed),
            opened => opened?,
        };
        let (ours, there) = (self.file.metadata()?, now.metadata()?);
        let same = (ours.dev(), ours.ino()) == (there.dev(), there.ino());
        match record(&mut now) {
            Some(record) if same && record.nonce == self.nonce => Ok(()),
            other => Err(ClaimError::Taken(other.map_or_else(unknown, |record| record.to_string()))),
        }
    }
}

/// A number that no other claim has.
fn random() -> io::Result<String> {
    let mut bytes = [0; 16];
    let filled = provider().secure_random.fill(&mut bytes);
    filled.map_err(|_| io::Error::other("the system gives no random bytes"))?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// Whether the file system does not support locks.
fn has_no_locks(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let without = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK].map(|errno| Some(errno.raw_os_error()));
    without.contains(&error.raw_os_error())
}

/// The holder, as recorded in the file.
fn holder(file: &mut File) -> String {
    record(file).map_or_else(unknown, |record| record.to_string())
}

fn unknown() -> String {
    "another coordinator".to_owned()
}

fn record(file: &mut File) -> Option<ClaimHolder> {
    let mut text = String::new();
    file.rewind().and_then(|()| file.take(MAX_RECORD_BYTES).read_to_string(&mut text)).ok()?;
    serde_json::from_str(&text).ok()
}

impl fmt::Display for ClaimHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (job, host) = (self.job.escape_debug(), self.host.escape_debug());
        write!(f, "job {job} (coordinator with pid {} on {host})", self.pid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(3);

    #[test]
    fn a_folder_is_held_once_under_whatever_name() {
        let folder = tempfile::tempdir().unwrap();
        let (run, link) = (folder.path().join("run"), folder.path().join("link"));
        let claim = Claim::of(&run, "first-1", PATIENCE).unwrap();
        std::os::unix::fs::symlink(&run, &link).unwrap();
        for other in [link, run.join("../run")] {
            let error = Claim::of(&other, "second-2", TRY_AGAIN).unwrap_err().to_string();
            let pid = std::process::id();
            assert!(
                error.starts_with(&format!("it is in use by job first-1 (coordinator with pid {pid} on ")),
                "{error}"
            );
        }
        // A claim that is about to be released is waited for.
        let ends = std::thread::spawn(move || {
            std::thread::sleep(PATIENCE / 10);
            drop(claim);
        });
        let _claim = Claim::of(&run, "third-3", PATIENCE).unwrap();
        ends.join().unwrap();
        assert!(std::fs::read_to_string(run.join(LOCK)).unwrap().contains("third-3"));
    }

    #[test]
    fn a_folder_that_was_taken_in_spite_of_the_lock_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join(LOCK);
        let first = Claim::of(folder.path(), "first-1", PATIENCE).unwrap();
        first.check().unwrap();
        // The lock's file goes away, and with it what others are held up by.
        std::fs::remove_file(&lock).unwrap();
        assert!(matches!(first.check(), Err(ClaimError::Removed)));
        let second = Claim::of(folder.path(), "second-2", PATIENCE).unwrap();
        second.check().unwrap();
        let error = first.check().unwrap_err().to_string();
        assert!(error.starts_with("it was taken by job second-2 (coordinator with pid "), "{error}");
        // Where locks are not shared, another machine writes its record into the same file.
        let record = std::fs::read_to_string(&lock).unwrap().replace("second-2", "third-3");
        let record = record.replace(&second.nonce, "0");
        std::fs::write(&lock, record).unwrap();
        let error = second.check().unwrap_err().to_string();
        assert!(error.starts_with("it was taken by job third-3"), "{error}");
    }
}
