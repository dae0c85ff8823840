//! Pinned downloads through pip: the file's name says what is asked for, its digest what must come.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::run::{run, say, succeeds};

/// A file of the Python package index, by name and sha256. A wheel's name holds the package, the
/// version and the platform; nothing else is needed to ask pip for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pin {
    /// The file's name.
    pub(crate) file: &'static str,
    /// Its sha256, in hex.
    pub(crate) sha256: &'static str,
}

/// The Python whose wheels are pinned. Only their C++ parts are used, so it need not be the one that
/// runs here.
const PYTHON: [&str; 6] = ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311"];

impl Pin {
    /// `name==version`, as pip understands it.
    fn requirement(&self) -> String {
        let stem = self.file.trim_end_matches(".tar.gz");
        let mut parts = stem.split('-');
        let name = parts.next().unwrap_or_default().replace('_', "-");
        format!("{name}=={}", parts.next().unwrap_or_default())
    }

    /// What pip must be told beyond the requirement: the platforms of a wheel, or to build nothing
    /// but the source archive's metadata.
    fn flags(&self) -> Vec<String> {
        let Some(stem) = self.file.strip_suffix(".whl") else {
            let name = self.file.split('-').next().unwrap_or_default();
            return vec!["--no-binary".to_owned(), name.to_owned()];
        };
        let mut flags = vec!["--only-binary=:all:".to_owned()];
        flags.extend(PYTHON.map(str::to_owned));
        for platform in stem.rsplit('-').next().unwrap_or_default().split('.') {
            flags.extend(["--platform".to_owned(), platform.to_owned()]);
        }
        flags
    }
}

/// Refuses, with what to install, when there is no python3 with pip.
pub(crate) fn check_python() -> Result<()> {
    if !succeeds(Command::new("python3").arg("--version")) {
        bail!("python3 was not found; install it (on Debian: apt install python3 python3-pip) and try again");
    }
    if !succeeds(Command::new("python3").args(["-m", "pip", "--version"])) {
        bail!("python3 has no pip; install it (on Debian: apt install python3-pip) and try again");
    }
    Ok(())
}

/// Fetches a pinned file into `folder`, or finds it there, and returns its path.
///
/// # Errors
/// When pip fails, or what came has another digest; such a file is removed.
pub(crate) fn fetch(pin: Pin, folder: &Path) -> Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    let path = folder.join(pin.file);
    if path.is_file() {
        if sha256(&path)? == pin.sha256 {
            say(&format!("{} is cached", pin.file));
            return Ok(path);
        }
        say(&format!("{} in the cache is damaged; fetching it again", pin.file));
        remove(&path)?;
    }
    check_python()?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "-d"]).arg(folder);
    run(pip.args(pin.flags()).arg(pin.requirement()))
        .context("pip could not fetch it; is there a network?")?;
    if !path.is_file() {
        bail!("pip did not bring {} into {}", pin.file, folder.display());
    }
    let found = sha256(&path)?;
    if found != pin.sha256 {
        remove(&path)?;
        bail!("{} has sha256 {found} where {} is pinned; it was removed", pin.file, pin.sha256);
    }
    Ok(path)
}

fn remove(path: &Path) -> Result<()> {
    fs::remove_file(path).with_context(|| format!("could not remove {}", path.display()))
}

/// The sha256 of a file, in hex.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            let len = file.read(&mut buffer)?;
            if len == 0 {
                return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
            }
            hash.update(&buffer[..len]);
        }
    };
    read().with_context(|| format!("could not read {}", path.display()))
}

/// Unpacks members of an archive (wheel or tar.gz) below `folder`, with `strip` leading folders taken
/// off. A member that ends in `/` is a folder with all that it holds.
///
/// # Errors
/// When the archive cannot be read, or does not hold a member: then it is not what was expected.
pub(crate) fn unpack<S: AsRef<OsStr>>(
    archive: &Path,
    folder: &Path,
    strip: usize,
    members: &[S],
) -> Result<()> {
    let mut python = Command::new("python3");
    python.arg("-c").arg(include_str!("unpack.py")).arg(archive).arg(folder).arg(strip.to_string());
    run(python.args(members)).with_context(|| format!("could not unpack {}", archive.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_says_what_to_ask_pip_for() {
        let wheel = Pin {
            file: "nvidia_cuda_runtime-13.0.96-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            sha256: "",
        };
        assert_eq!(wheel.requirement(), "nvidia-cuda-runtime==13.0.96");
        assert_eq!(
            wheel.flags().join(" "),
            "--only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 \
             --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64"
        );
        let source = Pin { file: "brotli-1.2.1.tar.gz", sha256: "" };
        assert_eq!(source.requirement(), "brotli==1.2.1");
        assert_eq!(source.flags().join(" "), "--no-binary brotli");
    }

    #[test]
    fn a_cached_file_with_the_pinned_digest_needs_no_network() {
        let folder = tempfile::tempdir().unwrap();
        let pin = Pin {
            file: "cached-1.0-py3-none-any.whl",
            sha256: "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        };
        fs::write(folder.path().join(pin.file), "abc").unwrap();
        assert_eq!(fetch(pin, folder.path()).unwrap(), folder.path().join(pin.file));
    }

    #[test]
    fn unpacking_takes_the_named_members_and_misses_none() {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("a/b");
        fs::create_dir_all(source.join("keep")).unwrap();
        fs::write(source.join("keep/x"), "x").unwrap();
        fs::write(source.join("leave"), "y").unwrap();
        let archive = folder.path().join("a.tar.gz");
        run(Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(folder.path()).arg("a")).unwrap();
        let out = folder.path().join("out");
        unpack(&archive, &out, 2, &["a/b/keep/"]).unwrap();
        assert_eq!(fs::read_to_string(out.join("keep/x")).unwrap(), "x");
        assert!(!out.join("leave").exists());
        assert!(unpack(&archive, &out, 2, &["a/b/lea"]).is_err());
    }
}
