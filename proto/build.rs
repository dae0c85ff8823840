//! Compiles the .proto files with protox, so that building needs no protoc, and lists their calls.

use std::error::Error;
use std::fmt::Write;
use std::path::Path;

const FILES: [&str; 4] = [
    "coxswain/v1/status.proto",
    "coxswain/v1/cluster.proto",
    "coxswain/v1/jobs.proto",
    "coxswain/v1/access.proto",
];

/// Messages that carry a secret: what prints them must not be derived.
const SECRET: [&str; 2] = ["coxswain.v1.JoinRequest", "coxswain.v1.CreateTokenReply"];

fn main() -> Result<(), Box<dyn Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed={file}");
    }
    let descriptors = protox::compile(FILES, ["."])?;
    let mut list = String::from("&[\n");
    for file in &descriptors.file {
        for service in &file.service {
            for method in &service.method {
                writeln!(list, "    \"/{}.{}/{}\",", file.package(), service.name(), method.name())?;
            }
        }
    }
    list += "]\n";
    std::fs::write(Path::new(&std::env::var("OUT_DIR")?).join("rpcs.rs"), list)?;
    tonic_prost_build::configure().skip_debug(SECRET).compile_fds(descriptors)?;
    Ok(())
}
