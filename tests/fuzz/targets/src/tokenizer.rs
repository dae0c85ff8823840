//! [`coxswain_fuzz::tokenizer`] under libfuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coxswain_fuzz::tokenizer::run(bytes));
