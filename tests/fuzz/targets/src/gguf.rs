//! [`coxswain_fuzz::gguf`] under libfuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coxswain_fuzz::gguf::run(bytes));
