//! The JSON schema of job files (draft 2020-12), made from the structs of [`super::raw`]: editors read it, the
//! reference of the format is made from it, and the bounds that messages tell come from it.
//!
//! A key's doc comment is its description. Where that ends with `Default: VALUE.` and the value is one that the
//! key takes, it is the schema's default too; other defaults depend on other keys and stay in words.

use std::sync::LazyLock;

use coxswain_types::model::Activation;
use schemars::Schema;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::limits::Limit;
use super::node::JobNode;
use super::presets;
use super::raw::{ActivationName, RawJob};
use super::yaml;

/// The schema of job files.
pub fn schema() -> &'static Value {
    static SCHEMA: LazyLock<Value> = LazyLock::new(made);
    &SCHEMA
}

fn made() -> Value {
    let generator = SchemaSettings::draft2020_12().into_generator();
    let mut root = generator.into_root_schema_for::<RawJob>().to_value();
    if let Value::Object(top) = &mut root {
        top.insert("title".to_owned(), "Coxswain job file".into());
    }
    let definitions = root.get("$defs").cloned().unwrap_or_default();
    polish(&mut root, &definitions);
    root
}

/// The default that a description states: what it says without it, and the default's words.
pub(super) fn split_default(description: &str) -> (&str, Option<&str>) {
    match description.split_once(" Default: ") {
        Some((meaning, default)) => (meaning, Some(default.trim_end_matches('.'))),
        None => (description, None),
    }
}

/// Puts each description on one line, and the defaults that are values beside them.
fn polish(schema: &mut Value, definitions: &Value) {
    match schema {
        Value::Object(map) => {
            map.values_mut().for_each(|below| polish(below, definitions));
            let Some(Value::String(text)) = map.get("description") else { return };
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let default = split_default(&text).1.and_then(|words| default(words, map, definitions));
            map.insert("description".to_owned(), text.into());
            if let Some(default) = default {
                map.insert("default".to_owned(), default);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|below| polish(below, definitions)),
        _ => {}
    }
}

/// The default that is said in `words`, where they are a value.
fn default(words: &str, of: &Map<String, Value>, definitions: &Value) -> Option<Value> {
    let node = yaml::read(words.trim_matches('`')).ok()?;
    let value = json(&node)?;
    let known = SchemaWords::of(of, definitions);
    (!value.is_string() || known.0.contains(&value)).then_some(value)
}

/// A plain value as JSON; `None` for a map.
fn json(node: &JobNode) -> Option<Value> {
    Some(match node {
        JobNode::Bool(flag) => (*flag).into(),
        JobNode::Integer(count) => i64::try_from(*count).ok()?.into(),
        JobNode::Float(number) => (*number).into(),
        JobNode::Text(text) => text.as_str().into(),
        JobNode::List(items) => Value::Array(items.iter().map(json).collect::<Option<_>>()?),
        JobNode::Null | JobNode::Map(_) => return None,
    })
}

/// The words that a key takes.
pub(super) struct SchemaWords(pub(super) Vec<Value>);

impl SchemaWords {
    pub(super) fn of(schema: &Map<String, Value>, definitions: &Value) -> SchemaWords {
        let mut words = SchemaWords(Vec::new());
        words.gather(schema, definitions);
        words
    }

    fn gather(&mut self, schema: &Map<String, Value>, definitions: &Value) {
        if let Some(Value::Array(listed)) = schema.get("enum") {
            self.0.extend(listed.iter().filter(|word| word.is_string()).cloned());
        }
        self.0.extend(schema.get("const").cloned());
        for form in forms(schema, definitions) {
            self.gather(form, definitions);
        }
    }
}

/// The forms among which a schema lets choose, `null` left out, and what it refers to.
pub(super) fn forms<'a>(
    schema: &'a Map<String, Value>,
    definitions: &'a Value,
) -> impl Iterator<Item = &'a Map<String, Value>> {
    let chosen = ["anyOf", "oneOf"].into_iter().filter_map(|key| schema.get(key)?.as_array()).flatten();
    let referred = schema.get("$ref").and_then(Value::as_str);
    let referred = referred.and_then(|path| definitions.get(path.rsplit('/').next()?));
    chosen
        .chain(referred)
        .filter_map(Value::as_object)
        .filter(|form| form.get("type").and_then(Value::as_str) != Some("null"))
}

/// The keys of the map that a schema takes, where it takes one.
pub(super) fn properties<'a>(
    schema: &'a Map<String, Value>,
    definitions: &'a Value,
) -> Option<&'a Map<String, Value>> {
    match schema.get("properties") {
        Some(Value::Object(keys)) => Some(keys),
        _ => forms(schema, definitions).find_map(|form| properties(form, definitions)),
    }
}

/// The least and the greatest value of the whole number at `path`, where it has fixed ones.
pub(super) fn bounds(path: &str) -> Option<(u64, u64)> {
    let root = schema();
    let definitions = root.get("$defs")?;
    let mut here = root.as_object()?;
    for key in path.split('.') {
        here = properties(here, definitions)?.get(key)?.as_object()?;
    }
    Some((here.get("minimum")?.as_u64()?, here.get("maximum")?.as_u64()?))
}

/// The bounds of a count, with the reason for the upper one.
pub(super) fn within(limit: &'static Limit) -> impl Fn(&mut Schema) {
    |schema| {
        schema.insert("minimum".to_owned(), limit.least.into());
        schema.insert("maximum".to_owned(), limit.most.into());
        schema.insert("$comment".to_owned(), limit.reason.into());
    }
}

/// Numbers of a list, each 0 or more and below 1.
pub(super) fn each_a_share(schema: &mut Schema) {
    let share = serde_json::json!({ "type": "number", "minimum": 0, "exclusiveMaximum": 1 });
    schema.insert("items".to_owned(), share);
}

/// The names of the presets.
pub(super) fn one_of_presets(schema: &mut Schema) {
    let names = presets::names().into_iter().map(Value::from).chain([Value::Null]);
    schema.insert("enum".to_owned(), names.collect());
}

/// Non-linearities that have no gate.
pub(super) fn without_gate(schema: &mut Schema) {
    use ActivationName::{Gelu, GeluTanh, Relu, Silu};
    let plain = [Relu, Gelu, GeluTanh, Silu].into_iter().filter(|name| !Activation::from(*name).gated());
    let words = plain.filter_map(|name| serde_json::to_value(name).ok()).chain([Value::Null]);
    schema.remove("anyOf");
    schema.insert("enum".to_owned(), words.collect());
}

/// A map, or the word `auto`.
pub(super) fn or_auto(schema: &mut Schema) {
    let map = schema.clone().to_value();
    let description = map.get("description").cloned().unwrap_or_default();
    *schema = schemars::json_schema!({
        "title": "map or word",
        "description": description,
        "anyOf": [{ "type": "string", "const": "auto" }, map],
    });
}

/// A map with a kind, or the kind alone.
pub(super) fn or_its_kind(schema: &mut Schema) {
    let map = schema.clone().to_value();
    let kind = map.get("properties").and_then(|keys| keys.get("kind")).cloned().unwrap_or_default();
    let description = map.get("description").cloned().unwrap_or_default();
    *schema = schemars::json_schema!({
        "title": "word or map",
        "description": description,
        "anyOf": [kind, map],
    });
}

#[cfg(test)]
mod tests;
