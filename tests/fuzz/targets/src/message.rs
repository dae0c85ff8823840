//! [`coxswain_fuzz::message`] under libfuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coxswain_fuzz::message::run(bytes));
