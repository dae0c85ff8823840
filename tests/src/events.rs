//! What a coordinator's journal says, as values. Tests ask these and not the sentences of logs.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::programs;

/// The events in the journal of this folder, which a coordinator may be writing to.
///
/// # Errors
/// There is none, or `coxswain events` fails.
pub fn events(folder: &Path) -> Result<Vec<Value>> {
    let output = Command::new(programs("coxswain")?).arg("events").arg("--data-dir").arg(folder).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lines = output.stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).context("an event")).collect()
}

/// How many of these events are of a kind.
pub fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| event["kind"] == kind).count()
}

/// How the job of these events has ended: `done`, `failed` or `cancelled`; `None` while it has not.
pub fn ending(events: &[Value]) -> Option<&str> {
    events.iter().rev().find(|event| event["kind"] == "ended")?["ending"].as_str()
}

/// The number of the newest generation; 0 before the first is formed.
pub fn generation(events: &[Value]) -> u64 {
    formed(events).and_then(|event| event["generation"].as_u64()).unwrap_or_default()
}

/// How often workers were gathered again: a generation broke, or it stopped to be formed anew.
pub fn interruptions(events: &[Value]) -> usize {
    count(events, "interrupted") + count(events, "regrouped")
}

/// How many generations went on from what ranks held in memory, and not from a checkpoint.
pub fn from_memory(events: &[Value]) -> usize {
    events.iter().filter(|event| event["kind"] == "begun" && event["origin"] == "memory").count()
}

/// The worker of each rank of the newest generation.
///
/// # Errors
/// There is no generation, or it has another form.
pub fn workers_at_work(events: &[Value]) -> Result<Vec<String>> {
    let name = |rank: &Value| rank["worker"].as_str().map(str::to_owned).context("a rank's worker");
    ranks(events)?.iter().map(name).collect()
}

/// The process of each rank of the newest generation.
///
/// # Errors
/// There is no generation, or it has another form.
pub fn processes_at_work(events: &[Value]) -> Result<Vec<u32>> {
    let pid = |pid: &Value| pid.as_u64().and_then(|pid| u32::try_from(pid).ok());
    ranks(events)?.iter().map(|rank| pid(&rank["pid"]).context("a rank's process")).collect()
}

fn ranks(events: &[Value]) -> Result<&Vec<Value>> {
    formed(events).context("no generation yet")?["ranks"].as_array().context("its ranks")
}

/// The newest formation.
fn formed(events: &[Value]) -> Option<&Value> {
    events.iter().rev().find(|event| event["kind"] == "formed")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_generation_counts() {
        assert_eq!((generation(&[]), ending(&[]), interruptions(&[])), (0, None, 0));
        let ranks =
            |pids: [u32; 2]| json!([{"worker": "w0", "pid": pids[0]}, {"worker": "w1", "pid": pids[1]}]);
        let events = [
            json!({"kind": "joined", "worker": "w0"}),
            json!({"kind": "formed", "generation": 1, "ranks": ranks([7, 8])}),
            json!({"kind": "begun", "generation": 1, "origin": "initial"}),
            json!({"kind": "interrupted", "generation": 1}),
            json!({"kind": "formed", "generation": 2, "ranks": ranks([7, 9])}),
            json!({"kind": "begun", "generation": 2, "origin": "memory"}),
            json!({"kind": "regrouped", "generation": 2}),
            json!({"kind": "ended", "ending": "done"}),
        ];
        assert_eq!((generation(&events), interruptions(&events), from_memory(&events)), (2, 2, 1));
        assert_eq!(workers_at_work(&events).unwrap(), ["w0", "w1"]);
        assert_eq!(processes_at_work(&events).unwrap(), [7, 9]);
        assert_eq!((ending(&events), ending(&events[..7])), (Some("done"), None));
        assert_eq!((count(&events, "formed"), count(&events, "gone")), (2, 0));
    }
}
