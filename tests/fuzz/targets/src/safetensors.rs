//! [`coxswain_fuzz::safetensors`] under libfuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coxswain_fuzz::safetensors::run(bytes));
