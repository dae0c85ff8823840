//! What a journal holds: whole lines, and perhaps a tail that a crash tore off.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::num::NonZero;
use std::path::Path;
use std::{panic, thread};

use coxswain_core::cluster::{Entry, compact};
use coxswain_files::regular;

use super::line::decode;
use super::{HEADER, JournalError, NAME};

const HEADER_BYTES: u64 = HEADER.len() as u64;

/// Threads that take lines apart, which is most of the time of a start. More gain little.
const MAX_THREADS: usize = 4;

/// Lines that a thread is worth its start for.
const MIN_LINES: usize = 1000;

/// Bytes that are read and taken apart at a time.
const BATCH_BYTES: usize = 4 << 20;

/// Bytes of entries after which those that are not needed are let go, so that a start takes little memory,
/// and with it little time.
const FOLD_BYTES: u64 = 16 << 20;

/// What a journal held when it was opened.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    /// All entries, each with the time at which it was written; in place of older ones, those that are still
    /// needed of them.
    pub(crate) entries: Vec<(u64, Entry)>,
    /// Bytes that a crash had torn off and that were cut.
    pub(crate) cut_bytes: u64,
    /// Where each entry begins; for what is left of older ones, where the first entry does.
    pub(super) starts: Vec<u64>,
}

impl Replayed {
    /// How many entries lie before the newest `kept_bytes` of a journal that ends at `end`.
    pub(super) fn older(&self, end: u64, kept_bytes: u64) -> usize {
        self.starts.partition_point(|start| start + kept_bytes < end)
    }

    fn fold(&mut self, end: u64, kept_bytes: u64) {
        let older = self.older(end, kept_bytes);
        let short = compact(&self.entries[..older]);
        self.starts.splice(..older, short.iter().map(|_| HEADER_BYTES));
        self.entries.splice(..older, short);
    }
}

/// What a journal holds, its newest `kept_bytes` as they are, and where the next entry goes.
pub(super) fn read(path: &Path, file: &File, kept_bytes: u64) -> Result<(Replayed, u64), JournalError> {
    let io = |cause| JournalError::Io { path: path.to_owned(), cause };
    let damaged = |offset, what| JournalError::Damaged { path: path.to_owned(), offset, what };
    let mut reader = BufReader::with_capacity(BATCH_BYTES, file);
    reader.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut header = Vec::new();
    reader.by_ref().take(HEADER_BYTES).read_to_end(&mut header).map_err(io)?;
    if !HEADER.starts_with(&header) {
        return Err(JournalError::Foreign { path: path.to_owned() });
    }
    let size = file.metadata().map_err(io)?.len();
    let mut replayed = Replayed::default();
    if header.len() < HEADER.len() {
        replayed.cut_bytes = size;
        return Ok((replayed, 0));
    }
    let (mut end, mut folded) = (HEADER_BYTES, HEADER_BYTES);
    loop {
        let (bytes, whole) = batch(&mut reader).map_err(io)?;
        let lines: Vec<&[u8]> = bytes[..whole].split_inclusive(|byte| *byte == b'\n').collect();
        let begin = end;
        for line in &lines {
            replayed.starts.push(end);
            end += line.len() as u64;
        }
        let entries = decode_all(&lines).map_err(|(at, what)| {
            damaged(begin + lines[..at].iter().map(|line| line.len() as u64).sum::<u64>(), what)
        })?;
        replayed.entries.extend(entries);
        if end - folded >= FOLD_BYTES {
            replayed.fold(end, kept_bytes);
            folded = end;
        }
        // A line that is torn, or the end.
        if whole < bytes.len() || bytes.is_empty() {
            if any_entry(&mut reader).map_err(io)? {
                return Err(damaged(end, "zeros where an entry was".to_owned()));
            }
            replayed.cut_bytes = size - end;
            return Ok((replayed, end));
        }
    }
}

/// The next lines, and up to where they are whole: the last one is torn where that is not their end.
fn batch(reader: &mut impl BufRead) -> io::Result<(Vec<u8>, usize)> {
    let mut bytes = Vec::new();
    while bytes.len() < BATCH_BYTES {
        let begin = bytes.len();
        reader.read_until(b'\n', &mut bytes)?;
        let line = &bytes[begin..];
        // Blocks that were never written read as zeros.
        if line.last() != Some(&b'\n') || line.contains(&0) {
            return Ok((bytes, begin));
        }
    }
    let whole = bytes.len();
    Ok((bytes, whole))
}

/// Whether an entry follows.
fn any_entry(reader: &mut impl BufRead) -> io::Result<bool> {
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        if decode(&line).is_ok() {
            return Ok(true);
        }
        line.clear();
    }
    Ok(false)
}

/// Reads the journal in `folder`, which a coordinator may be writing to: up to a line that is not complete.
pub(crate) fn each(folder: &Path, mut take: impl FnMut(u64, &Entry)) -> Result<(), JournalError> {
    let path = folder.join(NAME);
    let io = |cause| JournalError::Io { path: path.clone(), cause };
    let mut reader = BufReader::new(regular::open(&path).map_err(io)?.0);
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
