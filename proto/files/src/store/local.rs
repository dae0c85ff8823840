//! A local folder as a store. A put is a file that is synced under another name, renamed, and its folders synced; a
//! link in place of a file is refused, because it may lead to a file of another owner.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{AppendLog, MappedObject, ObjectStore, PutIf, StoreEntry, StoredObject, Upload};
use crate::atomic::{self, AtomicFile, create_folder, parent_of, sync_folder};
use crate::digests::FileStamp;
use crate::map::Map;
use crate::regular;

/// A folder of this machine, or one that it shares with others.
#[derive(Clone, Debug)]
pub struct LocalStore {
    root: PathBuf,
}

impl LocalStore {
    /// The store in a folder, which need not be there yet.
    pub fn new(root: &Path) -> LocalStore {
        LocalStore { root: root.to_owned() }
    }

    /// The path of a key. It comes from other processes and must not lead elsewhere.
    fn path(&self, key: &str) -> io::Result<PathBuf> {
        if !is_key(key) {
            let what = format!("`{}` is not a path below {}", key.escape_debug(), self.root.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        Ok(self.root.join(key))
    }

    /// Syncs the names on the way to a file above its own folder, which another process may have made and not synced.
    fn sync_above(&self, path: &Path) -> io::Result<()> {
        let mut folder = parent_of(path);
        while folder != self.root && folder.starts_with(&self.root) {
            folder = parent_of(folder);
            sync_folder(folder)?;
        }
        Ok(())
    }
}

/// Whether a text is a key: parts that are names, divided by `/`.
pub(crate) fn is_key(key: &str) -> bool {
    key.split('/').all(|part| !matches!(part, "" | "." | "..") && !part.contains('\0'))
}

impl ObjectStore for LocalStore {
    fn place(&self, key: &str) -> PathBuf {
        if key.is_empty() { self.root.clone() } else { self.root.join(key) }
    }

    fn open(&self, key: &str) -> io::Result<Box<dyn StoredObject>> {
        let file = regular::open_own(&self.path(key)?, OpenOptions::new().read(true))?;
        let bytes = file.metadata()?.len();
        Ok(Box::new(LocalObject { file, bytes }))
    }

    fn stamp(&self, key: &str) -> io::Result<FileStamp> {
        let metadata = fs::symlink_metadata(self.path(key)?)?;
        regular::expect_regular(&metadata)?;
        Ok(FileStamp::of(&metadata))
    }

    fn create(&self, key: &str) -> io::Result<Box<dyn Upload>> {
        let path = self.path(key)?;
        create_folder(parent_of(&path))?;
        Ok(Box::new(LocalUpload { file: AtomicFile::create(&path)?, store: self.clone() }))
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<StoreEntry>> {
        let folder = if prefix.is_empty() { self.root.clone() } else { self.path(prefix)? };
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry?;
            // Names of this program are text, and a file on its way is not there yet.
            let Ok(name) = entry.file_name().into_string() else { continue };
            if atomic::is_temporary(&name) {
                continue;
            }
            let kind = entry.file_type()?;
            let is_folder = kind.is_dir() || kind.is_symlink() && entry.path().is_dir();
            found.push(if is_folder { StoreEntry::Folder(name) } else { StoreEntry::Object(name) });
        }
        found.sort();
        Ok(found)
    }

    fn delete(&self, key: &str) -> io::Result<()> {
        let path = self.path(key)?;
        match fs::remove_file(&path) {
            Ok(()) => sync_folder(parent_of(&path)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn clear(&self, prefix: &str) -> io::Result<()> {
        let folder = self.path(prefix)?;
        match fs::remove_dir_all(&folder) {
            Ok(()) => sync_folder(parent_of(&folder)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn set_aside(&self, key: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.path(key)?, self.path(to)?);
        fs::rename(&from, &to)?;
        let (from, to) = (parent_of(&from), parent_of(&to));
        sync_folder(to)?;
        if from == to { Ok(()) } else { sync_folder(from) }
    }

    fn log(&self, key: &str) -> io::Result<Box<dyn AppendLog>> {
        let path = self.path(key)?;
        create_folder(parent_of(&path))?;
        let file = regular::open_own(&path, OpenOptions::new().append(true).create(true))?;
        sync_folder(parent_of(&path))?;
        Ok(Box::new(LocalLog(file)))
    }
}

#[derive(Debug)]
struct LocalObject {
    file: File,
    bytes: u64,
}

impl StoredObject for LocalObject {
    fn size(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(out, at)
    }

    fn map(self: Box<Self>) -> io::Result<MappedObject> {
        Ok(MappedObject::Memory(Map::of(&self.file)?))
    }
}

#[derive(Debug)]
struct LocalUpload {
    file: AtomicFile,
    store: LocalStore,
}

impl Upload for LocalUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn commit(self: Box<Self>, condition: PutIf) -> io::Result<()> {
        let path = self.file.path().to_owned();
        let done = match condition {
            PutIf::Always => self.file.commit(),
            PutIf::Absent => self.file.commit_new(),
        };
        match done {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            done => self.store.sync_above(&path).and(done),
        }
    }
}

/// A file that is appended to.
#[derive(Debug)]
struct LocalLog(File);

impl AppendLog for LocalLog {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}
