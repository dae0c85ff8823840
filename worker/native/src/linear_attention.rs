//! Linear attention (arXiv 2006.16236), with decays per head if wanted, by kernels of our own: time and
//! memory are linear in the length, and generation goes on from a state of fixed size.
//!
//! Bits depend on neither the number of threads nor the other heads of a call: heads computed apart
//! equal the whole. Projections, what decays are made of, and where states are kept are left to the engine.

use tch::Tensor;

use crate::TorchError;
use crate::error::check;
use crate::ffi;
use crate::ops::raw;

/// What causal linear attention has come to after some tokens, in fp32. Its size does not depend on how
/// many they were.
#[derive(Debug)]
pub struct LinearState {
    /// The decayed sum of features of keys times values.
    s_bhkk: Tensor,
    /// The decayed sum of features of keys.
    z_bhk: Tensor,
}

impl LinearState {
    /// Bytes of memory that the state takes.
    pub fn held_bytes(&self) -> u64 {
        let bytes = |x: &Tensor| (x.numel() * x.kind().elt_size_in_bytes()) as u64;
        bytes(&self.s_bhkk) + bytes(&self.z_bhk)
    }
}

/// Means of values, `sum_j w_ij v_j / sum_j w_ij`, with the weights `w_ij = phi(q_i) . phi(k_j)` and
/// `phi(x) = elu(x) + 1`: q `[b, t, h, k]`, k and v `[b, s, g, k]`, g a divisor of h, result `[b, t, h, k]`. All
/// in one of fp32, bf16 and fp16; computed in fp32. A sum of weights below 1e-6 is taken to be 1e-6.
///
/// Causal: query i sees the keys `j <= i`, and s is t. `log_decay_bth`, fp32 and at most 0, then multiplies
/// w_ij by the exponential of its sum over the tokens `j + 1..=i`; what is below -200 counts as -200, which
/// leaves nothing. With a `state` the tokens go on from it, and without gradients; the state that is
/// returned is what holds after the last token. It carries no gradients.
///
/// Not causal: every query sees all keys, and there is no state.
///
/// Fails where shapes or types do not fit, where decays or a state are given and it is not causal, where a
/// log decay is above 0, and where gradients are wanted from a state on.
pub fn linear_attention(
    q_bthk: &Tensor,
    k_btgk: &Tensor,
    v_btgk: &Tensor,
    log_decay_bth: Option<&Tensor>,
    causal: bool,
    state: Option<&LinearState>,
) -> Result<(Tensor, Option<LinearState>), TorchError> {
    let or_null = |x: Option<&Tensor>| x.map_or(std::ptr::null(), raw);
    let (mut out, mut s, mut z) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: all are alive during the call; decays and state may be null.
    check(unsafe {
        ffi::cx_linear_attention(
            raw(q_bthk),
            raw(k_btgk),
            raw(v_btgk),
            or_null(log_decay_bth),
            or_null(state.map(|state| &state.s_bhkk)),
            or_null(state.map(|state| &state.z_bhk)),
            causal,
            &mut out,
            &mut s,
            &mut z,
        )
    })?;
    // SAFETY: on success the shim has stored new at::Tensors, which are ours; two of them only where causal.
    let own = |x: *mut std::ffi::c_void| unsafe { Tensor::from_ptr(x.cast()) };
    Ok((own(out), causal.then(|| LinearState { s_bhkk: own(s), z_bhk: own(z) })))
}
