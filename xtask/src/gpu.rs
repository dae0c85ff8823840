//! `kernels`: the library of GPU kernels, by nvcc from pinned wheels; for the tests an emulated GPU with the same kernels
//! compiled for the CPU; and `gpu-kit`: all that a machine with a GPU needs to check this tree. None needs a GPU.
//!
//! worker/native/emulated/build.sh says how the emulation is built, docs/gpus.md what it can show.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::libtorch::{self, Libtorch, Recipe};
use crate::repo::Repo;
use crate::run::{capture, cargo, run, say};

/// libtorch's CUDA libraries, of the same wheel as the CPU's, and headers for the emulation.
pub(crate) const EMULATED: Recipe = Recipe {
    name: "emulated",
    home: "",
    wheels: include_str!("../wheels/emulated.sha256"),
    take: &[
        (
            "torch-",
            0,
            &["torch/lib/libtorch_cuda.so", "torch/lib/libc10_cuda.so", "torch/lib/libtorch_nvshmem.so"],
        ),
        ("nvidia_", 0, &["nvidia/cu13/include/"]),
    ],
    needed: &[
        "torch/lib/libtorch_cuda.so",
        "torch/lib/libc10_cuda.so",
        "torch/lib/libtorch_nvshmem.so",
        "nvidia/cu13/include/cuda_runtime_api.h",
        "nvidia/cu13/include/crt/host_defines.h",
    ],
    stand_in: false,
};

/// NVIDIA's compiler.
pub(crate) const NVCC: Recipe = Recipe {
    name: "nvcc",
    home: "",
    wheels: include_str!("../wheels/nvcc.sha256"),
    take: &[("nvidia_", 0, &["nvidia/"])],
    needed: &["nvidia/cu13/bin/nvcc", "nvidia/cu13/nvvm/bin/cicc", "nvidia/cu13/lib/libcudart.so.13"],
    stand_in: false,
};

/// The generations of GPUs whose code the library holds: A100 and H100.
const GENERATIONS: [&str; 2] = ["80", "90"];

/// Compiles the kernels into the folder where cargo puts the worker.
///
/// # Errors
/// The compiler cannot be fetched, or refuses a kernel.
pub(crate) fn kernels(repo: &Repo) -> Result<()> {
    libtorch::provide(repo, &[&NVCC])?;
    let home = NVCC.folder(repo).join("nvidia/cu13");
    executable(&home.join("bin"))?;
    executable(&home.join("nvvm/bin"))?;
    let library = repo.target("release").join("libcoxswain_cuda.so");
    let sources = sources(repo)?;
    let stamp = stamp(&sources, NVCC.wheels)?;
    if is_stamped(&library, &stamp) {
        say(&format!("kernels: {} is up to date", library.display()));
        return Ok(());
    }
    drop_stamp(&library);
    fs::create_dir_all(repo.target("release")).context("could not create target/release")?;
    let mut nvcc = Command::new(home.join("bin/nvcc"));
    nvcc.current_dir(folder(repo)).args([
        "-std=c++17",
        "-O3",
        "-shared",
        "-cudart",
        "none",
        "--threads",
        "0",
    ]);
    // The order of roundings is what the source says, on the CPU too.
    nvcc.args(["-fmad=false", "-Xcompiler", "-fPIC,-fvisibility=hidden"]);
    nvcc.args(GENERATIONS.map(|of| format!("-gencode=arch=compute_{of},code=sm_{of}")));
    nvcc.arg("-o").arg(&library).args(of_kind(&sources, "cu"));
    run(nvcc.arg("-L").arg(home.join("lib")).arg("-l:libcudart.so.13"))?;
    set_stamp(&library, &stamp)?;
    say(&format!("kernels: {}", library.display()));
    Ok(())
}

