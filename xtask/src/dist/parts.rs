//! What is in the programs: their crates, as `cargo metadata` tells, and libtorch's wheels; as a CycloneDX bill of
//! materials, and as a list for people.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::json;

use crate::pip::Pin;
use crate::tools;

/// The packages that are programs.
const PROGRAMS: [&str; 2] = ["coxswain", "coxswain-worker"];

/// The crates of others that are in the programs.
pub(super) struct Shipped {
    /// The programs' version.
    pub(super) version: String,
    pub(super) crates: Vec<Crate>,
}

/// A package, as cargo tells.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Crate {
    id: String,
    pub(super) name: String,
    pub(super) version: String,
    license: Option<String>,
    /// `None` for our own.
    source: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Crate>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `None` for one that is linked, not only built or tested with.
    kind: Option<String>,
}

impl Shipped {
    /// What `cargo metadata` says.
    pub(super) fn of(metadata: &[u8]) -> Result<Shipped> {
        let Metadata { packages, resolve } = serde_json::from_slice(metadata).context("cargo metadata")?;
        let nodes: BTreeMap<&str, &Node> =
            resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
        let ours = |package: &&Crate| package.source.is_none() && PROGRAMS.contains(&package.name.as_str());
        let programs: Vec<&Crate> = packages.iter().filter(ours).collect();
        let version = programs.first().context("the workspace has no program")?.version.clone();
        let mut open: Vec<&str> = programs.iter().map(|package| package.id.as_str()).collect();
        let mut linked = BTreeSet::new();
        while let Some(id) = open.pop() {
            if !linked.insert(id) {
                continue;
            }
            let node = nodes.get(id).with_context(|| format!("cargo metadata resolves no {id}"))?;
            let links =
                |dependency: &&Dependency| dependency.dep_kinds.iter().any(|kind| kind.kind.is_none());
            open.extend(node.deps.iter().filter(links).map(|dependency| dependency.pkg.as_str()));
        }
        let in_them = |package: &&Crate| package.source.is_some() && linked.contains(package.id.as_str());
        let mut crates: Vec<Crate> = packages.iter().filter(in_them).cloned().collect();
        crates.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        Ok(Shipped { version, crates })
    }

    /// The bill of materials, as CycloneDX has it.
    pub(super) fn bill(&self, wheels: impl Iterator<Item = Pin>) -> Result<String> {
        let crates = self.crates.iter().map(|package| {
            let (name, version) = (&package.name, &package.version);
            let purl = format!("pkg:cargo/{name}@{version}");
            let licences = json!([{"expression": package.licence()}]);
            json!({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "licenses": licences})
        });
        let wheels = wheels.map(|pin| -> Result<serde_json::Value> {
            let stem = tools::stem(pin.file)?;
            let (name, version) = stem.split_once('-').context("the name of a wheel")?;
            let purl = format!("pkg:pypi/{}@{version}", name.replace('_', "-"));
            let hashes = json!([{"alg": "SHA-256", "content": pin.sha256}]);
            Ok(json!({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl, "hashes": hashes}))
        });
        let components = crates.map(Ok).chain(wheels).collect::<Result<Vec<_>>>()?;
        let bill = json!({
            "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1,
            "metadata": {"component": {"type": "application", "name": "coxswain", "version": self.version}},
            "components": components,
        });
        Ok(serde_json::to_string_pretty(&bill).context("the bill of materials")? + "\n")
    }

    /// Whose work is in the archive, for people.
    pub(super) fn notice(&self, wheels: impl Iterator<Item = Pin>) -> String {
        let mut text = "# Work of others\n\nThe programs contain these crates. A folder for each has the texts that came \
                        with it.\n\n| Crate | Licence |\n|---|---|\n"
            .to_owned();
        for package in &self.crates {
            text += &format!("| {} {} | {} |\n", package.name, package.version, package.licence());
        }
        text += "\nThe libraries in `lib` come from these packages of the Python package index, which have their \
                 licences (PyTorch: BSD-3-Clause; CUDA: NVIDIA's), and from the system that built the archive \
                 (libstdc++ and libgcc: GPL-3.0 with the GCC runtime library exception):\n\n";
        for pin in wheels {
            text += &format!("- {} (sha256 {})\n", pin.file, pin.sha256);
        }
        text
    }
}

impl Crate {
    fn licence(&self) -> String {
        // An old way to write `OR`.
        self.license.as_deref().unwrap_or("unknown").replace('/', " OR ")
    }

    /// The texts beside its manifest that say under which terms it is given.
    pub(super) fn licence_files(&self) -> Result<Vec<PathBuf>> {
        let folder = self.manifest_path.parent().context("a manifest lies in a folder")?;
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().to_uppercase();
            let is_licence =
                ["LICENSE", "LICENCE", "COPYING", "NOTICE"].iter().any(|start| name.starts_with(start));
            if is_licence && entry.file_type()?.is_file() {
                found.push(entry.path());
            }
        }
        found.sort();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_linked_is_in_the_bill_and_what_only_builds_is_not() {
        let package = |name: &str, source: Option<&str>| {
            json!({"id": name, "name": name, "version": "1.2.3", "license": "MIT/Apache-2.0", "source": source,
                   "manifest_path": "/none/Cargo.toml"})
        };
        let node = |id: &str, deps: &[(&str, Option<&str>)]| {
            let deps: Vec<_> =
                deps.iter().map(|(pkg, kind)| json!({"pkg": pkg, "dep_kinds": [{"kind": kind}]})).collect();
            json!({"id": id, "deps": deps})
        };
        let metadata = json!({
            "packages": [
                package("coxswain", None), package("coxswain-worker", None), package("core", None),
                package("linked", Some("registry")), package("deep", Some("registry")),
                package("builds", Some("registry")), package("tests", Some("registry")),
            ],
            "resolve": {"nodes": [
                node("coxswain", &[("core", None), ("builds", Some("build")), ("tests", Some("dev"))]),
                node("coxswain-worker", &[("linked", None)]),
                node("core", &[("deep", None)]),
                node("linked", &[]), node("deep", &[("linked", None)]), node("builds", &[]), node("tests", &[]),
            ]},
        });
        let shipped = Shipped::of(metadata.to_string().as_bytes()).unwrap();
        let names: Vec<_> = shipped.crates.iter().map(|package| package.name.as_str()).collect();
        assert_eq!((names, shipped.version.as_str()), (vec!["deep", "linked"], "1.2.3"));
        let wheel = Pin { file: "torch-2.11.0-cp311-none-any.whl", sha256: "ab" };
        let bill = shipped.bill([wheel].into_iter()).unwrap();
        for part in
            ["pkg:cargo/deep@1.2.3", "MIT OR Apache-2.0", "pkg:pypi/torch@2.11.0", "\"content\": \"ab\""]
        {
            assert!(bill.contains(part), "{part}: {bill}");
        }
        assert!(shipped.notice([wheel].into_iter()).contains("| linked 1.2.3 | MIT OR Apache-2.0 |"));
    }
}
