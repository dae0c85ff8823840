//! Hides the names of jobs from callers that may not see them. Texts name other jobs: those that a job waits
//! behind, that have its workers, that write to its folder.

use std::collections::BTreeSet;

use super::Caller;
use super::identity::is_plain;
use crate::handle::Handle;

/// What stands in place of a name.
const ANOTHER: &str = "another job";

/// The most words that are remembered not to be jobs, while one stream is read. They are asked for again
/// then.
const MAX_PLAIN: usize = 1024;

/// What one caller may read.
pub(crate) struct Scope {
    caller: Caller,
    handle: Handle,
    /// Jobs that the caller may not see.
    others: BTreeSet<String>,
    /// Words that could be a job's id and were not.
    plain: BTreeSet<String>,
}

impl Scope {
    pub(crate) fn new(caller: Caller, handle: Handle) -> Scope {
        Scope { caller, handle, others: BTreeSet::new(), plain: BTreeSet::new() }
    }

    /// Puts `another job` in place of each job in the texts of an answer that the caller may not see. The driver is asked
    /// once at most.
    pub(crate) async fn hide(&mut self, mut texts: Vec<&mut String>) {
        if self.caller.all_jobs("").is_ok() {
            return;
        }
        let seen =
            |word: &&str| self.caller.sees(word) || self.others.contains(*word) || self.plain.contains(*word);
        let all = texts.iter().flat_map(|text| words(text));
        let unknown: BTreeSet<String> =
            all.filter(|word| is_id(word) && !seen(word)).map(str::to_owned).collect();
        if !unknown.is_empty() {
            match self.handle.ids().await {
                Ok(jobs) => self.learn(jobs, unknown),
                // The coordinator is ending, and cannot tell which of them are jobs.
                Err(_) => self.others.extend(unknown),
            }
        }
        for text in &mut texts {
            **text = hidden(text, |word| self.others.contains(word));
        }
    }

    fn learn(&mut self, jobs: BTreeSet<String>, unknown: BTreeSet<String>) {
        if self.plain.len() > MAX_PLAIN {
            self.plain.clear();
        }
        self.plain.extend(unknown.into_iter().filter(|word| !jobs.contains(word)));
        self.others = jobs.into_iter().filter(|job| !self.caller.sees(job)).collect();
    }
}

/// The words of a text that could be names, without the full stop behind them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c| !is_plain(c)).map(|word| word.trim_end_matches('.')).filter(|word| !word.is_empty())
}

/// Whether a word has the form of a job's id: a name, a dash and a number.
fn is_id(word: &str) -> bool {
    let number = word.rsplit_once('-').map(|(_, number)| number).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// A text with [`ANOTHER`] in place of each word that is to be hidden.
fn hidden(text: &str, hides: impl Fn(&str) -> bool) -> String {
    let mut shown = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c| !is_plain(c)).unwrap_or(rest.len());
        let (run, tail) = rest.split_at(end);
        let word = run.trim_end_matches('.');
        if hides(word) {
            // `job a-1` is `another job` as well.
            let before = shown.strip_suffix("job ").unwrap_or(&shown).len();
            shown.truncate(before);
            shown.push_str(ANOTHER);
            shown.push_str(&run[word.len()..]);
        } else {
            shown.push_str(run);
        }
        let next = tail.find(is_plain).unwrap_or(tail.len());
        let (between, tail) = tail.split_at(next);
        shown.push_str(between);
        rest = tail;
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_hidden_and_all_else_stays() {
        let others = ["secret-1", "a.b-2"];
        for (text, shown) in [
            ("", ""),
            ("waits behind secret-1", "waits behind another job"),
            ("secret-1", "another job"),
            ("waits behind a.b-2. Then secret-1.", "waits behind another job. Then another job."),
            ("job secret-1 writes to /runs/x", "another job writes to /runs/x"),
            (
                "1 at work for secret-1, 2 kept for secret-11",
                "1 at work for another job, 2 kept for secret-11",
            ),
            ("not-secret-1, (secret-1) in /x/secret-1/y", "not-secret-1, (another job) in /x/another job/y"),
            ("{\"by\":\"secret-1\",\"ü\":1}", "{\"by\":\"another job\",\"ü\":1}"),
        ] {
            assert_eq!(hidden(text, |word| others.contains(&word)), shown);
        }
        let ids: Vec<_> = words("a-1 b c-2. /d/e-3, f-4x -5 g-").filter(|word| is_id(word)).collect();
        assert_eq!(ids, ["a-1", "c-2", "e-3", "-5"]);
    }
}
