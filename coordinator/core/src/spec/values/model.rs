//! The words of the `model` map, and what it takes in two forms.

use std::borrow::Cow;
use std::fmt;

use coxswain_types::model::{Activation, Biases};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationName {
    /// ReLU.
    Relu,
    /// GELU.
    Gelu,
    /// GELU by tanh.
    GeluTanh,
    /// SiLU.
    Silu,
    /// Gated SiLU.
    Swiglu,
    /// Gated GELU.
    Geglu,
    /// Gated GELU by tanh.
    GegluTanh,
}

const ACTIVATIONS: [(ActivationName, Activation); 7] = [
    (ActivationName::Relu, Activation::Relu),
    (ActivationName::Gelu, Activation::Gelu),
    (ActivationName::GeluTanh, Activation::GeluTanh),
    (ActivationName::Silu, Activation::Silu),
    (ActivationName::Swiglu, Activation::Swiglu),
    (ActivationName::Geglu, Activation::Geglu),
    (ActivationName::GegluTanh, Activation::GegluTanh),
];

impl From<ActivationName> for Activation {
    fn from(name: ActivationName) -> Activation {
        ACTIVATIONS.iter().find(|(of, _)| *of == name).map_or(Activation::Swiglu, |(_, value)| *value)
    }
}

impl From<Activation> for ActivationName {
    fn from(value: Activation) -> ActivationName {
        ACTIVATIONS.iter().find(|(_, of)| *of == value).map_or(ActivationName::Swiglu, |(name, _)| *name)
    }
}

/// The head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HeadName {
    /// The next token.
    Lm,
    /// The hidden token.
    MaskedLm,
    /// Classes.
    Pooled,
}

/// Which maps add a bias, as it is written: `true`, `false`, or a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BiasNames(pub Biases);

/// One of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum BiasName {
    Qkv,
    Out,
    Ffn,
}

impl JsonSchema for BiasNames {
    fn schema_name() -> Cow<'static, str> {
        "BiasNames".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let list =
            json_schema!({ "type": "array", "items": { "type": "string", "enum": ["qkv", "out", "ffn"] } });
        json_schema!({ "title": "true, false or list", "anyOf": [{ "type": "boolean" }, list] })
    }
}

impl Serialize for BiasNames {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Biases { qkv, out, ffn } = self.0;
        let named = [(qkv, BiasName::Qkv), (out, BiasName::Out), (ffn, BiasName::Ffn)];
        let names: Vec<_> = named.iter().filter(|(has, _)| *has).map(|(_, name)| *name).collect();
        match names.len() {
            0 => serializer.serialize_bool(false),
            3 => serializer.serialize_bool(true),
            _ => names.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for BiasNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BiasNames, D::Error> {
        struct FlagOrList;

        impl<'de> Visitor<'de> for FlagOrList {
            type Value = BiasNames;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false, or a list of qkv, out and ffn")
            }

            fn visit_bool<E>(self, all: bool) -> Result<BiasNames, E> {
                Ok(BiasNames(Biases { qkv: all, out: all, ffn: all }))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<BiasNames, A::Error> {
                let mut biases = Biases::default();
                while let Some(name) = list.next_element()? {
                    match name {
                        BiasName::Qkv => biases.qkv = true,
                        BiasName::Out => biases.out = true,
                        BiasName::Ffn => biases.ffn = true,
                    }
                }
                Ok(BiasNames(biases))
            }
        }

        deserializer.deserialize_any(FlagOrList)
    }
}
