//! The rendezvous: keys and values by which the ranks of a generation find each other. They live in memory
//! and as long as their generation.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use coxswain_proto::limits;
use coxswain_types::Generation;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::{Instant, timeout_at};

use crate::lock::lock;

/// Why the rendezvous says no.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// Another generation is at work, or none.
    #[error("generation {generation} of {job} is not at work: {now}")]
    Superseded {
        /// What was asked for.
        job: String,
        /// What was asked for.
        generation: Generation,
        /// What is at work.
        now: String,
    },
    /// A bound was passed.
    #[error("{what} is {found}, at most {most} are allowed")]
    TooMuch {
        /// What there is too much of.
        what: &'static str,
        /// How much there would be.
        found: usize,
        /// How much there may be.
        most: usize,
    },
}

/// The rendezvous of the generations that are at work.
#[derive(Debug, Default)]
pub(crate) struct RendezvousStore {
    /// By job: a job has one generation at a time.
    open: Mutex<HashMap<String, OpenGeneration>>,
}

/// What a look at a key finds.
enum Lookup {
    /// Its value.
    Value(Vec<u8>),
    /// Ends when there is a value, or the generation is over.
    Later(OwnedNotified),
}

#[derive(Debug)]
struct OpenGeneration {
    generation: Generation,
    values: HashMap<Vec<u8>, Vec<u8>>,
    /// Awaited keys: setting one wakes only its waiters.
    awaited: HashMap<Vec<u8>, Arc<Notify>>,
    bytes: usize,
}

impl OpenGeneration {
    fn new(generation: Generation) -> OpenGeneration {
        OpenGeneration { generation, values: HashMap::new(), awaited: HashMap::new(), bytes: 0 }
    }
}

impl Drop for OpenGeneration {
    /// Wakes waiters, which then learn that the generation is over.
    fn drop(&mut self) {
        self.awaited.values().for_each(|key| key.notify_waiters());
    }
}

impl RendezvousStore {
    /// Opens an empty rendezvous for each of these generations, unless it is open already, and closes all
    /// others. Whoever waits in one of those is told.
    pub(crate) fn serve(&self, at_work: &[(&str, Generation)]) {
        let mut open = self.lock();
        open.retain(|job, open| at_work.contains(&(job, open.generation)));
        for (job, generation) in at_work {
            open.entry((*job).to_owned()).or_insert_with(|| OpenGeneration::new(*generation));
        }
    }

    /// Sets a key, in place of its older value if it has one.
    pub(crate) fn set(
        &self,
        job: &str,
        generation: Generation,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), StoreError> {
        at_most("the length of the key", key.len(), limits::MAX_STORE_KEY_BYTES)?;
        at_most("the length of the value", value.len(), limits::MAX_STORE_VALUE_BYTES)?;
        let mut guard = self.lock();
        let open = at_work(&mut guard, job, generation)?;
        let (keys, mut bytes) = match open.values.get(key) {
            Some(old) => (open.values.len(), open.bytes - old.len()),
            None => (open.values.len() + 1, open.bytes + key.len()),
        };
        bytes += value.len();
        at_most("the number of keys", keys, limits::MAX_STORE_KEYS)?;
        at_most("the size of all keys and values", bytes, limits::MAX_STORE_BYTES)?;
        open.bytes = bytes;
        open.values.insert(key.to_owned(), value.to_owned());
        if let Some(waiting) = open.awaited.remove(key) {
            waiting.notify_waiters();
        }
        Ok(())
    }

    /// The value of a key, waiting for it up to `wait` or the bound of a call.
    pub(crate) async fn get(
        &self,
        job: &str,
        generation: Generation,
        key: &[u8],
        wait: Duration,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let until = Instant::now() + wait.min(Duration::from_millis(limits::MAX_STORE_WAIT_MS));
        loop {
            let changed = match self.look(job, generation, key)? {
                Lookup::Value(value) => return Ok(Some(value)),
                Lookup::Later(changed) => changed,
            };
            if timeout_at(until, changed).await.is_err() {
                return Ok(None);
            }
        }
    }

    /// The value of a key, or what to await before looking again.
    fn look(&self, job: &str, generation: Generation, key: &[u8]) -> Result<Lookup, StoreError> {
        let mut guard = self.lock();
        let open = at_work(&mut guard, job, generation)?;
        if let Some(value) = open.values.get(key) {
            return Ok(Lookup::Value(value.clone()));
        }
        if !open.awaited.contains_key(key) && open.awaited.len() >= limits::MAX_STORE_KEYS {
            // Drops keys whose callers have timed out.
            open.awaited.retain(|_, waiting| Arc::strong_count(waiting) > 1);
            at_most(
                "the number of keys that are waited for",
                open.awaited.len() + 1,
                limits::MAX_STORE_KEYS,
            )?;
        }
        // `notified_owned` registers when it is created, so no later change is missed.
        Ok(Lookup::Later(open.awaited.entry(key.to_owned()).or_default().clone().notified_owned()))
    }

