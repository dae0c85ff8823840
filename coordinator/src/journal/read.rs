//! What a journal holds: whole lines, and perhaps a tail that a crash tore off.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::num::NonZero;
use std::path::Path;
use std::{panic, thread};

use coxswain_core::cluster::Entry;

use super::line::decode;
use super::{HEADER, JournalError, NAME};

/// Threads that take lines apart, which is most of the time of a start. More gain little.
const MAX_THREADS: usize = 4;

/// Lines that a thread is worth its start for.
const MIN_LINES: usize = 1000;

/// What a journal held when it was opened.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// All entries, each with the time at which it was written.
    pub(crate) entries: Vec<(u64, Entry)>,
    /// Bytes that a crash had torn off and that were cut.
    pub(crate) cut_bytes: u64,
    /// Where each entry begins.
    pub(super) starts: Vec<u64>,
}

/// All entries, and where the next one goes.
pub(super) fn read(path: &Path, mut file: &File) -> Result<(Replayed, u64), JournalError> {
    let io = |source| JournalError::Io { path: path.to_owned(), source };
    let damaged = |offset, what| JournalError::Damaged { path: path.to_owned(), offset, what };
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).map_err(io)?;
    let header = bytes.get(..HEADER.len()).unwrap_or(&bytes);
    if !HEADER.starts_with(header) {
        return Err(JournalError::Foreign { path: path.to_owned() });
    }
    if header.len() < HEADER.len() {
        return Ok((Replayed { cut_bytes: bytes.len() as u64, ..Replayed::default() }, 0));
    }
    let mut lines = bytes[HEADER.len()..].split_inclusive(|byte| *byte == b'\n');
    // Blocks that were never written read as zeros.
    let whole = |line: &&[u8]| line.last() == Some(&b'\n') && !line.contains(&0);
    let complete: Vec<&[u8]> = lines.by_ref().take_while(whole).collect();
    let mut starts = Vec::with_capacity(complete.len());
    let mut end = HEADER.len() as u64;
    for line in &complete {
        starts.push(end);
        end += line.len() as u64;
    }
    if lines.any(|line| decode(line).is_ok()) {
        return Err(damaged(end, "zeros where an entry was".to_owned()));
    }
    let entries = decode_all(&complete).map_err(|(at, what)| damaged(starts[at], what))?;
    Ok((Replayed { entries, cut_bytes: bytes.len() as u64 - end, starts }, end))
}

/// Reads the journal in `folder`, which a coordinator may be writing to: up to a line that is not complete.
pub(crate) fn each(folder: &Path, mut take: impl FnMut(u64, &Entry)) -> Result<(), JournalError> {
    let path = folder.join(NAME);
    let io = |source| JournalError::Io { path: path.clone(), source };
    let mut reader = BufReader::new(File::open(&path).map_err(io)?);
    let mut line = Vec::new();
    reader.read_until(b'\n', &mut line).map_err(io)?;
    if line != HEADER {
        return Err(JournalError::Foreign { path });
    }
    loop {
        line.clear();
        reader.read_until(b'\n', &mut line).map_err(io)?;
        let Ok((at_ms, entry)) = decode(&line) else { return Ok(()) };
        take(at_ms, &entry);
    }
}

/// The entries of all lines, or which line is the first that has none, and why.
fn decode_all(lines: &[&[u8]]) -> Result<Vec<(u64, Entry)>, (usize, String)> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MAX_THREADS);
    let part = lines.len().div_ceil(threads).max(MIN_LINES);
    let decode_part = |(n, lines): (usize, &[&[u8]])| {
        let entries = lines.iter().enumerate();
        let entries = entries.map(|(at, line)| decode(line).map_err(|what| (n * part + at, what)));
        entries.collect::<Result<Vec<_>, _>>()
    };
    thread::scope(|scope| {
        let parts = lines.chunks(part).enumerate().map(|part| scope.spawn(move || decode_part(part)));
        let parts: Vec<_> = parts.collect();
        let mut all = Vec::with_capacity(lines.len());
        for part in parts {
            all.extend(part.join().unwrap_or_else(|cause| panic::resume_unwind(cause))?);
        }
        Ok(all)
    })
}
