//! What a fuzzer does with each format that others write: a function of bytes that must return, whatever they are. It
//! may not panic, wait, or take memory that the bytes do not pay for, and what it accepts must keep its promises.
//!
//! `cargo xtask fuzz` runs these functions under libfuzzer (the programs in `targets/`) and keeps the inputs that reach
//! new code, and those that were findings, in `corpus/`. `cargo test -p coxswain-fuzz` runs what is kept there.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a fuzzer's findings are panics, and so are broken promises"
)]

pub mod config;
mod folder;
pub mod gguf;
pub mod job_file;
mod jobs;
pub mod journal;
pub mod manifest;
pub mod message;
pub mod safetensors;
pub mod token_file;
pub mod tokenizer;

/// What a fuzzer does with an input.
pub type Run = fn(&[u8]);

/// The formats, by the names of their programs and of their folders in `corpus/`.
pub const TARGETS: [(&str, Run); 9] = [
    ("config", config::run),
    ("gguf", gguf::run),
    ("job_file", job_file::run),
    ("journal", journal::run),
    ("manifest", manifest::run),
    ("message", message::run),
    ("safetensors", safetensors::run),
    ("token_file", token_file::run),
    ("tokenizer", tokenizer::run),
];
