//! Manifests against Kubernetes' JSON schemas, strictly: a field that a schema does not have is a fault. Only the
//! keywords of these schemas are known, and another one is a fault too, so that nothing is checked less than it seems.
//!
//! The kinds of others (JobSet, LeaderWorkerSet, Kubeflow Trainer) are in xtask/schemas; each file says which version of
//! its project it is made of.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::kit::schema_file;

/// Schemas of kinds that are not Kubernetes' own.
const OTHERS: [&str; 4] = [
    include_str!("../../schemas/jobset.json"),
    include_str!("../../schemas/leaderworkerset.json"),
    include_str!("../../schemas/trainingruntime.json"),
    include_str!("../../schemas/trainjob.json"),
];

/// Keywords that say nothing of what is valid.
const NOTES: [&str; 4] = ["description", "format", "default", "$comment"];

/// The schemas of one release.
pub(super) struct Schemas {
    definitions: Map<String, Value>,
    /// By `apiVersion` and `kind`.
    kinds: BTreeMap<(String, String), Value>,
}

/// The documents of a YAML stream.
pub(super) fn documents(text: &str) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        // By way of YAML's own value, which refuses a key that is there twice.
        let value = serde_yaml::Value::deserialize(document).context("it is not YAML")?;
        if !value.is_null() {
            found.push(serde_json::to_value(value).context("it is not JSON")?);
        }
    }
    ensure!(!found.is_empty(), "it holds no document");
    Ok(found)
}

impl Schemas {
    /// Those of a release.
    pub(super) fn read(folder: &Path, version: &str) -> Result<Schemas> {
        let path = folder.join(schema_file(version));
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Schemas::of(&text).with_context(|| path.display().to_string())
    }

