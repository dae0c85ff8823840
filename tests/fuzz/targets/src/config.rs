//! [`coxswain_fuzz::config`] under libfuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coxswain_fuzz::config::run(bytes));
