//! A folder as the place where ranks of one machine find each other.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::rendezvous::Store;

/// How often a value that is waited for is looked for.
const LOOK: Duration = Duration::from_millis(2);

/// Tells apart the temporary files of this process, whose ranks may be threads.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// A file for each key, in a folder that all ranks see and that only they write to.
#[derive(Debug)]
pub struct FileStore {
    folder: PathBuf,
    patience_ms: u64,
}

impl FileStore {
    /// The store in `folder`, whose values are waited for so long.
    pub fn new(folder: PathBuf, patience_ms: u64) -> FileStore {
        FileStore { folder, patience_ms }
    }

    /// Keys hold separators; their bytes in hex do not.
    fn path(&self, key: &[u8]) -> PathBuf {
        let name: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        self.folder.join(name)
    }
}

impl Store for FileStore {
    fn set(&self, key: &[u8], value: &[u8]) -> Result<(), String> {
        // A value appears whole or not at all.
        let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
        let part = self.folder.join(format!("part-{}-{number}", std::process::id()));
        let written = fs::write(&part, value).and_then(|()| fs::rename(&part, self.path(key)));
        written.map_err(|error| format!("{}: {error}", self.folder.display()))
    }

    fn get(&self, key: &[u8]) -> Result<Vec<u8>, String> {
        let (path, end) = (self.path(key), Instant::now() + Duration::from_millis(self.patience_ms));
        loop {
            match fs::read(&path) {
                Ok(value) => return Ok(value),
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("{}: {error}", self.folder.display()));
                }
                Err(_) if Instant::now() >= end => {
                    let key = String::from_utf8_lossy(key);
                    return Err(format!("no rank has set {key} within {} ms", self.patience_ms));
                }
                Err(_) => std::thread::sleep(LOOK),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests may panic")]

    use super::*;

    #[test]
    fn values_are_found_by_others_and_waited_for() {
        let folder = std::env::temp_dir().join(format!("coxswain-store-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let store = |patience_ms| FileStore::new(folder.clone(), patience_ms);
        store(0).set(b"a/b", b"one").unwrap();
        assert_eq!(store(0).get(b"a/b").unwrap(), b"one");
        let late = store(0);
        let waits = store(5_000);
        let thread = std::thread::spawn(move || waits.get(b"late"));
        std::thread::sleep(Duration::from_millis(20));
        late.set(b"late", b"two").unwrap();
        assert_eq!(thread.join().unwrap().unwrap(), b"two");
        // Ranks may be threads of one process, and write at the same time.
        let ranks = (0..4_u8).map(|rank| {
            let store = store(0);
            std::thread::spawn(move || (0..500).try_for_each(|_| store.set(&[rank], b"here")))
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().for_each(|rank| rank.join().unwrap().unwrap());
        assert!(store(1).get(b"never").unwrap_err().contains("no rank has set never within 1 ms"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
