//! `generate`: text from a checkpoint, to stdout as it comes.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use coxswain_comm::{DataPort, FileStore, Links};
use coxswain_engine::generate::{Generator, Sampling};
use coxswain_files::StoreFolder;
use coxswain_types::Assignment;

use crate::args::Generate;

pub(crate) fn run(args: &Generate) -> Result<()> {
    coxswain_native::memory::install();
    let (run, folder) = locate(&args.checkpoint)?;
    let place = place(args)?;
    let place = place.as_ref().map(|(assignment, links)| (assignment, links.clone()));
    let prints = place.as_ref().is_none_or(|(assignment, _)| assignment.rank.0 == 0);
    let generator =
        Generator::load(&run, &folder, place).with_context(|| format!("loading the checkpoint {folder}"))?;
    let sampling = Sampling { temperature: args.temperature, top_k: args.top_k, seed: args.seed };
    let mut out: Box<dyn Write> =
        if prints { Box::new(std::io::stdout().lock()) } else { Box::new(std::io::sink()) };
    let prompt = prompt(args)?;
    let mut result = write!(out, "{prompt}").and_then(|()| out.flush());
    if result.is_ok() {
        generator.generate(&prompt, args.tokens, &sampling, |piece| {
            result = write!(out, "{piece}").and_then(|()| out.flush());
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
    }
    match result.and_then(|()| writeln!(out)) {
        // Whoever reads may stop reading.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("writing to stdout"),
    }
}

/// The longest prompt; a longer one is some other file.
const MAX_PROMPT_BYTES: u64 = 16 << 20;

/// The text to continue.
fn prompt(args: &Generate) -> Result<String> {
    let Some(path) = &args.prompt_file else { return Ok(args.prompt.clone()) };
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_PROMPT_BYTES + 1).read_to_end(&mut bytes));
    read.with_context(|| format!("the prompt {} cannot be read", path.display()))?;
    ensure!(
        bytes.len() as u64 <= MAX_PROMPT_BYTES,
        "the prompt {} has more than {MAX_PROMPT_BYTES} bytes",
        path.display()
    );
    let text = String::from_utf8(bytes);
    let text = text.with_context(|| format!("the prompt {} is not valid UTF-8", path.display()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    Ok(text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line)).to_owned())
}

/// How long ranks may take to find each other, in milliseconds.
const RENDEZVOUS_MS: u64 = 20_000;
/// How long an exchange may take, in milliseconds: other ranks read weights and prompts meanwhile.
const EXCHANGE_MS: u64 = 600_000;

/// This rank's assignment and its connection to the others, where there are any.
fn place(args: &Generate) -> Result<Option<(Assignment, Links)>> {
    let (Some(path), Some(meet)) = (&args.assignment, &args.meet) else { return Ok(None) };
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let a: Assignment =
        serde_json::from_slice(&bytes).with_context(|| format!("reading {}", path.display()))?;
    let store = FileStore::new(meet.clone(), RENDEZVOUS_MS);
    let port = DataPort::local().context("opening a port for the other ranks")?;
    let links = Links::join(store, a.rank.0, a.world, &port, RENDEZVOUS_MS, EXCHANGE_MS);
    Ok(Some((a, links.context("finding the other ranks")?)))
}

/// The run's folder and the checkpoint's, from either of them.
pub(crate) fn locate(path: &Path) -> Result<(StoreFolder, StoreFolder)> {
    coxswain_files::folders::locate(path)?.with_context(|| {
        format!(
            "{} has no committed checkpoint; give a run's folder (what `up --out` was given) or one of its \
             checkpoints/step-* folders",
            path.display()
        )
    })
}
