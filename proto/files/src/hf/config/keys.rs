//! The keys of a `config.json`. One that is left out has the default of its family's class in the `transformers`
//! library, which `tests/parity/families.py` lists; one that is `null` is null.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use coxswain_types::bounds::limits::{self, Limit};
use coxswain_types::model::Activation;
use serde_json::{Map, Value};

use crate::hf::HfError;
use crate::hf::family::Family;

/// Families' names, and what keys are that a configuration leaves out.
type Defaults = BTreeMap<String, Map<String, Value>>;

static DEFAULTS: LazyLock<Defaults> =
    LazyLock::new(|| serde_json::from_str(include_str!("../defaults.json")).unwrap_or_default());

static NONE: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);

/// What a key that a configuration leaves out is in its family's class.
pub(in super::super) fn class_default(config: &Map<String, Value>, key: &str) -> Option<&'static Value> {
    let family = config.get("model_type").and_then(Value::as_str).filter(|_| !config.contains_key(key))?;
    DEFAULTS.get(family)?.get(key).filter(|value| !value.is_null())
}

/// What counts lie within, by their keys: memory is taken for each layer, row and column. Sizes of ours that follow
/// from several keys are checked with the whole model.
const LIMITS: [(&str, &Limit); 35] = [
    ("num_hidden_layers", &limits::LAYERS),
    ("num_hidden_groups", &limits::LAYERS),
    ("num_layers", &limits::LAYERS),
    ("num_decoder_layers", &limits::LAYERS),
    ("n_layer", &limits::LAYERS),
    ("encoder_layers", &limits::LAYERS),
    ("decoder_layers", &limits::LAYERS),
    ("num_attention_heads", &limits::DIM),
    ("num_key_value_heads", &limits::DIM),
    ("num_heads", &limits::DIM),
    ("n_head", &limits::DIM),
    ("decoder_attention_heads", &limits::DIM),
    ("encoder_attention_heads", &limits::DIM),
    ("hidden_size", &limits::DIM),
    ("head_dim", &limits::DIM),
    ("embedding_size", &limits::DIM),
    ("n_embd", &limits::DIM),
    ("d_model", &limits::DIM),
    ("d_kv", &limits::DIM),
    ("intermediate_size", &limits::FFN),
    ("n_inner", &limits::FFN),
    ("d_ff", &limits::FFN),
    ("decoder_ffn_dim", &limits::FFN),
    ("encoder_ffn_dim", &limits::FFN),
    ("vocab_size", &limits::VOCAB),
    ("type_vocab_size", &limits::TOKEN_TYPES),
    ("num_labels", &limits::CLASSES),
    ("n_positions", &limits::LENGTH),
    ("max_position_embeddings", &limits::LENGTH),
    ("original_max_position_embeddings", &limits::LENGTH),
    ("block_size", &limits::LENGTH),
    ("num_random_blocks", &limits::GLOBAL),
    ("relative_attention_num_buckets", &limits::BUCKETS),
    ("relative_attention_max_distance", &limits::LENGTH),
    ("sliding_window", &limits::LENGTH),
];

/// The keys of a configuration.
pub(super) struct Keys<'a> {
    given: &'a Map<String, Value>,
    defaults: &'static Map<String, Value>,
}

impl<'a> Keys<'a> {
    /// Of a family's configuration.
    pub(super) fn of(family: Family, given: &'a Map<String, Value>) -> Keys<'a> {
        Keys { given, defaults: DEFAULTS.get(family.name()).unwrap_or(&NONE) }
    }

    /// Of a map whose keys have no defaults.
    pub(super) fn plain(given: &'a Map<String, Value>) -> Keys<'a> {
        Keys { given, defaults: &NONE }
    }

    fn found(&self, key: &str) -> Option<&Value> {
        self.given.get(key).or_else(|| self.defaults.get(key))
    }

    /// `None` for what is null, and what is left out and has no default.
    pub(super) fn value(&self, key: &str) -> Option<&Value> {
        self.found(key).filter(|value| !value.is_null())
    }

    pub(super) fn wrong(&self, key: &str, must: &str) -> HfError {
        let found = self.found(key).map_or("nothing".to_owned(), Value::to_string);
        HfError::Config(format!("`{key}` is {found}; must be {must}"))
    }

    pub(super) fn count(&self, key: &str) -> Result<u32, HfError> {
        let number = self.value(key).and_then(Value::as_u64);
        let number = number.ok_or_else(|| self.wrong(key, "a count"))?;
        if let Some((_, limit)) = LIMITS.iter().find(|(of, _)| *of == key) {
            limit.check(number).map_err(|what| HfError::Config(format!("`{key}`: {what}")))?;
        }
        u32::try_from(number).map_err(|_| self.wrong(key, "a count"))
    }

    /// A count, or another one where the key is null.
    pub(super) fn count_or(&self, key: &str, null: u32) -> Result<u32, HfError> {
        if self.value(key).is_some() { self.count(key) } else { Ok(null) }
    }

    pub(super) fn number(&self, key: &str) -> Result<f64, HfError> {
        let number = self.value(key).and_then(Value::as_f64).filter(|x| x.is_finite());
        number.ok_or_else(|| self.wrong(key, "a number"))
    }

    pub(super) fn number_or(&self, key: &str, null: f64) -> Result<f64, HfError> {
        if self.value(key).is_some() { self.number(key) } else { Ok(null) }
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, HfError> {
        self.value(key).and_then(Value::as_bool).ok_or_else(|| self.wrong(key, "true or false"))
    }

    pub(super) fn word(&self, key: &str) -> Result<&str, HfError> {
        self.value(key).and_then(Value::as_str).ok_or_else(|| self.wrong(key, "a word"))
    }

    /// Refuses any value but this one; a key that is left out and has no default is as good.
    pub(super) fn only(&self, key: &str, value: impl Into<Value>) -> Result<(), HfError> {
        let value = value.into();
        let same = |found: &Value| match (found.as_f64(), value.as_f64()) {
            (Some(found), Some(value)) => found == value,
            _ => *found == value,
        };
        match self.found(key) {
            Some(found) if !same(found) => Err(self.wrong(key, &format!("{value} for this program"))),
            _ => Ok(()),
        }
    }

    /// Refuses a key that says anything at all; `instead` is what to do.
    pub(super) fn unused(&self, key: &str, instead: &str) -> Result<(), HfError> {
        let empty = match self.value(key) {
            None => true,
            Some(Value::Object(map)) => map.is_empty(),
            Some(Value::Array(list)) => list.is_empty(),
            Some(_) => false,
        };
        if empty { Ok(()) } else { Err(self.wrong(key, &format!("left out for this program: {instead}"))) }
    }

    pub(super) fn activation(&self, key: &str) -> Result<Activation, HfError> {
        Activation::of_hf(self.word(key)?)
            .ok_or_else(|| self.wrong(key, "gelu, gelu_new, gelu_pytorch_tanh, relu or silu"))
    }
}
