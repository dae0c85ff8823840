//! The GPU of this process: its libraries are opened late, and one device is all that it sees.

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::TorchError;
use crate::error::check;
use crate::ffi;

/// The libraries of a GPU.
#[derive(Clone, Debug)]
pub struct Libraries {
    /// libtorch's for CUDA, of the same build as the libtorch that this program runs on.
    pub torch: PathBuf,
    /// What stands in for a GPU, where there is none.
    pub emulation: Option<PathBuf>,
    /// This program's own kernels.
    pub kernels: PathBuf,
}

static OPENED: OnceLock<()> = OnceLock::new();

/// Opens the libraries, before the first tensor. From then on tensors may be on the first GPU that this process sees.
///
/// # Errors
/// A library is not there or is of another version, or there is no GPU.
pub fn open(libraries: &Libraries) -> Result<(), TorchError> {
    let torch = c_path(&libraries.torch)?;
    let emulation = libraries.emulation.as_deref().map(c_path).transpose()?;
    let kernels = c_path(&libraries.kernels)?;
    let emulation = emulation.as_ref().map_or(std::ptr::null(), |path| path.as_ptr());
    // SAFETY: the paths are alive during the call, which keeps none of them.
    check(unsafe { ffi::cx_gpu_open(torch.as_ptr(), emulation, kernels.as_ptr()) })?;
    let _ = OPENED.set(());
    Ok(())
}

/// Whether a GPU was opened.
pub fn is_open() -> bool {
    OPENED.get().is_some()
}

fn c_path(path: &Path) -> Result<CString, TorchError> {
    CString::new(path.as_os_str().as_encoded_bytes())
        .map_err(|_| TorchError(format!("the path {} contains a NUL byte", path.display())))
}

/// Bytes that tensors take on the GPU now, and took at most since [`reset_peak`].
pub(crate) fn memory() -> Result<(u64, u64), TorchError> {
    let (mut current, mut peak) = (0, 0);
    // SAFETY: writes two numbers that are ours.
    check(unsafe { ffi::cx_gpu_memory(&mut current, &mut peak) })?;
    Ok((current.max(0) as u64, peak.max(0) as u64))
}

/// Starts a new peak at the bytes of now.
pub(crate) fn reset_peak() -> Result<(), TorchError> {
    // SAFETY: changes libtorch's own statistics.
    check(unsafe { ffi::cx_gpu_memory_reset_peak() })
}
