//! Where things lie in the repository. Says nothing of what they are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The repository's root and the places below it.
pub(crate) struct Repo {
    root: PathBuf,
}

impl Repo {
    /// The repository that this tool was built from, or the one at `root`.
    pub(crate) fn find(root: Option<PathBuf>) -> Result<Repo> {
        let root = match root {
            Some(root) => root,
            None => {
                // `cargo run` says where the package lies now; the folder may have moved since the build.
                let package = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
                let package = package.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
                package.parent().context("the xtask package has no parent folder")?.to_owned()
            }
        };
        let root = std::path::absolute(&root)
            .with_context(|| format!("could not make {} absolute", root.display()))?;
        anyhow::ensure!(
            root.join("Cargo.toml").is_file(),
            "{} holds no Cargo.toml; run `cargo xtask` inside the repository",
            root.display()
        );
        Ok(Repo { root })
    }

    /// The root itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the root.
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.root.join(below)
    }

    /// A path below target/, where this tool keeps what it fetches. `.cargo/config.toml` names
    /// target/libtorch/cpu, so this does not follow `CARGO_TARGET_DIR`.
    pub(crate) fn target(&self, below: &str) -> PathBuf {
        self.root.join("target").join(below)
    }

    /// A release binary, where cargo puts it.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| self.root.join("target"), PathBuf::from);
        self.root.join(target).join("release").join(name)
    }
}
