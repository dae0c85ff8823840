//! `fuzz`: what reads formats of others, under libfuzzer; `tests/fuzz` has the formats.
//!
//! The toolchain of the tree is enough: coverage is an LLVM pass, and the address sanitizer, which only a nightly one
//! has, would find nothing here, for these crates have no unsafe code of their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::repo::Repo;
use crate::run::{capture, cargo, human, run, say};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask fuzz                                 every format for ten minutes
  cargo xtask fuzz --target gguf --seconds 60      one of them for a minute")]
pub(crate) struct FuzzArgs {
    /// A format: one of the folders in tests/fuzz/corpus. Every format unless given.
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// How long each format is tried.
    #[arg(long, value_name = "N", default_value_t = 600)]
    seconds: u32,
}

/// What makes the compiler count edges and note comparisons, as `cargo fuzz` asks it to.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                        -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
                        -Ccodegen-units=1";

/// The longest input: more bytes are slower, and say the same again. A GGUF file begins with a whole vocabulary.
const INPUT_BYTES_MAX: u32 = 16_384;

/// The most memory in MiB that an input may make a program take, in all and at once. What 16 KiB of input pay for is far
/// below.
const MEMORY_MAX_MIB: [u32; 2] = [1024, 256];

/// An input that takes so many seconds is a finding: others take less than a millisecond.
const INPUT_SECONDS_MAX: u32 = 5;

/// Inputs that are kept have at most so many bytes each, and those of a format in all: they are part of the repository,
/// and every run of the tests reads them.
const KEPT_BYTES_MAX: [u64; 2] = [4096, 40 << 10];

/// The most kept inputs of a format, for the same reason.
const KEPT_FILES_MAX: usize = 64;

/// Where the kept inputs are, a folder for each format.
const CORPUS: &str = "tests/fuzz/corpus";

/// Runs each format, and keeps the inputs that reach new code.
///
/// # Errors
/// Names the first format with a finding, and the file of its input.
pub(crate) fn fuzz(repo: &Repo, args: &FuzzArgs) -> Result<()> {
    let all = targets(&repo.path(CORPUS))?;
    let chosen = match &args.target {
        None => all,
        Some(name) if all.contains(name) => vec![name.clone()],
        Some(name) => bail!("unknown format `{name}`; must be one of {}", all.join(", ")),
    };
    let triple = host()?;
    build(repo, &triple)?;
    for name in chosen {
        let format = FuzzFormat {
            corpus: repo.path(CORPUS).join(&name),
            program: program(repo, &triple, &name),
            name,
        };
        format.run(&repo.target("fuzz").join(&format.name), args.seconds)?;
    }
    Ok(())
}

