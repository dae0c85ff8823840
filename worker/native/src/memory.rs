//! The machine as libtorch sees it: bytes that tensors take, and what results depend on.

use std::ffi::CStr;
use std::sync::Once;

use crate::{ffi, gpu};

/// Puts the counting allocator in place. To be called before the first tensor; later calls do
/// nothing.
pub fn install() {
    static ONCE: Once = Once::new();
    // SAFETY: called once, and the allocator lives as long as the process.
    ONCE.call_once(|| unsafe { ffi::cx_memory_install() });
}

/// Bytes that tensors take now on the device that this process computes on.
pub fn current_bytes() -> u64 {
    if gpu::is_open() {
        return gpu::memory().map_or(0, |(current, _)| current);
    }
    // SAFETY: reads an atomic.
    unsafe { ffi::cx_memory_current() }.max(0) as u64
}

/// The most bytes that tensors took there at once since the last [`reset_peak`].
pub fn peak_bytes() -> u64 {
    if gpu::is_open() {
        return gpu::memory().map_or(0, |(_, peak)| peak);
    }
    // SAFETY: reads an atomic.
    unsafe { ffi::cx_memory_peak() }.max(0) as u64
}

/// Starts a new peak at the bytes of now.
pub fn reset_peak() {
    // A GPU without a tensor has no peak yet.
    if gpu::is_open() && gpu::reset_peak().is_ok() {
        return;
    }
    // SAFETY: writes an atomic.
    unsafe { ffi::cx_memory_reset_peak() }
}

/// Has this thread, and those that it starts, wake up without taking a core from other batch threads (`SCHED_BATCH`).
/// `false` where the system does not allow it.
///
/// On shared cores a thread that sends is otherwise often put aside in the middle, by a thread that its message wakes.
pub fn share_cores() -> bool {
    // SAFETY: changes how the calling thread is scheduled, and no memory.
    unsafe { ffi::cx_share_cores() != 0 }
}

/// What results depend on beside the program: libtorch's version and the instruction set that its
/// kernels use here, as one comparable text.
pub fn runtime() -> String {
    // SAFETY: the shim returns a C string that is ours to free, once.
    unsafe {
        let text = ffi::cx_runtime();
        let runtime = CStr::from_ptr(text).to_string_lossy().into_owned();
        ffi::cx_free(text.cast());
        runtime
    }
}
