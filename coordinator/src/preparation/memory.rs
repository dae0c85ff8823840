//! How much memory a preparation may take: a fixed amount, or most of what the machine has, or the container
//! that this runs in, or this process.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};

/// The share of the memory, in quarters.
const QUARTERS: u64 = 3;

/// The most that a preparation may take. A text of any size takes less than half a GiB; the rest is for the
/// `tokenizer.json` and the manifest of a model that a job starts from. Several preparations run at once.
const MOST_BYTES: u64 = 2 << 30;

/// The memory that one preparation may take, in bytes.
pub(super) fn share_bytes() -> u64 {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let machine = read(Path::new("/proc/meminfo")).and_then(|text| total_bytes(&text));
    let group = read(Path::new("/proc/self/cgroup")).map_or(Vec::new(), |text| limits_of(&text));
    let group = group.iter().filter_map(|path| read(path)?.trim().parse().ok());
    let own = getrlimit(Resource::Data).maximum;
    machine
        .into_iter()
        .chain(group)
        .chain(own)
        .min()
        .map_or(MOST_BYTES, |bytes| MOST_BYTES.min(bytes / 4 * QUARTERS))
}

/// `MemTotal` of `/proc/meminfo`.
fn total_bytes(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The files with the limits of a process's group and those around it, by its `/proc/self/cgroup` (version
/// 2).
fn limits_of(text: &str) -> Vec<PathBuf> {
    let group = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    let inner = Path::new("/sys/fs/cgroup").join(group);
    let around = inner.ancestors().take_while(|path| path.starts_with("/sys/fs/cgroup"));
    around.map(|path| path.join("memory.max")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_read() {
        assert_eq!(total_bytes("MemFree: 1 kB\nMemTotal:       16303480 kB\n"), Some(16_303_480 << 10));
        assert_eq!(total_bytes("MemFree: 1 kB\n"), None);
        let files: Vec<_> =
            limits_of("0::/kube/pod\n").iter().map(|path| path.display().to_string()).collect();
        let expected = ["kube/pod/memory.max", "kube/memory.max", "memory.max"];
        assert_eq!(files, expected.map(|file| format!("/sys/fs/cgroup/{file}")));
        assert!((100 << 20..=MOST_BYTES).contains(&share_bytes()));
    }
}
