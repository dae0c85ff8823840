//! Bytes that tensors take on the CPU, counted by the shim's allocator.

use std::sync::Once;

use crate::ffi;

/// Puts the counting allocator in place. To be called before the first tensor; later calls do
/// nothing.
pub fn install() {
    static ONCE: Once = Once::new();
    // SAFETY: called once, and the allocator lives as long as the process.
    ONCE.call_once(|| unsafe { ffi::cx_memory_install() });
}

/// Bytes that tensors take now.
pub fn current_bytes() -> u64 {
    // SAFETY: reads an atomic.
    unsafe { ffi::cx_memory_current() }.max(0) as u64
}

/// The most bytes that tensors took at once since the last [`reset_peak`].
pub fn peak_bytes() -> u64 {
    // SAFETY: reads an atomic.
    unsafe { ffi::cx_memory_peak() }.max(0) as u64
}

/// Starts a new peak at the bytes of now.
pub fn reset_peak() {
    // SAFETY: writes an atomic.
    unsafe { ffi::cx_memory_reset_peak() }
}
