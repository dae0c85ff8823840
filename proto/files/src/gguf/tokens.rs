//! The tokenizer of a GGUF file as a `tokenizer.json`.

use serde_json::{Map, Value, json};

use super::header::Meta;

/// Types of tokens that stand for no text: control tokens, and those that users defined.
const SPECIAL: [f64; 2] = [3.0, 4.0];

/// The token of that spelling.
pub(super) fn id_of(meta: &Meta, text: &str) -> Option<u32> {
    let tokens = meta.texts("tokenizer.ggml.tokens")?;
    tokens.iter().position(|token| token == text).and_then(|at| u32::try_from(at).ok())
}

pub(super) fn json(meta: &Meta) -> Result<String, String> {
    let kind = meta.text("tokenizer.ggml.model").unwrap_or("none");
    if kind != "gpt2" {
        return Err(format!("its tokenizer is of the kind `{kind}`; `gpt2` can be read"));
    }
    let missing = |key: &str| format!("tokenizer.ggml.{key} is missing");
    let tokens = meta.texts("tokenizer.ggml.tokens").ok_or_else(|| missing("tokens"))?;
    let merges = meta.texts("tokenizer.ggml.merges").ok_or_else(|| missing("merges"))?;
    let level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let before = match meta.text("tokenizer.ggml.pre").unwrap_or("default") {
        "smollm" => json!({
            "type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": true}, level],
        }),
        "gpt-2" | "default" => level.clone(),
        other => {
            return Err(format!(
                "its tokenizer cuts text by the rules of `{other}`; smollm and gpt-2 can be read"
            ));
        }
    };
    let kinds = meta.numbers("tokenizer.ggml.token_type").unwrap_or_default();
    let special = |at: usize| kinds.get(at).is_some_and(|kind| SPECIAL.contains(kind));
    let added: Vec<Value> = tokens
        .iter()
        .enumerate()
        .filter(|(at, _)| special(*at))
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        })
        .collect();
    let vocab: Map<String, Value> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let whole = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": before,
        "post_processor": null,
        "decoder": level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    });
    serde_json::to_string(&whole).map_err(|e| e.to_string())
}