/// Builds the emulated GPU and the programs that test kernels on it, for [`test`](crate::test). `false` where libtorch is
/// another one than the emulation is made for.
///
/// # Errors
/// A compiler refuses something.
pub(crate) fn emulated(repo: &Repo, libtorch: &Libtorch) -> Result<bool> {
    let site = EMULATED.folder(repo);
    if libtorch.home() != repo.target("libtorch/cpu") {
        say(
            "emulated GPU: left out with its tests, since it needs the CPU's libtorch that `cargo xtask setup` fetches",
        );
        return Ok(false);
    }
    let (out, emulation) = (repo.target("emulated-gpu"), repo.root().join("worker/native/emulated"));
    let mut all = sources(repo)?;
    all.extend(files(&emulation)?);
    let (library, stamp) = (out.join("libcoxswain_cuda_emulated.so"), stamp(&all, EMULATED.wheels)?);
    if is_stamped(&library, &stamp) {
        return Ok(true);
    }
    drop_stamp(&library);
    run(Command::new(emulation.join("build.sh")).arg(&site).arg(&out).arg(libtorch.home()))?;
    let cuda = Cuda { include: site.join("nvidia/cu13/include"), out: &out, folder: folder(repo) };
    cuda.library(&of_kind(&all, "cu"))?;
    cuda.program("kernels", &KERNEL_TESTS)?;
    cuda.program("attention", &["attention"])?;
    let check = emulation.join("check.cpp");
    run(libtorch.link(cuda.compiler().arg(&check).arg("-o").arg(out.join("emulation"))))?;
    set_stamp(&library, &stamp)?;
    Ok(true)
}

/// The most that the kit may weigh, so that it travels anywhere.
const KIT_BYTES: u64 = 60 << 20;

/// Packs target/gpu-kit: the programs, stripped, the kernels, their test with the bits that the emulation has, and the
/// scripts of xtask/kit.
///
/// # Errors
/// Something cannot be built, or the kit is too heavy.
pub(crate) fn kit(repo: &Repo) -> Result<()> {
    let libtorch = libtorch::setup_with(repo, &libtorch::LibtorchChoice::default(), &[&EMULATED])?;
    ensure!(emulated(repo, &libtorch)?, "the kit needs the bits of the emulated GPU; unset LIBTORCH");
    kernels(repo)?;
    // As the tests build, so that nothing is compiled twice.
    let mut build = cargo();
    build.current_dir(repo.root()).args(["build", "--release", "--workspace", "--all-targets"]);
    run(libtorch.apply(&mut build))?;
    let folder = repo.target("gpu-kit");
    let bin = folder.join("bin");
    fs::create_dir_all(&bin).with_context(|| format!("could not create {}", bin.display()))?;
    for name in ["coxswain", "coxswain-worker", "libcoxswain_cuda.so"] {
        let (from, to) = (repo.target("release").join(name), bin.join(name));
        run(Command::new("strip").arg("-o").arg(&to).arg(&from))?;
    }
    let site = EMULATED.folder(repo);
    let cuda = Cuda { include: site.join("nvidia/cu13/include"), out: &bin, folder: self::folder(repo) };
    let mut compiler = cuda.compiler();
    compiler.arg("-DCOXSWAIN_ON_GPU").arg("-o").arg(bin.join("kernels"));
    compiler.args(KERNEL_TESTS.map(|source| format!("tests/{source}.cpp")));
    compiler.arg("-L").arg(&bin).arg("-l:libcoxswain_cuda.so");
    run(compiler.arg("-L").arg(NVCC.folder(repo).join("nvidia/cu13/lib")).arg("-l:libcudart.so.13"))?;
    let bits = capture(&mut Command::new(repo.target("emulated-gpu").join("kernels")))?;
    let text = folder.join("kernels.txt");
    fs::write(&text, bits).with_context(|| format!("could not write {}", text.display()))?;
    for script in ["kit/kit.py", "kit/torch_gpu_peer.py", "peers/torch_peer.py"] {
        let from = repo.root().join("xtask").join(script);
        let to = folder.join(from.file_name().unwrap_or_default());
        fs::copy(&from, &to).with_context(|| format!("could not copy {}", from.display()))?;
    }
    let all = [files(&bin)?, files(&folder)?].concat();
    let bytes: u64 = all.iter().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum();
    ensure!(bytes <= KIT_BYTES, "the kit has {} MiB, at most {} are allowed", bytes >> 20, KIT_BYTES >> 20);
    say(&format!("gpu-kit: {} MiB in {}; there: python3 kit.py", bytes >> 20, folder.display()));
    Ok(())
}

/// The tests of row kernels, which are one program.
const KERNEL_TESTS: [&str; 5] = ["main", "norms", "elementwise", "loss", "embed"];

/// Kernels as a C++ compiler takes them.
struct Cuda<'a> {
    include: PathBuf,
    out: &'a Path,
    folder: PathBuf,
}

