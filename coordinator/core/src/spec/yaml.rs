//! The only file that knows serde_yaml: text to [`JobNode`], the place of a path in a text, and a
//! value to text.
//!
//! serde_yaml tells a place only with an error. So [`locate`] walks the text with a probe that
//! fails on purpose at the wanted key; block style, flow style and quotes all come out right,
//! because it is the parser itself that says where it stands.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::error::{KeyPath, Segment};
use super::node::JobNode;
use crate::code::ErrorCode;

/// Line and column, both from 1.
type Place = (usize, usize);

/// A text that is not YAML, or that gives a key twice.
pub(super) struct YamlFault {
    pub(super) path: KeyPath,
    pub(super) place: Option<Place>,
    pub(super) code: ErrorCode,
    pub(super) message: String,
}

/// The most keys of one map. A job's largest has a few dozen; each new key is compared with all before it.
const MAX_KEYS: usize = 1000;

/// Values that any text may have, so that an alias of itself is refused as such.
const MIN_ROOM: usize = 1000;

/// The most brackets that may be open at once, wherever they stand. The parser itself refuses lists that are
/// nested deeper than 128, but only after a time that grows with the square of what is open.
const MAX_OPEN: usize = 1000;

/// Reads a text. An empty text is [`JobNode::Null`].
pub(super) fn read(text: &str) -> Result<JobNode, YamlFault> {
    let mut open = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > MAX_OPEN {
            let message = format!("cannot be read: more than {MAX_OPEN} brackets are open at once");
            return Err(YamlFault {
                path: KeyPath::default(),
                place: None,
                code: ErrorCode::TextSyntax,
                message,
            });
        }
    }
    let twice = RefCell::new(None);
    // A value takes a byte at least, so more of them come from aliases of aliases.
    let room = Cell::new(text.len().max(MIN_ROOM));
    let reader = NodeReader { path: KeyPath::default(), twice: &twice, room: &room };
    reader.deserialize(serde_yaml::Deserializer::from_str(text)).map_err(|error| {
        let place = error.location().map(|at| (at.line(), at.column()));
        match twice.take() {
            Some(path) => YamlFault {
                path,
                place,
                code: ErrorCode::KeyTwice,
                message: "is given twice; keep one of them".to_owned(),
            },
            None => YamlFault {
                path: KeyPath::default(),
                place,
                code: ErrorCode::TextSyntax,
                message: syntax_message(text, &error),
            },
        }
    })
}

/// The value as YAML text.
pub(super) fn write(value: &impl serde::Serialize) -> Result<String, String> {
    serde_yaml::to_string(value).map_err(|error| error.to_string())
}

/// Where the key at `path` stands, or else the nearest key above it.
pub(super) fn locate(text: &str, path: &KeyPath) -> Option<Place> {
    (1..=path.0.len()).rev().find_map(|len| find(text, &path.0[..len])?)
}

/// Whether the text has a key at `path`.
pub(super) fn has(text: &str, path: &KeyPath) -> bool {
    find(text, &path.0).is_some()
}

/// The key at `path`, if it is there, and where it stands, if that is known.
fn find(text: &str, path: &[Segment]) -> Option<Option<Place>> {
    let here = Cell::new(false);
    let probe = PlaceProbe { path, here: &here };
    let stopped = probe.deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
    here.get().then(|| stopped.location().map(|at| (at.line(), at.column())))
}

fn syntax_message(text: &str, error: &serde_yaml::Error) -> String {
    let message = error.to_string();
    let Some(at) = error.location() else { return format!("cannot be read: {message}") };
    // The place is told in front of the message already.
    let message = message.replacen(&format!(" at line {} column {}", at.line(), at.column()), "", 1);
    let line = text.lines().nth(at.line().saturating_sub(1)).unwrap_or_default();
    let tab = line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t');
    let hint = if tab { " (YAML indents with spaces, and this line has a tab)" } else { "" };
    format!("cannot be read: {message}{hint}")
}

/// Builds a [`JobNode`] and notes a key that is given twice.
struct NodeReader<'a> {
    path: KeyPath,
    twice: &'a RefCell<Option<KeyPath>>,
    /// How many more values there may be.
    room: &'a Cell<usize>,
}

impl<'a> NodeReader<'a> {
    /// The reader of a value below.
    fn at(&self, path: KeyPath) -> NodeReader<'a> {
        NodeReader { path, twice: self.twice, room: self.room }
    }
}

