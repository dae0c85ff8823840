//! `setup`: libtorch 2.11.0, the one that tch 0.24 is bound to, from pinned wheels.
//!
//! A wheel of torch holds headers and libraries; on a CPU that and two small NVIDIA libraries, which
//! libtorch_cpu.so names even where there is no GPU, make a libtorch. A folder is filled beside its
//! place and renamed into it, so what is found in place is whole; its stamp says what it was made of.
//! What [`crate::gpu`] needs of the same and other wheels is made by the same rules.
//! Which programs are built against it is for [`crate::demo`] and [`crate::test`] to say.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::pip::{self, Pin};
use crate::repo::Repo;
use crate::run::{run, say, succeeds};

/// The version that `tch` in the root's Cargo.toml goes with; they move together.
const VERSION: &str = "2.11.0";

/// Which libtorch is wanted.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub(crate) struct LibtorchChoice {
    /// The libtorch for NVIDIA GPUs: 2.5 GB to fetch, 3.7 GB on disk. Not verified by the tests, which
    /// have no GPU.
    #[arg(long)]
    pub(crate) cuda: bool,
}

/// A libtorch that is ready to build against.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Libtorch {
    home: PathBuf,
}

impl Libtorch {
    /// The libtorch's own folder.
    pub(crate) fn home(&self) -> &Path {
        &self.home
    }

    /// Adds to a C++ compiler's command what a program over this libtorch needs.
    pub(crate) fn link<'a>(&self, compiler: &'a mut Command) -> &'a mut Command {
        let (include, lib) = (self.home.join("include"), self.home.join("lib"));
        compiler.arg("-isystem").arg(&include).arg("-isystem").arg(include.join("torch/csrc/api/include"));
        compiler.arg("-L").arg(&lib).args(["-l:libtorch_cpu.so", "-l:libc10.so", "-l:libgomp.so.1", "-ldl"]);
        compiler.arg(format!("-Wl,-rpath,{}", lib.display()))
    }

    /// Makes a command build against this libtorch.
    pub(crate) fn apply<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("LIBTORCH", &self.home)
    }
}

/// A way to make a libtorch, or something beside it, out of wheels.
pub(crate) struct Recipe {
    /// The folder that is made, below target/libtorch.
    pub(crate) name: &'static str,
    /// What `LIBTORCH` names, below that folder.
    pub(crate) home: &'static str,
    /// The wheels, as `sha256sum` lists files. A folder is stamped with this text.
    pub(crate) wheels: &'static str,
    /// For wheels whose names start so: how many leading folders come off, and which members are taken.
    pub(crate) take: &'static [(&'static str, usize, &'static [&'static str])],
    /// Files without which it is not whole, below `home`.
    pub(crate) needed: &'static [&'static str],
    /// Whether libtorch.so is to be made: torch's own asks for the GPU libraries.
    pub(crate) stand_in: bool,
}

const CPU: Recipe = Recipe {
    name: "cpu",
    home: "",
    wheels: include_str!("../wheels/cpu.sha256"),
    take: &[
        (
            "torch-",
            1,
            &["torch/include/", "torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp.so.1"],
        ),
        ("nvidia_cuda_runtime-", 2, &["nvidia/cu13/lib/libcudart.so.13"]),
        ("nvidia_cuda_cupti-", 2, &["nvidia/cu13/lib/libcupti.so.13"]),
    ],
    needed: &[
        "include/torch/csrc/api/include/torch/torch.h",
        "lib/libtorch_cpu.so",
        "lib/libc10.so",
        "lib/libgomp.so.1",
        "lib/libgomp.so",
        "lib/libcudart.so.13",
        "lib/libcupti.so.13",
        "lib/libtorch.so",
    ],
    stand_in: true,
};

/// This keeps the wheels' own layout, for torch's libraries look for NVIDIA's in ../../nvidia.
const CUDA: Recipe = Recipe {
    name: "cuda",
    home: "torch",
    wheels: include_str!("../wheels/cuda.sha256"),
    take: &[("torch-", 0, &["torch/include/", "torch/lib/"]), ("nvidia_", 0, &["nvidia/"])],
    needed: &[
        "include/torch/csrc/api/include/torch/torch.h",
        "lib/libtorch_cpu.so",
        "lib/libtorch_cuda.so",
        "lib/libc10.so",
        "lib/libc10_cuda.so",
        "lib/libtorch.so",
        "lib/libgomp.so",
        "../nvidia/cu13/lib/libcudart.so.13",
    ],
    stand_in: false,
};

