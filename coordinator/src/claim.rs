//! A run's folder belongs to one job of one coordinator at a time. The coordinator holds a lock on a file in it, which
//! the system releases when the process ends. The lock is on the file itself, so another path or a link leads to the
//! same lock; other machines see it if the file system shares locks, as NFS does.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use coxswain_files::atomic::create_folder;
use coxswain_files::regular;
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
    /// The system says no.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The holder of a folder, for messages.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    job: String,
    pid: u32,
    host: String,
}

/// A claim on a folder, released when dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    /// Locked, unless the file system does not support locks.
    _file: File,
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
        let record = Record { job: job.to_owned(), pid: std::process::id(), host };
        let mut text = serde_json::to_vec(&record).map_err(io::Error::other)?;
        text.push(b'\n');
        file.set_len(0)?;
        file.write_all(&text)?;
        Ok(Claim { _file: file })
    }
}

/// Whether the file system does not support locks.
fn has_no_locks(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let without = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK].map(|errno| Some(errno.raw_os_error()));
    without.contains(&error.raw_os_error())
}

/// The holder, as recorded in the file.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(MAX_RECORD_BYTES).read_to_string(&mut text));
    match read.ok().and_then(|_| serde_json::from_str::<Record>(&text).ok()) {
        Some(Record { job, pid, host }) => {
            let (job, host) = (job.escape_debug(), host.escape_debug());
            format!("job {job} (coordinator with pid {pid} on {host})")
        }
        None => "another coordinator".to_owned(),
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
}
