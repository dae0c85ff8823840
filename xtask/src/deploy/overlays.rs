//! Which files the overlays have, made of what the chart renders. Pure, but for reading the chart's templates.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// What can make the workers' pods: a value of the chart, and an overlay's folder.
pub(super) const FLAVOURS: [&str; 4] = ["jobset", "job", "leaderworkerset", "trainjob"];

/// The folder of what all overlays have.
const BASE: &str = "base";

/// The template whose documents depend on the flavour.
const WORKERS: &str = "workers.yaml";

/// The first lines of each file.
const HEAD: &str = "# Made of deploy/helm/coxswain by `cargo xtask deploy`: change the chart, or patch this in an overlay \
                    of your own.\n";

/// The texts of the chart's templates, by file name.
pub(super) fn templates(chart: &Path) -> Result<BTreeMap<String, String>> {
    let folder = chart.join("templates");
    let mut texts = BTreeMap::new();
    for file in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = file?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        texts.insert(name, text);
    }
    Ok(texts)
}

/// Adds the files of one flavour, by their paths below deploy/kubernetes. `rendered` is what `helm template` wrote.
///
/// # Errors
/// Where a document names no template, or the base differs from that of another flavour.
pub(super) fn add(
    made: &mut BTreeMap<String, String>,
    flavour: &str,
    rendered: &str,
    templates: &BTreeMap<String, String>,
) -> Result<()> {
    let mut files: BTreeMap<&str, Vec<(usize, String)>> = BTreeMap::new();
    for document in documents(rendered) {
        let (source, text) = document.split_once('\n').context("a document has one line only")?;
        let source = source.strip_prefix("# Source: coxswain/templates/");
        let source = source.with_context(|| format!("a document names no template: {document}"))?;
        let template = templates.get(source).with_context(|| format!("{source} is not a template"))?;
        files.entry(source).or_default().push((place(text, template), tidy(text)));
    }
    let (mut base, mut workers) = (Vec::new(), Vec::new());
    for (source, mut documents) in files {
        // helm sorts documents by their kinds; people read them as they were written.
        documents.sort_by_key(|(place, _)| *place);
        let texts: Vec<String> = documents.into_iter().map(|(_, text)| text).collect();
        let text = format!("{HEAD}{}", texts.join("---\n"));
        let folder = if source == WORKERS { flavour } else { BASE };
        if source == WORKERS { &mut workers } else { &mut base }.push(source);
        put(made, format!("{folder}/{source}"), text)?;
    }
    put(made, format!("{BASE}/kustomization.yaml"), kustomization(&base))?;
    workers.insert(0, "../base");
    put(made, format!("{flavour}/kustomization.yaml"), kustomization(&workers))
}

fn put(made: &mut BTreeMap<String, String>, path: String, text: String) -> Result<()> {
    let before = made.get(&path);
    ensure!(before.is_none_or(|before| *before == text), "{path} depends on the flavour of the workers");
    made.insert(path, text);
    Ok(())
}

/// The documents of a stream, without those that have no content.
fn documents(rendered: &str) -> impl Iterator<Item = &str> {
    let documents = rendered.split("---\n").map(str::trim);
    documents.filter(|document| document.lines().any(|line| !line.is_empty() && !line.starts_with('#')))
}

/// Where a template has the document, by its kind; each template has a kind once.
fn place(document: &str, template: &str) -> usize {
    let kind = document.lines().find(|line| line.starts_with("kind: ")).unwrap_or_default();
    template.find(&format!("{kind}\n")).unwrap_or(template.len())
}

/// Without the empty lines that conditions of the template leave.
fn tidy(text: &str) -> String {
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    lines.map(|line| format!("{line}\n")).collect()
}

fn kustomization(resources: &[&str]) -> String {
    let list: String = resources.iter().map(|resource| format!("  - {resource}\n")).collect();
    format!("{HEAD}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n{list}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RENDERED: &str = "---
# Source: coxswain/templates/coordinator.yaml
kind: Service
a: 1

---
# Source: coxswain/templates/empty.yaml
# Nothing here.
---
# Source: coxswain/templates/workers.yaml
kind: Job
---
# Source: coxswain/templates/coordinator.yaml
# The first.
kind: Account
   \x20
b: 2
";

    fn made(rendered: &str) -> Result<BTreeMap<String, String>> {
        let templates =
            [("coordinator.yaml", "kind: Account\n---\nkind: Service\n"), ("workers.yaml", "kind: Job\n")];
        let templates = templates.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let mut made = BTreeMap::new();
        add(&mut made, "job", rendered, &templates)?;
        Ok(made)
    }

    #[test]
    fn documents_go_to_the_files_of_their_templates_in_the_templates_order() {
        let made = made(RENDERED).unwrap();
        let kustomization = |resources: &str| {
            format!(
                "{HEAD}apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n{resources}"
            )
        };
        let expected = [
            (
                "base/coordinator.yaml",
                format!("{HEAD}# The first.\nkind: Account\nb: 2\n---\nkind: Service\na: 1\n"),
            ),
            ("base/kustomization.yaml", kustomization("  - coordinator.yaml\n")),
            ("job/kustomization.yaml", kustomization("  - ../base\n  - workers.yaml\n")),
            ("job/workers.yaml", format!("{HEAD}kind: Job\n")),
        ];
        assert_eq!(made, expected.map(|(path, text)| (path.to_owned(), text)).into());
    }

    #[test]
    fn a_base_that_differs_between_flavours_is_refused() {
        let mut first = made(RENDERED).unwrap();
        let error = put(&mut first, "base/coordinator.yaml".to_owned(), "other".to_owned()).unwrap_err();
        assert!(error.to_string().contains("depends on the flavour"), "{error}");
        assert!(made("---\nkind: Job\na: 1\n").unwrap_err().to_string().contains("names no template"));
    }
}