impl Recipe {
    /// The folder that is made.
    pub(crate) fn folder(&self, repo: &Repo) -> PathBuf {
        repo.target("libtorch").join(self.name)
    }

    fn pins(&self) -> impl Iterator<Item = Pin> {
        wheel_pins(self.wheels)
    }

    /// How many leading folders come off the members of a wheel, and which are taken.
    fn members(&self, file: &str) -> Result<(usize, &'static [&'static str])> {
        let row = self.take.iter().find(|(start, ..)| file.starts_with(start));
        let (_, strip, members) = row.with_context(|| format!("nothing is said of what {file} is for"))?;
        Ok((*strip, members))
    }

    fn missing(&self, folder: &Path) -> Option<&'static str> {
        self.needed.iter().find(|file| !folder.join(self.home).join(file).exists()).copied()
    }
}

/// The files of a list as `sha256sum` writes it.
pub(crate) fn wheel_pins(list: &'static str) -> impl Iterator<Item = Pin> {
    let rows = list.lines().filter_map(|row| row.split_once("  "));
    rows.map(|(sha256, file)| Pin { file, sha256 })
}

/// The wheels that the libtorch for CPUs is made of.
pub(crate) fn cpu_pins() -> impl Iterator<Item = Pin> {
    CPU.pins()
}

/// The file that holds a recipe's stamp.
const STAMP: &str = "made-of";

/// Makes sure that there is a libtorch: the user's own if `LIBTORCH` names one, else ours.
///
/// # Errors
/// When the user's has another version, when a prerequisite is missing, or when the fetch fails.
pub(crate) fn setup(repo: &Repo, choice: &LibtorchChoice) -> Result<Libtorch> {
    setup_with(repo, choice, &[])
}

/// The same, and with a libtorch of ours what else is made of wheels. One that several are made of is fetched once.
///
/// # Errors
/// As for [`setup`].
pub(crate) fn setup_with(repo: &Repo, choice: &LibtorchChoice, others: &[&Recipe]) -> Result<Libtorch> {
    check_compiler()?;
    if let Some(home) = users_own(repo, env::var_os("LIBTORCH").map(PathBuf::from)) {
        check_users_own(&home)?;
        say(&format!("libtorch: LIBTORCH={} is used as it is", home.display()));
        return Ok(Libtorch { home });
    }
    let recipe = if choice.cuda { &CUDA } else { &CPU };
    let folder = recipe.folder(repo);
    let home = if recipe.home.is_empty() { folder.clone() } else { folder.join(recipe.home) };
    provide(repo, &[&[recipe], others].concat())?;
    say(&format!("libtorch: {VERSION} for {} in {}", recipe.name, home.display()));
    if choice.cuda {
        say(&format!("workers with --device cuda open it: export LD_LIBRARY_PATH={}/lib", home.display()));
    }
    Ok(Libtorch { home })
}

/// Makes what is not there yet.
///
/// # Errors
/// When a wheel cannot be fetched or unpacked.
pub(crate) fn provide(repo: &Repo, recipes: &[&Recipe]) -> Result<()> {
    let _lock = lock(&repo.target("libtorch"))?;
    let mut fetched = Vec::new();
    for recipe in recipes {
        let folder = recipe.folder(repo);
        if !reuse(recipe, &folder)? {
            fetched.extend(make(recipe, &folder, &repo.target("wheels"))?);
        }
    }
    if !fetched.is_empty() {
        for wheel in fetched {
            let _ = fs::remove_file(wheel);
        }
        say("the wheels were unpacked and removed, which frees their space");
    }
    Ok(())
}

/// The folder that the user chose, if it is not just what `.cargo/config.toml` says.
fn users_own(repo: &Repo, set: Option<PathBuf>) -> Option<PathBuf> {
    let set = set.filter(|path| !path.as_os_str().is_empty())?;
    let ours = repo.target("libtorch/cpu");
    let same = std::path::absolute(&set).is_ok_and(|path| path == ours)
        || matches!((set.canonicalize(), ours.canonicalize()), (Ok(a), Ok(b)) if a == b);
    (!same).then_some(set)
}

