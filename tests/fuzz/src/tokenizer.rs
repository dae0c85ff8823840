//! Any bytes are a `tokenizer.json` that encodes and decodes, or are refused.
//!
//! The library that reads them panics at some; whoever calls it is ready for that. Panics of this tree are findings.

use std::panic::{catch_unwind, resume_unwind, set_hook, take_hook};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use coxswain_files::Tokenizer;

/// A text with words, spaces, numbers and letters of several alphabets.
const TEXT: &str = "Hello, wörld! 123  x\n\tab ab 你好";

/// Tokens of the model that the tokenizer is for.
const VOCAB: u32 = 300;

/// Where cargo keeps the code of others.
const OF_OTHERS: &str = "registry/src";

/// Whether the last panic was one of code of others.
static OTHERS: AtomicBool = AtomicBool::new(false);

static HOOK: Once = Once::new();

/// Reads a tokenizer, and has it encode and decode a text.
pub fn run(bytes: &[u8]) {
    HOOK.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            let others = panic.location().is_some_and(|place| place.file().contains(OF_OTHERS));
            OTHERS.store(others, Ordering::Relaxed);
            if !others {
                usual(panic);
            }
        }));
    });
    if let Err(panic) = catch_unwind(|| used(bytes))
        && !OTHERS.load(Ordering::Relaxed)
    {
        resume_unwind(panic);
    }
}

fn used(bytes: &[u8]) {
    let Ok(tokenizer) = Tokenizer::of_any(bytes) else { return };
    if let Ok(ids) = tokenizer.encode(TEXT) {
        drop(tokenizer.decode(&ids));
    }
    drop(tokenizer.frame());
    // Ids may be as large as they like until a model's vocabulary is known; what lists all of them comes after that.
    if tokenizer.expect_within(VOCAB).is_ok() {
        assert!(tokenizer.word_starts().len() <= VOCAB as usize);
    }
}
