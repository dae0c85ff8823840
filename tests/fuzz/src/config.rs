//! Any bytes are the configuration of a foreign model that is read and can be written again, or are refused.

use coxswain_files::hf::{self, HfModel};

use crate::folder;

/// Tensors of no model but the one whose configuration is among the kept inputs.
const WEIGHTS: &[u8] = include_bytes!("../weights.safetensors");

/// What stands between `config.json`, `generation_config.json` and `tokenizer_config.json`.
const BETWEEN: &[u8] = b"\n---\n";

/// Reads a configuration, and what stands beside it.
pub fn run(bytes: &[u8]) {
    let (config, rest) = cut(bytes);
    let (generation, tokenizer) = cut(rest);
    let mut files = vec![("config.json", config), ("model.safetensors", WEIGHTS)];
    let beside = [("generation_config.json", generation), ("tokenizer_config.json", tokenizer)];
    files.extend(beside.into_iter().filter(|(_, bytes)| !bytes.is_empty()));
    folder::with(&files, |folder| {
        let Ok(model) = HfModel::open(folder) else { return };
        assert_eq!(model.model().check_bounds(), Ok(()));
        let framing = hf::framing(folder, &model.kept().config, model.model(), None);
        drop(model.kept().class_names());
        let form = hf::form(model.model(), Some(model.kept()), framing.as_ref().ok());
        assert!(form.is_ok(), "{:?}", form.err());
        drop(hf::unread(folder));
    });
}

/// What comes before the mark, and what after it.
fn cut(bytes: &[u8]) -> (&[u8], &[u8]) {
    let at = bytes.windows(BETWEEN.len()).position(|found| found == BETWEEN);
    at.map_or((bytes, &[]), |at| (&bytes[..at], &bytes[at + BETWEEN.len()..]))
}
