//! Any bytes are a `tokenizer.json` that encodes and decodes, or are refused.

use coxswain_files::Tokenizer;

/// A text with words, spaces, numbers and letters of several alphabets.
const TEXT: &str = "Hello, wörld! 123  x\n\tab ab 你好";

/// Reads a tokenizer, and has it encode and decode a text.
pub fn run(bytes: &[u8]) {
    let Ok(tokenizer) = Tokenizer::of_any(bytes) else { return };
    if let Ok(ids) = tokenizer.encode(TEXT) {
        drop(tokenizer.decode(&ids));
    }
    drop((tokenizer.frame(), tokenizer.word_starts(), tokenizer.expect_within(300)));
}