/// Refuses a libtorch that tch would not build against, before minutes are spent on trying.
fn check_users_own(home: &Path) -> Result<()> {
    ensure!(
        home.join("lib/libtorch_cpu.so").exists() || home.join("lib/libtorch_cpu.dylib").exists(),
        "LIBTORCH is {}, which holds no lib/libtorch_cpu.so; name a libtorch {VERSION}, or unset LIBTORCH \
         to have one fetched",
        home.display()
    );
    match version(home) {
        Some(version) if version != VERSION => bail!(
            "LIBTORCH is {}, a libtorch {version}, but {VERSION} is needed; name that, or unset LIBTORCH to \
             have it fetched",
            home.display()
        ),
        Some(_) => Ok(()),
        None => {
            say(&format!("{} does not tell its version; {VERSION} is needed", home.display()));
            Ok(())
        }
    }
}

/// The version without its local part: a libtorch says it in build-version, Python's in version.py.
fn version(home: &Path) -> Option<String> {
    let plain = fs::read_to_string(home.join("build-version")).ok();
    let text = plain.or_else(|| {
        let python = fs::read_to_string(home.join("version.py")).ok()?;
        let line = python.lines().find(|line| line.starts_with("__version__"))?;
        Some(line.split(['\'', '"']).nth(1)?.to_owned())
    })?;
    Some(text.trim().split('+').next().unwrap_or_default().to_owned())
}

fn check_compiler() -> Result<()> {
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    ensure!(
        succeeds(Command::new(&compiler).arg("--version")),
        "no C++ compiler: `{compiler}` could not be run; install one (on Debian: apt install g++) or name it \
         in CXX"
    );
    Ok(())
}

/// Two set-ups at once would fill the same folder; the second waits for the first.
fn lock(folder: &Path) -> Result<File> {
    fs::create_dir_all(folder).with_context(|| format!("could not create {}", folder.display()))?;
    let path = folder.join("lock");
    let file = File::create(&path).with_context(|| format!("could not create {}", path.display()))?;
    if file.try_lock().is_err() {
        say("another set-up is running; waiting for it to end");
        file.lock().with_context(|| format!("could not lock {}", path.display()))?;
    }
    Ok(file)
}

/// Whether what is in place serves. A whole folder of the right version without a stamp was made by
/// hand; it is stamped, and kept.
fn reuse(recipe: &Recipe, folder: &Path) -> Result<bool> {
    if !folder.exists() {
        return Ok(false);
    }
    if let Some(missing) = recipe.missing(folder) {
        say(&format!("{} lacks {missing}; making it anew", folder.display()));
        return Ok(false);
    }
    let stamp = folder.join(STAMP);
    match fs::read_to_string(&stamp) {
        Ok(text) if text == recipe.wheels => Ok(true),
        Ok(_) => {
            say(&format!("{} is made of other wheels; making it anew", folder.display()));
            Ok(false)
        }
        Err(_) if version(&folder.join(recipe.home)).as_deref() == Some(VERSION) => {
            write(&stamp, recipe.wheels)?;
            Ok(true)
        }
        Err(_) => {
            say(&format!("{} is not a libtorch {VERSION}; making it anew", folder.display()));
            Ok(false)
        }
    }
}

/// Fills the folder, and returns the wheels that it was made of.
fn make(recipe: &Recipe, folder: &Path, wheels: &Path) -> Result<Vec<PathBuf>> {
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "libtorch is fetched on Linux on x86-64 only; elsewhere set LIBTORCH to a libtorch {VERSION} of your own"
    );
    let partial = folder.with_extension("partial");
    clear(&partial)?;
    let mut fetched = Vec::new();
    for pin in recipe.pins() {
        let (strip, members) = recipe.members(pin.file)?;
        let wheel = pip::fetch(pin, wheels)
            .with_context(|| format!("no libtorch; with one of your own, set LIBTORCH to it ({VERSION})"))?;
        pip::unpack(&wheel, &partial, strip, members)?;
        fetched.push(wheel);
    }
    let home = partial.join(recipe.home);
    if recipe.stand_in {
        link_stand_in(&home.join("lib"))?;
    }
    if home.join("lib/libgomp.so.1").exists() {
        std::os::unix::fs::symlink("libgomp.so.1", home.join("lib/libgomp.so"))
            .context("could not link libgomp.so")?;
    }
    write(&home.join("build-version"), VERSION)?;
    write(&partial.join(STAMP), recipe.wheels)?;
    if let Some(missing) = recipe.missing(&partial) {
        bail!("the wheels hold no {missing}");
    }
    clear(folder)?;
    fs::rename(&partial, folder).with_context(|| format!("could not move {} in place", partial.display()))?;
    Ok(fetched)
}

