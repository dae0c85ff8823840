//! The tables of `docs/job.md`, made from the [`schema`] of job files and from [`RULES`].
//!
//! The page's prose is its own. [`filled`] replaces what stands between `<!-- NAME -->` and
//! `<!-- end of NAME -->`; a test compares, and `UPDATE_EXPECT=1` rewrites the page.

use std::path::Path;

use coxswain_types::JobSpec;
use coxswain_types::params::{Parameter, parameter_table};
use serde_json::{Map, Value};

use super::node::{JobNode, Problem, decode};
use super::presets;
use super::raw::RawJob;
use super::schema::{SchemaWords, forms, properties, schema, split_default};
use super::tests::LEAST;
use super::{JobText, SpecError, look, parse, resolved_yaml, yaml};
use rules::RULES;

/// A key of the job file.
pub(super) struct JobKey {
    /// Such as `model.heads`.
    pub(super) path: String,
    /// Whether it has to be given.
    pub(super) required: bool,
    schema: Map<String, Value>,
    /// What its forms refer to.
    definitions: Value,
}

/// A map of the job file, of which the first is the whole file.
struct Section {
    path: String,
    meaning: String,
    keys: Vec<JobKey>,
}

/// Maps in the order of the file.
fn sections() -> Vec<Section> {
    let root = schema();
    let mut open = vec![(String::new(), root.as_object().unwrap().clone())];
    let mut sections = Vec::new();
    while let Some((path, of)) = open.pop() {
        let (meaning, keys) = keys_of(&path, &of, &root["$defs"]);
        let maps = keys.iter().rev().filter(|key| key.is_map());
        open.extend(maps.map(|key| (key.path.clone(), key.schema.clone())));
        sections.push(Section { path, meaning, keys });
    }
    sections
}

/// What is said of a map, and its keys.
fn keys_of(above: &str, of: &Map<String, Value>, definitions: &Value) -> (String, Vec<JobKey>) {
    let map = std::iter::successors(Some(of), |form| forms(form, definitions).last())
        .find(|form| form.contains_key("properties"));
    let map = map.unwrap_or(of);
    let required = map.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    let key = |(name, schema): (&String, &Value)| JobKey {
        path: if above.is_empty() { name.clone() } else { format!("{above}.{name}") },
        required: required.iter().any(|known| known.as_str() == Some(name)),
        schema: schema.as_object().unwrap().clone(),
        definitions: definitions.clone(),
    };
    let mut keys: Vec<JobKey> = properties(map, definitions).into_iter().flatten().map(key).collect();
    let order = order_below(above);
    keys.sort_by_key(|key| order.iter().position(|name| format!(".{}", key.path).ends_with(name)));
    (map["description"].as_str().unwrap().to_owned(), keys)
}

/// The keys of the map at `path` in the order of the file. The schema's own are sorted by name.
fn order_below(path: &str) -> Vec<String> {
    let mut job = yaml::read(LEAST).ok().unwrap();
    let unknown = if path.is_empty() { "?".to_owned() } else { format!("{path}.?") };
    job.set(&unknown, JobNode::Null).unwrap();
    match decode::<RawJob>(job).unwrap_err().problem {
        Problem::Unknown { known, .. } => known.iter().map(|key| format!(".{key}")).collect(),
        other => panic!("{path}: {other}"),
    }
}

pub(super) fn all_keys() -> Vec<JobKey> {
    sections().into_iter().flat_map(|section| section.keys).collect()
}

impl JobKey {
    /// Whether it holds keys of its own.
    pub(super) fn is_map(&self) -> bool {
        properties(&self.schema, &self.definitions).is_some_and(|keys| !keys.contains_key("budget"))
    }

    fn description(&self) -> &str {
        self.schema["description"].as_str().unwrap()
    }

    pub(super) fn meaning(&self) -> &str {
        split_default(self.description()).0
    }

    pub(super) fn default_words(&self) -> Option<&str> {
        split_default(self.description()).1
    }

    /// The default that is a value.
    pub(super) fn default(&self) -> Option<&Value> {
        self.schema.get("default")
    }

    /// The words that it takes.
    pub(super) fn words(&self) -> Vec<String> {
        let words = SchemaWords::of(&self.schema, &self.definitions).0;
        words.iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    }

