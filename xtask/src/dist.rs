//! `dist`: one archive with both programs and libtorch, which runs wherever glibc is new enough; with licences, a bill of
//! materials and checksums.
//!
//! - [`parts`]: which crates are in the programs, as cargo tells, and the bill of materials.
//!
//! The coordinator is linked statically: it starts in an empty root. The worker asks for the system's glibc; the other
//! libraries that it needs lie in `lib`, where it looks for them.

mod parts;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::libtorch::{self, Libtorch};
use crate::pip::sha256;
use crate::repo::Repo;
use crate::run::{capture, cargo, run, say};
use parts::Shipped;

/// Where to put it.
#[derive(clap::Args, Debug)]
pub(crate) struct DistArgs {
    /// Start the coordinator, and the worker over this system's glibc, out of the unpacked archive; needs root for chroot.
    #[arg(long)]
    check: bool,
}

/// The system's own libraries: glibc, which cannot be brought along without its loader.
const SYSTEM: [&str; 8] = [
    "linux-vdso.so.1",
    "ld-linux-x86-64.so.2",
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libutil.so.1",
];

pub(crate) fn dist(repo: &Repo, args: &DistArgs) -> Result<()> {
    let libtorch = libtorch::setup(repo, &libtorch::LibtorchChoice::default())?;
    let metadata =
        capture(cargo().current_dir(repo.root()).args(["metadata", "--locked", "--format-version", "1"]))?;
    let shipped = Shipped::of(&metadata)?;
    let coordinator = build_coordinator(repo)?;
    let worker = build_worker(repo, &libtorch)?;
    let name = format!("coxswain-{}-{}-linux", shipped.version, std::env::consts::ARCH);
    let out = repo.target("dist");
    let root = out.join(&name);
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("could not remove {}", root.display()))?;
    }
    fill(repo, &root, &libtorch, &coordinator, &worker)?;
    licences(repo, &root, &shipped)?;
    write(&root.join("sbom.cdx.json"), &shipped.bill(libtorch::cpu_pins())?)?;
    checksums(&root)?;
    let archive = out.join(format!("{name}.tar.gz"));
    // The same bytes for the same content.
    let mut tar = Command::new("tar");
    tar.args([
        "--create",
        "--gzip",
        "--sort=name",
        "--owner=0",
        "--group=0",
        "--numeric-owner",
        "--mtime=@0",
        "--file",
    ]);
    run(tar.arg(&archive).arg("--directory").arg(&out).arg(&name))?;
    write(&archive.with_extension("gz.sha256"), &format!("{}  {name}.tar.gz\n", sha256(&archive)?))?;
    say(&format!("{} has {} MiB", archive.display(), fs::metadata(&archive)?.len() >> 20));
    if args.check { check(&out, &archive, &name) } else { Ok(()) }
}

/// The coordinator, linked statically, glibc too.
fn build_coordinator(repo: &Repo) -> Result<PathBuf> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut build = cargo();
    // A target of its own keeps the flags from build scripts, which have to load libraries.
    build.current_dir(repo.root()).args([
        "build",
        "--release",
        "--locked",
        "--package",
        "coxswain",
        "--target",
        &triple,
    ]);
    run(build.env("RUSTFLAGS", "-C target-feature=+crt-static"))?;
    let binary = repo.binary("coxswain");
    let folder = binary.parent().and_then(Path::parent).context("programs lie in target/PROFILE")?;
    Ok(folder.join(triple).join("release/coxswain"))
}

fn build_worker(repo: &Repo, libtorch: &Libtorch) -> Result<PathBuf> {
    let mut build = cargo();
    build.current_dir(repo.root()).args(["build", "--release", "--locked", "--package", "coxswain-worker"]);
    run(libtorch.apply(&mut build))?;
    Ok(repo.binary("coxswain-worker"))
}

/// The programs, the libraries that the worker loads, and what users read.
fn fill(repo: &Repo, root: &Path, libtorch: &Libtorch, coordinator: &Path, worker: &Path) -> Result<()> {
    copy(coordinator, &root.join("bin/coxswain"))?;
    copy(worker, &root.join("bin/coxswain-worker"))?;
    for library in libraries(worker, libtorch)? {
        let name = library.file_name().context("a library has a name")?;
        copy(&library, &root.join("lib").join(name))?;
    }
    for file in ["README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        copy(&repo.path(file), &root.join(file))?;
    }
    for folder in ["docs", "deploy"] {
        copy_folder(&repo.path(folder), &root.join(folder))?;
    }
    Ok(())
}

/// The libraries that a program loads, but for the system's.
fn libraries(program: &Path, libtorch: &Libtorch) -> Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    ldd.arg(program).env("LD_LIBRARY_PATH", libtorch.home().join("lib"));
    let said = String::from_utf8(capture(&mut ldd)?).context("ldd")?;
    loaded(&said)
}

