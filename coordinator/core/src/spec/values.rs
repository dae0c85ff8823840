//! The values of a job file that are more than a number: words, and what may be written in two ways.

use std::borrow::Cow;
use std::fmt;

use coxswain_types::job::{Block, OptimizerKind, RecomputePolicy};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Unexpected, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::limits;

mod auto;
pub(super) mod model;

pub use auto::OrAuto;

/// An optimizer's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// AdamW.
    AdamW,
    /// Muon.
    Muon,
}

impl From<OptimizerName> for OptimizerKind {
    fn from(name: OptimizerName) -> OptimizerKind {
        match name {
            OptimizerName::AdamW => OptimizerKind::AdamW,
            OptimizerName::Muon => OptimizerKind::Muon,
        }
    }
}

/// The name of what the learning rate does after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RateScheduleName {
    /// Half a cosine.
    Cosine,
    /// A straight line.
    Linear,
    /// Warm-up, stable, decay.
    Wsd,
    /// No change.
    Constant,
}

/// The name of a pipeline schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleName {
    /// All forwards, then all backwards.
    GPipe,
    /// One forward, one backward.
    #[serde(rename = "1f1b")]
    OneFOneB,
    /// 1F1B over several stages on each rank.
    Interleaved,
    /// 1F1B with weight gradients in its bubbles.
    #[serde(rename = "zb-h1")]
    ZbH1,
    /// The user's own.
    Custom,
}

/// What is kept of a forward pass, as it is written: `full`, or `{budget: 2GiB}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecomputeSetting(pub RecomputePolicy);

const WORDS: [(&str, RecomputePolicy); 4] = [
    ("none", RecomputePolicy::None),
    ("full", RecomputePolicy::Full),
    ("attention", RecomputePolicy::Selective(Block::Attention)),
    ("ffn", RecomputePolicy::Selective(Block::Ffn)),
];

impl Serialize for RecomputeSetting {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let RecomputePolicy::Budget { bytes } = self.0 {
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_entry("budget", &bytes)?;
            return map.end();
        }
        let word = WORDS.iter().find(|(_, value)| *value == self.0).map_or("none", |(word, _)| word);
        serializer.serialize_str(word)
    }
}

impl<'de> Deserialize<'de> for RecomputeSetting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RecomputeSetting, D::Error> {
        struct WordOrBudget;

        impl<'de> Visitor<'de> for WordOrBudget {
            type Value = RecomputeSetting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("none, full, attention, ffn or {budget: BYTES}")
            }

            fn visit_str<E: Error>(self, found: &str) -> Result<RecomputeSetting, E> {
                let word = WORDS.iter().find(|(word, _)| *word == found);
                let known = &["none", "full", "attention", "ffn", "{budget: BYTES}"];
                word.map(|(_, value)| RecomputeSetting(*value))
                    .ok_or_else(|| E::unknown_variant(found, known))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RecomputeSetting, A::Error> {
                let Budget { budget } = Budget::deserialize(MapAccessDeserializer::new(map))?;
                Ok(RecomputeSetting(RecomputePolicy::Budget { bytes: budget.0 }))
            }
        }

        deserializer.deserialize_any(WordOrBudget)
    }
}

impl JsonSchema for RecomputeSetting {
    fn schema_name() -> Cow<'static, str> {
        "RecomputeSetting".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let words: Vec<&str> = WORDS.iter().map(|(word, _)| *word).collect();
        let bytes = json_schema!({
            "type": "object",
            "properties": { "budget": bytes_schema() },
            "required": ["budget"],
            "additionalProperties": false,
        });
        json_schema!({ "title": "word or map", "anyOf": [{ "type": "string", "enum": words }, bytes] })
    }
}

fn bytes_schema() -> Schema {
    // The larger units are read first, so that `B` is not found in `KiB`; people read the smallest first.
    let mut units = UNITS;
    units.sort_by_key(|(_, shift)| *shift);
    let pattern = format!("^[0-9]+ *({})?$", units.map(|(unit, _)| unit).join("|"));
    json_schema!({
        "anyOf": [
            { "type": "integer", "minimum": limits::BUDGET.least, "maximum": limits::BUDGET.most },
            { "type": "string", "pattern": pattern },
        ],
    })
}

