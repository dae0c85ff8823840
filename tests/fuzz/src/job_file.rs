//! Any text is a job that lies within bounds, reads back and can be planned, or is refused with where and why.

use std::path::Path;

use coxswain_core::spec::{JobText, parse};

use crate::jobs;

/// Reads a job file.
pub fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match parse(&JobText { source: "job.yaml", text, sets: &[], base: Path::new("/") }) {
        Ok(spec) => {
            assert_eq!(spec.check_bounds(), Ok(()), "a manifest of this job would be refused");
            jobs::reads_back(&spec);
            jobs::plan(&spec);
        }
        Err(refused) => assert!(!refused.to_string().is_empty()),
    }
}
