//! A tree of plain values, and the decoding of raw structs from it with errors that keep the path,
//! the value found, and what was wanted, each apart.

use std::fmt;

use serde::de::value::{StrDeserializer, StringDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};

use super::error::{KeyPath, Refused, Segment, shown};
use super::schema;
use crate::code::ErrorCode;

/// A value of a job file.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum JobNode {
    Null,
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<JobNode>),
    Map(Vec<(String, JobNode)>),
}

/// The most keys of a path. The deepest key of a job lies below three others; a tree a hundred thousand deep would take
/// its reader's stack.
const MAX_KEYS: usize = 16;

impl JobNode {
    /// Puts `value` at a dotted path; maps on the way are made where they are missing.
    pub(super) fn set(&mut self, path: &str, value: JobNode) -> Result<(), String> {
        let keys = path.split('.').count();
        if keys > MAX_KEYS {
            return Err(format!("has {keys} keys; a path has at most {MAX_KEYS}"));
        }
        let mut node = self;
        for key in path.split('.') {
            if key.is_empty() {
                return Err(format!("`{path}` is not a path; paths look like model.heads"));
            }
            if *node == JobNode::Null {
                *node = JobNode::Map(Vec::new());
            }
            let JobNode::Map(entries) = node else {
                return Err(format!("there is no key `{}` below a value that is not a map", shown(key)));
            };
            let at = entries.iter().position(|(other, _)| other == key).unwrap_or_else(|| {
                entries.push((key.to_owned(), JobNode::Null));
                entries.len() - 1
            });
            node = &mut entries[at].1;
        }
        *node = value;
        Ok(())
    }
}

/// Decodes a raw struct.
pub(super) fn decode<T: DeserializeOwned>(node: JobNode) -> Result<T, ShapeError> {
    T::deserialize(node)
}

/// The first place where a tree has not the wanted shape.
#[derive(Debug)]
pub(super) struct ShapeError {
    path: Vec<Segment>,
    pub(super) problem: Problem,
}

/// What is wrong there.
#[derive(Debug)]
pub(super) enum Problem {
    Unknown { key: String, known: &'static [&'static str] },
    Missing { key: &'static str },
    Type { found: String, wanted: String },
    Other(String),
}

impl ShapeError {
    fn new(problem: Problem) -> ShapeError {
        ShapeError { path: Vec::new(), problem }
    }

    /// What is wrong, and what the key at the path takes.
    pub(super) fn message(&self) -> String {
        if let Problem::Type { found, wanted } = &self.problem
            && wanted == COUNT
            && let Some((least, most)) = schema::bounds(&self.culprit().to_string())
        {
            return format!("found {found}; must be a whole number from {least} to {most}");
        }
        self.problem.to_string()
    }

    /// The fault in the words for the job's author.
    pub(super) fn refused(&self) -> Refused {
        let code = match &self.problem {
            Problem::Unknown { .. } => ErrorCode::KeyUnknown,
            Problem::Missing { .. } => ErrorCode::KeyMissing,
            Problem::Type { .. } | Problem::Other(_) => ErrorCode::ValueType,
        };
        Refused { path: self.culprit(), code, message: self.message() }
    }

    /// Adds a step in front: errors travel from the inside out.
    fn below(mut self, segment: Segment) -> ShapeError {
        self.path.insert(0, segment);
        self
    }

    /// The path of the key that is to blame.
    pub(super) fn culprit(&self) -> KeyPath {
        let path = KeyPath(self.path.clone());
        match &self.problem {
            Problem::Unknown { key, .. } => path.key(key),
            Problem::Missing { key } => path.key(key),
            _ => path,
        }
    }
}

/// Names further apart than this are not a slip of the finger. Jaro-Winkler, from 0 to 1.
const LIKENESS: f64 = 0.75;

/// The name that a wrong one is likely to mean.
pub(super) fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let scored = known.iter().map(|name| (strsim::jaro_winkler(key, name), *name));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= LIKENESS).then_some(best.1)
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Unknown { key, known } => {
                write!(f, "is not a known key")?;
                if let Some(name) = nearest(key, known) {
                    write!(f, "; did you mean `{name}`?")?;
                }
                write!(f, " (known here: {})", known.join(", "))
            }
            Problem::Missing { .. } => write!(f, "is missing; it has no default"),
            Problem::Type { found, wanted } => write!(f, "found {found}; must be {wanted}"),
            Problem::Other(message) => f.write_str(message),
        }
    }
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.culprit(), self.message())
    }
}

impl std::error::Error for ShapeError {}

