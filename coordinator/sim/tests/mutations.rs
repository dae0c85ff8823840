//! Every planted bug is caught. It takes minutes, so it runs where long tests are asked for.

use std::process::Command;

#[test]
fn every_planted_bug_is_caught() {
    if std::env::var_os("COXSWAIN_LONG_TESTS").is_none() {
        return;
    }
    let lane = Command::new(env!("CARGO_BIN_EXE_coxswain-sim")).arg("--mutations").status().unwrap();
    assert!(lane.success(), "{lane}");
}
