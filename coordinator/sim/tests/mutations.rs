//! Every planted bug is caught. That takes minutes, so it runs where long tests are asked for.

#[path = "../../../tests/src/skip.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use more of it")]
mod skip;

use std::path::Path;
use std::process::Command;

#[test]
fn every_planted_bug_is_caught() {
    if skip::unless_long() {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut lane = Command::new(env!("CARGO"));
    lane.current_dir(root).args(["run", "--release", "--package", "coxswain-sim", "--features", "mutations"]);
    let lane = lane.args(["--", "--mutations"]).status().unwrap();
    assert!(lane.success(), "{lane}");
}
