//! Exact attention in tiles with dropout of probabilities, by kernels of our own: libtorch's fused
//! one refuses dropout on the CPU. Memory is linear in the lengths (arXiv 2205.14135, 2307.08691).
//!
//! Bits depend on neither the number of threads nor the other heads of a call: heads computed apart
//! equal the whole. Positions and projections are left to the engine.

use std::ffi::{c_char, c_void};

use tch::Tensor;

use crate::TorchError;
use crate::ops::{made, raw};

unsafe extern "C" {
    fn cx_attention_dropout(
        q: *const c_void,
        k: *const c_void,
        v: *const c_void,
        causal: bool,
        key: u64,
        rate: f64,
        first_head: i64,
        heads: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
}

/// Dropout of normalized probabilities. The index of query i and key j of head `h` of a call is
/// `((b * heads + first_head + h) * t + i) * s + j` (see [`random`](crate::random)), so any split
/// over heads draws the same mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProbabilityDropout {
    /// The key of the place: step, micro-batch, layer, site.
    pub key: u64,
    /// The part that is dropped, in `0..1`; what is kept is multiplied by `1 / (1 - rate)`.
    pub rate: f64,
    /// The first head at hand among those of the layer.
    pub first_head: i64,
    /// Query heads of the layer over all ranks.
    pub heads: i64,
}

/// `softmax(q k^T / sqrt(k)) v` with q `[b, t, h, k]`, k and v `[b, s, g, k]`, g a divisor of h:
/// result `[b, t, h, k]`. All in one of fp32, bf16 and fp16; computed in fp32. Where `causal`,
/// query i sees the keys `j <= i + s - t`; a query that sees none gives zero.
///
/// Fails where shapes, types, the rate or the heads do not fit.
pub fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    causal: bool,
    dropout: Option<ProbabilityDropout>,
) -> Result<Tensor, TorchError> {
    let drop = dropout.unwrap_or(ProbabilityDropout { key: 0, rate: 0.0, first_head: 0, heads: 0 });
    // SAFETY: the tensors are alive during the call.
    made(|out| unsafe {
        cx_attention_dropout(
            raw(q),
            raw(k),
            raw(v),
            causal,
            drop.key,
            drop.rate,
            drop.first_head,
            drop.heads,
            out,
        )
    })
}
