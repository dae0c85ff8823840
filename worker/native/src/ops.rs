//! Autograd functions, the queue to which they defer weight gradients, and the optimizer.
//!
//! Activations are fp32, bf16 or fp16; arithmetic inside an operation is fp32, and so are the buffers of
//! weight gradients. An operation's result has its input's type.
//!
//! Shapes: b batch, t tokens, d model dim, n rows (b * t), h heads, g key/value heads, k head dim,
//! v vocabulary, o output features.

use std::ffi::{c_char, c_void};

use tch::{Kind, Tensor};

use crate::TorchError;
use crate::error::check;
use crate::ffi;

mod activation;
mod optimizer;
mod parallel;
mod vector;
mod wgrad_queue;

pub use activation::{Gate, Unary, activate, gated};
pub use optimizer::{AdamW, NORM_BLOCK, Update, adamw, sum_squares, sum_squares_blocks, tree_sum};
pub use parallel::{copy_to_shards, cross_entropy, reduce_from_shards};
pub use vector::{NormUse, add_bias, layer_norm, rms_norm, table_columns};
pub use wgrad_queue::{DeferredWgrads, Slot, WgradQueue};

pub(crate) fn raw(x: &Tensor) -> *const c_void {
    x.as_ptr() as *const c_void
}

pub(crate) fn made(call: impl FnOnce(*mut *mut c_void) -> *mut c_char) -> Result<Tensor, TorchError> {
    let mut out = std::ptr::null_mut();
    check(call(&mut out))?;
    // SAFETY: on success the shim has stored a new at::Tensor, which is ours.
    Ok(unsafe { Tensor::from_ptr(out.cast()) })
}

/// The gradient of `input`, given that of `output`.
pub fn grad(output: &Tensor, output_grad: &Tensor, input: &Tensor) -> Result<Tensor, TorchError> {
    // SAFETY: the tensors are alive during the call.
    made(|out| unsafe { ffi::cx_grad(raw(output), raw(output_grad), raw(input), out) })
}

/// `x w^T`: x `[.., d]`, w `[o, d]`, result `[.., o]`, all of one type. Backward defers w's gradient for
/// `slot`; a low precision's is rounded to it before it is accumulated in fp32.
pub fn linear(x: &Tensor, w: &Tensor, slot: &Slot, wgrad_queue: &WgradQueue) -> Result<Tensor, TorchError> {
    // SAFETY: all are alive during the call; the graph takes references of its own to the slot and the queue.
    made(|out| unsafe { ffi::cx_linear(raw(x), raw(w), slot.0, wgrad_queue.0, out) })
}

/// Rotary positions (arXiv 2104.09864): x `[b, t, h, k]`, cos and sin `[t, k/2]`.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor, TorchError> {
    // SAFETY: the tensors are alive during the call.
    made(|out| unsafe { ffi::cx_rope(raw(x), raw(cos), raw(sin), out) })
}

/// Rows of `w` for the ids in `start..start + w.size(0)`, zero for others, as `kind`, which is fp32, bf16
/// or fp16: `[n, d]`.
pub fn embed(ids_n: &Tensor, w_vd: &Tensor, start: u64, kind: Kind) -> Result<Tensor, TorchError> {
    // libtorch's own numbers of its element types, of which its files on disk are made too.
    let kind = match kind {
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::BFloat16 => 15,
        other => return Err(TorchError(format!("embed makes fp32, bf16 or fp16, not {other:?}"))),
    };
    // SAFETY: the tensors are alive during the call.
    made(|out| unsafe { ffi::cx_embed(raw(ids_n), raw(w_vd), start as i64, kind, out) })
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
