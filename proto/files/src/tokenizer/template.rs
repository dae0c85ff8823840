//! The part of a `tokenizer.json` that puts tokens around a text in other programs.

use serde_json::{Map, Value, json};

/// A post-processor that puts `begin` before a text and `close` after it; null, where there is nothing to put. `None`
/// where a token has no spelling.
pub(crate) fn template(
    begin: &[u32],
    close: &[u32],
    spelled: &dyn Fn(u32) -> Option<String>,
) -> Option<Value> {
    if begin.is_empty() && close.is_empty() {
        return Some(Value::Null);
    }
    let names = |ids: &[u32]| ids.iter().map(|id| spelled(*id)).collect::<Option<Vec<String>>>();
    let (before, after) = (names(begin)?, names(close)?);
    let token = |name: &String, text: u32| json!({"SpecialToken": {"id": name, "type_id": text}});
    let framed = |of: &str, text: u32| -> Vec<Value> {
        let before = before.iter().map(|name| token(name, text));
        let after = after.iter().map(|name| token(name, text));
        before.chain([json!({"Sequence": {"id": of, "type_id": text}})]).chain(after).collect()
    };
    let ids = begin.iter().chain(close).zip(before.iter().chain(&after));
    let tokens: Map<String, Value> =
        ids.map(|(id, name)| (name.clone(), json!({"id": name, "ids": [id], "tokens": [name]}))).collect();
    let pair = [framed("A", 0), framed("B", 1)].concat();
    Some(json!({
        "type": "TemplateProcessing", "single": framed("A", 0), "pair": pair, "special_tokens": tokens,
    }))
}