/// The formats, by the names of the folders of their inputs.
fn targets(corpus: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(corpus).with_context(|| format!("reading {}", corpus.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.with_context(|| format!("reading {}", corpus.display()))?.file_name();
        names.push(name.to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// The machine's own triple. With a triple named, cargo leaves build scripts and macros uninstrumented.
fn host() -> Result<String> {
    let told = capture(Command::new("rustc").args(["--print", "host-tuple"]))?;
    Ok(String::from_utf8_lossy(&told).trim().to_owned())
}

/// Where these programs are built; the rest of the tree is compiled otherwise, and stays as it is.
fn built(repo: &Repo) -> PathBuf {
    let given = std::env::var_os("CARGO_TARGET_DIR").map(|folder| repo.root().join(folder).join("fuzz"));
    given.unwrap_or_else(|| repo.target("fuzz/build"))
}

fn build(repo: &Repo, triple: &str) -> Result<()> {
    let folder = repo.path("tests/fuzz/targets");
    // The programs read formats with the versions that users run. Cargo adds libfuzzer to this lock, which is pinned.
    let (from, to) = (repo.path("Cargo.lock"), folder.join("Cargo.lock"));
    fs::copy(&from, &to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    let mut command = cargo();
    command.current_dir(folder).args(["build", "--release", "--target", triple]);
    run(command.env("RUSTFLAGS", COVERAGE).env("CARGO_TARGET_DIR", built(repo)))
}

fn program(repo: &Repo, triple: &str, name: &str) -> PathBuf {
    built(repo).join(triple).join("release").join(name)
}

/// A format, its program, and its kept inputs.
struct FuzzFormat {
    name: String,
    program: PathBuf,
    corpus: PathBuf,
}

impl FuzzFormat {
    /// Tries inputs for so long; `work` holds what is found.
    fn run(&self, work: &Path, seconds: u32) -> Result<()> {
        let (found, findings) = (work.join("found"), work.join("findings"));
        for folder in [&found, &findings] {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
        }
        say(&format!("fuzz: {} for {}", self.name, human(Duration::from_secs(seconds.into()))));
        let limits = [
            format!("-max_total_time={seconds}"),
            format!("-max_len={INPUT_BYTES_MAX}"),
            format!("-rss_limit_mb={}", MEMORY_MAX_MIB[0]),
            format!("-malloc_limit_mb={}", MEMORY_MAX_MIB[1]),
            format!("-timeout={INPUT_SECONDS_MAX}"),
            format!("-artifact_prefix={}/", findings.display()),
            "-print_final_stats=1".to_owned(),
            "-verbosity=0".to_owned(),
        ];
        let tried = run(self.command().args(limits).arg(&found).arg(&self.corpus));
        // What was found before a finding is kept as well.
        self.keep(work, &found)?;
        tried.with_context(|| {
            format!(
                "{}: a finding lies in {}; mend its cause, and move the file to {}",
                self.name,
                findings.display(),
                self.corpus.display()
            )
        })
    }

    /// Copies found inputs that reach what no kept one does to the kept ones, as far as there is room.
    fn keep(&self, work: &Path, found: &Path) -> Result<()> {
        let merged = work.join("merged");
        if merged.exists() {
            fs::remove_dir_all(&merged).with_context(|| format!("removing {}", merged.display()))?;
        }
        fs::create_dir_all(&merged).with_context(|| format!("creating {}", merged.display()))?;
        let kept = sizes(&self.corpus)?;
        for name in kept.keys() {
            copy(&self.corpus.join(name), &merged.join(name))?;
        }
        let longest = format!("-max_len={}", KEPT_BYTES_MAX[0]);
        let options = ["-set_cover_merge=1", "-use_counters=0", "-verbosity=0", &longest];
        run(self.command().args(options).arg(&merged).arg(found))?;
        for name in chosen(&kept, &sizes(&merged)?) {
            copy(&merged.join(name), &self.corpus.join(name))?;
        }
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        // Each input is a folder of files; memory is faster than a disk.
        let memory = Path::new("/dev/shm");
        if memory.is_dir() {
            command.env("TMPDIR", memory);
        }
        command
    }
}

/// The files of a folder, and their bytes.
fn sizes(folder: &Path) -> Result<BTreeMap<String, u64>> {
    let reading = || format!("reading {}", folder.display());
    let mut sizes = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let bytes = entry.metadata().with_context(reading)?.len();
        sizes.insert(entry.file_name().to_string_lossy().into_owned(), bytes);
    }
    Ok(sizes)
}

/// The files of `merged` that are added to the kept ones, as far as there is room: in the order of their names, which
/// are digests, so that no kind of input is preferred.
fn chosen<'a>(kept: &BTreeMap<String, u64>, merged: &'a BTreeMap<String, u64>) -> Vec<&'a String> {
    let new = merged.iter().filter(|(name, _)| !kept.contains_key(*name));
    let mut room = KEPT_BYTES_MAX[1].saturating_sub(kept.values().sum());
    let mut fits = |bytes: u64| {
        let left = room.checked_sub(bytes);
        room = left.unwrap_or(room);
        left.is_some()
    };
    let files = KEPT_FILES_MAX.saturating_sub(kept.len());
    new.filter(|(_, bytes)| fits(**bytes)).map(|(name, _)| name).take(files).collect()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_has_a_program_and_kept_inputs() {
        let repo = Repo::find(None).unwrap();
        let names = targets(&repo.path(CORPUS)).unwrap();
        let manifest = fs::read_to_string(repo.path("tests/fuzz/targets/Cargo.toml")).unwrap();
        let listed: Vec<_> = manifest
            .lines()
            .filter_map(|line| line.strip_prefix("path = \"src/")?.strip_suffix(".rs\""))
            .collect();
        let mut sorted = listed.clone();
        sorted.sort_unstable();
        assert_eq!(names, sorted);
        for name in names {
            assert!(repo.path(&format!("tests/fuzz/src/{name}.rs")).is_file(), "{name}");
        }
    }

    #[test]
    fn new_inputs_are_kept_while_there_is_room() {
        let files = |files: &[(&str, u64)]| -> BTreeMap<String, u64> {
            files.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect()
        };
        let all = KEPT_BYTES_MAX[1];
        let kept = files(&[("a", 10), ("b", all - 20)]);
        let merged = files(&[("a", 10), ("b", all - 20), ("c", 7), ("d", 2), ("e", 3), ("f", 1)]);
        assert_eq!(chosen(&kept, &merged), ["c", "d", "f"]);
        assert_eq!(chosen(&files(&[("b", all + 1)]), &merged), Vec::<&str>::new());
        let many: Vec<_> = (0..2 * KEPT_FILES_MAX).map(|at| (format!("{at}"), 1)).collect();
        assert_eq!(chosen(&files(&[("a", 1)]), &many.into_iter().collect()).len(), KEPT_FILES_MAX - 1);
    }
}
