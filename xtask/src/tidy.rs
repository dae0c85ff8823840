//! `tidy`: rules of the tree that no compiler checks, one row each in [`RULES`].
//!
//! A rule is a pure function of a file's path and text (and, for links, of which paths exist). Beside them,
//! `one-name` (in `types`) looks at all files at once.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::repo::Repo;
use crate::run::say;

mod links;
mod moulds;
mod types;

/// The texts of the tree, by path from the root with `/` between its parts.
type Tree = BTreeMap<String, String>;

/// A rule broken: on which line (from 1; 0 for the whole file), and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TidyFault {
    line: usize,
    message: String,
}

impl TidyFault {
    fn new(line: usize, message: impl Into<String>) -> TidyFault {
        TidyFault { line, message: message.into() }
    }
}

/// A rule: its name, the files it is for, and the check.
struct TidyRule {
    name: &'static str,
    applies: fn(&str) -> bool,
    check: fn(&str, &Tree) -> Vec<TidyFault>,
}

const RULES: [TidyRule; 9] = [
    TidyRule { name: "length", applies: is_code, check: length },
    TidyRule { name: "header", applies: |path| path.ends_with(".rs"), check: header },
    TidyRule { name: "told-once", applies: |path| path.ends_with(".rs"), check: told_once },
    TidyRule { name: "unfinished", applies: |_| true, check: unfinished },
    TidyRule { name: "private-path", applies: |_| true, check: private_path },
    TidyRule { name: "links", applies: |path| path.ends_with(".md"), check: links::check },
    TidyRule { name: "lints", applies: |path| path.ends_with("Cargo.toml"), check: lints },
    TidyRule { name: "moulds", applies: moulds::is_prose, check: moulds::check },
    TidyRule { name: "map", applies: |path| path == MAP, check: map },
];

/// Lines that a file of code may have. Past it, there are two ideas in it.
const MOST_LINES: usize = 600;

/// The document that names every crate.
const MAP: &str = "ARCHITECTURE.md";

/// Folders that are made, not written: `corpus` by a fuzzer.
const MADE: [&str; 5] = [".git", "target", "out", "__pycache__", "corpus"];

/// Checks the tree.
///
/// # Errors
/// When a rule is broken; each fault is printed with its file and line.
pub(crate) fn tidy(repo: &Repo) -> Result<()> {
    let mut tree = Tree::new();
    read(repo.root(), repo.root(), &mut tree)?;
    let faults = faults(&tree);
    for fault in &faults {
        eprintln!("{fault}");
    }
    if !faults.is_empty() {
        bail!("tidy: {} faults in {} files", faults.len(), tree.len());
    }
    say(&format!("tidy: {} files, no fault", tree.len()));
    Ok(())
}

/// Every fault of the tree, as `path:line: message [rule]`.
fn faults(tree: &Tree) -> Vec<String> {
    let mut all = Vec::new();
    for path in tree.keys() {
        for rule in RULES.iter().filter(|rule| (rule.applies)(path)) {
            for TidyFault { line, message } in (rule.check)(path, tree) {
                all.push(format!("{path}:{line}: {message} [{}]", rule.name));
            }
        }
    }
    for (path, TidyFault { line, message }) in types::doubles(tree) {
        all.push(format!("{path}:{line}: {message} [one-name]"));
    }
    if tree.contains_key("Cargo.toml") && !tree.contains_key(MAP) {
        all.push(format!("{MAP}:0: is missing; it holds the map of the crates [map]"));
    }
    all
}

/// Reads all files below `folder`; those that are not UTF-8 are empty. Links are left out.
fn read(root: &Path, folder: &Path, tree: &mut Tree) -> Result<()> {
    let context = || format!("could not read {}", folder.display());
    let entries =
        fs::read_dir(folder).with_context(context)?.collect::<Result<Vec<_>, _>>().with_context(context)?;
    for entry in entries {
        let (path, kind) = (entry.path(), entry.file_type().with_context(context)?);
        // In a further worktree `.git` is a file.
        if MADE.iter().any(|made| entry.file_name() == *made) {
            continue;
        }
        if kind.is_dir() {
            read(root, &path, tree)?;
        } else if kind.is_file() {
            // A picture has a name that links lead to, and no text.
            tree.insert(from_root(root, &path), fs::read_to_string(&path).unwrap_or_default());
        }
    }
    Ok(())
}

fn from_root(root: &Path, path: &Path) -> String {
    let parts: PathBuf = path.strip_prefix(root).unwrap_or(path).to_owned();
    parts.to_string_lossy().replace('\\', "/")
}

fn text<'a>(path: &str, tree: &'a Tree) -> &'a str {
    tree.get(path).map_or("", String::as_str)
}

