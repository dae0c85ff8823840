//! The mutation lane: bugs are planted in a copy of the core, one at a time, and the simulation has to
//! catch each within [`SEEDS`] seeds. The bugs are patches under `mutations/`, whose first line says what
//! they break; nothing in the product knows of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Within so many seeds a bug has to be caught.
const SEEDS: u64 = 200;

/// What the simulation is built from.
const CRATES: [&str; 3] = ["proto/types", "coordinator/core", "coordinator/sim"];

/// Plants each bug whose name contains `only`, and prints who caught it.
///
/// # Errors
/// A bug that survives, or whose patch does not apply or compile.
pub(crate) fn mutations(only: &str) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let lane = root.join("target/mutants");
    let tree = lane.join("tree");
    plant(&root, &tree)?;
    let mut patches: Vec<PathBuf> = fs::read_dir(root.join("coordinator/sim/mutations"))
        .context("the mutations cannot be listed")?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "patch"))
        .filter(|path| path.to_string_lossy().contains(only))
        .collect();
    patches.sort();
    let mut survived = Vec::new();
    for patch in &patches {
        let name = patch.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text =
            fs::read_to_string(patch).with_context(|| format!("{} cannot be read", patch.display()))?;
        let what = text.lines().next().unwrap_or_default();
        let caught = caught(&root, &tree, &lane, patch).with_context(|| name.clone());
        let verdict = match &caught {
            Ok(Some(by)) => by.clone(),
            Ok(None) => "SURVIVES".to_owned(),
            Err(error) => format!("FAILS: {error:#}"),
        };
        println!("{name:<28} {verdict:<28} {what}");
        if !matches!(caught, Ok(Some(_))) {
            survived.push(name);
        }
    }
    println!("{} bugs, {} caught within {SEEDS} seeds", patches.len(), patches.len() - survived.len());
    if !survived.is_empty() {
        bail!("not caught: {}", survived.join(", "));
    }
    Ok(())
}

/// Makes the copy anew; files that are the same are left alone, so that they are not compiled again.
fn plant(root: &Path, tree: &Path) -> Result<()> {
    for folder in CRATES {
        copy(&root.join(folder), &tree.join(folder))?;
    }
    let manifest = fs::read_to_string(root.join("Cargo.toml")).context("the workspace's manifest")?;
    let Some((head, (_, tail))) =
        manifest.split_once("members = [").and_then(|(head, rest)| Some((head, rest.split_once("\n\n")?)))
    else {
        bail!("Cargo.toml lists no members as it used to");
    };
    let members = CRATES.map(|folder| format!("\"{folder}\"")).join(", ");
    write(&tree.join("Cargo.toml"), format!("{head}members = [{members}]\n\n{tail}").as_bytes())?;
    let lock = fs::read(root.join("Cargo.lock")).context("Cargo.lock")?;
    write(&tree.join("Cargo.lock"), &lock)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let context = || format!("copying {}", from.display());
    fs::create_dir_all(to).with_context(context)?;
    for entry in fs::read_dir(from).with_context(context)? {
        let entry = entry.with_context(context)?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            copy(&source, &target)?;
        } else {
            write(&target, &fs::read(&source).with_context(context)?)?;
        }
    }
    Ok(())
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|before| before == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

/// Which rule catches a bug at which seed; `None` if none does.
fn caught(root: &Path, tree: &Path, lane: &Path, patch: &Path) -> Result<Option<String>> {
    copy(&root.join("coordinator/core"), &tree.join("coordinator/core"))?;
    let patch = patch.canonicalize().context("the patch")?;
    let mut command = Command::new("patch");
    command.current_dir(tree).args(["-p1", "--forward", "--batch", "--fuzz=0", "--reject-file=-"]);
    command.arg("--no-backup-if-mismatch").arg("-i").arg(&patch);
    expect(&mut command, "it does not apply")?;
    let target = lane.join("target");
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.current_dir(tree).args(["build", "--release", "--package", "coxswain-sim", "--offline"]);
    // Little optimisation and one crate at a time: what counts here is the time to compile.
    build.env("CARGO_TARGET_DIR", &target).env("CARGO_INCREMENTAL", "1");
    build.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1").env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    expect(&mut build, "it does not compile")?;
    let mut simulate = Command::new(target.join("release/coxswain-sim"));
    simulate.args(["--brief", "--seeds", &SEEDS.to_string()]);
    let output = simulate.stderr(Stdio::inherit()).output().context("the simulation does not start")?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    Ok((!output.status.success()).then_some(text))
}

fn expect(command: &mut Command, what: &str) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?} does not start"))?;
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{what}: {out}{err}");
    }
    Ok(())
}
