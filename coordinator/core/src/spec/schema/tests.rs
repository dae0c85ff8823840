use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::node::JobNode;
use super::super::tests::LEAST;
use super::super::{JobText, look, yaml};
use super::schema;

/// Whether a schema takes a value: of the draft, what this schema uses.
fn takes(schema: &Value, value: &Value, definitions: &Value) -> bool {
    let Value::Object(schema) = schema else { return schema.as_bool().unwrap_or(false) };
    schema.iter().all(|(keyword, wanted)| {
        let forms =
            || wanted.as_array().unwrap().iter().filter(|form| takes(form, value, definitions)).count();
        match keyword.as_str() {
            "$ref" => {
                let name = wanted.as_str().unwrap().rsplit('/').next().unwrap();
                takes(&definitions[name], value, definitions)
            }
            "anyOf" => forms() > 0,
            "oneOf" => forms() == 1,
            "enum" => wanted.as_array().unwrap().contains(value),
            "const" => wanted == value,
            "type" => match wanted {
                Value::Array(names) => names.iter().any(|name| is_a(name, value)),
                name => is_a(name, value),
            },
            "minimum" => value.as_f64().is_none_or(|found| found >= wanted.as_f64().unwrap()),
            "maximum" => value.as_f64().is_none_or(|found| found <= wanted.as_f64().unwrap()),
            "exclusiveMinimum" => value.as_f64().is_none_or(|found| found > wanted.as_f64().unwrap()),
            "exclusiveMaximum" => value.as_f64().is_none_or(|found| found < wanted.as_f64().unwrap()),
            "minLength" => value.as_str().is_none_or(|text| text.len() as u64 >= wanted.as_u64().unwrap()),
            "minItems" => value.as_array().is_none_or(|list| list.len() as u64 >= wanted.as_u64().unwrap()),
            "maxItems" => value.as_array().is_none_or(|list| list.len() as u64 <= wanted.as_u64().unwrap()),
            "items" => {
                value.as_array().is_none_or(|list| list.iter().all(|it| takes(wanted, it, definitions)))
            }
            "required" => value.as_object().is_none_or(|map| {
                wanted.as_array().unwrap().iter().all(|key| map.contains_key(key.as_str().unwrap()))
            }),
            "properties" => value.as_object().is_none_or(|map| {
                map.iter().all(|(key, below)| wanted.get(key).is_none_or(|of| takes(of, below, definitions)))
            }),
            "additionalProperties" => {
                assert_eq!(wanted, &Value::Bool(false));
                value
                    .as_object()
                    .is_none_or(|map| map.keys().all(|key| schema["properties"].get(key).is_some()))
            }
            // What says something to people, and the letters of texts, which the tables of keys have.
            "$schema" | "$defs" | "$comment" | "title" | "description" | "default" | "format" | "pattern" => {
                true
            }
            other => panic!("this test does not know {other}"),
        }
    })
}

fn is_a(name: &Value, value: &Value) -> bool {
    match name.as_str().unwrap() {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("this test does not know the type {other}"),
    }
}

/// A job file as an editor sees it.
fn value_of(node: &JobNode) -> Value {
    match node {
        JobNode::Null => Value::Null,
        JobNode::Map(entries) => {
            Value::Object(entries.iter().map(|(key, below)| (key.clone(), value_of(below))).collect())
        }
        JobNode::List(items) => items.iter().map(value_of).collect(),
        JobNode::Integer(count) => u64::try_from(*count).map_or_else(|_| json!(*count as i64), Value::from),
        JobNode::Float(number) => json!(number),
        JobNode::Bool(flag) => json!(flag),
        JobNode::Text(text) => json!(text),
    }
}

fn tree(text: &str) -> JobNode {
    yaml::read(text).unwrap_or_else(|fault| panic!("{}", fault.message))
}

fn schema_takes(job: &JobNode) -> bool {
    let schema = schema();
    takes(schema, &value_of(job), &schema["$defs"])
}

