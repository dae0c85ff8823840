//! [`coxswain_fuzz::token_file`] under libfuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coxswain_fuzz::token_file::run(bytes));
