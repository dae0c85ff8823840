//! [`coxswain_fuzz::journal`] under libfuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coxswain_fuzz::journal::run(bytes));
