//! The mutation lane: bugs are planted in the core, one at a time, and the simulation has to catch each within [`SEEDS`]
//! seeds. [`coxswain_core::planted`] lists them. Each runs in a process of its own, for it may end it.

use std::process::Command;

use anyhow::{Context, Result, bail};
use coxswain_core::planted::{self, Bug};

use crate::print;

/// Within so many seeds a bug has to be caught.
const SEEDS: u64 = 200;

/// Plants the bug of this name in this process.
///
/// # Errors
/// The name is unknown.
pub(crate) fn plant(name: &str) -> Result<()> {
    let bug =
        Bug::named(name).with_context(|| format!("--plant {name}: unknown; --mutations lists all bugs"))?;
    planted::plant(bug);
    Ok(())
}

/// Plants each bug whose name contains `only`, and prints who caught it.
///
/// # Errors
/// A bug that survives, or a simulation that cannot start.
pub(crate) fn mutations(only: &str) -> Result<()> {
    let bugs: Vec<_> = Bug::ALL.iter().filter(|bug| bug.name().contains(only)).collect();
    let mut survived = Vec::new();
    for bug in &bugs {
        let caught = caught(&bug.name())?;
        let by = caught.as_deref().unwrap_or("SURVIVES");
        print(&format!("{:<28} {by:<28} {}\n", bug.name(), bug.what()));
        if caught.is_none() {
            survived.push(bug.name());
        }
    }
    let caught = bugs.len() - survived.len();
    print(&format!("{} bugs, {caught} caught within {SEEDS} seeds\n", bugs.len()));
    if !survived.is_empty() {
        bail!("not caught: {}", survived.join(", "));
    }
    Ok(())
}

/// How a program of Rust ends that panics.
const PANIC: i32 = 101;

/// Which rule catches a bug at which seed; `None` if none does.
fn caught(name: &str) -> Result<Option<String>> {
    let mut simulate = Command::new(std::env::current_exe().context("this program's own path")?);
    simulate.args(["--brief", "--seeds", &SEEDS.to_string(), "--plant", name]);
    let output = simulate.output().context("the simulation does not start")?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match (output.status.code(), text.is_empty()) {
        (Some(0), _) => Ok(None),
        (Some(_), false) => Ok(Some(text)),
        (Some(PANIC), true) => Ok(Some("the core panics".to_owned())),
        _ => bail!(
            "the simulation of {name} ended with {}:\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        ),
    }
}
