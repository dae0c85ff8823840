//! A line of the journal: the length of an entry's JSON in bytes, its CRC-32, and the JSON.

use std::io;

use coxswain_core::cluster::Entry;
use serde::{Deserialize, Serialize};

/// The longest line. The longest entry is a commit, some 200 bytes for each of a checkpoint's files.
const MAX_LINE_BYTES: usize = 64 << 20;

/// An entry with the time at which it was written, by the wall clock. Nothing is decided by that.
#[derive(Serialize)]
struct Stamped<'a> {
    at_ms: u64,
    #[serde(flatten)]
    entry: &'a Entry,
}

/// The time of an entry; 0 where an older program wrote it.
#[derive(Deserialize)]
struct Stamp {
    #[serde(default)]
    at_ms: u64,
}

pub(super) fn encode(entry: &Entry, at_ms: u64) -> io::Result<Vec<u8>> {
    frame(&serde_json::to_vec(&Stamped { at_ms, entry })?)
}

/// A line that holds this JSON.
pub(crate) fn frame(json: &[u8]) -> io::Result<Vec<u8>> {
    let mut line = format!("{} {:08x} ", json.len(), crc32fast::hash(json)).into_bytes();
    line.extend(json);
    line.push(b'\n');
    if line.len() > MAX_LINE_BYTES {
        return Err(io::Error::other(format!(
            "an entry of {} bytes is longer than {MAX_LINE_BYTES}",
            line.len()
        )));
    }
    Ok(line)
}

/// The time and the entry of a line, or what is wrong with it.
pub(super) fn decode(line: &[u8]) -> Result<(u64, Entry), String> {
    let json = framed(line)?;
    let stamp: serde_json::Result<Stamp> = serde_json::from_str(json);
    let stamped = stamp.and_then(|stamp| Ok((stamp.at_ms, serde_json::from_str(json)?)));
    stamped.map_err(|error| format!("its entry is not understood: {error}"))
}

/// The JSON that a line holds, or what is wrong with the line.
pub(crate) fn framed(line: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(line).map_err(|_| "the line is not text".to_owned())?;
    let mut parts = text.trim_end_matches('\n').splitn(3, ' ');
    let (Some(length), Some(crc), Some(json)) = (parts.next(), parts.next(), parts.next()) else {
        return Err("the line has no length and checksum".to_owned());
    };
    if length.parse() != Ok(json.len()) {
        return Err(format!("the line should hold {length} bytes and holds {}", json.len()));
    }
    let found = format!("{:08x}", crc32fast::hash(json.as_bytes()));
    if crc != found {
        return Err(format!("its checksum should be {crc} and is {found}"));
    }
    Ok(json)
}
