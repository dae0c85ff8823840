//! Programs of Debian that tests drive, and that are not a part of a plain installation. On a machine of CI the set-up of
//! `cargo xtask test` installs them; elsewhere the tests that need them are skipped and say so.

use std::path::Path;
use std::process::Command;

use crate::run::{run, say, succeeds};

/// The packages, each with a program by which it is known to be there.
const PACKAGES: [(&str, &str); 1] = [("chromium", "chromium")];

/// Installs what is missing. A failure costs the tests that need it, which say what they lack.
pub(crate) fn provide() {
    let missing = PACKAGES.iter().filter(|(_, program)| !succeeds(Command::new(program).arg("--version")));
    let missing: Vec<&str> = missing.map(|(package, _)| *package).collect();
    if missing.is_empty() || !is_ours() {
        return;
    }
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        run(command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq").args(words))
    };
    let install: Vec<_> = ["install", "-y", "--no-install-recommends"].into_iter().chain(missing).collect();
    if let Err(error) = apt(&["update"]).and_then(|()| apt(&install)) {
        say(&format!("the tests that need it are skipped: {error:#}"));
    }
}

/// Whether this machine is one of CI, of which this process may change what is installed.
fn is_ours() -> bool {
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    let root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.starts_with(b"0\n"));
    ci && root && Path::new("/usr/bin/apt-get").exists()
}