    fn of(text: &str) -> Result<Schemas> {
        let mut all: Value = serde_json::from_str(text)?;
        let Value::Object(definitions) = all["$defs"].take() else { anyhow::bail!("it has no $defs") };
        let mut kinds = BTreeMap::new();
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        for (name, definition) in &definitions {
            for kind in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
                let [group, version] = ["group", "version"].map(|part| word(&kind[part]));
                let api = if group.is_empty() { version } else { format!("{group}/{version}") };
                let reference = serde_json::json!({"$ref": format!("#/$defs/{name}")});
                kinds.insert((api, word(&kind["kind"])), reference);
            }
        }
        for other in OTHERS {
            let mut other: Value = serde_json::from_str(other)?;
            let schema = other["schema"].take();
            kinds.insert((word(&other["apiVersion"]), word(&other["kind"])), schema);
        }
        Ok(Schemas { definitions, kinds })
    }

    /// What is wrong with a document, each with its path.
    pub(super) fn faults(&self, document: &Value) -> Vec<String> {
        let word = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
        let mut faults = Vec::new();
        match self.kinds.get(&(word("apiVersion"), word("kind"))) {
            Some(schema) => self.judge(schema, document, &word("kind"), &mut faults),
            None => faults.push(format!("the kind {} of {} is unknown", word("kind"), word("apiVersion"))),
        }
        faults
    }

    fn judge(&self, schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
        let Some(schema) = schema.as_object() else {
            return faults.push(format!("{at}: the schema is not an object"));
        };
        for (keyword, rule) in schema {
            match keyword.as_str() {
                "$ref" => match self.definition(rule) {
                    Some(definition) => self.judge(definition, value, at, faults),
                    None => faults.push(format!("{at}: {rule} leads nowhere")),
                },
                "type" if !has_type(rule, value) => {
                    faults.push(format!("{at}: {value} is not of type {rule}"))
                }
                "enum" if !rule.as_array().is_some_and(|list| list.contains(value)) => {
                    faults.push(format!("{at}: {value} is not one of {rule}"));
                }
                "minimum" if value.as_f64() < rule.as_f64() => {
                    faults.push(format!("{at}: {value} is below {rule}"))
                }
                "maximum" if value.as_f64() > rule.as_f64() => {
                    faults.push(format!("{at}: {value} is above {rule}"))
                }
                "required" => {
                    let names = rule.as_array().into_iter().flatten().filter_map(Value::as_str);
                    let missing = names.filter(|name| value.get(name).is_none());
                    faults.extend(missing.map(|name| format!("{at}: {name} is missing")));
                }
                "oneOf" | "anyOf" => {
                    let fits = |schema: &&Value| {
                        let mut inner = Vec::new();
                        self.judge(schema, value, at, &mut inner);
                        inner.is_empty()
                    };
                    if !rule.as_array().into_iter().flatten().any(|schema| fits(&schema)) {
                        faults.push(format!("{at}: {value} is none of {rule}"));
                    }
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.judge(rule, item, &format!("{at}[{index}]"), faults);
                    }
                }
                "properties" | "additionalProperties" => {}
                "type" | "enum" | "minimum" | "maximum" => {}
                note if NOTES.contains(&note) || note.starts_with("x-kubernetes-") => {}
                other => faults
                    .push(format!("{at}: the schema has the keyword `{other}`, which is not known here")),
            }
        }
        let known = schema.get("properties").and_then(Value::as_object);
        let more = schema.get("additionalProperties");
        for (key, field) in value.as_object().into_iter().flatten() {
            let at = format!("{at}.{key}");
            match (known.and_then(|known| known.get(key)), more) {
                (Some(schema), _) => self.judge(schema, field, &at, faults),
                (None, Some(Value::Bool(false))) => faults.push(format!("{at}: no such field")),
                (None, Some(schema @ Value::Object(_))) => self.judge(schema, field, &at, faults),
                (None, _) => {}
            }
        }
    }

    fn definition(&self, reference: &Value) -> Option<&Value> {
        self.definitions.get(reference.as_str()?.strip_prefix("#/$defs/")?)
    }

    /// The negative control: misspells each field of a valid document in turn; how many were tried.
    ///
    /// # Errors
    /// Where one is not found.
    pub(super) fn misspelt(&self, document: &Value) -> Result<usize> {
        let mut tried = 0;
        for path in fields(document, "") {
            let mut bad = document.clone();
            let (parent, key) = path.rsplit_once('/').context("a path has a slash")?;
            let parent = bad.pointer_mut(parent).and_then(Value::as_object_mut);
            let parent = parent.with_context(|| format!("{path} leads nowhere"))?;
            let field = parent.remove(key).with_context(|| format!("{path} leads nowhere"))?;
            parent.insert(format!("{key}z"), field);
            ensure!(!self.faults(&bad).is_empty(), "{path} may be misspelt");
            tried += 1;
        }
        Ok(tried)
    }
}

/// Objects whose keys are the user's own. So are keys with a dot or a slash.
const FREE: [&str; 6] = ["labels", "annotations", "matchLabels", "nodeSelector", "requests", "limits"];

/// The paths (JSON pointers) of all fields whose names are not the user's own.
fn fields(value: &Value, at: &str) -> Vec<String> {
    match value {
        Value::Object(map) if !FREE.iter().any(|free| at.ends_with(&format!("/{free}"))) => {
            let mut found = Vec::new();
            for (key, field) in map.iter().filter(|(key, _)| !key.contains(['.', '/'])) {
                let path = format!("{at}/{key}");
                found.extend(fields(field, &path));
                found.push(path);
            }
            found
        }
        Value::Array(list) => {
            list.iter().enumerate().flat_map(|(index, item)| fields(item, &format!("{at}/{index}"))).collect()
        }
        _ => Vec::new(),
    }
}

