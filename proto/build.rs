//! Compiles the .proto files with protox, so that building needs no protoc.

use std::error::Error;

const FILES: [&str; 3] = ["coxswain/v1/status.proto", "coxswain/v1/cluster.proto", "coxswain/v1/jobs.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
