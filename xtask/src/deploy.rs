//! `deploy`: the kustomize overlays in deploy/kubernetes, made of the Helm chart, and the checks of deploy/ that need
//! pinned tools but no cluster.
//!
//! - [`overlays`]: which files are made of what the chart renders;
//! - [`schema`]: Kubernetes' own schemas, strictly;
//! - [`kit`]: helm, kubectl, hadolint and the schemas, fetched.
//!
//! What must agree between the manifests is for `tests/tests/manifests.rs`, which needs no tools.

mod kit;
mod overlays;
mod schema;

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

pub(crate) use kit::DeployKit;

use crate::repo::Repo;
use crate::run::{capture, line, say, succeeds};
use overlays::FLAVOURS;
use schema::Schemas;

/// What to do.
#[derive(clap::Args, Debug)]
pub(crate) struct DeployArgs {
    /// Change nothing: fail where an overlay is not what the chart gives, or a check of deploy/ fails.
    #[arg(long)]
    check: bool,
}

/// The chart, below the root.
const CHART: &str = "deploy/helm/coxswain";

/// Where the overlays lie, below the root.
const OVERLAYS: &str = "deploy/kubernetes";

/// The releases of Kubernetes that manifests are checked for: the oldest that the chart takes, and newer ones.
const VERSIONS: [&str; 3] = ["v1.31.0", "v1.34.0", "v1.37.0"];

/// Values beside the defaults: everything that adds something.
const FULL: &str = "ci/full-values.yaml";

pub(crate) fn deploy(repo: &Repo, args: &DeployArgs) -> Result<()> {
    let kit = DeployKit::find(repo)?;
    if args.check { check(repo, &kit) } else { write(repo, &kit) }
}

/// Makes the overlays anew.
fn write(repo: &Repo, kit: &DeployKit) -> Result<()> {
    for (file, text) in overlays(repo, kit)? {
        let path = repo.path(OVERLAYS).join(&file);
        let folder = path.parent().context("a file lies in a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
        fs::write(&path, text).with_context(|| format!("could not write {}", path.display()))?;
        say(&format!("wrote {OVERLAYS}/{file}"));
    }
    Ok(())
}

/// Every check.
///
/// # Errors
/// At the first that fails.
pub(crate) fn check(repo: &Repo, kit: &DeployKit) -> Result<()> {
    let made = overlays(repo, kit)?;
    up_to_date(repo, &made)?;
    lint(repo, kit)?;
    let mut manifests = Vec::new();
    for flavour in FLAVOURS {
        let folder = repo.path(OVERLAYS).join(flavour);
        let built = text(capture(Command::new(&kit.kubectl).arg("kustomize").arg(folder))?)?;
        manifests.push((format!("{OVERLAYS}/{flavour}"), built));
        let full = repo.path(CHART).join(FULL);
        let values = full.to_str().context("the path of the repository is not UTF-8")?;
        let rendered = kit.render(repo, flavour, &["--values", values])?;
        manifests.push((format!("{CHART} with {FULL} for {flavour}"), rendered));
    }
    let mut fields = 0;
    for version in VERSIONS {
        let schemas = Schemas::read(&kit.schemas, version)?;
        for (name, text) in &manifests {
            let found = schema::documents(text).with_context(|| name.clone())?;
            for document in &found {
                let faults = schemas.faults(document);
                ensure!(faults.is_empty(), "{name}, Kubernetes {version}: {}", faults.join("; "));
                fields += schemas.misspelt(document).with_context(|| format!("{name}, {version}"))?;
            }
        }
    }
    say(&format!(
        "manifests: {} builds hold to {} schemas; {fields} misspelt fields are found",
        manifests.len(),
        VERSIONS.len()
    ));
    containers(repo, kit)
}

/// The overlays as the chart gives them, by their paths below deploy/kubernetes.
fn overlays(repo: &Repo, kit: &DeployKit) -> Result<BTreeMap<String, String>> {
    let templates = overlays::templates(&repo.path(CHART))?;
    let mut made = BTreeMap::new();
    for flavour in FLAVOURS {
        overlays::add(&mut made, flavour, &kit.render(repo, flavour, &[])?, &templates)?;
    }
    Ok(made)
}

/// Whether the files that lie there are these, and no others.
fn up_to_date(repo: &Repo, made: &BTreeMap<String, String>) -> Result<()> {
    let remedy = "`cargo xtask deploy` makes them of the chart";
    let mut files = 0;
    for folder in fs::read_dir(repo.path(OVERLAYS)).with_context(|| OVERLAYS.to_owned())? {
        for file in fs::read_dir(folder?.path()).with_context(|| OVERLAYS.to_owned())? {
            let path = file?.path();
            let below =
                path.strip_prefix(repo.path(OVERLAYS)).unwrap_or(&path).to_string_lossy().into_owned();
            let found = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let Some(wanted) = made.get(&below) else {
                bail!("{OVERLAYS}/{below} is not made by the chart; remove it, or add it to xtask/src/deploy")
            };
            let differs = wanted.lines().zip(found.lines()).position(|(wanted, found)| wanted != found);
            let differs = differs.map_or(wanted.lines().count().min(found.lines().count()), |line| line) + 1;
            ensure!(
                *wanted == found,
                "{OVERLAYS}/{below} differs from the chart at line {differs}; {remedy}"
            );
            files += 1;
        }
    }
    ensure!(files == made.len(), "{OVERLAYS} holds {files} of {} files; {remedy}", made.len());
    Ok(())
}

/// helm's own checks, and that a misspelt value is refused.
fn lint(repo: &Repo, kit: &DeployKit) -> Result<()> {
    let full = repo.path(CHART).join(FULL);
    for values in [None, Some(full)] {
        let mut lint = Command::new(&kit.helm);
        lint.args(["lint", "--strict", "--quiet"]).arg(repo.path(CHART));
        if let Some(values) = values {
            lint.arg("--values").arg(values);
        }
        let said = lint.output().with_context(|| format!("could not start `{}`", line(&lint)))?;
        ensure!(said.status.success(), "`{}`: {}", line(&lint), String::from_utf8_lossy(&said.stdout));
    }
    for bad in
        ["workers.flavor=job", "workers.flavour=deployment", "coordinator.extraArgs[0]=--insecure-network"]
    {
        let mut template = Command::new(&kit.helm);
        template.args(["template", "coxswain"]).arg(repo.path(CHART)).args(["--set", bad]);
        ensure!(!succeeds(&mut template), "the chart takes {bad}; values.schema.json has to refuse it");
    }
    Ok(())
}

/// hadolint on each container file.
fn containers(repo: &Repo, kit: &DeployKit) -> Result<()> {
    let mut files = Vec::new();
    for file in fs::read_dir(repo.path("deploy/containers")).context("deploy/containers")? {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "Containerfile") {
            files.push(path);
        }
    }
    files.sort();
    ensure!(!files.is_empty(), "deploy/containers holds no .Containerfile");
    let mut hadolint = Command::new(&kit.hadolint);
    let said = hadolint.arg("--no-color").args(&files).output().context("could not start hadolint")?;
    ensure!(said.status.success(), "hadolint: {}", String::from_utf8_lossy(&said.stdout));
    say(&format!("hadolint: {} container files", files.len()));
    Ok(())
}

fn text(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).context("what it wrote is not UTF-8")
}
