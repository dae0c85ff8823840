//! Processes under test, as the operating system sees them.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The processes that `parent` started and that still are, by id.
pub fn children(parent: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("reading /proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // The process may end while it is looked at.
        let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // The command's name is in parentheses and may hold anything; its state and parent follow.
        let mut after = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        if after.next() != Some("Z") && after.next() == Some(&parent.to_string()) {
            found.push(pid);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether a process runs: a zombie does not.
pub fn is_alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| !rest.trim_start().starts_with('Z')))
}

/// Sends a signal, such as `KILL` or `STOP`.
pub fn signal(pid: u32, name: &str) -> Result<()> {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
    ensure!(status.context("running kill")?.success(), "cannot send {name} to {pid}");
    Ok(())
}

/// Runs a system tool; the error has what it said.
pub fn system(words: &[&str]) -> Result<()> {
    let (program, words) = words.split_first().context("no program")?;
    let output = Command::new(program).args(words).output().with_context(|| format!("running {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", words.join(" "), said.trim());
    Ok(())
}

/// Number of lines of a file; 0 while it is not there.
pub fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).map_or(0, |text| text.lines().count())
}
