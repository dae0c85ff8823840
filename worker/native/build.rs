//! Compiles the shim against the libtorch that torch-sys was built with.

use std::env;
use std::path::{Path, PathBuf};

fn main() {
    // `.cargo/config.toml` sets LIBTORCH to where `cargo xtask setup` puts it.
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=cpp");
    // What the shim and the kernels of GPUs share.
    for header in ["kernels.h", "attention.h"] {
        println!("cargo:rerun-if-changed=cuda/{header}");
    }
    let libtorch = PathBuf::from(env::var("LIBTORCH").unwrap_or_else(|_| {
        println!("cargo:warning=LIBTORCH is not set; run `cargo xtask setup`");
        String::from("/usr")
    }));
    let lib = libtorch.join("lib");

    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .include("cpp")
        .flag("-isystem")
        .flag(libtorch.join("include"))
        .flag("-isystem")
        .flag(libtorch.join("include/torch/csrc/api/include"))
        // Loops of the shim share libtorch's pool of threads, which is GNU OpenMP's.
        .flag("-fopenmp")
        .flag_if_supported("-fno-math-errno")
        .flag_if_supported("-fno-trapping-math")
        .flag_if_supported("-Wno-unused-parameter")
        // Templates of libtorch's headers make 150 MB of debug information, copied into every binary that links us.
        .debug(false)
        .opt_level(3);
    for source in std::fs::read_dir("cpp").into_iter().flatten().flatten() {
        if source.path().extension().is_some_and(|extension| extension == "cpp") {
            build.file(source.path());
        }
    }
    if !lints() {
        let headers = precompiled(&build);
        build.flag("-include").flag(headers.with_extension(""));
        build.compile("coxswain_shim");
        // It has half a gigabyte, and each run makes it anew.
        std::fs::remove_file(headers).expect("OUT_DIR can be written to");
    }

    println!("cargo:rustc-link-search=native={}", lib.display());
    for name in ["torch_cpu", "c10", "gomp"] {
        println!("cargo:rustc-link-lib={name}");
    }
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
    // Dependents link their binaries and tests with the same search path: DEP_COXSWAIN_SHIM_LIB.
    println!("cargo:lib={}", lib.display());
}

/// Headers of libtorch that most sources include, and that take longer to read than the sources take to compile.
const HEADERS: [&str; 3] = ["ATen/ATen.h", "ATen/Parallel.h", "torch/csrc/autograd/custom_function.h"];

/// Compiles `HEADERS` once for all sources. A source that includes libtorch.h of OUT_DIR first takes what it returns,
/// libtorch.h.gch, in its place.
fn precompiled(build: &cc::Build) -> PathBuf {
    let folder = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let (header, compiled) = (folder.join("libtorch.h"), folder.join("libtorch.h.gch"));
    let text: String = HEADERS.iter().map(|name| format!("#include <{name}>\n")).collect();
    std::fs::write(&header, text).expect("OUT_DIR can be written to");
    let mut compiler = build.get_compiler().to_command();
    let status = compiler.args(["-x", "c++-header"]).arg(&header).arg("-o").arg(&compiled).status();
    assert!(status.is_ok_and(|status| status.success()), "the compiler failed; it said why above");
    compiled
}

/// Whether this run is for Clippy. Cargo runs the script once for Clippy and once for the build, and Clippy links
/// nothing.
fn lints() -> bool {
    println!("cargo:rerun-if-env-changed=RUSTC_WORKSPACE_WRAPPER");
    let wrapper = env::var_os("RUSTC_WORKSPACE_WRAPPER").unwrap_or_default();
    Path::new(&wrapper).file_stem().is_some_and(|name| name == "clippy-driver")
}
