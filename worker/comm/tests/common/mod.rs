//! Ranks of one generation as threads of one process.

use coxswain_comm::{DataPort, Links, MemoryStore};

/// Runs `body` as each of `world` ranks; the results in rank order.
pub(crate) fn ranks<T: Send>(world: u32, body: impl Fn(Links) -> T + Sync) -> Vec<T> {
    ranks_within(2_000, 5_000, world, body)
}

/// As [`ranks`], where connecting and each exchange may take so long.
pub(crate) fn ranks_within<T: Send>(
    connecting_ms: u64,
    exchange_ms: u64,
    world: u32,
    body: impl Fn(Links) -> T + Sync,
) -> Vec<T> {
    let store = MemoryStore::default();
    std::thread::scope(|scope| {
        let join = |rank| {
            let (store, body) = (store.clone(), &body);
            scope.spawn(move || {
                let port = DataPort::local().unwrap();
                body(Links::join(store, rank, world, &port, connecting_ms, exchange_ms).unwrap())
            })
        };
        let threads: Vec<_> = (0..world).map(join).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
