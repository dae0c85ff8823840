//! A store in memory, for tests. Its operations fail as those of disks and networks do: they are refused, done in part,
//! done without an answer, or overtaken by something else before their answer arrives.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::local::is_key;
use super::{AppendLog, MappedObject, ObjectStore, PutIf, StoreEntry, StoredObject, Upload};
use crate::digests::FileStamp;

/// The objects of a store by their keys.
pub type Objects = BTreeMap<String, Arc<Vec<u8>>>;

/// Sees what a store holds.
type ObjectsWatch = Arc<dyn Fn(&Objects) + Send + Sync>;

/// What becomes of an operation.
pub enum StoreFault {
    /// Nothing is done, and the answer is an error of the device.
    Refused,
    /// Half of it is done, and the answer is an error of the device.
    Torn,
    /// It is done, and the answer is that none came in time.
    AnswerLost,
    /// It is done and answered, but something else happens before the answer arrives.
    Overtaken(Box<dyn FnOnce() + Send>),
}

impl fmt::Debug for StoreFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoreFault::Refused => "refused",
            StoreFault::Torn => "torn",
            StoreFault::AnswerLost => "answer lost",
            StoreFault::Overtaken(_) => "overtaken",
        })
    }
}

/// A store in memory. Clones are the same store.
#[derive(Clone, Default)]
pub struct FaultyStore(Arc<Mutex<StoreState>>);

#[derive(Default)]
struct StoreState {
    objects: Objects,
    /// Changes so far, which tell apart what a key held at two times.
    changes: u64,
    /// By key, the last of its changes.
    changed: BTreeMap<String, u64>,
    /// Operations so far.
    operations: Vec<String>,
    /// By operation.
    faults: BTreeMap<usize, StoreFault>,
    /// Sees the objects after every change.
    watch: Option<ObjectsWatch>,
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.lock().objects.keys()).finish()
    }
}

impl StoreState {
    fn set(&mut self, key: &str, bytes: Option<Vec<u8>>) {
        self.changes += 1;
        self.changed.insert(key.to_owned(), self.changes);
        match bytes {
            Some(bytes) => drop(self.objects.insert(key.to_owned(), Arc::new(bytes))),
            None => drop(self.objects.remove(key)),
        }
    }

