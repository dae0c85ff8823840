//! `generate`: text from a checkpoint, to stdout as it comes.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coxswain_engine::generate::{Generator, Sampling};

use crate::args::Generate;

pub(crate) fn run(args: &Generate) -> Result<()> {
    coxswain_native::memory::install();
    let (directory, folder) = locate(&args.checkpoint)?;
    let generator = Generator::load(&directory, &folder)
        .with_context(|| format!("loading the checkpoint {}", folder.display()))?;
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, seed: args.seed };
    let mut out = std::io::stdout().lock();
    let mut result = write!(out, "{}", args.prompt).and_then(|()| out.flush());
    generator.generate(&args.prompt, args.tokens, &sampling, |piece| {
        if result.is_ok() {
            result = write!(out, "{piece}").and_then(|()| out.flush());
        }
    })?;
    match result.and_then(|()| writeln!(out)) {
        // Whoever reads may stop reading.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing to stdout"),
    }
}

/// The run's folder and the checkpoint's, from either of them.
fn locate(path: &Path) -> Result<(PathBuf, PathBuf)> {
    coxswain_files::folders::locate(path)?.with_context(|| {
        format!(
            "{} has no committed checkpoint; give a run's folder (what `up --out` was given) or one of its \
             checkpoints/step-* folders",
            path.display()
        )
    })
}