fn has_type(rule: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("boolean") => value.is_boolean(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        // A field that is written and empty is a slip, though Kubernetes takes it.
        _ => false,
    };
    rule.as_array().map_or_else(|| is(rule), |names| names.iter().any(is))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A Kubernetes of one kind, and the parts of which other kinds are made.
    const DEFINITIONS: &str = r##"{"$defs": {
        "Thing": {
            "type": "object", "additionalProperties": false, "required": ["kind"],
            "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "Thing"}],
            "properties": {
                "apiVersion": {"type": "string"}, "kind": {"type": "string"},
                "metadata": {"$ref": "#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"},
                "port": {"oneOf": [{"type": ["string", "null"]}, {"type": ["integer", "null"]}]},
                "list": {"type": "array", "items": {"type": "integer"}},
                "free": {"type": "object", "additionalProperties": {"type": "string"}}
            }
        },
        "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta": {
            "type": "object", "additionalProperties": false,
            "properties": {"name": {"type": "string"}, "labels": {"type": "object"}}
        },
        "io.k8s.api.batch.v1.JobTemplateSpec": {
            "type": "object", "additionalProperties": false, "properties": {"spec": {"type": "object"}}
        }
    }}"##;

    fn faults(yaml: &str) -> String {
        let schemas = Schemas::of(DEFINITIONS).unwrap();
        documents(yaml)
            .unwrap()
            .iter()
            .flat_map(|document| schemas.faults(document))
            .collect::<Vec<_>>()
            .join("; ")
    }

    #[test]
    fn each_kind_of_fault_is_told_with_its_path() {
        let set = "apiVersion: jobset.x-k8s.io/v1alpha2\nkind: JobSet\nmetadata: {name: a}\nspec: ";
        let job = "{name: w, template: {spec: {}}}";
        for (yaml, told) in [
            (
                "apiVersion: v1\nkind: Thing\nmetadata: {name: a, labels: {x: y}}\nport: 1\nfree: {a: b}",
                "".to_owned(),
            ),
            ("apiVersion: v1\nkind: Thing\nport: grpc\nlist: [1]", "".to_owned()),
            ("apiVersion: v1\nkind: Thing\nprot: 1", "Thing.prot: no such field".to_owned()),
            (
                "apiVersion: v1\nkind: Thing\nlist: [1, a]",
                "Thing.list[1]: \"a\" is not of type \"integer\"".to_owned(),
            ),
            (
                "apiVersion: v1\nkind: Thing\nmetadata: {nam: a}",
                "Thing.metadata.nam: no such field".to_owned(),
            ),
            (
                "apiVersion: v1\nkind: Thing\nfree: {a: 1}",
                "Thing.free.a: 1 is not of type \"string\"".to_owned(),
            ),
            ("apiVersion: v2\nkind: Thing", "the kind Thing of v2 is unknown".to_owned()),
            (&format!("{set}{{replicatedJobs: [{job}]}}"), "".to_owned()),
            (
                &format!("{set}{{replicatedJob: [{job}]}}"),
                "JobSet.spec.replicatedJob: no such field".to_owned(),
            ),
            (
                &format!("{set}{{failurePolicy: {{rules: [{{name: a, action: Restart}}]}}}}"),
                "JobSet.spec.failurePolicy.rules[0].action: \"Restart\" is not one of [\"FailJobSet\",\
                 \"RestartJobSet\",\"RestartJobSetAndIgnoreMaxRestarts\",\"RestartJob\",\
                 \"RestartJobAndIgnoreMaxRestarts\"]"
                    .to_owned(),
            ),
            (
                &format!("{set}{{replicatedJobs: [{{name: w, template: {{sepc: {{}}}}}}]}}"),
                "JobSet.spec.replicatedJobs[0].template.sepc: no such field".to_owned(),
            ),
        ] {
            assert_eq!(faults(yaml), told, "{yaml}");
        }
        assert!(faults("apiVersion: v1\nkind: Thing\nport: []").contains("is none of"));
        assert!(documents("a: 1\na: 2").is_err(), "a key that is there twice");
    }

    #[test]
    fn every_field_is_misspelt_in_turn_and_a_schema_that_takes_it_is_told() {
        let good = &documents("apiVersion: v1\nkind: Thing\nmetadata: {name: a, labels: {x: y}}\nlist: [1]")
            .unwrap()[0];
        let schemas = Schemas::of(DEFINITIONS).unwrap();
        assert_eq!(schemas.misspelt(good).unwrap(), 6);
        let lax = Schemas::of(&DEFINITIONS.replacen("\"additionalProperties\": false,", "", 2)).unwrap();
        assert_eq!(lax.misspelt(good).unwrap_err().to_string(), "/list may be misspelt");
    }
}
