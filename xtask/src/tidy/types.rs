//! Names of types: one name stands for one concept in the whole workspace, so no two files declare the same one.
//!
//! Tests are left out: only their own file sees what they declare.

use std::collections::BTreeMap;

use super::{TidyFault, Tree};

/// Folders whose types stand apart, since no other crate uses them. The simulator names its parts after the real ones
/// that they stand in for, and the crate of tests has its own words for a run and its parts.
const APART: [&str; 2] = ["coordinator/sim/", "tests/"];

/// What each program calls the types that clap reads its command line into: a program has one of each.
const PER_PROGRAM: [&str; 3] = ["Args", "Cli", "Command"];

/// A fault for each declaration of a name that an earlier file declares, by that declaration's path.
pub(super) fn doubles(tree: &Tree) -> Vec<(String, TidyFault)> {
    let mut firsts: BTreeMap<&str, (&str, usize)> = BTreeMap::new();
    let mut faults = Vec::new();
    for (path, text) in tree.iter().filter(|(path, _)| counts(path)) {
        for (line, name) in declared(text) {
            let (first, first_line) = *firsts.entry(name).or_insert((path, line));
            if first != path && !PER_PROGRAM.contains(&name) {
                let message = format!(
                    "the type `{name}` is declared at {first}:{first_line} too; name this one, or that one, after \
                     what sets it apart"
                );
                faults.push((path.clone(), TidyFault::new(line, message)));
            }
        }
    }
    faults
}

/// Whether a file's types count: it is Rust, no test, and does not stand apart.
fn counts(path: &str) -> bool {
    let (folders, file) = path.rsplit_once('/').unwrap_or(("", path));
    let is_test =
        file == "tests.rs" || folders.split('/').any(|folder| ["tests", "benches"].contains(&folder));
    file.ends_with(".rs") && !is_test && !APART.iter().any(|folder| path.starts_with(folder))
}

/// The types that a file declares outside of its tests, by line from 1. It is formatted, so what stands at the left
/// margin ends with a line that is `}` or ends with `;` or `}`.
fn declared(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        if line == "#[cfg(test)]" {
            let item = lines.by_ref().map(|(_, line)| line).find(|line| !line.starts_with("#["));
            if item.is_some_and(|item| item.ends_with('{')) {
                let _ = lines.by_ref().find(|(_, line)| *line == "}");
            }
        } else if let Some(name) = type_name(line) {
            found.push((index + 1, name));
        }
    }
    found
}

/// The name that a line declares, if it declares a type.
fn type_name(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')')?.1,
        Some(rest) => rest,
        None => line,
    };
    let line = line.trim_start();
    let line = line.strip_prefix("unsafe ").unwrap_or(line);
    let (kind, rest) = line.split_once(' ')?;
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let name = rest.get(..end).filter(|name| name.starts_with(char::is_uppercase))?;
    ["struct", "enum", "trait", "union"].contains(&kind).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_declares_a_type_gives_its_name() {
        for (line, name) in [
            ("pub struct Shard {", Some("Shard")),
            ("pub(crate) enum Part<'a> {", Some("Part")),
            ("pub(in crate::model) trait Form: Sized {", Some("Form")),
            ("pub unsafe trait Plain {}", Some("Plain")),
            ("    struct Pair(u32, u32);", Some("Pair")),
            ("union Bits {", Some("Bits")),
            ("struct Unit;", Some("Unit")),
            ("struct $name;", None),
            ("/// struct Shard of a file", None),
            ("impl Shard {", None),
            ("use crate::Shard;", None),
            ("type Rows = Vec<Row>;", None),
            ("let structs = Shard::new();", None),
            ("", None),
        ] {
            assert_eq!(type_name(line), name, "{line}");
        }
    }

    #[test]
    fn tests_inside_a_file_are_left_out() {
        let text = "struct A;\n#[cfg(test)]\nmod fixture;\nstruct B;\n#[cfg(test)]\n#[path = \"x\"]\nmod tests {\n    \
                    struct C;\n}\nstruct D;\n";
        assert_eq!(declared(text), [(1, "A"), (4, "B"), (10, "D")]);
    }

    #[test]
    fn a_name_is_declared_in_one_file() {
        let files = |paths: &[&str], text: &str| -> Tree {
            paths.iter().map(|path| ((*path).to_owned(), text.to_owned())).collect()
        };
        let text = "//! A.\nstruct Helm;\nmod deep {\n    struct Helm;\n}\n";
        for (paths, found) in [
            (&["a/src/a.rs"][..], &[][..]),
            (&["a/src/a.rs", "b/src/b.rs"], &["b/src/b.rs:2", "b/src/b.rs:4"]),
            (&["a/src/a.rs", "a/src/a/tests.rs", "a/src/tests/b.rs", "a/tests/c.rs", "a/benches/d.rs"], &[]),
            (&["a/src/a.rs", "coordinator/sim/src/a.rs", "tests/src/a.rs", "a/src/a.md"], &[]),
            (&["a/src/a.rs", "a/src/attests.rs"], &["a/src/attests.rs:2", "a/src/attests.rs:4"]),
        ] {
            let tree = files(paths, text);
            let faults = doubles(&tree);
            let places: Vec<_> =
                faults.iter().map(|(path, TidyFault { line, .. })| format!("{path}:{line}")).collect();
            assert_eq!(places, found, "{paths:?}");
            assert!(
                faults.iter().all(|(_, fault)| fault.message.contains("`Helm` is declared at a/src/a.rs:2"))
            );
            let told = super::super::faults(&tree);
            assert_eq!(told.iter().filter(|fault| fault.ends_with(" [one-name]")).count(), found.len());
        }
        for name in PER_PROGRAM {
            assert_eq!(doubles(&files(&["a/src/a.rs", "b/src/b.rs"], &format!("struct {name};\n"))), []);
        }
    }
}
