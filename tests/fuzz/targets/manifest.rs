//! Any bytes are a manifest that opens, or are refused; nothing outside of its folder is touched.
#![no_main]

use coxswain_files::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("manifest.json"), bytes).expect("a manifest");
    if let Ok(checkpoint) = Checkpoint::open(folder.path(), None) {
        drop(checkpoint.verify());
    }
});