    fn get(&self, key: &str) -> io::Result<Arc<Vec<u8>>> {
        self.objects.get(key).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl FaultyStore {
    /// A store with these objects, which has seen no operation.
    pub fn with(objects: Objects) -> FaultyStore {
        FaultyStore(Arc::new(Mutex::new(StoreState { objects, ..StoreState::default() })))
    }

    /// What the store holds.
    pub fn objects(&self) -> Objects {
        self.lock().objects.clone()
    }

    /// What was asked of the store so far.
    pub fn operations(&self) -> Vec<String> {
        self.lock().operations.clone()
    }

    /// Decides what becomes of the operation that follows after `later` others.
    pub fn fail(&self, later: usize, fault: StoreFault) {
        let mut memory = self.lock();
        let at = memory.operations.len() + later;
        memory.faults.insert(at, fault);
    }

    /// Shows the objects to `watch` after every change.
    pub fn watch(&self, watch: impl Fn(&Objects) + Send + Sync + 'static) {
        self.lock().watch = Some(Arc::new(watch));
    }

    fn lock(&self) -> MutexGuard<'_, StoreState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what is asked in `whole`, or what this operation's fault leaves of it; `half` is what a torn one does.
    fn operation<T>(
        &self,
        name: &str,
        key: &str,
        whole: impl FnOnce(&mut StoreState) -> io::Result<T>,
        half: impl FnOnce(&mut StoreState),
    ) -> io::Result<T> {
        let device = || io::Error::from(rustix::io::Errno::IO);
        let mut memory = self.lock();
        let changes = memory.changes;
        let fault = {
            let at = memory.operations.len();
            memory.operations.push(format!("{name} {key}"));
            memory.faults.remove(&at)
        };
        let (answer, after) = match fault {
            None => (whole(&mut memory), None),
            Some(StoreFault::Refused) => (Err(device()), None),
            Some(StoreFault::Torn) => {
                half(&mut memory);
                (Err(device()), None)
            }
            Some(StoreFault::AnswerLost) => {
                drop(whole(&mut memory));
                (Err(io::ErrorKind::TimedOut.into()), None)
            }
            Some(StoreFault::Overtaken(after)) => (whole(&mut memory), Some(after)),
        };
        if let Some(watch) = memory.watch.clone().filter(|_| memory.changes > changes) {
            watch(&memory.objects);
        }
        drop(memory);
        if let Some(after) = after {
            after();
        }
        answer
    }

    /// As [`FaultyStore::operation`], of what changes nothing.
    fn look<T>(
        &self,
        name: &str,
        key: &str,
        whole: impl FnOnce(&mut StoreState) -> io::Result<T>,
    ) -> io::Result<T> {
        self.operation(name, key, whole, |_| {})
    }
}

fn expect_key(key: &str) -> io::Result<()> {
    if is_key(key) { Ok(()) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

impl ObjectStore for FaultyStore {
    fn place(&self, key: &str) -> PathBuf {
        Path::new("memory").join(key)
    }

    fn open(&self, key: &str) -> io::Result<Box<dyn StoredObject>> {
        expect_key(key)?;
        let bytes = self.look("open", key, |memory| memory.get(key))?;
        Ok(Box::new(MemoryObject { store: self.clone(), key: key.to_owned(), bytes }))
    }

    fn stamp(&self, key: &str) -> io::Result<FileStamp> {
        expect_key(key)?;
        self.look("stamp", key, |memory| {
            let bytes = memory.get(key)?.len() as u64;
            Ok(FileStamp::of_change(memory.changed.get(key).copied().unwrap_or(0), bytes))
        })
    }

    fn create(&self, key: &str) -> io::Result<Box<dyn Upload>> {
        expect_key(key)?;
        self.look("create", key, |_| Ok(()))?;
        Ok(Box::new(MemoryUpload { store: self.clone(), key: key.to_owned(), bytes: Vec::new() }))
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<StoreEntry>> {
        let below = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        self.look("list", prefix, |memory| {
            let names = memory.objects.keys().filter_map(|key| key.strip_prefix(&below));
            let mut entries: Vec<StoreEntry> = names
                .map(|name| match name.split_once('/') {
                    Some((folder, _)) => StoreEntry::Folder(folder.to_owned()),
                    None => StoreEntry::Object(name.to_owned()),
                })
                .collect();
            entries.sort();
            entries.dedup();
            Ok(entries)
        })
    }

    fn delete(&self, key: &str) -> io::Result<()> {
        expect_key(key)?;
        let delete = |memory: &mut StoreState| {
            memory.set(key, None);
            Ok(())
        };
        self.operation("delete", key, delete, |_| {})
    }

    fn clear(&self, prefix: &str) -> io::Result<()> {
        expect_key(prefix)?;
        let below = format!("{prefix}/");
        let clear = |memory: &mut StoreState, one_in: usize| {
            let keys: Vec<String> =
                memory.objects.keys().filter(|key| key.starts_with(&below)).cloned().collect();
            keys.iter().step_by(one_in).for_each(|key| memory.set(key, None));
        };
        let whole = |memory: &mut StoreState| {
            clear(memory, 1);
            Ok(())
        };
        self.operation("clear", prefix, whole, |memory| clear(memory, 2))
    }

    fn set_aside(&self, key: &str, to: &str) -> io::Result<()> {
        expect_key(key)?;
        expect_key(to)?;
        let copy = |memory: &mut StoreState| -> io::Result<()> {
            let bytes = memory.get(key)?.to_vec();
            memory.set(to, Some(bytes));
            Ok(())
        };
        let whole = |memory: &mut StoreState| {
            copy(memory)?;
            memory.set(key, None);
            Ok(())
        };
        self.operation("set aside", key, whole, |memory| drop(copy(memory)))
    }

    fn log(&self, key: &str) -> io::Result<Box<dyn AppendLog>> {
        expect_key(key)?;
        self.look("log", key, |memory| {
            if memory.get(key).is_err() {
                memory.set(key, Some(Vec::new()));
            }
            Ok(())
        })?;
        Ok(Box::new(MemoryLog { store: self.clone(), key: key.to_owned() }))
    }
}

#[derive(Debug)]
struct MemoryObject {
    store: FaultyStore,
    key: String,
    bytes: Arc<Vec<u8>>,
}

impl StoredObject for MemoryObject {
    fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        self.store.look("read", &self.key, |_| {
            let start = usize::try_from(at).map_err(|_| io::ErrorKind::UnexpectedEof)?;
            let end = start.checked_add(out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            let bytes = self.bytes.get(start..end).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(bytes);
            Ok(())
        })
    }

    fn map(self: Box<Self>) -> io::Result<MappedObject> {
        Ok(MappedObject::Ranges(self))
    }
}

#[derive(Debug)]
struct MemoryUpload {
    store: FaultyStore,
    key: String,
    bytes: Vec<u8>,
}

impl Upload for MemoryUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let whole = |_: &mut StoreState| {
            self.bytes.extend(bytes);
            Ok(())
        };
        self.store.look("write", &self.key, whole)
    }

    fn commit(self: Box<Self>, condition: PutIf) -> io::Result<()> {
        let MemoryUpload { store, key, bytes } = *self;
        let part = bytes[..bytes.len() / 2].to_vec();
        let is_free = |memory: &StoreState| condition == PutIf::Always || !memory.objects.contains_key(&key);
        let whole = |memory: &mut StoreState| {
            if !is_free(memory) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            memory.set(&key, Some(bytes));
            Ok(())
        };
        let half = |memory: &mut StoreState| {
            if is_free(memory) {
                memory.set(&key, Some(part));
            }
        };
        store.operation("put", &key, whole, half)
    }
}

#[derive(Debug)]
struct MemoryLog {
    store: FaultyStore,
    key: String,
}

impl MemoryLog {
    fn add(&self, memory: &mut StoreState, bytes: &[u8]) {
        let before = memory.get(&self.key).map_or(Vec::new(), |before| before.to_vec());
        memory.set(&self.key, Some([&before, bytes].concat()));
    }
}

impl AppendLog for MemoryLog {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let whole = |memory: &mut StoreState| {
            self.add(memory, bytes);
            Ok(())
        };
        self.store.operation("append", &self.key, whole, |memory| self.add(memory, &bytes[..bytes.len() / 2]))
    }

    fn truncate(&mut self, bytes: u64) -> io::Result<()> {
        self.store.look("truncate", &self.key, |memory| {
            let mut kept = memory.get(&self.key)?.to_vec();
            kept.truncate(bytes as usize);
            memory.set(&self.key, Some(kept));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.store.look("sync", &self.key, |_| Ok(()))
    }
}
