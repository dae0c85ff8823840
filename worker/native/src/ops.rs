//! Autograd functions, the tape that they file weight gradients on, and the optimizer.
//!
//! Shapes: b batch, t tokens, d model dim, n rows (b * t), h heads, g key/value heads, k head dim,
//! v vocabulary, o output features.

use std::ffi::{c_char, c_void};

use tch::Tensor;

use crate::TorchError;
use crate::error::check;
use crate::ffi;
use crate::net::Group;

pub(crate) fn raw(x: &Tensor) -> *const c_void {
    x.as_ptr() as *const c_void
}

pub(crate) fn made(call: impl FnOnce(*mut *mut c_void) -> *mut c_char) -> Result<Tensor, TorchError> {
    let mut out = std::ptr::null_mut();
    check(call(&mut out))?;
    // SAFETY: on success the shim has stored a new at::Tensor, which is ours.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

/// Where the gradient of one use of a parameter accumulates. The first contribution after
/// [`Slot::set`] overwrites, the later ones add.
#[derive(Debug)]
pub struct Slot(*mut c_void);

// SAFETY: a slot is a plain C++ object that no thread owns; `&mut` and moves keep it to one at a time.
unsafe impl Send for Slot {}

impl Slot {
    /// A slot without a buffer; [`Slot::set`] gives it one.
    pub fn new() -> Slot {
        // SAFETY: allocates.
        Slot(unsafe { ffi::cx_slot_new() })
    }

    /// Directs the gradient into `grad`, which has the parameter's shape.
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
pub struct Tape(*mut c_void);

// SAFETY: as for `Slot`.
unsafe impl Send for Tape {}

impl Tape {
    /// An empty tape.
    pub fn new() -> Tape {
        // SAFETY: allocates.
        Tape(unsafe { ffi::cx_tape_new() })
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

/// The gradient of `input`, given that of `output`.
pub fn grad(output: &Tensor, output_grad: &Tensor, input: &Tensor) -> Result<Tensor, TorchError> {
    // SAFETY: the tensors are alive during the call.
    made(|out| unsafe { ffi::cx_grad(raw(output), raw(output_grad), raw(input), out) })
}

/// `x w^T`: x `[.., d]`, w `[o, d]`, result `[.., o]`. Backward files w's gradient for `slot`.
pub fn linear(x: &Tensor, w: &Tensor, slot: &Slot, tape: &Tape) -> Result<Tensor, TorchError> {
    // SAFETY: all are alive during the call; the graph takes references of its own to slot and tape.
    made(|out| unsafe { ffi::cx_linear(raw(x), raw(w), slot.0, tape.0, out) })
}

/// RMSNorm over the last dim (arXiv 1910.07467). Backward files w's gradient for `slot`.
pub fn rms_norm(x: &Tensor, w: &Tensor, eps: f64, slot: &Slot, tape: &Tape) -> Result<Tensor, TorchError> {
    // SAFETY: as for `linear`.
    made(|out| unsafe { ffi::cx_rms_norm(raw(x), raw(w), eps, slot.0, tape.0, out) })
}

/// Rotary positions (arXiv 2104.09864): x `[b, t, h, k]`, cos and sin `[t, k/2]`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor, TorchError> {
    // SAFETY: the tensors are alive during the call.
    made(|out| unsafe { ffi::cx_rope(raw(x), raw(cos), raw(sin), out) })
}

/// `silu(a) * b` (arXiv 2002.05202).
pub fn swiglu(a: &Tensor, b: &Tensor) -> Result<Tensor, TorchError> {
    // SAFETY: the tensors are alive during the call.
    made(|out| unsafe { ffi::cx_swiglu(raw(a), raw(b), out) })
}

/// Megatron's f (arXiv 1909.08053): identity forward, sum over the group backward. Weight gradients
/// filed so far are computed while the sum travels.
pub fn copy_to_group(x: &Tensor, group: &Group, tape: &Tape) -> Result<Tensor, TorchError> {
    // SAFETY: as for `linear`.
    made(|out| unsafe { ffi::cx_copy_to_group(raw(x), group.raw(), tape.0, out) })
}

/// Megatron's g: sum over the group forward, identity backward.
pub fn reduce_from_group(x: &Tensor, group: &Group) -> Result<Tensor, TorchError> {
    // SAFETY: as for `copy_to_group`.
    made(|out| unsafe { ffi::cx_reduce_from_group(raw(x), group.raw(), out) })
}

/// The sum of `-log softmax(logits)[target]` over rows, a double scalar. Logits `[n, v]` are this
/// rank's columns, from `vocab_start` on, and are consumed; a target of -1 counts nothing.
pub fn cross_entropy(
    logits_nv: Tensor,
    targets_n: &Tensor,
    vocab_start: u64,
    group: &Group,
) -> Result<Tensor, TorchError> {
    // SAFETY: as for `copy_to_group`. Taking the logits by value keeps anyone from reading them after.
    made(|out| unsafe {
        ffi::cx_cross_entropy(raw(&logits_nv), raw(targets_n), vocab_start as i64, group.raw(), out)
    })
}

/// Rows of `w` for the ids in `start..start + w.size(0)`, zero for others: `[n, d]`.
pub fn embed(ids_n: &Tensor, w_vd: &Tensor, start: u64) -> Result<Tensor, TorchError> {
    // SAFETY: the tensors are alive during the call.
    made(|out| unsafe { ffi::cx_embed(raw(ids_n), raw(w_vd), start as i64, out) })
}

/// Accumulates the gradient of [`embed`]'s table, in row order.
pub fn embed_grad(ids_n: &Tensor, dy_nd: &Tensor, slot: &Slot, start: u64) -> Result<(), TorchError> {
    // SAFETY: the tensors and the slot are alive during the call.
    check(unsafe { ffi::cx_embed_grad(raw(ids_n), raw(dy_nd), slot.0, start as i64) })
}

/// softmax(q k^T / sqrt(k)) v by the fused flash kernel, exact and linear in memory (arXiv
/// 2205.14135): q `[b, t, h, k]`, k and v `[b, s, g, k]`, result `[b, t, h, k]`.
///
/// Causal: row i sees keys 0..=i, so it wants `s == t`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, causal: bool) -> Result<Tensor, TorchError> {
    // SAFETY: the tensors are alive during the call.
    made(|out| unsafe { ffi::cx_attention(raw(q), raw(k), raw(v), causal, out) })
}

/// The sum of squares, in blocks of 65,536 elements that are added in a fixed tree.
pub fn sum_squares(x: &Tensor) -> Result<f64, TorchError> {
    let mut sum = 0.0;
    // SAFETY: the tensor is alive during the call.
    check(unsafe { ffi::cx_sum_squares(raw(x), &mut sum) })?;
    Ok(sum)
}

/// The numbers of one AdamW step (arXiv 1711.05101).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Counts from 1.
    pub step: u64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Decoupled decay.
    pub weight_decay: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Gradients are divided by this first: tokens over the clip coefficient.
    pub divisor: f64,
}

/// One tensor of an optimizer step.
#[derive(Debug)]
pub struct Update<'a> {
    /// The weights, updated in place.
    pub param: &'a Tensor,
    /// Their gradient.
    pub grad: &'a Tensor,
    /// Running mean of gradients, updated in place.
    pub exp_avg: &'a Tensor,
    /// Running mean of squared gradients, updated in place.
    pub exp_avg_sq: &'a Tensor,
}

/// One step by libtorch's fused kernel.
pub fn adamw(updates: &[Update<'_>], numbers: &AdamW) -> Result<(), TorchError> {
    let list = |pick: fn(&Update<'_>) -> *const c_void| updates.iter().map(pick).collect::<Vec<_>>();
    let params = list(|u| raw(u.param));
    let grads = list(|u| raw(u.grad));
    let exp_avgs = list(|u| raw(u.exp_avg));
    let exp_avg_sqs = list(|u| raw(u.exp_avg_sq));
    // SAFETY: four lists of `count` tensors that are alive during the call.
    check(unsafe {
        ffi::cx_adamw(
            params.as_ptr(),
            grads.as_ptr(),
            exp_avgs.as_ptr(),
            exp_avg_sqs.as_ptr(),
            updates.len(),
            numbers.step as f64,
            numbers.learning_rate,
            numbers.beta1,
            numbers.beta2,
            numbers.weight_decay,
            numbers.eps,
            numbers.divisor,
        )
    })
}
