//! The non-linearities of feed-forward layers. Each element is computed by itself: the bits depend on
//! neither threads nor neighbours.

use tch::Tensor;

use super::{made, raw};
use crate::TorchError;
use crate::ffi;

/// A non-linearity by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unary {
    /// `max(x, 0)`.
    Relu,
    /// `x Phi(x)` (arXiv 1606.08415).
    Gelu,
    /// Its approximation by tanh.
    GeluTanh,
    /// `x sigmoid(x)` (arXiv 1702.03118).
    Silu,
    /// The hyperbolic tangent.
    Tanh,
}

/// A non-linearity that gates (arXiv 2002.05202).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `silu(a) * b`.
    Swiglu,
    /// `gelu(a) * b`.
    Geglu,
    /// The same, with the approximation by tanh.
    GegluTanh,
}

// The shim's own numbers.
const RELU: i32 = 0;
const GELU: i32 = 1;
const GELU_TANH: i32 = 2;
const SILU: i32 = 3;
const TANH: i32 = 4;

/// The non-linearity of each element.
pub fn activate(x: &Tensor, by: Unary) -> Result<Tensor, TorchError> {
    let by = match by {
        Unary::Relu => RELU,
        Unary::Gelu => GELU,
        Unary::GeluTanh => GELU_TANH,
        Unary::Silu => SILU,
        Unary::Tanh => TANH,
    };
    // SAFETY: the tensor is alive during the call; there is no second one.
    made(|out| unsafe { ffi::cx_activate(raw(x), std::ptr::null(), by, out) })
}

/// The non-linearity of each element of `a`, times that of `b`.
pub fn gated(a: &Tensor, b: &Tensor, by: Gate) -> Result<Tensor, TorchError> {
    let by = match by {
        Gate::Swiglu => SILU,
        Gate::Geglu => GELU,
        Gate::GegluTanh => GELU_TANH,
    };
    // SAFETY: the tensors are alive during the call.
    made(|out| unsafe { ffi::cx_activate(raw(a), raw(b), by, out) })
}