impl serde::de::Error for ShapeError {
    fn custom<T: fmt::Display>(message: T) -> ShapeError {
        ShapeError::new(Problem::Other(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, wanted: &dyn Expected) -> ShapeError {
        ShapeError::new(Problem::Type { found: describe(found), wanted: plain(&wanted.to_string()) })
    }

    fn invalid_value(found: Unexpected<'_>, wanted: &dyn Expected) -> ShapeError {
        ShapeError::invalid_type(found, wanted)
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> ShapeError {
        let mut wanted = known.join(" or ");
        if let Some(name) = nearest(found, known) {
            wanted.push_str(&format!("; did you mean `{name}`?"));
        }
        ShapeError::new(Problem::Type { found: format!("`{found}`"), wanted })
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> ShapeError {
        ShapeError::new(Problem::Unknown { key: key.to_owned(), known })
    }

    fn missing_field(key: &'static str) -> ShapeError {
        ShapeError::new(Problem::Missing { key })
    }
}

/// A found value in the words of a job file's author.
fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("{value}"),
        Unexpected::Unsigned(value) => format!("{value}"),
        Unexpected::Signed(value) => format!("{value}"),
        Unexpected::Float(value) => format!("{value:?}"),
        Unexpected::Str(text) => format!("the text `{text}`"),
        Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a map".to_owned(),
        other => other.to_string(),
    }
}

/// What is wanted where a key has no bounds of its own.
const COUNT: &str = "a whole number, 0 or more";

/// serde's name of a wanted type in the words of a job file's author.
fn plain(wanted: &str) -> String {
    match wanted {
        "u32" | "u64" => COUNT.to_owned(),
        "i32" => format!("a whole number from {} to {}", i32::MIN, i32::MAX),
        "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a string" => "a text (quote it if it looks like a number)".to_owned(),
        other => other.to_owned(),
    }
}

impl<'de> Deserializer<'de> for JobNode {
    type Error = ShapeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        match self {
            JobNode::Null => visitor.visit_unit(),
            JobNode::Bool(value) => visitor.visit_bool(value),
            JobNode::Integer(value) => match (u64::try_from(value), i64::try_from(value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => {
                    use serde::de::Error as _;
                    Err(ShapeError::invalid_type(Unexpected::Other(&value.to_string()), &visitor))
                }
            },
            JobNode::Float(value) => visitor.visit_f64(value),
            JobNode::Text(value) => visitor.visit_string(value),
            JobNode::List(items) => visitor.visit_seq(Items { next: 0, items: items.into_iter() }),
            JobNode::Map(entries) => visitor.visit_map(Entries { entries: entries.into_iter(), value: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        match self {
            JobNode::Null => visitor.visit_none(),
            node => visitor.visit_some(node),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ShapeError> {
        match self {
            JobNode::Map(_) => self.deserialize_any(visitor),
            // serde would take a list in the order of the fields; a job file has names only.
            JobNode::List(_) => Err(not_a_map(Unexpected::Seq, fields)),
            JobNode::Null => Err(not_a_map(Unexpected::Unit, fields)),
            JobNode::Bool(value) => Err(not_a_map(Unexpected::Bool(value), fields)),
            JobNode::Integer(value) => Err(not_a_map(Unexpected::Other(&value.to_string()), fields)),
            JobNode::Float(value) => Err(not_a_map(Unexpected::Float(value), fields)),
            JobNode::Text(value) => Err(not_a_map(Unexpected::Str(&value), fields)),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, ShapeError> {
        match self {
            JobNode::List(items) if items.len() != len => Err(ShapeError::new(Problem::Type {
                found: format!("a list of {}", items.len()),
                wanted: format!("a list of {len}"),
            })),
            JobNode::List(_) => self.deserialize_any(visitor),
            node => node.deserialize_any(ListOf(len)).map(|never| match never {}),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ShapeError> {
        match self {
            JobNode::Text(value) => {
                let value: StringDeserializer<ShapeError> = value.into_deserializer();
                visitor.visit_enum(value)
            }
            node => node.deserialize_any(OneOf(variants)).map(|never| match never {}),
        }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple_struct map identifier ignored_any
    }
}

fn not_a_map(found: Unexpected<'_>, fields: &[&str]) -> ShapeError {
    let wanted = format!("a map with keys such as {}", fields.join(", "));
    ShapeError::new(Problem::Type { found: describe(found), wanted })
}

/// Refuses every value, for want of one of these words.
struct OneOf(&'static [&'static str]);

/// Refuses every value, for want of a list of this length.
struct ListOf(usize);

/// No value.
enum Never {}

impl Visitor<'_> for ListOf {
    type Value = Never;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of {}", self.0)
    }
}

impl Visitor<'_> for OneOf {
    type Value = Never;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" or "))
    }
}

struct Items {
    next: usize,
    items: std::vec::IntoIter<JobNode>,
}

impl<'de> SeqAccess<'de> for Items {
    type Error = ShapeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, ShapeError> {
        let Some(item) = self.items.next() else { return Ok(None) };
        let index = self.next;
        self.next += 1;
        seed.deserialize(item).map(Some).map_err(|error| error.below(Segment::Index(index)))
    }
}

struct Entries {
    entries: std::vec::IntoIter<(String, JobNode)>,
    value: Option<(String, JobNode)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = ShapeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ShapeError> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        let decoded = seed.deserialize(StrDeserializer::new(&key))?;
        self.value = Some((key, value));
        Ok(Some(decoded))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ShapeError> {
        let (key, value) = self.value.take().unwrap_or((String::new(), JobNode::Null));
        seed.deserialize(value).map_err(|error| error.below(Segment::Key(key)))
    }
}