fn is_code(path: &str) -> bool {
    [".rs", ".cpp", ".h", ".py", ".proto"].iter().any(|end| path.ends_with(end))
}

fn length(path: &str, tree: &Tree) -> Vec<TidyFault> {
    let lines = text(path, tree).lines().count();
    let fault =
        || TidyFault::new(lines, format!("{lines} lines, more than {MOST_LINES}; split it by its ideas"));
    (lines > MOST_LINES).then(fault).into_iter().collect()
}

/// A file of Rust says first what it is for. Build scripts and tests are known by their names.
fn header(path: &str, tree: &Tree) -> Vec<TidyFault> {
    let (folders, file) = path.rsplit_once('/').unwrap_or(("", path));
    // The crate `tests` is a crate; a folder `tests` inside a crate is not.
    let is_test = folders.split('/').skip(1).any(|folder| folder == "tests") || file == "tests.rs";
    if file == "build.rs" || is_test || text(path, tree).starts_with("//!") {
        return Vec::new();
    }
    vec![TidyFault::new(
        1,
        "the file does not begin with `//!`: say what it is for and what it leaves to others",
    )]
}

/// An error whose message has its cause in it must not hand the cause on beside that: a chain of errors would say it
/// twice. `thiserror` hands on a field named `source` and what stands behind `#[from]`.
fn told_once(path: &str, tree: &Tree) -> Vec<TidyFault> {
    let mut faults = Vec::new();
    let mut message: Option<(usize, String)> = None;
    for (index, line) in text(path, tree).lines().map(str::trim).enumerate() {
        match &mut message {
            None if line.starts_with("#[error(") => message = Some((index + 1, line.to_owned())),
            None => {}
            // A message may go over several lines; comments may stand before what it is of.
            Some((_, message)) if !message.ends_with(")]") => message.push_str(line),
            Some(_) if line.starts_with("///") => {}
            Some((at, said)) => {
                let handed_on = said.contains("{source}")
                    || (said.contains("{0}") && (line.contains("#[from]") || line.contains("#[source]")));
                if handed_on {
                    let advice = "the message has its cause, which is handed on too and told twice; name the field \
                                  `cause`, or leave #[from] out";
                    faults.push(TidyFault::new(*at, advice));
                }
                message = None;
            }
        }
    }
    faults
}

/// Marks of unfinished work. They are written in halves here, so that this file has none.
const MARKS: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X"), concat!("#[", "ignore")];

fn unfinished(path: &str, tree: &Tree) -> Vec<TidyFault> {
    let message = |mark: &str| format!("`{mark}`: finish it, or open an issue for it");
    search(path, tree, &MARKS, message)
}

