//! `auto` in place of a value: a plan chooses it.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::{
    BoolDeserializer, I64Deserializer, MapAccessDeserializer, StrDeserializer, U64Deserializer,
};
use serde::de::{Deserializer, Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::super::raw::RawLayout;

const AUTO: &str = "auto";

/// A value, or the word `auto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrAuto<T> {
    /// A plan chooses.
    Auto,
    /// This value.
    Is(T),
}

impl<T> OrAuto<T> {
    /// Whether a plan chooses.
    pub fn is_auto(self) -> bool {
        matches!(self, OrAuto::Auto)
    }

    /// The value that is given.
    pub fn given(self) -> Option<T> {
        match self {
            OrAuto::Auto => None,
            OrAuto::Is(value) => Some(value),
        }
    }
}

impl<T: Serialize> Serialize for OrAuto<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            OrAuto::Auto => serializer.serialize_str(AUTO),
            OrAuto::Is(value) => value.serialize(serializer),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for OrAuto<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<OrAuto<T>, D::Error> {
        struct ValueOrAuto<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for ValueOrAuto<T> {
            type Value = OrAuto<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value, or auto")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<OrAuto<T>, E> {
                if word == AUTO {
                    return Ok(OrAuto::Auto);
                }
                let word: StrDeserializer<'_, E> = word.into_deserializer();
                T::deserialize(word).map(OrAuto::Is)
            }

            fn visit_u64<E: Error>(self, found: u64) -> Result<OrAuto<T>, E> {
                let found: U64Deserializer<E> = found.into_deserializer();
                T::deserialize(found).map(OrAuto::Is)
            }

            fn visit_i64<E: Error>(self, found: i64) -> Result<OrAuto<T>, E> {
                let found: I64Deserializer<E> = found.into_deserializer();
                T::deserialize(found).map(OrAuto::Is)
            }

            fn visit_bool<E: Error>(self, found: bool) -> Result<OrAuto<T>, E> {
                let found: BoolDeserializer<E> = found.into_deserializer();
                T::deserialize(found).map(OrAuto::Is)
            }
        }

        deserializer.deserialize_any(ValueOrAuto(PhantomData))
    }
}

impl<T: JsonSchema> JsonSchema for OrAuto<T> {
    fn schema_name() -> Cow<'static, str> {
        format!("{}OrAuto", T::schema_name()).into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let value = generator.subschema_for::<T>();
        json_schema!({ "anyOf": [value, { "type": "string", "const": AUTO }] })
    }
}

impl Serialize for RawLayout {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawLayout::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for RawLayout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawLayout, D::Error> {
        struct MapOrAuto;

        impl<'de> Visitor<'de> for MapOrAuto {
            type Value = RawLayout;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("auto, or a map with keys such as pipeline, tensor, data")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<RawLayout, E> {
                if word == AUTO { Ok(RawLayout::auto()) } else { Err(E::unknown_variant(word, &[AUTO])) }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawLayout, A::Error> {
                RawLayout::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(MapOrAuto)
    }
}
