//! Why a generation or a job cannot go on.

use coxswain_types::ids::WorkerId;

/// Why, in words, and which workers the words are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Cause {
    pub(super) text: String,
    pub(super) workers: Vec<WorkerId>,
}

impl From<String> for Cause {
    fn from(text: String) -> Cause {
        Cause { text, workers: Vec::new() }
    }
}
