//! Every input that was kept runs, and takes no time: a finding that was mended stays mended.

use std::panic::catch_unwind;
use std::path::Path;
use std::time::Instant;

use coxswain_fuzz::TARGETS;

/// An input of these takes milliseconds; one that takes so long would have been a finding.
const SECONDS_MAX: u64 = 5;

#[test]
fn every_kept_input_runs() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, run) in TARGETS {
        let folder = corpus.join(name);
        let mut inputs: Vec<_> =
            std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        inputs.sort();
        assert!(!inputs.is_empty(), "{} is empty", folder.display());
        for path in inputs {
            let start = Instant::now();
            let bytes = std::fs::read(&path).unwrap();
            assert!(catch_unwind(|| run(&bytes)).is_ok(), "{}", path.display());
            assert!(start.elapsed().as_secs() < SECONDS_MAX, "{}", path.display());
        }
    }
}
