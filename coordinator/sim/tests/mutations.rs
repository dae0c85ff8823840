//! Every planted bug is caught. That takes minutes, so it runs where long tests are asked for; that each can still
//! be planted is looked at always.

#[path = "../../../tests/src/skip.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use more of it")]
mod skip;

use std::fs;
use std::path::Path;
use std::process::Command;

/// The lines that each hunk of a patch expects to find, and in which file.
fn expected(patch: &str) -> Vec<(String, String)> {
    let (mut file, mut hunks) = ("", Vec::new());
    for line in patch.lines() {
        match (line.strip_prefix("--- a/"), line.split_at_checked(1)) {
            (Some(name), _) => file = name,
            (_, Some(("@", _))) => hunks.push((file.to_owned(), String::new())),
            (_, Some((" " | "-", text))) => {
                if let Some((_, hunk)) = hunks.last_mut() {
                    hunk.push_str(text);
                    hunk.push('\n');
                }
            }
            _ => {}
        }
    }
    hunks
}

#[test]
fn every_bug_can_be_planted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let patches = fs::read_dir(root.join("coordinator/sim/mutations")).unwrap();
    let mut bugs = 0;
    for patch in patches.map(|entry| entry.unwrap().path()) {
        let hunks = expected(&fs::read_to_string(&patch).unwrap());
        assert!(!hunks.is_empty(), "{} changes nothing", patch.display());
        for (file, lines) in hunks {
            let text = fs::read_to_string(root.join(&file)).unwrap();
            assert!(text.contains(&lines), "{} has to follow {file}, which lacks:\n{lines}", patch.display());
        }
        bugs += 1;
    }
    assert!(bugs >= 20, "{bugs} bugs");
}

#[test]
fn every_planted_bug_is_caught() {
    if skip::unless_long() {
        return;
    }
    let lane = Command::new(env!("CARGO_BIN_EXE_coxswain-sim")).arg("--mutations").status().unwrap();
    assert!(lane.success(), "{lane}");
}