/// Places that exist on one machine only, in halves for the same reason.
const PRIVATE: [&str; 4] =
    [concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")];

fn private_path(path: &str, tree: &Tree) -> Vec<TidyFault> {
    let message = |found: &str| format!("`{found}`: a path of one machine; make it relative or an argument");
    search(path, tree, &PRIVATE, message)
}

/// The lines that hold one of `words` by itself: not as a part of a longer word, nor, where it is a
/// path, of a longer path or an address.
fn search(path: &str, tree: &Tree, words: &[&str], message: impl Fn(&str) -> String) -> Vec<TidyFault> {
    let mut faults = Vec::new();
    for (index, line) in text(path, tree).lines().enumerate() {
        for word in words {
            if line.match_indices(word).any(|(at, _)| stands_alone(line, at, word)) {
                faults.push(TidyFault::new(index + 1, message(word)));
            }
        }
    }
    faults
}

fn stands_alone(line: &str, at: usize, word: &str) -> bool {
    let of_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let of_path = |c: char| of_word(c) || ".-}~)".contains(c);
    let before = line[..at].chars().next_back();
    let after = line[at + word.len()..].chars().next();
    match word.chars().next_back() {
        Some('/') => !before.is_some_and(of_path),
        _ => !before.is_some_and(of_word) && !after.is_some_and(of_word),
    }
}

/// Every crate takes the workspace's lints; one that does not would be held to none.
fn lints(path: &str, tree: &Tree) -> Vec<TidyFault> {
    let manifest = text(path, tree);
    let is_package = manifest.lines().any(|line| line.trim() == "[package]");
    let mut after = manifest.lines().skip_while(|line| line.trim() != "[lints]").skip(1);
    let takes = after.next().is_some_and(|line| line.replace(' ', "") == "workspace=true");
    let fault = || TidyFault::new(1, "no `[lints]` with `workspace = true`");
    (is_package && !takes).then(fault).into_iter().collect()
}

/// The map names every crate of the workspace by its folder.
fn map(path: &str, tree: &Tree) -> Vec<TidyFault> {
    let manifest = text("Cargo.toml", tree);
    let members = manifest.split_once("members = [").and_then(|(_, rest)| rest.split_once(']'));
    let members = members.map_or("", |(members, _)| members);
    let folders = members.split('"').skip(1).step_by(2);
    let missing = folders.filter(|folder| !text(path, tree).contains(folder));
    missing.map(|folder| TidyFault::new(0, format!("the crate `{folder}` is not in the map"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> Tree {
        files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn each_rule_finds_its_fault_and_no_other() {
        let long = |lines: usize| format!("//! Long.\n{}", "x\n".repeat(lines - 1));
        let [todo, fixme, xxx, ignore] = MARKS;
        let [home, ..] = PRIVATE;
        let error = "#[error(";
        // Path, text, and the faults as `line rule`.
        let rows: Vec<(&str, String, &[&str])> = vec![
            ("a/src/lib.rs", "//! Fine.\n".to_owned(), &[]),
            ("a/src/lib.rs", long(600), &[]),
            ("a/src/lib.rs", long(601), &["601 length"]),
            ("a/shim.cpp", long(601), &["601 length"]),
            ("a/notes.txt", long(601), &[]),
            ("a/src/lib.rs", "use x;\n".to_owned(), &["1 header"]),
            ("a/src/lib.rs", String::new(), &["1 header"]),
            ("tests/src/lib.rs", "use x;\n".to_owned(), &["1 header"]),
            ("tests/tests/layouts.rs", "use x;\n".to_owned(), &[]),
            ("a/b.rs", format!("//! E.\n{error}\"{{source}}\")]\nIo {{ source: E }},\n"), &["2 told-once"]),
            ("a/b.rs", format!("//! E.\n{error}\"{{cause}}\")]\nIo {{ cause: E }},\n"), &[]),
            ("a/b.rs", format!("//! E.\n{error}\n\"no: {{0}}\"\n)]\nNo(#[from] E),\n"), &["2 told-once"]),
            ("a/b.rs", format!("//! E.\n{error}transparent)]\nNo(#[from] E),\n"), &[]),
            ("a/src/deep/tests.rs", "use x;\n".to_owned(), &[]),
            ("a/build.rs", "fn main() {}\n".to_owned(), &[]),
            ("a.md", format!("one\n{todo}: two\n"), &["2 unfinished"]),
            ("a.yaml", format!("# {fixme}\n# ({xxx})\n"), &["1 unfinished", "2 unfinished"]),
            ("a/tests/a.rs", format!("{ignore} = \"slow\"]\n"), &["1 unfinished"]),
            ("a.md", format!("MAS{todo} {todo}S XX{xxx}\n"), &[]),
            ("a.md", format!("see `{home}me/x`\n"), &["1 private-path"]),
            ("a.md", format!("https://example.org{home} ${{X}}{home}\n"), &[]),
            ("a/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n".to_owned(), &[]),
            ("a/Cargo.toml", "[package]\n".to_owned(), &["1 lints"]),
            (
                "a/Cargo.toml",
                "[package]\n[lints]\n[dependencies]\nworkspace = true\n".to_owned(),
                &["1 lints"],
            ),
        ];
        for (path, text, expected) in rows {
            let found: Vec<String> = faults(&tree(&[(path, &text)]))
                .iter()
                .map(|fault| {
                    let line = fault.split(':').nth(1).unwrap();
                    let rule = fault.rsplit_once('[').unwrap().1.trim_end_matches(']');
                    format!("{line} {rule}")
                })
                .collect();
            assert_eq!(found, expected, "{path}: {}", text.chars().take(60).collect::<String>());
        }
    }

    #[test]
    fn the_map_names_every_crate() {
        let workspace = "[workspace]\nmembers = [\n    \"a\",\n    \"b/c\",\n]\n";
        let good = tree(&[("Cargo.toml", workspace), (MAP, "a/ and b/c/")]);
        assert_eq!(faults(&good), Vec::<String>::new());
        let bad = tree(&[("Cargo.toml", workspace), (MAP, "a/")]);
        assert_eq!(faults(&bad), ["ARCHITECTURE.md:0: the crate `b/c` is not in the map [map]"]);
        let none = tree(&[("Cargo.toml", workspace)]);
        assert_eq!(faults(&none).len(), 1);
    }

    #[test]
    fn what_is_made_is_not_read() {
        let folder = tempfile::tempdir().unwrap();
        for path in ["a/b.md", "a/.git", "target/c.md", ".git/d", ".ci/run"] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        fs::write(folder.path().join("binary"), [0xff, 0xfe]).unwrap();
        let mut found = Tree::new();
        read(folder.path(), folder.path(), &mut found).unwrap();
        assert_eq!(found.keys().collect::<Vec<_>>(), [".ci/run", "a/b.md", "binary"]);
        assert_eq!(found["binary"], "");
    }
}
