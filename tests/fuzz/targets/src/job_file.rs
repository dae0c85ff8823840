//! [`coxswain_fuzz::job_file`] under libfuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| coxswain_fuzz::job_file::run(bytes));
