//! What is wrong with a job file and where, and how it is told.

use std::borrow::Cow;
use std::fmt;

use crate::code::ErrorCode;

/// Everything that is wrong with a job; prints one fault a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecError {
    faults: Vec<SpecFault>,
}

impl SpecError {
    pub(super) fn new(faults: Vec<SpecFault>) -> SpecError {
        SpecError { faults }
    }

    /// The faults, at least one.
    pub fn faults(&self) -> &[SpecFault] {
        &self.faults
    }
}

impl From<SpecFault> for SpecError {
    fn from(fault: SpecFault) -> SpecError {
        SpecError { faults: vec![fault] }
    }
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecError {}

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueOrigin {
    /// The job file.
    File {
        /// Its name.
        source: String,
        /// Line and column, both from 1, where they are known.
        place: Option<(usize, usize)>,
    },
    /// A value given beside the file.
    Set {
        /// The dotted path.
        path: String,
        /// The value's text.
        value: String,
    },
}

impl fmt::Display for ValueOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueOrigin::File { source, place: Some((line, column)) } => {
                write!(f, "{source}:{line}:{column}")
            }
            ValueOrigin::File { source, place: None } => f.write_str(source),
            ValueOrigin::Set { path, value } => write!(f, "--set {}={}", shown(path), shown(value)),
        }
    }
}

/// The most characters of a path or a value that a message repeats.
const MAX_SHOWN_CHARS: usize = 200;

pub(super) fn shown(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecFault {
    /// Where the value came from.
    pub origin: ValueOrigin,
    /// The path of the key, such as `model.heads`; empty for the whole file.
    pub path: String,
    /// What kind of fault it is.
    pub code: ErrorCode,
    /// What was found and what is allowed.
    pub message: String,
}

impl SpecFault {
    pub(super) fn new(origin: ValueOrigin, path: &str, code: ErrorCode, message: String) -> SpecFault {
        SpecFault { origin, path: path.to_owned(), code, message }
    }

    pub(super) fn in_file(
        source: &str,
        place: Option<(usize, usize)>,
        path: &str,
        code: ErrorCode,
        message: String,
    ) -> SpecFault {
        SpecFault::new(ValueOrigin::File { source: source.to_owned(), place }, path, code, message)
    }
}

impl fmt::Display for SpecFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `--set model.heads=7` has named the path already.
        let named = matches!(&self.origin, ValueOrigin::Set { path, .. } if *path == self.path);
        if self.path.is_empty() || named {
            write!(f, "{}: {}", self.origin, self.message)
        } else {
            write!(f, "{}: {}: {}", self.origin, shown(&self.path), self.message)
        }
    }
}

/// What is wrong at a key, before it is known where that stands.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) path: KeyPath,
    pub(super) code: ErrorCode,
    pub(super) message: String,
}

/// A step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

/// The way from the top of a job file to one of its values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyPath(pub(super) Vec<Segment>);

impl KeyPath {
    pub(super) fn key(mut self, key: &str) -> KeyPath {
        self.0.push(Segment::Key(key.to_owned()));
        self
    }

    pub(super) fn index(mut self, index: usize) -> KeyPath {
        self.0.push(Segment::Index(index));
        self
    }

    pub(super) fn is_above_or_at(&self, other: &KeyPath) -> bool {
        other.0.starts_with(&self.0)
    }
}

impl From<&str> for KeyPath {
    fn from(dotted: &str) -> KeyPath {
        KeyPath(dotted.split('.').map(|key| Segment::Key(key.to_owned())).collect())
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if i == 0 => f.write_str(key)?,
                Segment::Key(key) => write!(f, ".{key}")?,
                Segment::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}
