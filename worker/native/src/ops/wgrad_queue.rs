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
        // SAFETY: made by `new`, and this reference given up once; graphs and queues have their own.
        unsafe { ffi::cx_slot_free(self.0) }
    }
}

/// Weight gradients that backward passes have deferred and that are still to be computed.
#[derive(Debug)]
pub struct WgradQueue(pub(super) *mut c_void);

// SAFETY: as for `Slot`.
unsafe impl Send for WgradQueue {}

impl WgradQueue {
    /// An empty queue.
    pub fn new() -> WgradQueue {
        // SAFETY: allocates.
        WgradQueue(unsafe { ffi::cx_wgrad_queue_new() })
    }

    /// Whether backward passes leave what is deferred alone while their sums travel, for
    /// [`WgradQueue::take`]. A new queue is not held.
    pub fn hold(&self, held: bool) {
        // SAFETY: the queue of weight gradients is alive, and is not `Sync`.
        unsafe { ffi::cx_wgrad_queue_hold(self.0, held) }
    }

    /// Takes out what was deferred so far, to be computed later. It keeps the tensors it needs alive.
    pub fn take(&self) -> DeferredWgrads {
        // SAFETY: the queue of weight gradients is alive; the list is ours.
        DeferredWgrads(unsafe { ffi::cx_wgrad_queue_take(self.0) })
    }

    /// Computes what was deferred, in the order in which it was deferred.
    pub fn flush(&self) -> Result<(), TorchError> {
        // SAFETY: the queue of weight gradients is alive.
        check(unsafe { ffi::cx_wgrad_queue_flush(self.0) })
    }
}

impl Default for WgradQueue {
    fn default() -> WgradQueue {
        WgradQueue::new()
    }
}

impl Drop for WgradQueue {
    fn drop(&mut self) {
        // SAFETY: made by `new`, dropped once.
        unsafe { ffi::cx_wgrad_queue_free(self.0) }
    }
}

/// Weight gradients taken from a [`WgradQueue`]: the W action of a schedule that splits backward. Slots are
/// read when it runs, so they may be given other buffers meanwhile. Dropped, it computes nothing.
#[derive(Debug)]
pub struct DeferredWgrads(*mut c_void);

// SAFETY: as for `Slot`.
unsafe impl Send for DeferredWgrads {}

impl DeferredWgrads {
    /// Computes them, in the order in which they were deferred. After an error the rest is dropped.
    pub fn run(self) -> Result<(), TorchError> {
        // SAFETY: the list is alive until it is dropped below.
        check(unsafe { ffi::cx_deferred_run(self.0) })
    }
}

impl Drop for DeferredWgrads {
    fn drop(&mut self) {
        // SAFETY: made by `WgradQueue::take`, dropped once.
        unsafe { ffi::cx_deferred_free(self.0) }
    }
}
