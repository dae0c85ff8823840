//! Any entries can be replayed, and a restart knows the same from fewer of them.
#![no_main]

use coxswain_core::cluster::{Cluster, Entry, compact};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let entries: Vec<(u64, Entry)> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).map(|entry| (0, entry)).collect();
    let all = Cluster::replay(entries.iter().map(|(_, entry)| entry.clone()));
    let fewer = Cluster::replay(compact(&entries).into_iter().map(|(_, entry)| entry));
    assert_eq!(all.jobs(), fewer.jobs());
});
