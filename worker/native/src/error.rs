//! Errors that come out of libtorch.

use std::ffi::{CStr, c_char};

use crate::ffi;

/// What libtorch said when an operation failed: a shape, memory, a peer that went away.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TorchError(pub String);

impl From<tch::TchError> for TorchError {
    fn from(error: tch::TchError) -> TorchError {
        TorchError(error.to_string())
    }
}

/// Takes the text that a shim function returned; null is success.
pub(crate) fn check(text: *mut c_char) -> Result<(), TorchError> {
    if text.is_null() {
        return Ok(());
    }
    // SAFETY: a text that is not null is a C string that the shim allocated for us.
    let message = unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned();
    // SAFETY: allocated with malloc by the shim, and freed once, here.
    unsafe { ffi::cx_free(text.cast()) };
    // The first line says what happened; the rest is libtorch's own call stack.
    let first = message.lines().next().unwrap_or_default().trim_end();
    Err(TorchError(first.to_owned()))
}