/// Without contraction a product and a sum are rounded one after the other, as on the GPU.
/// Threads of a block are fibers that jump between stacks, which a fortified longjmp refuses.
const FLAGS: [&str; 6] =
    ["-std=c++17", "-O2", "-fPIC", "-ffp-contract=off", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"];

impl Cuda<'_> {
    fn compiler(&self) -> Command {
        let mut compiler = Command::new(std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned()));
        compiler.current_dir(&self.folder).args(FLAGS).arg("-isystem").arg(&self.include);
        compiler
    }

    /// The library of all kernels, each compiled beside the others.
    fn library(&self, sources: &[PathBuf]) -> Result<()> {
        let object =
            |source: &PathBuf| self.out.join(source.with_extension("o").file_name().unwrap_or_default());
        let objects: Vec<_> = sources.iter().map(object).collect();
        let start = |(source, object): (&PathBuf, &PathBuf)| {
            let mut compiler = self.compiler();
            compiler.args(["-x", "c++", "-c"]).arg(source).arg("-o").arg(object).spawn()
        };
        let started: Vec<_> = sources.iter().zip(&objects).map(start).collect::<Result<_, _>>()?;
        for (mut child, source) in started.into_iter().zip(sources) {
            if !child.wait()?.success() {
                bail!("{} does not compile for the CPU", source.display());
            }
        }
        let mut linker = self.compiler();
        linker.args(["-shared", "-o"]).arg(self.out.join("libcoxswain_cuda_emulated.so")).args(&objects);
        run(self.linked(&mut linker))
    }

    /// A program of tests over the library.
    fn program(&self, name: &str, sources: &[&str]) -> Result<()> {
        let mut compiler = self.compiler();
        compiler.arg("-o").arg(self.out.join(name));
        compiler.args(sources.iter().map(|source| format!("tests/{source}.cpp")));
        compiler.arg("-L").arg(self.out).arg("-l:libcoxswain_cuda_emulated.so");
        run(self.linked(&mut compiler))
    }

    fn linked<'a>(&self, linker: &'a mut Command) -> &'a mut Command {
        linker.arg("-L").arg(self.out).args(["-l:libcuemul.so.13", "-Wl,-rpath,$ORIGIN"])
    }
}

/// Where the kernels are.
fn folder(repo: &Repo) -> PathBuf {
    repo.root().join("worker/native/cuda")
}

/// All that the kernels and their tests are made of.
fn sources(repo: &Repo) -> Result<Vec<PathBuf>> {
    let mut all = files(&folder(repo))?;
    all.extend(files(&folder(repo).join("tests"))?);
    all.extend(["random.h", "clones.h"].map(|name| repo.root().join("worker/native/cpp").join(name)));
    Ok(all)
}

/// The files of a folder, in the order of their names.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("could not read {}", folder.display()))?;
    let mut files: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

fn of_kind(files: &[PathBuf], extension: &str) -> Vec<PathBuf> {
    files.iter().filter(|path| path.extension() == Some(OsStr::new(extension))).cloned().collect()
}

/// A digest of sources and of the wheels that compile them.
fn stamp(sources: &[PathBuf], wheels: &str) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(wheels);
    // How they are compiled stands here.
    hash.update(include_str!("gpu.rs"));
    for source in sources {
        let text = fs::read(source).with_context(|| format!("could not read {}", source.display()))?;
        hash.update(source.file_name().unwrap_or_default().as_encoded_bytes());
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The file beside a library that tells what it was made of.
fn stamp_of(library: &Path) -> PathBuf {
    library.with_extension("made-of")
}

fn is_stamped(library: &Path, stamp: &str) -> bool {
    library.exists() && fs::read_to_string(stamp_of(library)).is_ok_and(|text| text == stamp)
}

/// What is built anew has no stamp until all of it is there.
fn drop_stamp(library: &Path) {
    let _ = fs::remove_file(stamp_of(library));
}

fn set_stamp(library: &Path, stamp: &str) -> Result<()> {
    let path = stamp_of(library);
    fs::write(&path, stamp).with_context(|| format!("could not write {}", path.display()))
}

/// Wheels do not say which of their files are programs.
fn executable(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for path in files(folder)? {
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("could not make {} a program", path.display()))?;
    }
    Ok(())
}
