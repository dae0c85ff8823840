//! Small random jobs: every key of the job file, every layout of up to eight ranks.
//!
//! A [`Job`] is a list of values over one small job file, so that it shrinks by leaving values out. What the job
//! file's checks refuse of a drawn job is left out too: what remains is a job that passes them. [`trial`] runs it
//! and holds it to the same job in one process.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};
use coxswain_core::spec::{JobText, SpecError, parse};
use coxswain_types::JobSpec;

mod draw;
mod trial;

pub use trial::{Outcome, trial};

use crate::text;

/// The job that the values of a [`Job`] change.
const BASE: &str = "
name: random
model: {layers: 2, dim: 16, heads: 2, vocab: 300}
data: {synthetic: {tokens: 4096}}
train: {steps: 2, sequence: 8, threads: 1}
";

/// How often what is refused is left out before a drawn job is given up.
const REPAIRS: usize = 12;

/// A dotted path, and the YAML of its value.
pub type Set = (String, String);

/// Values over a small job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The values.
    pub sets: Vec<Set>,
}

impl Job {
    /// The job of a seed, without what the checks refuse; `None` where they refuse what is left.
    pub fn of_seed(seed: u64, folder: &Path) -> Option<Job> {
        let mut job = Job { sets: draw::sets(seed) };
        for _ in 0..REPAIRS {
            let Err(refused) = job.parsed(folder) else { return Some(job) };
            let before = job.sets.len();
            refused.faults().iter().for_each(|fault| job.leave_out(&fault.path));
            if job.sets.len() == before {
                return None;
            }
        }
        None
    }

    /// Leaves out what a fault at `path` is about: the values there, above and below, or all others of their map.
    fn leave_out(&mut self, path: &str) {
        let before = self.sets.len();
        self.sets.retain(|(set, _)| set != path && !below(set, path) && !below(path, set));
        if let Some((map, _)) = path.rsplit_once('.')
            && self.sets.len() == before
            && map.contains('.')
        {
            self.sets.retain(|(set, _)| !below(set, map));
        }
    }

    /// The checked job.
    ///
    /// # Errors
    /// What the checks refuse.
    pub fn parsed(&self, folder: &Path) -> Result<JobSpec, SpecError> {
        parse(&JobText { source: "random", text: BASE, sets: &self.sets, base: folder })
    }

    /// Jobs with less in them: without one of the values, or without a whole map.
    pub fn smaller(&self) -> Vec<Job> {
        let map = |path: &str| path.rsplit_once('.').map(|(map, _)| map.to_owned());
        let nested = |map: &String| map.contains('.') || map == "data";
        let maps: BTreeSet<String> =
            self.sets.iter().filter_map(|(path, _)| map(path)).filter(nested).collect();
        let paths = maps.into_iter().chain(self.sets.iter().map(|(path, _)| path.clone()));
        let without = |path: String| {
            let stays = |(set, _): &&Set| *set != path && !below(set, &path);
            Job { sets: self.sets.iter().filter(stays).cloned().collect() }
        };
        paths.map(without).collect()
    }

    /// One line a value: a path, `=`, and YAML without line breaks.
    pub fn to_text(&self) -> String {
        self.sets.iter().map(|(path, value)| format!("{path}={value}\n")).collect()
    }

    /// Reads [`Job::to_text`].
    ///
    /// # Errors
    /// Where a line has no `=`.
    pub fn of_text(text: &str) -> Result<Job> {
        let set = |line: &str| -> Result<Set> {
            let (path, value) = line.split_once('=').with_context(|| format!("`{line}` has no `=`"))?;
            Ok((path.to_owned(), value.to_owned()))
        };
        Ok(Job { sets: text.lines().map(set).collect::<Result<_>>()? })
    }
}

/// Whether the first path lies in the map or list at the second.
fn below(path: &str, map: &str) -> bool {
    path.strip_prefix(map).is_some_and(|rest| rest.starts_with(['.', '[']))
}

/// Writes the texts that drawn jobs name: two plain ones, labelled lines, and pairs, each without and with weights.
///
/// # Errors
/// Where a file cannot be written.
pub fn write_texts(folder: &Path) -> Result<()> {
    let text = text(80);
    let lines: Vec<&str> = text.lines().collect();
    let weight = |at: usize| format!("\t{}.{}", at % 3, 1 + at % 9);
    let words = |line: &str, from: usize, to: usize| -> String {
        line.split(' ').skip(from).take(to - from).collect::<Vec<_>>().join(" ")
    };
    let file = |line: &dyn Fn(usize, &str) -> String| -> String {
        lines.iter().enumerate().map(|(at, text)| line(at, text) + "\n").collect()
    };
    // Of unequal lengths, some of one word.
    let labelled = |at: usize, line: &str| format!("{}\t{}", at % 2, words(line, 0, 1 + at % 12));
    let pair =
        |at: usize, line: &str| format!("{}\t{}", words(line, 0, 1 + at % 6), words(line, 6, 7 + at % 6));
    for (name, text) in [
        ("a.txt", lines[..50].join("\n")),
        ("b.txt", lines[50..].join("\n")),
        ("labelled.tsv", file(&labelled)),
        ("labelled-weights.tsv", file(&|at, line| labelled(at, line) + &weight(at))),
        ("pairs.tsv", file(&pair)),
        ("pairs-weights.tsv", file(&|at, line| pair(at, line) + &weight(at))),
    ] {
        std::fs::write(folder.join(name), text).with_context(|| format!("writing {name}"))?;
    }
    Ok(())
}