    /// Nothing panics while it holds the lock, so what it guards is whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, OpenGeneration>> {
        lock(&self.open)
    }
}

fn at_work<'a>(
    open: &'a mut HashMap<String, OpenGeneration>,
    job: &str,
    generation: Generation,
) -> Result<&'a mut OpenGeneration, StoreError> {
    let now = match open.get_mut(job) {
        Some(open) if open.generation == generation => return Ok(open),
        Some(open) => format!("generation {} is", open.generation),
        None => "no generation of it is".to_owned(),
    };
    Err(StoreError::Superseded { job: job.to_owned(), generation, now })
}

fn at_most(what: &'static str, found: usize, most: usize) -> Result<(), StoreError> {
    if found > most { Err(StoreError::TooMuch { what, found, most }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const ONE: Generation = Generation(1);
    const TWO: Generation = Generation(2);
    const LONG: Duration = Duration::from_secs(3600);

    fn store() -> Arc<RendezvousStore> {
        let store = Arc::new(RendezvousStore::default());
        store.serve(&[("demo-1", ONE)]);
        store
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_waits_for_the_writer() {
        let store = store();
        let reader = tokio::spawn({
            let store = store.clone();
            async move { store.get("demo-1", ONE, b"k", LONG).await }
        });
        tokio::task::yield_now().await;
        store.set("demo-1", ONE, b"other", b"x").unwrap();
        store.set("demo-1", ONE, b"k", b"v").unwrap();
        assert_eq!(reader.await.unwrap(), Ok(Some(b"v".to_vec())));
        store.set("demo-1", ONE, b"k", b"w").unwrap();
        assert_eq!(store.get("demo-1", ONE, b"k", Duration::ZERO).await, Ok(Some(b"w".to_vec())));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_is_bounded() {
        let store = store();
        let start = Instant::now();
        assert_eq!(store.get("demo-1", ONE, b"k", LONG).await, Ok(None));
        assert_eq!(start.elapsed().as_millis(), u128::from(limits::MAX_STORE_WAIT_MS));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_generation_ends_the_waiting_of_the_old() {
        let store = store();
        store.set("demo-1", ONE, b"old", b"v").unwrap();
        let reader = tokio::spawn({
            let store = store.clone();
            async move { store.get("demo-1", ONE, b"k", LONG).await }
        });
        tokio::task::yield_now().await;
        store.serve(&[("demo-1", TWO), ("other-2", ONE)]);
        let error = reader.await.unwrap().unwrap_err().to_string();
        assert_eq!(error, "generation 1 of demo-1 is not at work: generation 2 is");
        assert!(matches!(store.set("demo-1", ONE, b"k", b"v"), Err(StoreError::Superseded { .. })));
        assert_eq!(store.get("demo-1", TWO, b"old", Duration::ZERO).await, Ok(None), "it starts empty");
        assert_eq!(store.get("other-2", ONE, b"old", Duration::ZERO).await, Ok(None), "each has its own");
        store.serve(&[("other-2", ONE)]);
        assert!(store.set("other-2", ONE, b"k", b"v").is_ok());
        assert!(store.get("demo-1", TWO, b"k", LONG).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_that_are_waited_for_are_bounded_and_forgotten() {
        let store = store();
        for n in 0..limits::MAX_STORE_KEYS + 1 {
            let found = store.get("demo-1", ONE, &n.to_le_bytes(), Duration::ZERO).await;
            assert_eq!(found, Ok(None), "the waits before are over");
        }
        let waiting: Vec<_> = (0..limits::MAX_STORE_KEYS)
            .map(|n| store.look("demo-1", ONE, &n.to_le_bytes()).unwrap())
            .collect();
        assert!(store.look("demo-1", ONE, b"one more").is_err());
        assert!(store.look("demo-1", ONE, &0usize.to_le_bytes()).is_ok(), "that key is awaited already");
        drop(waiting);
        assert!(store.look("demo-1", ONE, b"one more").is_ok());
    }

    #[test]
    fn what_it_holds_is_bounded() {
        let store = store();
        let big = vec![0; limits::MAX_STORE_VALUE_BYTES];
        let room = limits::MAX_STORE_BYTES / (big.len() + size_of::<usize>());
        for n in 0..room {
            store.set("demo-1", ONE, &n.to_le_bytes(), &big).unwrap();
        }
        // Setting a key again takes no more room.
        store.set("demo-1", ONE, &0usize.to_le_bytes(), &big).unwrap();
        assert!(store.set("demo-1", ONE, b"one more", &big).is_err());
        assert!(store.set("demo-1", ONE, b"k", &vec![0; limits::MAX_STORE_VALUE_BYTES + 1]).is_err());
        assert!(store.set("demo-1", ONE, &vec![0; limits::MAX_STORE_KEY_BYTES + 1], b"v").is_err());
    }
}
