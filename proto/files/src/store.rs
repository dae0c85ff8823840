//! Where a run's files lie: a store of objects, each whole and durable under its key or not there.
//!
//! The operations are those that a local folder and an object store (S3) can both keep to. An object is put as a whole
//! and never changed in place; a put may ask that the key is free; reads are of ranges; a listing is a moment's look and
//! may be old when it arrives. No operation renames atomically, appends to an object, or watches. So a checkpoint's
//! commit is the put of its manifest, and all else only has to be done before it.
//!
//! Lines that are added to a file for as long as a run lasts are a log ([`AppendLog`]): one file in a local folder. An
//! object store would put a segment for each append, under keys that sort, and read them as one.
//!
//! Texts, models of others and what commands write for people are files, not objects: users name them by path.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt::{self, Debug};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::atomic::{Written, digest_of};
use crate::digests::FileStamp;
use crate::map::Map;
use crate::regular::too_large;

mod local;
#[cfg(any(test, feature = "memory-store"))]
pub mod memory;
#[cfg(test)]
mod tests;

pub use local::LocalStore;
pub(crate) use local::is_key;

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// A store of objects. Keys are paths without `.` and `..`, parts divided by `/`.
///
/// What an operation has changed is durable when it returns. An error leaves open whether the change took place: its
/// answer may be what was lost. Each may be repeated.
pub trait ObjectStore: Debug + Send + Sync {
    /// What messages call the object with this key.
    fn place(&self, key: &str) -> PathBuf;

    /// Opens an object for reading. The one that was opened stays readable under a later put.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` for a key that is none, and for what is not an object.
    fn open(&self, key: &str) -> io::Result<Box<dyn StoredObject>>;

    /// What an object looks like without being read.
    ///
    /// # Errors
    /// As [`ObjectStore::open`].
    fn stamp(&self, key: &str) -> io::Result<FileStamp>;

    /// Begins an object, which is there once [`Upload::commit`] returns.
    ///
    /// # Errors
    /// Those of the store.
    fn create(&self, key: &str) -> io::Result<Box<dyn Upload>>;

    /// The names directly below a prefix, in order; none where nothing is below it.
    ///
    /// # Errors
    /// Those of the store.
    fn list(&self, prefix: &str) -> io::Result<Vec<StoreEntry>>;

    /// Removes an object, if it is there.
    ///
    /// # Errors
    /// Those of the store.
    fn delete(&self, key: &str) -> io::Result<()>;

    /// Removes all below a prefix, in any order. An error may leave some of it.
    ///
    /// # Errors
    /// Those of the store.
    fn clear(&self, prefix: &str) -> io::Result<()>;

    /// Gives an object another key. On the way there it may be under both.
    ///
    /// # Errors
    /// `NotFound`, and those of the store.
    fn set_aside(&self, key: &str, to: &str) -> io::Result<()>;

    /// Opens a log for appending, and begins it if it is not there. What it holds is read like an object, and a put
    /// takes its place.
    ///
    /// # Errors
    /// Those of the store; `InvalidInput` for what is not an object.
    fn log(&self, key: &str) -> io::Result<Box<dyn AppendLog>>;
}

/// An object that is open for reading.
pub trait StoredObject: Debug + Send + Sync {
    /// How many bytes it has.
    fn size(&self) -> u64;

    /// Fills `out` with the bytes from `at` on.
    ///
    /// # Errors
    /// `UnexpectedEof` where it ends before, and those of the store.
    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<()>;

    /// The object as memory, where the store can map it.
    ///
    /// # Errors
    /// Those of mapping it.
    fn map(self: Box<Self>) -> io::Result<MappedObject>;
}

/// An object on its way; dropped before its commit, it leaves nothing.
pub trait Upload: Debug + Send {
    /// Adds bytes.
    ///
    /// # Errors
    /// Those of the store.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Makes the object appear whole.
    ///
    /// # Errors
    /// Those of the store; `AlreadyExists` where the key was to be free, once the object that has it is durable.
    fn commit(self: Box<Self>, condition: PutIf) -> io::Result<()>;
}

/// When an object may appear under its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutIf {
    /// Always; in place of what is there.
    Always,
    /// If nothing is there.
    Absent,
}

/// Lines that are added to one file, by one process.
pub trait AppendLog: Debug + Send {
    /// Adds bytes. They survive the end of this process.
    ///
    /// # Errors
    /// Those of the store; some of the bytes may have been added.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Keeps the first `bytes` bytes only.
    ///
    /// # Errors
    /// Those of the store.
    fn truncate(&mut self, bytes: u64) -> io::Result<()>;

