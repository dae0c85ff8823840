//! Work on several threads, with its results in order.

use std::num::NonZero;
use std::thread::available_parallelism;

use rayon::prelude::*;

/// The most threads: each keeps some 10 MB of what the library took for its last piece of text.
const MAX_THREADS: usize = 8;

/// How much text is worked on at once, on all threads together. The library takes some 50 bytes for each.
const BATCH_BYTES: usize = 1 << 20;

/// Threads that wait for work.
#[derive(Debug)]
pub(crate) struct Threads {
    /// `None` where the system gives none; then the caller's thread does the work.
    pool: Option<rayon::ThreadPool>,
}

impl Threads {
    /// As many as the machine has cores, up to a bound.
    pub(crate) fn new() -> Threads {
        let cores = available_parallelism().map_or(1, NonZero::get);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(cores.min(MAX_THREADS)).build();
        Threads { pool: pool.ok() }
    }

    fn map<T: Sync, R: Send>(&self, items: &[T], work: impl Fn(&T) -> R + Sync + Send) -> Vec<R> {
        match &self.pool {
            Some(pool) if items.len() > 1 => {
                pool.install(|| items.par_iter().with_max_len(1).map(work).collect())
            }
            // A large piece alone stays on this thread, so that the others keep no memory of its size.
            _ => items.iter().map(work).collect(),
        }
    }
}

/// Work that waits until it is worth the threads.
#[derive(Debug)]
pub(crate) struct Batch<T> {
    items: Vec<T>,
    bytes: usize,
}

impl<T: Sync> Batch<T> {
    /// No work.
    pub(crate) fn new() -> Batch<T> {
        Batch { items: Vec::new(), bytes: 0 }
    }

    /// Whether what takes `bytes` more is for the next batch.
    pub(crate) fn is_full(&self, bytes: usize) -> bool {
        !self.items.is_empty() && self.bytes.saturating_add(bytes) > BATCH_BYTES
    }

    /// Adds what takes `bytes`.
    pub(crate) fn push(&mut self, item: T, bytes: usize) {
        self.items.push(item);
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Does all of it, and hands each with its result to `done`, in order.
    pub(crate) fn run<R: Send, E>(
        &mut self,
        threads: &Threads,
        work: impl Fn(&T) -> R + Sync + Send,
        mut done: impl FnMut(&T, R) -> Result<(), E>,
    ) -> Result<(), E> {
        let results = threads.map(&self.items, work);
        for (item, result) in self.items.iter().zip(results) {
            done(item, result)?;
        }
        self.items.clear();
        self.bytes = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order() {
        for threads in [Threads::new(), Threads { pool: None }] {
            let mut batch = Batch::new();
            assert!(!batch.is_full(usize::MAX));
            (0..1000u32).for_each(|n| batch.push(n, 1));
            assert!(!batch.is_full(BATCH_BYTES - 1000) && batch.is_full(BATCH_BYTES));
            let mut found = Vec::new();
            let ran: Result<(), ()> = batch.run(
                &threads,
                |n| n * 2,
                |n, twice| {
                    found.push((*n, twice));
                    Ok(())
                },
            );
            assert_eq!(ran, Ok(()));
            assert_eq!(found, (0..1000).map(|n| (n, 2 * n)).collect::<Vec<_>>());
            assert!(batch.run(&threads, |_| (), |_, ()| Err(())).is_ok(), "something is left");
        }
    }
}