/// The repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[allow(clippy::disallowed_methods, reason = "a test over all job files of the repository, new ones too")]
/// The job files that the repository shows: whole files, and those in its pages.
fn examples() -> Vec<(String, String)> {
    let folder = root().join("deploy/jobs");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = files
        .filter(|path| path.extension().is_some_and(|ext| ext == "yaml"))
        .map(|path| (path.display().to_string(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    let pages = std::fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    for page in
        pages.chain([root().join("README.md")]).filter(|path| path.extension().is_some_and(|e| e == "md"))
    {
        let text = std::fs::read_to_string(&page).unwrap();
        let fenced = text.split("```yaml\n").skip(1).filter_map(|rest| rest.split_once("```"));
        // A page shows parts of job files too, and files of other programs.
        let whole = fenced.map(|(job, _)| job.to_owned()).filter(|job| job.contains("\nmodel:"));
        found.extend(whole.map(|job| (page.display().to_string(), job)));
    }
    found
}

#[test]
fn every_example_is_a_job_by_the_schema_and_by_the_reader() {
    let examples = examples();
    assert!(examples.len() >= 3, "{}", examples.len());
    for (source, text) in examples {
        let base = Path::new("/jobs");
        assert!(schema_takes(&tree(&text)), "{source}: {text}");
        look(&JobText { source: &source, text: &text, sets: &[], base }).unwrap();
    }
}

#[test]
fn the_models_of_all_presets_are_by_the_schema() {
    for name in super::presets::names() {
        let mut job = tree(LEAST);
        job.set("model", tree(&format!("{{preset: {name}, layers: 1, dim: 8, heads: 1, vocab: 300}}")))
            .unwrap();
        assert!(schema_takes(&job), "{name}");
    }
}

#[test]
fn the_schema_refuses_what_the_reader_refuses() {
    let rows = [
        ("a wrong key", "train.step", "5", true),
        ("a wrong key of a deep map", "model.rope_scaling", "{kind: linear, factor: 2, fast: 1}", true),
        ("a wrong type", "train.steps", "many", true),
        ("a map for a number", "train.steps", "{}", true),
        ("nothing where a value is needed", "train.steps", "null", true),
        ("too little", "train.steps", "0", true),
        ("too much", "layout.tensor", "16385", true),
        ("a choice", "layout.schedule", "zb", true),
        ("a share of all", "train.dropout", "1", true),
        ("an unknown word", "train.precision", "fp8", true),
        ("an unknown preset", "model.preset", "gpt5", true),
        ("a gate in the head", "model.head_activation", "swiglu", true),
        ("no files", "data.text", "[]", true),
        ("an empty path", "data.text", "''", true),
        ("three betas", "train.betas", "[0.9, 0.9, 0.9]", true),
        ("a budget of nothing", "train.recompute", "{budget: 0}", true),
        ("an unknown map that has a bias", "model.biases", "[q]", true),
        ("a word", "train.recompute", "ffn", false),
        ("a budget", "train.recompute", "{budget: 2GiB}", false),
        ("several files", "data.text", "[a, b]", false),
        ("a kind alone", "model.attention", "linear", false),
        ("a kind with its numbers", "model.attention", "{kind: window, window: 16}", false),
        ("a key that counts as left out", "train.seed", "null", false),
        ("a flag for a number", "layout.zero", "true", false),
    ];
    for (what, path, value, refused) in rows {
        let mut job = tree(LEAST);
        job.set(path, tree(value)).unwrap();
        assert_eq!(!schema_takes(&job), refused, "the schema: {what}");
        let sets = [(path.to_owned(), value.to_owned())];
        let job = JobText { source: "job.yaml", text: LEAST, sets: &sets, base: Path::new("/jobs") };
        assert_eq!(look(&job).is_err(), refused, "the reader: {what}");
    }
}

#[test]
fn a_key_has_what_an_editor_shows() {
    let schema = schema();
    let train = &schema["$defs"]["RawTrain"]["properties"];
    let steps = json!({ "minimum": 1, "maximum": 1_000_000_000, "description": "Optimizer steps in all." });
    let steps: &Map<String, Value> = steps.as_object().unwrap();
    assert!(steps.iter().all(|(key, value)| train["steps"].get(key) == Some(value)), "{}", train["steps"]);
    assert_eq!(train["precision"]["default"], "fp32");
    assert_eq!(train["betas"]["default"], json!([0.9, 0.95]));
    // It follows from another key.
    assert_eq!(train["warmup_steps"].get("default"), None);
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}