    /// Makes what was added survive a crash of the machine.
    ///
    /// # Errors
    /// Those of the store.
    fn sync(&self) -> io::Result<()>;
}

/// A name below a prefix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StoreEntry {
    /// Of an object.
    Object(String),
    /// Of a folder with more names. A local one may be empty.
    Folder(String),
}

/// An object that is read in pieces of which many are read again.
#[derive(Debug)]
pub enum MappedObject {
    /// It is in memory, or will be when it is read.
    Memory(Map),
    /// Each piece is fetched.
    Ranges(Box<dyn StoredObject>),
}

impl MappedObject {
    /// How many bytes it has.
    pub fn size(&self) -> u64 {
        match self {
            MappedObject::Memory(map) => map.len() as u64,
            MappedObject::Ranges(object) => object.size(),
        }
    }

    /// The bytes of a range.
    ///
    /// # Errors
    /// `UnexpectedEof` where the object ends before, and those of the store.
    pub fn range(&self, range: Range<usize>) -> io::Result<Cow<'_, [u8]>> {
        match self {
            MappedObject::Memory(map) => {
                map.get(range).map(Cow::Borrowed).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
            MappedObject::Ranges(object) => {
                let mut bytes = vec![0; range.len()];
                object.read_at(range.start as u64, &mut bytes)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }
}

/// A folder of a store: the objects below a prefix. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StoreFolder {
    store: Arc<dyn ObjectStore>,
    prefix: String,
}

impl From<&Path> for StoreFolder {
    fn from(path: &Path) -> StoreFolder {
        StoreFolder::new(Arc::new(LocalStore::new(path)))
    }
}

impl fmt::Display for StoreFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.path().display(), f)
    }
}

impl StoreFolder {
    /// All of a store.
    pub fn new(store: Arc<dyn ObjectStore>) -> StoreFolder {
        StoreFolder { store, prefix: String::new() }
    }

    /// A folder in this one.
    pub fn below(&self, name: &str) -> StoreFolder {
        StoreFolder { store: Arc::clone(&self.store), prefix: self.key(name) }
    }

    /// What messages call this folder.
    pub fn path(&self) -> PathBuf {
        self.store.place(&self.prefix)
    }

    /// What messages call the object with this name.
    pub fn place(&self, name: &str) -> PathBuf {
        self.store.place(&self.key(name))
    }

    fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}/{name}", self.prefix) }
    }

    /// Opens an object.
    ///
    /// # Errors
    /// As [`ObjectStore::open`].
    pub fn open(&self, name: &str) -> io::Result<Box<dyn StoredObject>> {
        self.store.open(&self.key(name))
    }

    /// Opens an object and reads it from its first byte on.
    ///
    /// # Errors
    /// As [`ObjectStore::open`].
    pub fn reader(&self, name: &str) -> io::Result<ObjectReader> {
        Ok(ObjectReader { object: self.open(name)?, at: 0 })
    }

    /// The bytes of an object of at most `most_bytes`.
    ///
    /// # Errors
    /// Those of opening and reading it; `FileTooLarge` if it has more bytes, of which none are read.
    pub fn read(&self, name: &str, most_bytes: u64) -> io::Result<Vec<u8>> {
        let object = self.open(name)?;
        if object.size() > most_bytes {
            return Err(too_large(object.size(), most_bytes));
        }
        let mut bytes = vec![0; object.size() as usize];
        object.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Whether an object is there. What is there in place of one counts: whoever opens it hears what is wrong.
    ///
    /// # Errors
    /// Those that hide whether it is there.
    pub fn has(&self, name: &str) -> io::Result<bool> {
        match self.stamp(name) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// What an object looks like without being read.
    ///
    /// # Errors
    /// As [`ObjectStore::open`].
    pub fn stamp(&self, name: &str) -> io::Result<FileStamp> {
        self.store.stamp(&self.key(name))
    }

    /// The blake3 digest of an object, in hex, read in pieces.
    ///
    /// # Errors
    /// Those of opening and reading it.
    pub fn digest(&self, name: &str) -> io::Result<String> {
        match self.digest_while::<Infallible>(name, || Ok(())) {
            Ok(digest) => digest,
        }
    }

    /// Like [`StoreFolder::digest`], but calls `go_on` before each chunk and stops at its error.
    ///
    /// # Errors
    /// The inner result is that of opening and reading the object; the outer error is that of `go_on`.
    pub fn digest_while<E>(
        &self,
        name: &str,
        go_on: impl FnMut() -> Result<(), E>,
    ) -> Result<io::Result<String>, E> {
        match self.reader(name) {
            Ok(reader) => digest_of(reader, go_on),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Begins an object.
    ///
    /// # Errors
    /// As [`ObjectStore::create`].
    pub fn create(&self, name: &str) -> io::Result<ObjectWriter> {
        let upload = self.store.create(&self.key(name))?;
        Ok(ObjectWriter { upload, hasher: blake3::Hasher::new(), bytes: 0 })
    }

    /// Puts an object in place of what is there.
    ///
    /// # Errors
    /// As [`Upload::commit`].
    pub fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut upload = self.store.create(&self.key(name))?;
        upload.write(bytes)?;
        upload.commit(PutIf::Always)
    }

    /// Puts an object, unless the same bytes are there already: a put whose answer was lost may be repeated.
    ///
    /// # Errors
    /// As [`Upload::commit`].
    pub fn put_once(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut upload = self.store.create(&self.key(name))?;
        upload.write(bytes)?;
        match upload.commit(PutIf::Absent) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            done => return done,
        }
        // An object that cannot be read counts as different.
        match self.read(name, bytes.len() as u64) {
            Ok(found) if found == bytes => Ok(()),
            _ => self.put(name, bytes),
        }
    }

    /// The names in this folder.
    ///
    /// # Errors
    /// Those of the store.
    pub fn list(&self) -> io::Result<Vec<StoreEntry>> {
        self.store.list(&self.prefix)
    }

    /// Removes an object, if it is there.
    ///
    /// # Errors
    /// Those of the store.
    pub fn delete(&self, name: &str) -> io::Result<()> {
        self.store.delete(&self.key(name))
    }

    /// Removes all that is in this folder.
    ///
    /// # Errors
    /// Those of the store; some of it may be left.
    pub fn clear(&self) -> io::Result<()> {
        self.store.clear(&self.prefix)
    }

    /// Gives an object another name.
    ///
    /// # Errors
    /// As [`ObjectStore::set_aside`].
    pub fn set_aside(&self, name: &str, to: &str) -> io::Result<()> {
        self.store.set_aside(&self.key(name), &self.key(to))
    }

    /// Copies an object to a name that is free.
    ///
    /// # Errors
    /// Those of reading the one and writing the other; `AlreadyExists` where the name is taken.
    pub fn copy(&self, name: &str, to: &str) -> io::Result<()> {
        let (mut from, mut copy) = (self.reader(name)?, self.store.create(&self.key(to))?);
        let mut chunk = vec![0; COPY_BYTES];
        loop {
            match from.read(&mut chunk)? {
                0 => return copy.commit(PutIf::Absent),
                n => copy.write(&chunk[..n])?,
            }
        }
    }

    /// Opens a log for appending.
    ///
    /// # Errors
    /// As [`ObjectStore::log`].
    pub fn log(&self, name: &str) -> io::Result<Box<dyn AppendLog>> {
        self.store.log(&self.key(name))
    }
}

/// Reads an object from its first byte to its last.
#[derive(Debug)]
pub struct ObjectReader {
    object: Box<dyn StoredObject>,
    at: u64,
}

impl ObjectReader {
    /// How many bytes the object has.
    pub fn size(&self) -> u64 {
        self.object.size()
    }
}

impl Read for ObjectReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.object.size() - self.at).unwrap_or(usize::MAX);
        let now = left.min(out.len());
        self.object.read_at(self.at, &mut out[..now])?;
        self.at += now as u64;
        Ok(now)
    }
}

/// An object on its way, and the digest of what was written.
#[derive(Debug)]
pub struct ObjectWriter {
    upload: Box<dyn Upload>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl ObjectWriter {
    /// Makes the object appear whole, in place of what is there.
    ///
    /// # Errors
    /// As [`Upload::commit`].
    pub fn commit(self) -> io::Result<Written> {
        self.upload.commit(PutIf::Always)?;
        Ok(Written { bytes: self.bytes, digest: self.hasher.finalize().to_hex().to_string() })
    }
}

impl Write for ObjectWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.upload.write(bytes)?;
        self.hasher.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
