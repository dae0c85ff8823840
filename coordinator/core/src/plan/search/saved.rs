//! A choice as a file: `plan -o` writes it, `up --plan` runs it, `plan diff` compares two.

use coxswain_types::JobSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::print::KINDS;
use super::{Choice, RunnerUp, Weighed};
use crate::columns::aligned;
use crate::hardware::Machines;
use crate::plan::Memory;
use crate::plan::print::mebibytes;
use crate::plan::time::Prediction;
use crate::spec::{OpenKeys, SpecError, resolved_yaml};

/// The number of the format. Files of another are refused.
const VERSION: u32 = 1;

/// What is kept of a choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedChoice {
    /// The format's number.
    pub coxswain_plan: u32,
    /// The job with everything that was chosen, as a job file.
    pub job: String,
    /// Workers that it takes.
    pub workers: u32,
    /// The machines.
    pub cluster: String,
    /// The layout in words.
    pub layout: String,
    /// Why it was chosen, in words.
    pub reason: String,
    /// Everything else, for programs.
    pub facts: Value,
}

/// Why a text is not a saved plan.
#[derive(Debug, thiserror::Error)]
pub enum NoSavedChoice {
    /// It is something else.
    #[error("is not a plan that `coxswain plan -o` wrote: {0}")]
    Shape(serde_json::Error),
    /// Another version wrote it.
    #[error(
        "is a plan of format {found}, and this program reads format {VERSION}; make it anew with `coxswain plan -o`"
    )]
    Version {
        /// Its format.
        found: u32,
    },
}

impl SavedChoice {
    /// Reads a file's text.
    ///
    /// # Errors
    /// Anything but a plan of this format.
    pub fn read(text: &str) -> Result<SavedChoice, NoSavedChoice> {
        let saved: SavedChoice = serde_json::from_str(text).map_err(NoSavedChoice::Shape)?;
        if saved.coxswain_plan == VERSION {
            Ok(saved)
        } else {
            Err(NoSavedChoice::Version { found: saved.coxswain_plan })
        }
    }

    /// What differs between two plans, a line for each fact.
    pub fn diff(&self, other: &SavedChoice) -> String {
        let mut rows: Vec<[String; 3]> = Vec::new();
        let mut compare = |name: &str, a: String, b: String| {
            if a != b {
                rows.push([name.to_owned(), a, b]);
            }
        };
        compare("machines", self.cluster.clone(), other.cluster.clone());
        compare("workers", self.workers.to_string(), other.workers.to_string());
        compare("layout", self.layout.clone(), other.layout.clone());
        let number = |saved: &SavedChoice, key: &str| saved.facts["prediction"][key].as_f64().unwrap_or(0.0);
        for (name, key, scale, unit) in
            [("step", "step", 1e3, "ms"), ("idle", "idle", 100.0, "%"), ("MFU", "mfu", 100.0, "%")]
        {
            let shown = |saved: &SavedChoice| format!("{:.1} {unit}", scale * number(saved, key));
            compare(name, shown(self), shown(other));
        }
        let rate = |saved: &SavedChoice| {
            format!("{:.0}", number(saved, "tokens") / number(saved, "step").max(f64::MIN_POSITIVE))
        };
        compare("tokens/s", rate(self), rate(other));
        let memory = |saved: &SavedChoice| mebibytes(saved.facts["fullest_bytes"].as_u64().unwrap_or(0));
        compare("memory", memory(self), memory(other));
        let lines = |saved: &SavedChoice| -> Vec<(String, String)> { keys(&saved.job) };
        let (ours, theirs) = (lines(self), lines(other));
        let find = |of: &[(String, String)], key: &str| {
            of.iter().find(|(name, _)| name == key).map_or("absent".to_owned(), |(_, value)| value.clone())
        };
        let mut names: Vec<&String> = ours.iter().chain(&theirs).map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        for name in names {
            compare(name, find(&ours, name), find(&theirs, name));
        }
        if rows.is_empty() {
            return "the plans are the same\n".to_owned();
        }
        let titles = ["", "A", "B"].map(str::to_owned);
        aligned(&std::iter::once(titles).chain(rows).collect::<Vec<_>>(), |_| false)
    }
}