    /// A number that bounds it, such as its `minimum`, also where it takes other forms beside a number.
    pub(super) fn bound(&self, keyword: &str) -> Option<&Value> {
        let mut forms = forms(&self.schema, &self.definitions);
        self.schema.get(keyword).or_else(|| forms.find_map(|form| form.get(keyword)))
    }

    fn row(&self) -> String {
        let default = match (self.default_words(), self.required) {
            (Some(default), _) => default,
            (None, false) => "absent",
            (None, true) => "**required**",
        };
        let (kind, allowed) = (kind(&self.schema, &self.definitions), self.allowed());
        format!("| `{}` | {kind} | {default} | {allowed} | {} |\n", self.path, self.meaning())
    }

    fn allowed(&self) -> String {
        if self.is_map() {
            return String::new();
        }
        if self.path == "model.preset" {
            return "a name [below](#presets)".to_owned();
        }
        allowed(&self.schema, &self.definitions)
    }
}

/// What sort of value a schema takes.
fn kind(schema: &Map<String, Value>, definitions: &Value) -> String {
    if let Some(Value::String(title)) = schema.get("title") {
        return title.clone();
    }
    if schema.contains_key("enum") || schema.contains_key("const") {
        return "word".to_owned();
    }
    if let Some(form) = forms(schema, definitions).next() {
        return kind(form, definitions);
    }
    match plain_type(schema) {
        "array" if schema.get("maxItems") == Some(&2.into()) => "two numbers",
        "array" => "list of texts",
        "boolean" => "true or false",
        "integer" => "whole number",
        "number" => "number",
        "object" => "map",
        "string" => "text",
        other => panic!("say what {other} is"),
    }
    .to_owned()
}

/// The type beside `null`.
fn plain_type(schema: &Map<String, Value>) -> &str {
    match &schema["type"] {
        Value::String(name) => name,
        Value::Array(names) => names[0].as_str().unwrap(),
        other => panic!("a type like {other}"),
    }
}

/// The values that a schema takes, in words; empty for any of its kind.
fn allowed(schema: &Map<String, Value>, definitions: &Value) -> String {
    let words = SchemaWords::of(schema, definitions).0;
    if words.len() == 1 && words[0] == "auto" && schema.contains_key("anyOf") {
        let values = values_of(schema, definitions);
        return if values.is_empty() { "`auto`".to_owned() } else { format!("{values}, or `auto`") };
    }
    values_of(schema, definitions)
}

fn values_of(schema: &Map<String, Value>, definitions: &Value) -> String {
    let words = SchemaWords::of(schema, definitions).0;
    let mut words: Vec<_> = words.iter().map(|word| format!("`{}`", word.as_str().unwrap())).collect();
    if properties(schema, definitions).is_some() {
        words.push("`{budget: BYTES}`".to_owned());
    }
    if let Some((last, others @ [_, ..])) = words.split_last() {
        return format!("{} or {last}", others.join(", "));
    }
    let several: Vec<_> = forms(schema, definitions)
        .map(|form| allowed(form, definitions))
        .filter(|words| !words.is_empty())
        .collect();
    if !several.is_empty() {
        return several.join(", or ");
    }
    let bound = |keyword: &str| schema.get(keyword).filter(|bound| !bound.is_null());
    match schema.get("type").map(|_| plain_type(schema)) {
        Some("boolean") => "`true` or `false`".to_owned(),
        Some("array") => list(schema, definitions),
        _ => {
            let least = bound("minimum").map(|least| format!("{least} or more"));
            let least = least.or_else(|| bound("exclusiveMinimum").map(|border| format!("above {border}")));
            let below = bound("exclusiveMaximum").map(|border| format!("below {border}"));
            match (least, below, bound("minimum"), bound("maximum")) {
                (_, _, Some(least), Some(most)) => format!("{least} to {most}"),
                (least, below, ..) => least.into_iter().chain(below).collect::<Vec<_>>().join(" and "),
            }
        }
    }
}

fn list(schema: &Map<String, Value>, definitions: &Value) -> String {
    let items = allowed(schema["items"].as_object().unwrap(), definitions);
    match (schema.get("minItems"), schema.get("maxItems")) {
        (Some(least), Some(most)) if least != most => format!("{least} to {most} files"),
        (Some(_), _) if !items.is_empty() => format!("each {items}"),
        _ if !items.is_empty() => format!("a list of {items}"),
        _ => String::new(),
    }
}