/// What `ldd` says is loaded.
fn loaded(said: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for line in said.lines().map(str::trim) {
        let name = line.split_whitespace().next().unwrap_or_default();
        let name = name.rsplit('/').next().unwrap_or_default();
        if name.is_empty() || SYSTEM.contains(&name) {
            continue;
        }
        let path = line.split_once("=> ").map(|(_, path)| path.split(" (").next().unwrap_or_default());
        let path = path.with_context(|| format!("ldd: {line}"))?;
        ensure!(path != "not found", "the worker needs {name}, which is not found");
        found.push(PathBuf::from(path));
    }
    Ok(found)
}

/// The texts of the licences of all crates that are in the programs, and of libtorch.
fn licences(repo: &Repo, root: &Path, shipped: &Shipped) -> Result<()> {
    let folder = root.join("licences");
    for package in &shipped.crates {
        for file in package.licence_files()? {
            let name = file.file_name().context("a file has a name")?;
            copy(&file, &folder.join(format!("{}-{}", package.name, package.version)).join(name))?;
        }
    }
    write(&folder.join("README.md"), &shipped.notice(libtorch::cpu_pins()))?;
    copy(&repo.path("LICENSE-APACHE"), &folder.join("Apache-2.0"))
}

/// `SHA256SUMS` of every file, for `sha256sum --check`.
fn checksums(root: &Path) -> Result<()> {
    let mut lines = Vec::new();
    for file in files(root)? {
        let below = file.strip_prefix(root).unwrap_or(&file).to_string_lossy().into_owned();
        lines.push(format!("{}  {below}\n", sha256(&file)?));
    }
    write(&root.join("SHA256SUMS"), &lines.concat())
}

/// Unpacks the archive, checks its checksums, and starts both programs out of it: the coordinator where there is nothing
/// else, the worker beside the system's glibc alone.
fn check(out: &Path, archive: &Path, name: &str) -> Result<()> {
    let empty = out.join("root");
    if empty.exists() {
        fs::remove_dir_all(&empty).with_context(|| format!("could not remove {}", empty.display()))?;
    }
    fs::create_dir_all(&empty).context("a folder to unpack into")?;
    run(Command::new("tar").args(["--extract", "--file"]).arg(archive).arg("--directory").arg(&empty))?;
    let root = empty.join(name);
    run(Command::new("sha256sum").args(["--check", "--quiet", "SHA256SUMS"]).current_dir(&root))?;
    let chroot = |program: &str, args: &[&str]| {
        let mut command = Command::new("chroot");
        command.arg(&empty).arg(format!("/{name}/bin/{program}")).args(args).env_clear();
        run(&mut command)
    };
    chroot("coxswain", &["--version"])?;
    chroot("coxswain", &["plan", "--preset", "gpt2"])?;
    let said = String::from_utf8(capture(Command::new("ldd").arg(root.join("bin/coxswain-worker")))?)
        .context("ldd")?;
    for line in said.lines().filter(|line| SYSTEM.iter().any(|name| line.contains(name))) {
        let path = line.split_whitespace().find(|word| word.starts_with('/'));
        if let Some(path) = path {
            copy(Path::new(path), &empty.join(path.trim_start_matches('/')))?;
        }
    }
    // It starts itself anew by its own path, which is /proc's.
    fs::create_dir_all(empty.join("proc")).context("a folder for /proc")?;
    run(Command::new("mount").args(["-t", "proc", "proc"]).arg(empty.join("proc")))?;
    let probed = chroot("coxswain-worker", &["probe"]);
    run(Command::new("umount").arg(empty.join("proc")))?;
    probed?;
    say("the archive starts in an empty root");
    Ok(())
}

/// All files below a folder, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    Ok(found)
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    for file in files(from)? {
        copy(&file, &to.join(file.strip_prefix(from).unwrap_or(&file)))?;
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    fs::copy(from, to)
        .map(drop)
        .with_context(|| format!("could not copy {} to {}", from.display(), to.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    let folder = path.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_the_system_are_not_brought_along_and_a_missing_one_is_named() {
        let said = "
        linux-vdso.so.1 (0x00007ffd)
        libtorch_cpu.so => /x/lib/libtorch_cpu.so (0x00007f)
        libstdc++.so.6 => /lib/x86_64-linux-gnu/libstdc++.so.6 (0x00007f)
        libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)
        /lib64/ld-linux-x86-64.so.2 (0x00007f)
";
        let found = loaded(said).unwrap();
        assert_eq!(
            found,
            ["/x/lib/libtorch_cpu.so", "/lib/x86_64-linux-gnu/libstdc++.so.6"].map(PathBuf::from)
        );
        let error = loaded("libc10.so => not found").unwrap_err().to_string();
        assert_eq!(error, "the worker needs libc10.so, which is not found");
    }
}