/// The keys of a job file's text with their values.
fn keys(text: &str) -> Vec<(String, String)> {
    let value: Value = serde_yaml::from_str(text).unwrap_or_default();
    let mut found = Vec::new();
    flatten("", &value, &mut found);
    found
}

fn flatten(above: &str, value: &Value, into: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
                flatten(&key, value, into);
            }
        }
        Value::String(text) => into.push((above.to_owned(), text.clone())),
        value => into.push((above.to_owned(), value.to_string())),
    }
}

impl Choice {
    /// The choice as a file.
    ///
    /// # Errors
    /// Never for a job that was checked.
    pub fn saved(&self, cluster: &Machines, open: &OpenKeys) -> Result<SavedChoice, SpecError> {
        Ok(SavedChoice {
            coxswain_plan: VERSION,
            job: resolved_yaml(&self.spec)?,
            workers: self.spec.layout.world(),
            cluster: cluster.words(),
            layout: self.best.settings.words(),
            reason: self.reason(cluster, open),
            facts: self.facts(cluster, open),
        })
    }

    /// Why it was chosen, in a line for a journal.
    pub fn reason(&self, cluster: &Machines, open: &OpenKeys) -> String {
        let best = &self.best;
        let next = self
            .others
            .first()
            .map_or(String::new(), |other| format!("; next: {}, {}", other.settings.words(), other.reason));
        let numbers = self.numbers(open).map_or(String::new(), |numbers| format!("; {numbers}"));
        format!(
            "{} for {}: a step of {} expected, {} on the fullest worker{numbers}{next}",
            best.settings.words(),
            cluster.words(),
            super::reason::seconds(best.prediction.step),
            mebibytes(best.memory.iter().map(Memory::tensor_bytes).max().unwrap_or(0)),
        )
    }

    /// The choice for programs.
    pub fn facts(&self, cluster: &Machines, open: &OpenKeys) -> Value {
        let end = self.to_the_end(cluster);
        let [shapes, weighed] = self.shapes;
        let keys: serde_json::Map<String, Value> = self
            .best
            .settings
            .keys(open)
            .into_iter()
            .map(|(key, value)| (key.to_owned(), Value::from(value)))
            .collect();
        json!({
            "job": self.spec.name,
            "cluster": cluster,
            "workers": self.spec.layout.world(),
            "chosen": keys,
            "layout": self.spec.layout,
            "words": self.best.settings.words(),
            "prediction": prediction(&self.best.prediction),
            "layers": self.best.layers,
            "layers_computed_again": self.best.again,
            "memory_limit_bytes": self.limit,
            "fullest_bytes": self.best.memory.iter().map(Memory::tensor_bytes).max(),
            "memory": self.best.memory.iter().map(memory).collect::<Vec<_>>(),
            "steps": end.steps,
            "seconds_to_the_end": end.seconds,
            "price_to_the_end": end.price,
            "exactness": self.exactness,
            "others": self.others.iter().map(other).collect::<Vec<_>>(),
            "shapes": shapes,
            "shapes_weighed": weighed,
        })
    }
}

fn prediction(prediction: &Prediction) -> Value {
    let mut value = json!(prediction);
    value["tokens_per_second"] = prediction.tokens_per_second().into();
    value
}

fn memory(memory: &Memory) -> Value {
    let mut kinds = serde_json::Map::new();
    for (_, name, bytes) in KINDS {
        kinds.insert((*name).to_owned(), bytes(memory).into());
    }
    kinds.insert("tensors".to_owned(), memory.tensor_bytes().into());
    kinds.into()
}

fn other(other: &RunnerUp) -> Value {
    let step = other.weighed.as_ref().map(|weighed: &Weighed| weighed.prediction.step);
    json!({"words": other.settings.words(), "layout": other.settings.layout, "step": step, "reason": other.reason})
}

/// Parameters of a job's model, each counted once.
pub(super) fn parameters(spec: &JobSpec) -> u64 {
    coxswain_types::params::parameter_table(&spec.model)
        .iter()
        .map(coxswain_types::params::Parameter::elements)
        .sum()
}
