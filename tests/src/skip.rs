//! Tests that are skipped say so, where `cargo xtask test` reads it. Tests of other crates take this file in by its
//! path: it needs the standard library alone.

use std::fs::File;
use std::io::{self, Write};
use std::panic::Location;
use std::path::Path;

/// Asks for the tests that take minutes.
const LONG: &str = "COXSWAIN_LONG_TESTS";

/// Names the file to which a line is added for each skip. `cargo xtask test` shows it at the end.
const FILE: &str = "COXSWAIN_SKIPPED_FILE";

/// Bits of the capabilities that Linux names so: for mounts and namespaces, and for the interfaces in these.
const SYS_ADMIN: u64 = 1 << 21;
const NET_ADMIN: u64 = 1 << 12;

/// Whether tests of minutes are asked for.
pub fn long() -> bool {
    std::env::var_os(LONG).is_some()
}

/// Whether the caller is to be skipped since it takes minutes and `--long` was not given.
#[track_caller]
pub fn unless_long() -> bool {
    if !long() {
        left_to("cargo xtask test --long");
    }
    !long()
}

/// Notes that the caller is skipped, for another command runs it.
#[track_caller]
pub fn left_to(command: &str) {
    note(&format!("`{command}` runs it"));
}

/// Notes that the caller is skipped, for this machine lacks what it needs.
#[track_caller]
pub fn lacking(what: &str) {
    note(&format!("needs {what}"));
}

/// Skips a test that could not make what it needs of the system, such as a mount. A machine of CI that lets this
/// process make it has to run the test: a broken helper would leave it out for ever.
///
/// # Errors
/// Under `CI=true`, where the process may do it and it did not work.
#[track_caller]
pub fn not_made(what: &str, why: &str) -> Result<(), String> {
    let ci = std::env::var("CI").unwrap_or_default();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if ci == "true" && may_administer(&status) {
        return Err(format!("this machine of CI could run the test, and {what} cannot be made: {why}"));
    }
    note(&format!("needs {what}, which cannot be made: {why}"));
    Ok(())
}

/// Whether the process with this `/proc/PID/status` may mount, and make namespaces with interfaces.
fn may_administer(status: &str) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default();
    let needed = SYS_ADMIN | NET_ADMIN;
    bits & needed == needed
}

/// Adds a line for the caller.
#[track_caller]
fn note(why: &str) {
    let caller = Location::caller();
    // One line each, whatever a tool has said.
    let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = format!("{}:{}: {why}\n", caller.file(), caller.line());
    let _ = io::stdout().write_all(format!("skipped: {line}").as_bytes());
    let Some(path) = std::env::var_os(FILE) else { return };
    if let Err(error) = add(Path::new(&path), &line) {
        let _ = writeln!(io::stdout(), "cannot note it in {}: {error}", path.display());
    }
}

/// Adds a line to a file in a single write, so that lines of tests at the same time do not mix.
fn add(path: &Path, line: &str) -> io::Result<()> {
    File::options().append(true).create(true).open(path)?.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_with_the_capabilities_of_a_machine_may_and_one_in_a_plain_container_may_not() {
        for (bits, may) in [
            ("000001ffffffffff", true),
            ("0000000000201000", true),
            ("00000000a80425fb", false),
            ("0000000000200000", false),
            ("0000000000000000", false),
            ("no number", false),
        ] {
            let status = format!("Name:\ttest\nCapPrm:\t000001ffffffffff\nCapEff:\t{bits}\n");
            assert_eq!(may_administer(&status), may, "{bits}");
        }
        assert!(!may_administer(""));
    }

    #[test]
    fn lines_of_several_tests_are_kept() {
        let path = std::env::temp_dir().join(format!("coxswain-skipped-{}", std::process::id()));
        let added = ["a: minutes\n", "b: no mount\n"].map(|line| add(&path, line).is_ok());
        let text = std::fs::read_to_string(&path);
        let _ = std::fs::remove_file(&path);
        assert_eq!((added, text.unwrap().as_str()), ([true; 2], "a: minutes\nb: no mount\n"));
    }
}
