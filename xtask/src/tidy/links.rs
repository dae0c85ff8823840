//! Relative links of Markdown files: the file must exist, and so must the heading after a `#`.

use super::{TidyFault, Tree, text};

/// Every link of `path` that leads nowhere.
pub(super) fn check(path: &str, tree: &Tree) -> Vec<TidyFault> {
    let mut faults = Vec::new();
    for (line, target) in links(text(path, tree)) {
        if let Err(message) = resolve(path, &target, tree) {
            faults.push(TidyFault::new(line, format!("the link `{target}` {message}")));
        }
    }
    faults
}

/// Lines outside of fenced code, numbered from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        (!fenced && !fence).then_some((index + 1, line))
    })
}

/// The targets of `[text](target)`, outside of code.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        // Every second piece between backticks is code.
        let plain: String =
            line.split('`').enumerate().map(|(i, s)| if i % 2 == 0 { s } else { "_" }).collect();
        for (at, _) in plain.match_indices("](") {
            let target = plain[at + 2..].split([')', ' ']).next().unwrap_or_default();
            found.push((number, target.trim_matches(['<', '>']).to_owned()));
        }
    }
    found
}

fn resolve(from: &str, target: &str, tree: &Tree) -> Result<(), String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return Ok(());
    }
    let (file, heading) =
        target.split_once('#').map_or((target, None), |(file, heading)| (file, Some(heading)));
    let path =
        if file.is_empty() { from.to_owned() } else { join(from, file).ok_or("leads out of the tree")? };
    let folder = format!("{}/", path.trim_end_matches('/'));
    let exists =
        path.is_empty() || tree.contains_key(&path) || tree.keys().any(|known| known.starts_with(&folder));
    if !exists {
        return Err(format!("leads to `{path}`, which does not exist"));
    }
    match heading {
        Some(heading) if path.ends_with(".md") && !slugs(text(&path, tree)).contains(&heading.to_owned()) => {
            Err(format!("leads to a heading that `{path}` does not have"))
        }
        _ => Ok(()),
    }
}

/// `target` as seen from the folder of `from`; `None` above the root.
fn join(from: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = from.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// The anchors of a file's headings, as common renderers make them: lower case, spaces to hyphens,
/// other signs dropped, and a number after the second of the same name.
fn slugs(text: &str) -> Vec<String> {
    let mut slugs: Vec<String> = Vec::new();
    for (_, line) in prose(text).filter(|(_, line)| line.starts_with('#')) {
        let title = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        let slug: String = title.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect();
        let same = slugs.iter().filter(|known| **known == slug).count();
        slugs.push(if same == 0 { slug } else { format!("{slug}-{same}") });
    }
    slugs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_somewhere_or_are_named() {
        let tree: Tree = [
            ("README.md", ""),
            (
                "docs/guide.md",
                "# Getting started\n## What, *why* & how_to\n## Again\n## Again\n```\n# code\n```\n",
            ),
            ("deploy/jobs/demo.yaml", ""),
        ]
        .map(|(path, text)| (path.to_owned(), text.to_owned()))
        .into();
        for (target, fault) in [
            ("docs/guide.md", ""),
            ("./docs/../README.md", ""),
            ("deploy/jobs", ""),
            ("deploy/jobs/", ""),
            (".", ""),
            ("docs/guide.md#getting-started", ""),
            ("docs/guide.md#what-why--how_to", ""),
            ("docs/guide.md#again-1", ""),
            ("https://example.org/none#x", ""),
            ("docs/gide.md", "leads to `docs/gide.md`, which does not exist"),
            ("deploy/job", "leads to `deploy/job`, which does not exist"),
            ("docs/guide.md#again-2", "leads to a heading that `docs/guide.md` does not have"),
            ("docs/guide.md#code", "leads to a heading that `docs/guide.md` does not have"),
            ("#here", "leads to a heading that `README.md` does not have"),
            ("../outside.md", "leads out of the tree"),
        ] {
            assert_eq!(resolve("README.md", target, &tree).err().unwrap_or_default(), fault, "{target}");
        }
        assert_eq!(resolve("docs/guide.md", "../README.md", &tree), Ok(()));
    }

    #[test]
    fn code_holds_no_links() {
        let text = "see [a](x.md) and [b](<y.md> \"title\")\n`[c](z.md)` [`d`](w.md)\n```\n[e](v.md)\n```\n![f](u.svg)\n";
        let found = links(text);
        let targets: Vec<_> = found.iter().map(|(line, target)| (*line, target.as_str())).collect();
        assert_eq!(targets, [(1, "x.md"), (1, "y.md"), (2, "w.md"), (6, "u.svg")]);
    }
}
