//! Commands whose failures explain themselves, and clocks for people.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Says what this tool is doing, on stderr: stdout is for data.
pub(crate) fn say(line: &str) {
    eprintln!("xtask: {line}");
}

/// Runs a command with our own input and output, showing it first.
///
/// # Errors
/// When it cannot be started or does not succeed; the message holds the command line.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", line(command));
    let status = command.status().with_context(|| format!("could not start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs a command and returns what it wrote to stdout; its stderr is ours.
///
/// # Errors
/// When it cannot be started or does not succeed.
pub(crate) fn capture(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("could not start `{}`", line(command)))?;
    if !output.status.success() {
        bail!("`{}` ended with {}", line(command), output.status);
    }
    Ok(output.stdout)
}

/// Whether a command can be started and succeeds, without a word of its output.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    matches!(command.stdin(Stdio::null()).output(), Ok(Output { status, .. }) if status.success())
}

/// A `cargo` command; the very cargo that runs us, if one does.
pub(crate) fn cargo() -> Command {
    cargo_tool(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// A command that is cargo, or starts it.
pub(crate) fn cargo_tool(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    // What cargo has told this tool of itself. Some build scripts would run again for it, and again without it.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// A command line as one would type it, near enough for messages.
pub(crate) fn line(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=./,:+@%".contains(c);
        // Whole programs passed to `python3 -c` would bury the message.
        words.push(match argument.contains('\n') {
            true => "'...'".to_owned(),
            false if !argument.is_empty() && argument.chars().all(plain) => argument.into_owned(),
            false => format!("'{}'", argument.replace('\'', r"'\''")),
        });
    }
    words.join(" ")
}

/// A duration for people: `0.4 s`, `3 m 20 s`.
pub(crate) fn human(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds < 10.0 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole / 60 {
        0 => format!("{whole} s"),
        minutes => format!("{minutes} m {} s", whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        for (ms, text) in
            [(0, "0.0 s"), (420, "0.4 s"), (59_400, "59 s"), (59_600, "1 m 0 s"), (200_000, "3 m 20 s")]
        {
            assert_eq!(human(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn a_failure_names_the_command_and_its_end() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "`sh -c 'exit 3'` ended with exit status: 3");
        let error = capture(Command::new("no-such-program-here").arg("x")).unwrap_err();
        assert_eq!(error.to_string(), "could not start `no-such-program-here x`");
    }
}
