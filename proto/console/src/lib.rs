//! What both programs are as processes, and what they say to people on stderr. Nothing here can end a program: where stderr is closed, full or a
//! terminal that is gone, a line is lost and the program goes on. Data on stdout is the commands' own matter.
//!
//! - [`say`]: a line; [`status`], [`keep`], [`clear`]: the line that stays below all others on a terminal.
//! - [`look`]: what a stream can show; [`width`]: how much of it.
//! - [`logs`]: log lines, through the same door.
//! - [`file_mode`]: who may use the files that a program makes.
//! - [`parent`]: processes that end with the one that started them.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub mod file_mode;
pub mod logs;
pub mod parent;

/// Back to the start of the line, which is cleared.
const CLEAR: &str = "\r\x1b[K";

/// The line below all others, as it stands on the terminal; empty where there is none.
static STATUS: Mutex<String> = Mutex::new(String::new());

fn status_line() -> MutexGuard<'static, String> {
    STATUS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says a line, or several, on stderr. Control characters in it are shown and not obeyed.
pub fn say(text: &str) {
    let text = printable(text);
    let end = if text.ends_with('\n') { "" } else { "\n" };
    above_status(&format!("{text}{end}"));
}

/// Writes whole lines to stderr, above the status line.
fn above_status(lines: &str) {
    let status = status_line();
    if status.is_empty() {
        write(lines);
    } else {
        write(&format!("{CLEAR}{lines}{status}"));
    }
}

/// Shows this line below all others, in place of the one before. It must fit the terminal's width.
/// For terminals that [`look`] says can redraw.
pub fn status(line: String) {
    write(&format!("{CLEAR}{line}"));
    *status_line() = line;
}

/// Lets the status line stay where it is, as a line like any other.
pub fn keep() {
    let status = std::mem::take(&mut *status_line());
    if !status.is_empty() {
        write("\n");
    }
}

/// Takes the status line away.
pub fn clear() {
    let status = std::mem::take(&mut *status_line());
    if !status.is_empty() {
        write(CLEAR);
    }
}

/// A missing stderr cannot be reported.
fn write(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// The text with its control characters, but for ends of lines and tabs, written out: `\u{1b}`.
pub fn printable(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let shown = text.chars().map(|c| if obeyed(c) { c.escape_unicode().to_string() } else { c.to_string() });
    Cow::Owned(shown.collect())
}

/// What a stream can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamCapabilities {
    /// Whether a line can be drawn again in its place.
    pub redraws: bool,
    /// Whether colors are shown and wanted.
    pub colors: bool,
}

/// What `stream` can show, as `TERM` says, and is wanted to, as `NO_COLOR` says.
pub fn look(stream: &impl IsTerminal) -> StreamCapabilities {
    let var = |name| std::env::var_os(name);
    look_of(stream.is_terminal(), var("TERM").as_deref(), var("NO_COLOR").as_deref())
}

fn look_of(is_terminal: bool, term: Option<&OsStr>, no_color: Option<&OsStr>) -> StreamCapabilities {
    let redraws = is_terminal && term.is_none_or(|term| term != "dumb");
    StreamCapabilities { redraws, colors: redraws && no_color.is_none_or(OsStr::is_empty) }
}

/// How many characters a line of this terminal has; `None` where it is none.
pub fn width(stream: &impl AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    // A terminal that does not know its size says 0.
    (size.ws_col > 0).then_some(size.ws_col.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colors_are_for_terminals_that_show_them_and_people_who_want_them() {
        let rows = [
            (false, Some("xterm"), None, (false, false)),
            (true, Some("xterm"), None, (true, true)),
            (true, None, None, (true, true)),
            (true, Some("dumb"), None, (false, false)),
            (true, Some("xterm"), Some("1"), (true, false)),
            (true, Some("xterm"), Some(""), (true, true)),
        ];
        for (is_terminal, term, no_color, (redraws, colors)) in rows {
            let found = look_of(is_terminal, term.map(OsStr::new), no_color.map(OsStr::new));
            assert_eq!(found, StreamCapabilities { redraws, colors }, "{is_terminal} {term:?} {no_color:?}");
        }
    }

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(printable("one\n\ttwo: é"), "one\n\ttwo: é");
        assert_eq!(printable("a\x1b[2Jb\rc\u{9b}"), "a\\u{1b}[2Jb\\u{d}c\\u{9b}");
    }

    #[test]
    fn what_is_no_terminal_has_no_width() {
        assert_eq!(width(&std::fs::File::open("/dev/null").unwrap()), None);
    }
}
