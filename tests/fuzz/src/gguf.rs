//! Any bytes are a GGUF file whose model can be read, or are refused.

use coxswain_files::Tokenizer;
use coxswain_files::gguf::Gguf;
use coxswain_types::params::parameter_table;

use crate::folder;

/// Opens a GGUF file, and reads all of it.
pub fn run(bytes: &[u8]) {
    folder::with(&[("a.gguf", bytes)], |folder| {
        let Ok(file) = Gguf::open(&folder.join("a.gguf")) else { return };
        for row in parameter_table(file.model()) {
            let values = file.read(&row.name, 0, 0, row.shape[0]).expect("a tensor of an open file");
            assert_eq!(values.len() as u64, row.elements());
        }
        if let Ok(tokenizer) = Tokenizer::of_any(file.tokenizer_json().as_bytes()) {
            drop(tokenizer.expect_within(file.model().vocab));
        }
    });
}
