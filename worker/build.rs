//! Lets the binaries of the crates that link libtorch find it without environment variables: the worker, its crates, and
//! the tests.

fn main() {
    println!("cargo:rerun-if-env-changed=DEP_COXSWAIN_SHIM_LIB");
    if let Ok(lib) = std::env::var("DEP_COXSWAIN_SHIM_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
    // Beside the binary first in a container, where the build machine's folders are gone.
    println!("cargo:rustc-link-arg=-Wl,-rpath,$ORIGIN/../lib");
}
