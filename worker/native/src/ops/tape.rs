//! Where weight gradients wait and where they go.

use std::ffi::c_void;

use tch::Tensor;

use super::raw;
use crate::TorchError;
use crate::error::check;
use crate::ffi;

/// Where the gradient of one use of a parameter accumulates. The first contribution after
/// [`Slot::set`] overwrites, the later ones add.
#[derive(Debug)]
pub struct Slot(pub(super) *mut c_void);

// SAFETY: a slot is a plain C++ object that no thread owns; `&mut` and moves keep it to one at a time.
unsafe impl Send for Slot {}

impl Slot {
    /// A slot without a buffer; [`Slot::set`] gives it one.
    pub fn new() -> Slot {
        // SAFETY: allocates.
        Slot(unsafe { ffi::cx_slot_new() })
    }

    /// Directs the gradient into `grad`, which has the parameter's shape and is fp32 whatever the
    /// parameter is.
    pub fn set(&self, grad: &Tensor) {
        // SAFETY: both are alive; the slot keeps its own reference to the tensor, and is not `Sync`.
        unsafe { ffi::cx_slot_set(self.0, raw(grad)) }
    }

    /// Whether nothing has been accumulated since [`Slot::set`].
    pub fn is_fresh(&self) -> bool {
        // SAFETY: the slot is alive.
        unsafe { ffi::cx_slot_fresh(self.0) }
    }
}

impl Default for Slot {
    fn default() -> Slot {
        Slot::new()
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and this reference given up once; graphs and tapes have their own.
        unsafe { ffi::cx_slot_free(self.0) }
    }
}

/// Weight gradients that backward passes have filed and that are still to be computed.
#[derive(Debug)]
pub struct Tape(pub(super) *mut c_void);

// SAFETY: as for `Slot`.
unsafe impl Send for Tape {}

impl Tape {
    /// An empty tape.
    pub fn new() -> Tape {
        // SAFETY: allocates.
        Tape(unsafe { ffi::cx_tape_new() })
    }

    /// Whether backward passes leave what is filed alone while their sums travel, for
    /// [`Tape::take`]. A new tape is not held.
    pub fn hold(&self, held: bool) {
        // SAFETY: the tape is alive, and is not `Sync`.
        unsafe { ffi::cx_tape_hold(self.0, held) }
    }

    /// Takes out what was filed so far, to be computed later. It keeps the tensors it needs alive.
    pub fn take(&self) -> Filed {
        // SAFETY: the tape is alive; the list is ours.
        Filed(unsafe { ffi::cx_tape_take(self.0) })
    }

    /// Computes what was filed, in the order of filing.
    pub fn flush(&self) -> Result<(), TorchError> {
        // SAFETY: the tape is alive.
        check(unsafe { ffi::cx_tape_flush(self.0) })
    }
}

impl Default for Tape {
    fn default() -> Tape {
        Tape::new()
    }
}

impl Drop for Tape {
    fn drop(&mut self) {
        // SAFETY: made by `new`, dropped once.
        unsafe { ffi::cx_tape_free(self.0) }
    }
}

/// Weight gradients taken from a [`Tape`]: the W action of a schedule that splits backward. Slots are
/// read when it runs, so they may be given other buffers meanwhile. Dropped, it computes nothing.
#[derive(Debug)]
pub struct Filed(*mut c_void);

// SAFETY: as for `Slot`.
unsafe impl Send for Filed {}

impl Filed {
    /// Computes them, in the order of filing. After an error the rest is dropped.
    pub fn run(self) -> Result<(), TorchError> {
        // SAFETY: the list is alive until it is dropped below.
        check(unsafe { ffi::cx_filed_run(self.0) })
    }
}

impl Drop for Filed {
    fn drop(&mut self) {
        // SAFETY: made by `Tape::take`, dropped once.
        unsafe { ffi::cx_filed_free(self.0) }
    }
}