/// Every key, a table for each map.
fn keys() -> String {
    let mut text = String::new();
    for Section { path, meaning, keys } in sections() {
        let (heading, meaning) = match path.as_str() {
            "" => ("The whole file".to_owned(), "The whole file is a map."),
            path => (format!("`{path}`"), meaning.split_once(": ").map_or("", |(_, rest)| rest)),
        };
        text.push_str(&format!("### {heading}\n\n"));
        if let Some(first) = meaning.chars().next() {
            let rest = &meaning[first.len_utf8()..];
            text.push_str(&format!("{}{rest}\n\n", first.to_uppercase()));
        }
        text.push_str("| Key | Type | Default | Allowed | Meaning |\n|---|---|---|---|---|\n");
        text.extend(keys.iter().map(JobKey::row));
        text.push('\n');
    }
    text.trim_end().to_owned()
}

/// Every preset, with the parameters that its model has.
fn models() -> String {
    let mut text = "| Preset | Parameters |\n|---|---|\n".to_owned();
    for name in presets::names() {
        let sets = [("model", format!("{{preset: {name}}}"))];
        let model = read(&sets.each_ref().map(|(path, value)| (*path, value.as_str()))).unwrap().model;
        let parameters: u64 = parameter_table(&model).iter().map(Parameter::elements).sum();
        text.push_str(&format!("| `{name}` | {parameters} |\n"));
    }
    text.trim_end().to_owned()
}

/// Every rule with what the program says where it is broken.
fn rules() -> String {
    let mut text = "| Rule | What is said where it is broken |\n|---|---|\n".to_owned();
    for (rule, sets) in RULES {
        let error = read_by(parse, sets).unwrap_err();
        let [fault] = error.faults() else { panic!("{rule}: {error}") };
        text.push_str(&format!("| {rule} | {}: {} |\n", fault.path, fault.message));
    }
    text.trim_end().to_owned()
}

/// The bounds with their reasons.
fn bounds() -> String {
    let mut text = "| Key | At most | Why |\n|---|---|---|\n".to_owned();
    for key in all_keys() {
        if let Some(Value::String(reason)) = key.schema.get("$comment") {
            text.push_str(&format!("| `{}` | {} | {reason} |\n", key.path, key.schema["maximum"]));
        }
    }
    text.trim_end().to_owned()
}

/// Values that replace those of the minimal job, by path.
type Sets = &'static [(&'static str, &'static str)];

/// The minimal job with some values replaced.
fn read(sets: &[(&str, &str)]) -> Result<JobSpec, SpecError> {
    read_by(look, sets)
}

fn read_by(
    door: impl Fn(&JobText<'_>) -> Result<JobSpec, SpecError>,
    sets: &[(&str, &str)],
) -> Result<JobSpec, SpecError> {
    let sets: Vec<_> = sets.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned())).collect();
    door(&JobText { source: "job.yaml", text: LEAST, sets: &sets, base: Path::new("/jobs") })
}

fn fenced(text: &str) -> String {
    format!("```yaml\n{}\n```", text.trim_end())
}

/// `page` with its made parts made anew.
fn filled(page: &str) -> String {
    let resolved = resolved_yaml(&read(&[]).unwrap()).unwrap();
    let parts = [
        ("minimal job", fenced(LEAST)),
        ("resolved job", fenced(&resolved)),
        ("keys", keys()),
        ("presets", models()),
        ("rules", rules()),
        ("bounds", bounds()),
    ];
    page_with(page, &parts)
}

/// `page` with these parts in place of those that stand between the marks of their names.
pub(crate) fn page_with(page: &str, parts: &[(&str, String)]) -> String {
    parts.iter().fold(page.to_owned(), |page, (name, part)| {
        let (start, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
        let (before, rest) = page.split_once(&start).unwrap_or_else(|| panic!("the page has no {start}"));
        let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("the page has no {end}"));
        format!("{before}{start}\n{part}\n\n{end}{after}")
    })
}

mod beside;
mod rules;
mod tests;
