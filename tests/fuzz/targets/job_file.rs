//! Any text is a job that can be sketched, or is refused with where and why.
#![no_main]

use std::path::Path;

use coxswain_core::plan::sketch;
use coxswain_core::spec::{JobText, parse};
use libfuzzer_sys::fuzz_target;

/// A sketch lists every rank; larger worlds take longer and show no more.
const WORLD_MAX: u32 = 16;

fuzz_target!(|text: &str| {
    match parse(&JobText { source: "job.yaml", text, sets: &[], base: Path::new("/") }) {
        Ok(spec) if spec.layout.world() <= WORLD_MAX => drop(sketch(&spec, spec.layout.world())),
        Ok(_) => {}
        Err(refused) => assert!(!refused.to_string().is_empty()),
    }
});