/// Makes an empty libtorch.so that needs the two libraries that there are. torch's own needs
/// libtorch_cuda.so as well.
fn link_stand_in(lib: &Path) -> Result<()> {
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let mut linker = Command::new(compiler);
    linker.current_dir(lib).args(["-shared", "-o", "libtorch.so", "-Wl,-soname,libtorch.so"]);
    linker.args(["-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN", "-L.", "-l:libtorch_cpu.so", "-l:libc10.so"]);
    run(&mut linker).context("could not make libtorch.so")
}

fn clear(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("could not remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("could not write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with all that the CPU's libtorch needs, empty.
    fn whole(folder: &Path, version: &str) {
        for file in CPU.needed {
            let path = folder.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        fs::write(folder.join("build-version"), version).unwrap();
    }

    #[test]
    fn a_whole_folder_is_reused_and_stamped_and_a_changed_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("cpu");
        assert!(!reuse(&CPU, &folder).unwrap(), "nothing there");
        whole(&folder, "2.10.0");
        assert!(!reuse(&CPU, &folder).unwrap(), "another version");
        whole(&folder, "2.11.0\n");
        assert!(reuse(&CPU, &folder).unwrap(), "made by hand");
        assert_eq!(fs::read_to_string(folder.join(STAMP)).unwrap(), CPU.wheels);
        assert!(reuse(&CPU, &folder).unwrap(), "stamped");
        fs::write(folder.join(STAMP), "other pins\n").unwrap();
        assert!(!reuse(&CPU, &folder).unwrap(), "other pins");
        fs::write(folder.join(STAMP), CPU.wheels).unwrap();
        fs::remove_file(folder.join("lib/libc10.so")).unwrap();
        assert!(!reuse(&CPU, &folder).unwrap(), "a library is missing");
    }

    #[test]
    fn every_pin_is_whole_and_has_a_use() {
        for (recipe, count) in [(&CPU, 3), (&CUDA, 16), (&crate::gpu::EMULATED, 4), (&crate::gpu::NVCC, 5)] {
            assert_eq!(recipe.pins().count(), count);
            assert_eq!(recipe.wheels.lines().count(), count);
            for pin in recipe.pins() {
                assert!(pin.file.ends_with("x86_64.whl"), "{}", pin.file);
                assert_eq!(pin.sha256.len(), 64, "{}", pin.file);
                recipe.members(pin.file).unwrap();
            }
        }
    }

    #[test]
    fn the_folder_that_cargo_names_is_not_the_users_own() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("Cargo.toml"), "").unwrap();
        let repo = Repo::find(Some(root.path().to_owned())).unwrap();
        assert_eq!(users_own(&repo, None), None);
        assert_eq!(users_own(&repo, Some(PathBuf::new())), None);
        assert_eq!(users_own(&repo, Some(repo.target("libtorch/cpu"))), None);
        let other = repo.target("libtorch/cuda/torch");
        assert_eq!(users_own(&repo, Some(other.clone())), Some(other));
    }

    #[test]
    fn the_users_own_is_refused_for_another_version_only() {
        for (file, text, refused) in [
            ("build-version", "2.11.0\n", None),
            ("build-version", "2.11.0+cpu", None),
            ("build-version", "2.13.0+cu130", Some("a libtorch 2.13.0, but 2.11.0 is needed")),
            ("version.py", "__version__ = '2.11.0+cu130'\ndebug = False\n", None),
            ("version.py", "__version__ = '2.4.1'\n", Some("a libtorch 2.4.1, but 2.11.0 is needed")),
            ("nothing", "", None),
        ] {
            let folder = tempfile::tempdir().unwrap();
            assert!(
                check_users_own(folder.path())
                    .unwrap_err()
                    .to_string()
                    .contains("holds no lib/libtorch_cpu.so")
            );
            fs::create_dir(folder.path().join("lib")).unwrap();
            fs::write(folder.path().join("lib/libtorch_cpu.so"), "").unwrap();
            fs::write(folder.path().join(file), text).unwrap();
            let found = check_users_own(folder.path()).err().map(|error| error.to_string());
            match refused {
                None => assert_eq!(found, None, "{file} {text}"),
                Some(part) => {
                    assert!(found.as_deref().is_some_and(|f| f.contains(part)), "{text}: {found:?}")
                }
            }
        }
    }
}
