//! The device that this worker computes on, and where its libraries are.
//!
//! This program is linked to libtorch for CPUs. For a GPU it opens what stands beside it: libtorch's CUDA library of the
//! same build, and the library of its own kernels.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use coxswain_native::gpu::{self, Libraries};
use coxswain_proto::device::DeviceName;
use tch::Device;

/// The GPUs that CUDA shows to a process.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";
/// Which of them this worker has been left alone with; set by itself, so that it is done once.
const NARROWED: &str = "COXSWAIN_GPU";
/// With room of its own for each stream cuBLAS gives the same bits each time.
const WORKSPACE: (&str, &str) = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8");
/// The folder of what stands in for a GPU in tests.
const EMULATION: &str = "COXSWAIN_EMULATED_GPU";

/// What libraries of the device read from the environment when they are loaded.
pub(crate) fn environment(device: DeviceName) -> Result<Vec<(&'static str, String)>> {
    match device {
        DeviceName::Cpu | DeviceName::Emulated => Ok(Vec::new()),
        DeviceName::Cuda(number) => {
            let number = number.unwrap_or(0);
            let workspace = (WORKSPACE.0, WORKSPACE.1.to_owned());
            // Of several GPUs libtorch would set up each one that any thread names; a process that sees one has no
            // other to name.
            let visible = std::env::var(VISIBLE).ok();
            let narrowed = |own: &str| format!("{number}={own}");
            if visible
                .as_deref()
                .is_some_and(|own| std::env::var(NARROWED).is_ok_and(|of| of == narrowed(own)))
            {
                return Ok(vec![workspace]);
            }
            let own = nth_visible(visible.as_deref(), number)?;
            let narrowed = narrowed(&own);
            Ok(vec![workspace, (VISIBLE, own), (NARROWED, narrowed)])
        }
    }
}

/// The name of the `number`-th GPU of those that a process may see.
fn nth_visible(visible: Option<&str>, number: u32) -> Result<String> {
    let Some(visible) = visible else { return Ok(number.to_string()) };
    let names: Vec<&str> = visible.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    match names.get(number as usize) {
        Some(name) => Ok((*name).to_owned()),
        None => {
            bail!("there is no cuda:{number}: {VISIBLE}={visible} leaves {} GPUs to this worker", names.len())
        }
    }
}

/// Opens the device's libraries, before the first tensor.
pub(crate) fn open(device: DeviceName) -> Result<()> {
    let libraries = match device {
        DeviceName::Cpu => return Ok(()),
        DeviceName::Cuda(_) => {
            let beside = std::env::current_exe().context("finding this program's own file")?;
            Libraries {
                torch: cuda_library()?,
                emulation: None,
                kernels: existing(beside.with_file_name("libcoxswain_cuda.so"), KERNELS_REMEDY)?,
            }
        }
        DeviceName::Emulated => {
            let folder = emulation()?;
            Libraries {
                torch: folder.join("libtorch_cuda.so"),
                emulation: Some(folder.join("libcoxswain_emulated_gpu.so")),
                kernels: folder.join("libcoxswain_cuda_emulated.so"),
            }
        }
    };
    gpu::open(&libraries).with_context(|| format!("opening {}", name(device)))?;
    tracing::info!("computes on {}: {}", name(device), coxswain_native::memory::runtime());
    Ok(())
}

const KERNELS_REMEDY: &str = "build it with `cargo xtask kernels`, or copy it beside coxswain-worker";
const TORCH_REMEDY: &str = "that libtorch is for CPUs; start this worker with LD_LIBRARY_PATH naming the folder lib of \
                            PyTorch 2.11.0 for CUDA, which `python3 -c 'import os, torch; \
                            print(os.path.join(os.path.dirname(torch.__file__), \"lib\"))'` prints";

fn name(device: DeviceName) -> String {
    match device {
        DeviceName::Cpu => "cpu".to_owned(),
        DeviceName::Cuda(number) => format!("cuda:{}", number.unwrap_or(0)),
        DeviceName::Emulated => "the emulated GPU".to_owned(),
    }
}

fn existing(path: PathBuf, remedy: &str) -> Result<PathBuf> {
    if !path.is_file() {
        bail!("{} does not exist: {remedy}", path.display());
    }
    Ok(path)
}

fn emulation() -> Result<PathBuf> {
    let folder = std::env::var_os(EMULATION);
    folder.map(PathBuf::from).with_context(|| {
        format!(
            "{EMULATION} is not set; it must name the folder that `cargo xtask test` builds (target/emulated-gpu)"
        )
    })
}

/// libtorch's CUDA library that belongs to the libtorch of this process: it stands beside it.
fn cuda_library() -> Result<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").context("looking for libtorch in this process")?;
    let own = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).map(Path::new);
    let mut own = own.filter(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so"));
    let own = own.next();
    let own = own.context("this process has no libtorch_cpu.so")?;
    existing(own.with_file_name("libtorch_cuda.so"), TORCH_REMEDY)
}

/// Where tensors are.
pub(crate) fn of_tensors() -> Device {
    if gpu::is_open() { Device::Cuda(0) } else { Device::Cpu }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_left_with_the_gpu_of_its_number_among_those_it_may_see() {
        let of = |visible, number| nth_visible(visible, number).ok();
        assert_eq!(of(None, 3).as_deref(), Some("3"));
        assert_eq!(of(Some("4,5"), 1).as_deref(), Some("5"));
        assert_eq!(of(Some("GPU-8a2c, GPU-90ff"), 0).as_deref(), Some("GPU-8a2c"));
        assert_eq!(of(Some("4,5"), 2), None);
        assert_eq!(of(Some(""), 0), None);
    }
}