impl<'de> DeserializeSeed<'de> for NodeReader<'_> {
    type Value = JobNode;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<JobNode, D::Error> {
        match self.room.get().checked_sub(1) {
            Some(room) => self.room.set(room),
            None => {
                return Err(D::Error::custom("its aliases (*name) stand for more values than it has bytes"));
            }
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for NodeReader<'_> {
    type Value = JobNode;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain value, a list or a map")
    }

    fn visit_unit<E>(self) -> Result<JobNode, E> {
        Ok(JobNode::Null)
    }

    fn visit_none<E>(self) -> Result<JobNode, E> {
        Ok(JobNode::Null)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<JobNode, A::Error> {
        Err(A::Error::custom("a tag (!name) has no meaning in a job file"))
    }

    fn visit_bool<E>(self, value: bool) -> Result<JobNode, E> {
        Ok(JobNode::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<JobNode, E> {
        Ok(JobNode::Integer(i128::from(value)))
    }

    fn visit_i64<E>(self, value: i64) -> Result<JobNode, E> {
        Ok(JobNode::Integer(i128::from(value)))
    }

    fn visit_i128<E>(self, value: i128) -> Result<JobNode, E> {
        Ok(JobNode::Integer(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<JobNode, E> {
        // No key takes a number near this, so that the cut cannot turn a refusal into a value.
        Ok(JobNode::Integer(i128::try_from(value).unwrap_or(i128::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<JobNode, E> {
        Ok(JobNode::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<JobNode, E> {
        Ok(JobNode::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<JobNode, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = self.path.clone().index(items.len());
            match list.next_element_seed(self.at(path))? {
                Some(item) => items.push(item),
                None => return Ok(JobNode::List(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JobNode, A::Error> {
        let mut entries: Vec<(String, JobNode)> = Vec::new();
        while let Some(key) = map.next_key_seed(NewKey { reader: &self, entries: &entries })? {
            let path = self.path.clone().key(&key);
            let value = map.next_value_seed(self.at(path))?;
            entries.push((key, value));
            if entries.len() > MAX_KEYS {
                return Err(A::Error::custom(format!("a map has more than {MAX_KEYS} keys")));
            }
        }
        Ok(JobNode::Map(entries))
    }
}

/// A key that must not be among the entries yet. It fails at the second one, so that the error's
/// place is that key's.
struct NewKey<'a, 'b> {
    reader: &'a NodeReader<'b>,
    entries: &'a [(String, JobNode)],
}

impl<'de> DeserializeSeed<'de> for NewKey<'_, '_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NewKey<'_, '_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<String, E> {
        if self.entries.iter().any(|(other, _)| other == key) {
            self.reader.twice.replace(Some(self.reader.path.clone().key(key)));
            return Err(E::custom("a key is given twice"));
        }
        Ok(key.to_owned())
    }
}

/// Walks down `path` and fails at its end, with `here` set.
struct PlaceProbe<'a> {
    path: &'a [Segment],
    here: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for PlaceProbe<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.path.is_empty() {
            self.here.set(true);
            return deserializer.deserialize_any(Refuse);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for PlaceProbe<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list or a map on the way down")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let Some((Segment::Index(index), rest)) = self.path.split_first() else { return Err(lost()) };
        for _ in 0..*index {
            list.next_element::<IgnoredAny>()?;
        }
        list.next_element_seed(PlaceProbe { path: rest, here: self.here })?.ok_or_else(lost)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Segment::Key(key), rest)) = self.path.split_first() else { return Err(lost()) };
        let wanted = || WantedKey { key, last: rest.is_empty(), here: self.here };
        while let Some(found) = map.next_key_seed(wanted())? {
            if found {
                return map.next_value_seed(PlaceProbe { path: rest, here: self.here });
            }
            map.next_value::<IgnoredAny>()?;
        }
        Err(lost())
    }
}

fn lost<E: serde::de::Error>() -> E {
    E::custom("the path is not in the text")
}

/// Fails at every value.
struct Refuse;

impl Visitor<'_> for Refuse {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing: this is the end of the path")
    }
}

/// Says whether a key is the wanted one, and fails at it if it is the last of the path.
struct WantedKey<'a> {
    key: &'a str,
    last: bool,
    here: &'a Cell<bool>,
}

impl<'de> DeserializeSeed<'de> for WantedKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for WantedKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: serde::de::Error>(self, found: &str) -> Result<bool, E> {
        if found == self.key && self.last {
            self.here.set(true);
            return Err(E::custom("this is the end of the path"));
        }
        Ok(found == self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# a comment: with a colon
name: x
model:
  heads: 7
  'dim' :   8

  more: {a: 1, b: {c: 2}}
list:
- one
-   two
text: |
  model:
    heads: 9
again: [1, {heads: 3}]
";

    #[test]
    fn every_path_is_found_where_the_parser_sees_it() {
        let key = |path: &str| KeyPath::from(path);
        for (path, place) in [
            (key("name"), (2, 1)),
            (key("model"), (3, 1)),
            (key("model.heads"), (4, 3)),
            (key("model.dim"), (5, 3)),
            (key("model.more.b.c"), (7, 20)),
            (key("list").index(0), (9, 3)),
            (key("list").index(1), (10, 5)),
            (key("again").index(1).key("heads"), (14, 13)),
            // What is not there is looked for further up.
            (key("model.more.b.d"), (7, 16)),
            (key("model.missing"), (3, 1)),
            (key("text.model"), (11, 1)),
            (key("list").index(7), (8, 1)),
        ] {
            assert_eq!(locate(TEXT, &path), Some(place), "{path}");
        }
        assert_eq!(locate(TEXT, &key("missing.too")), None);
        assert_eq!(locate("", &key("name")), None);
    }

    #[test]
    fn a_key_given_twice_is_named_at_its_second_place() {
        let fault = read("model:\n  heads: 1\n  dim: 2\n  heads: 3\n").err().unwrap();
        assert_eq!((fault.path.to_string().as_str(), fault.place), ("model.heads", Some((4, 3))));
    }
}
