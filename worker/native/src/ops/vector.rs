//! Vectors that are applied to every row: norms and biases; and small tables by column.

use std::ffi::c_void;

use tch::Tensor;

use super::{Slot, WgradQueue, made, raw};
use crate::TorchError;
use crate::ffi::{self, UseList};

/// One use of a vector: by tokens `first..first + tokens` of the input.
#[derive(Clone, Copy, Debug)]
pub struct NormUse<'a> {
    /// Where the gradient of this use accumulates.
    pub slot: &'a Slot,
    /// The first of its tokens.
    pub first: i64,
    /// Number of its tokens.
    pub tokens: i64,
}

/// The lists that the shim is handed.
struct Lists {
    slots: Vec<*mut c_void>,
    firsts: Vec<i64>,
    tokens: Vec<i64>,
}

impl Lists {
    fn of(uses: &[NormUse<'_>]) -> Lists {
        Lists {
            slots: uses.iter().map(|each| each.slot.0).collect(),
            firsts: uses.iter().map(|each| each.first).collect(),
            tokens: uses.iter().map(|each| each.tokens).collect(),
        }
    }

    fn raw(&self) -> UseList {
        UseList {
            slots: self.slots.as_ptr(),
            firsts: self.firsts.as_ptr(),
            tokens: self.tokens.as_ptr(),
            count: self.slots.len(),
        }
    }
}

/// RMSNorm over the last dim (arXiv 1910.07467): x `[.., t, d]`, w `[d]` in fp32, which the statistics
/// are too. Backward files w's gradient for each use, a sum of its own in row order. The uses follow
/// each other and cover the t tokens.
pub fn rms_norm(
    x: &Tensor,
    w: &Tensor,
    eps: f64,
    uses: &[NormUse<'_>],
    wgrad_queue: &WgradQueue,
) -> Result<Tensor, TorchError> {
    let lists = Lists::of(uses);
    // SAFETY: all are alive during the call; the graph takes references of its own to the slots and the queue.
    made(|out| unsafe { ffi::cx_rms_norm(raw(x), raw(w), eps, lists.raw(), wgrad_queue.0, out) })
}

/// LayerNorm over the last dim (arXiv 1607.06450): as [`rms_norm`], with a bias b `[d]` in fp32.
pub fn layer_norm(
    x: &Tensor,
    w: &Tensor,
    b: &Tensor,
    eps: f64,
    w_uses: &[NormUse<'_>],
    b_uses: &[NormUse<'_>],
    wgrad_queue: &WgradQueue,
) -> Result<Tensor, TorchError> {
    let (of_w, of_b) = (Lists::of(w_uses), Lists::of(b_uses));
    // SAFETY: as for `rms_norm`.
    made(|out| unsafe {
        ffi::cx_layer_norm(raw(x), raw(w), raw(b), eps, of_w.raw(), of_b.raw(), wgrad_queue.0, out)
    })
}

/// x `[.., t, d]` plus b `[d]` in fp32, as x's type. Uses and gradients as in [`rms_norm`].
pub fn add_bias(
    x: &Tensor,
    b: &Tensor,
    uses: &[NormUse<'_>],
    wgrad_queue: &WgradQueue,
) -> Result<Tensor, TorchError> {
    let lists = Lists::of(uses);
    // SAFETY: as for `rms_norm`.
    made(|out| unsafe { ffi::cx_add_bias(raw(x), raw(b), lists.raw(), wgrad_queue.0, out) })
}

/// The columns of a table `[v, h]` in fp32 at rows `[n]`: `[h, n]`. Backward defers the table's gradient,
/// in the order of n. The `anchor` is any tensor of the graph that needs a gradient: weights are
/// constants to autograd, and without it nothing would be asked of this one. It gets none.
pub fn table_columns(
    anchor: &Tensor,
    table: &Tensor,
    rows: &Tensor,
    slot: &Slot,
    wgrad_queue: &WgradQueue,
) -> Result<Tensor, TorchError> {
    // SAFETY: as for `rms_norm`.
    made(|out| unsafe {
        ffi::cx_table_columns(raw(anchor), raw(table), raw(rows), slot.0, wgrad_queue.0, out)
    })
}
