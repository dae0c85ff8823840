//! Turns of phrase that readers stumble over: they say what a thing is not, or whose it is not. Each is refused with
//! what to write.

use super::{TidyFault, Tree, text};

/// What is refused, in halves so that this file has none, and what to write.
const MOULDS: [(&str, &str); 7] = [
    (concat!("no", "body"), "name who: no rank, no worker, no thread"),
    (concat!("makes no", " sense"), "invalid, or contradicts itself"),
    (concat!("make no", " sense"), "invalid, or contradict each other"),
    (concat!("says what", " cannot be"), "contradicts itself"),
    (concat!("hangs", " up ("), "closed the connection"),
    (concat!("wants", " no more"), "is being drained, or was cancelled"),
    (concat!("so that", " so that"), "one clause"),
];

/// A negated noun reads as a translation; `is not a` does not.
const IS_NO: [&str; 2] = [concat!(" is", " no "), concat!(" are", " no ")];

/// `there is no Y` is plain English, and so are these.
const AFTER: [&str; 5] = ["longer", "more", "less", "better", "worse"];

/// The moulds in a file's text.
pub(super) fn check(path: &str, tree: &Tree) -> Vec<TidyFault> {
    let lines = text(path, tree).lines().enumerate();
    lines
        .flat_map(|(index, line)| faults(line).map(move |message| TidyFault::new(index + 1, message)))
        .collect()
}

/// Whether a file's words are ours: code, pages and messages, but not texts that models are trained on.
pub(super) fn is_prose(path: &str) -> bool {
    let ours = [".rs", ".md", ".cpp", ".h", ".proto", ".py"].iter().any(|end| path.ends_with(end));
    ours && !path.starts_with("tests/texts/")
}

fn faults(line: &str) -> impl Iterator<Item = String> {
    let moulds = MOULDS.iter().filter(|(mould, _)| line.to_lowercase().contains(mould));
    let moulds = moulds.map(|(mould, instead)| format!("`{mould}`: write {instead}"));
    let negations =
        IS_NO.iter().filter(|mould| line.match_indices(**mould).any(|(at, _)| negates(line, at, mould)));
    let negations =
        negations.map(|mould| format!("`{}`: write what the thing is, or `is not a`", mould.trim()));
    moulds.chain(negations).collect::<Vec<_>>().into_iter()
}

/// Whether the mould at `at` is one of a translation.
fn negates(line: &str, at: usize, mould: &str) -> bool {
    let before = line.get(..at).unwrap_or_default();
    let after = line.get(at + mould.len()..).unwrap_or_default();
    !before.to_lowercase().ends_with("there")
        && !after.split(|c: char| !c.is_alphabetic()).next().is_some_and(|next| AFTER.contains(&next))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moulds_are_told_from_plain_english() {
        let faulty = [
            concat!("/// No", "body sees it."),
            concat!("\"it is", " no plain file\""),
            concat!("values make no", " sense"),
            concat!("These are", " no names."),
            concat!("It is", " no lesson."),
        ];
        for line in faulty {
            assert_eq!(faults(line).count(), 1, "{line}");
        }
        for line in [
            "There is no room.",
            "where there are no steps",
            "it is no longer there",
            "it is not a file",
            "it is no more",
        ] {
            assert_eq!(faults(line).count(), 0, "{line}");
        }
    }

    #[test]
    fn texts_that_models_read_are_not_ours() {
        assert!(is_prose("docs/job.md") && is_prose("worker/src/main.rs"));
        assert!(!is_prose("tests/texts/alice.md") && !is_prose("tests/parity/tokens.json"));
    }
}
