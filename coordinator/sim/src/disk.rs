//! The journal's disk: what is appended is safe once it is synced. A crash of the machine keeps any part
//! of what is not.

use coxswain_core::cluster::Entry;

/// What an append came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JournalWrite {
    /// It is on disk.
    Synced,
    /// The disk said no, half-way.
    Failed,
    /// The machine died meanwhile, and this many bytes of the entry are there afterwards.
    Died {
        /// How many of the entry's bytes stay, in thousandths.
        kept: u64,
    },
}

/// The journal, as lines of JSON.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    bytes: Vec<u8>,
}

impl Disk {
    /// Appends an entry. Only [`JournalWrite::Synced`] promises anything.
    pub(crate) fn append(&mut self, entry: &Entry, write: JournalWrite) {
        let mut line = serde_json::to_vec(entry).unwrap_or_default();
        line.push(b'\n');
        let kept = match write {
            JournalWrite::Synced => line.len(),
            JournalWrite::Failed => line.len() / 2,
            JournalWrite::Died { kept } => line.len() * kept as usize / 1000,
        };
        self.bytes.extend(&line[..kept]);
    }

    /// What a coordinator finds when it starts: whole entries. A torn tail is cut off.
    pub(crate) fn open(&mut self) -> Result<Vec<Entry>, String> {
        let end = self.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        self.bytes.truncate(end);
        self.read()
    }

    /// All whole entries.
    pub(crate) fn read(&self) -> Result<Vec<Entry>, String> {
        let end = self.bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let lines = self.bytes[..end].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| serde_json::from_slice(line).map_err(|error| error.to_string())).collect()
    }
}
