//! [`coxswain_fuzz::manifest`] under libfuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coxswain_fuzz::manifest::run(bytes));
