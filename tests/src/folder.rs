//! A temporary folder with a small job and its text.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{Run, text};

/// A job that takes a second on one core and has every part of a large one.
pub const JOB: &str = "
name: tiny
model: {layers: 4, dim: 64, heads: 4, kv_heads: 2, ffn: 96, vocab: 320}
data: {text: text.txt}
train:
  steps: 20
  sequence: 32
  micro_batch_size: 2
  global_micro_batches: 8
  learning_rate: 0.003
  threads: 1
  validate_every: 7
checkpoint: {every: 10, keep: 4}
";

/// Removed with all runs in it when it is dropped.
#[derive(Debug)]
pub struct Folder {
    guard: tempfile::TempDir,
}

impl Folder {
    /// Writes `count` short documents, and returns the change that trains on them.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn documents(&self, count: usize) -> Result<String> {
        let names: Vec<String> = (0..count).map(|at| format!("document-{at}.txt")).collect();
        let lines = text(3 * count);
        let lines: Vec<&str> = lines.split_inclusive('\n').collect();
        for (at, (name, part)) in names.iter().zip(lines.chunks(lines.len().div_ceil(count))).enumerate() {
            // Of unequal lengths, so that their borders lie anywhere.
            std::fs::write(self.path().join(name), part[..1 + at % part.len()].concat())?;
        }
        Ok(format!("data.text=[{}]", names.join(", ")))
    }

    /// A new folder with [`JOB`] and a text.
    pub fn new() -> Result<Folder> {
        let guard = tempfile::tempdir().context("a folder for the runs")?;
        std::fs::write(guard.path().join("job.yaml"), JOB)?;
        std::fs::write(guard.path().join("text.txt"), text(900))?;
        Ok(Folder { guard })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.guard.path()
    }

    /// The job file.
    pub fn job(&self) -> PathBuf {
        self.path().join("job.yaml")
    }

    /// A run of the job, in a folder of its own.
    pub fn run(&self, name: &str) -> Run {
        Run::new(&self.job(), self.path().join(name.replace([' ', ','], "-")))
    }
}