impl JsonSchema for BudgetBytes {
    fn schema_name() -> Cow<'static, str> {
        "BudgetBytes".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        bytes_schema()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Budget {
    budget: BudgetBytes,
}

/// A number of bytes, also as a text with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct BudgetBytes(pub u64);

const UNITS: [(&str, u32); 5] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("B", 0)];

impl BudgetBytes {
    /// Reads a number with a unit.
    pub fn read(text: &str) -> Option<BudgetBytes> {
        let (number, shift) = UNITS
            .iter()
            .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))
            .unwrap_or((text, 0));
        number.trim_end().parse::<u64>().ok()?.checked_mul(1 << shift).map(BudgetBytes)
    }
}

impl<'de> Deserialize<'de> for BudgetBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BudgetBytes, D::Error> {
        struct NumberOrText;

        impl Visitor<'_> for NumberOrText {
            type Value = BudgetBytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number of bytes, or one with KiB, MiB, GiB or TiB such as 2GiB")
            }

            fn visit_u64<E>(self, bytes: u64) -> Result<BudgetBytes, E> {
                Ok(BudgetBytes(bytes))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<BudgetBytes, E> {
                BudgetBytes::read(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
            }
        }

        deserializer.deserialize_any(NumberOrText)
    }
}

/// A ZeRO stage: a number, or whether anything is sharded at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ZeroStage(pub u64);

impl<'de> Deserialize<'de> for ZeroStage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ZeroStage, D::Error> {
        struct NumberOrFlag;

        impl Visitor<'_> for NumberOrFlag {
            type Value = ZeroStage;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("0 or 1")
            }

            fn visit_u64<E>(self, stage: u64) -> Result<ZeroStage, E> {
                Ok(ZeroStage(stage))
            }

            fn visit_bool<E>(self, flag: bool) -> Result<ZeroStage, E> {
                Ok(ZeroStage(flag.into()))
            }
        }

        deserializer.deserialize_any(NumberOrFlag)
    }
}

impl JsonSchema for ZeroStage {
    fn schema_name() -> Cow<'static, str> {
        "ZeroStage".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let stage = json_schema!({ "type": "integer", "minimum": 0, "maximum": 1 });
        json_schema!({ "title": "whole number", "anyOf": [stage, { "type": "boolean" }] })
    }
}

/// One path or a list of paths.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(title = "path or list", inline)]
pub enum Paths {
    /// `text: a.txt`
    One(#[schemars(length(min = 1))] String),
    /// `text: [a.txt, b.txt]`
    Many(#[schemars(length(min = 1, max = limits::TEXT_FILES), inner(length(min = 1)))] Vec<String>),
}

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Paths, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Paths;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or a list of paths")
            }

            fn visit_str<E>(self, path: &str) -> Result<Paths, E> {
                Ok(Paths::One(path.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Paths, A::Error> {
                let mut paths = Vec::new();
                while let Some(path) = list.next_element()? {
                    paths.push(path);
                }
                Ok(Paths::Many(paths))
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}

#[cfg(test)]
mod tests {
    use super::BudgetBytes;

    #[test]
    fn bytes_are_read_with_their_unit() {
        let rows = [
            ("2GiB", Some(2 << 30)),
            ("512MiB", Some(512 << 20)),
            ("3 KiB", Some(3072)),
            ("1TiB", Some(1 << 40)),
            ("7B", Some(7)),
            ("7", Some(7)),
            ("1.5GiB", None),
            ("2GB", None),
            ("GiB", None),
            ("-1MiB", None),
            ("", None),
            ("99999999999TiB", None),
        ];
        for (text, bytes) in rows {
            assert_eq!(BudgetBytes::read(text), bytes.map(BudgetBytes), "{text}");
        }
    }
}
