//! Any entries can be replayed, and a restart knows the same from fewer of them.

use coxswain_core::cluster::{Cluster, Entry, compact};

// The coordinator is a program and has no library; this file of it stands by itself.
#[path = "../../../coordinator/src/journal/line.rs"]
mod line;

/// Reads lines, each by itself and as the JSON of an entry.
pub fn run(bytes: &[u8]) {
    let mut entries: Vec<(u64, Entry)> = Vec::new();
    for given in bytes.split_inclusive(|byte| *byte == b'\n') {
        let json = given.strip_suffix(b"\n").unwrap_or(given);
        let head = format!("{} {:08x} ", json.len(), crc32fast::hash(json));
        let sealed = [head.as_bytes(), json, b"\n"].concat();
        for decoded in [line::decode(given), line::decode(&sealed)] {
            let Ok((at_ms, entry)) = decoded else { continue };
            let written = line::encode(&entry, at_ms).expect("a short entry");
            assert_eq!(line::decode(&written).as_ref(), Ok(&(at_ms, entry.clone())));
            // Plans rely on the door that a job came through, and a coordinator writes no other jobs down.
            if !matches!(&entry, Entry::Submitted(job) if job.spec.check_bounds().is_err()) {
                entries.push((at_ms, entry));
            }
        }
    }
    let all = Cluster::replay(entries.iter().map(|(_, entry)| entry.clone()));
    let fewer = Cluster::replay(compact(&entries).into_iter().map(|(_, entry)| entry));
    assert_eq!(all.jobs(), fewer.jobs());
}
