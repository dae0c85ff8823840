//! The C++ shim over libtorch, and the only place of the workspace that is `unsafe` by trade.
//!
//! What libtorch has and tch does not expose, and what ours adds to it: sums over groups of ranks that can be
//! aborted, autograd functions that defer weight gradients to a queue, backward with a given
//! gradient, the fused AdamW, and an allocator that counts bytes. All of it leaves this crate as
//! safe functions over [`tch::Tensor`] that return errors.
//!
//! - [`ops`]: autograd functions, the queue of weight gradients, the optimizer.
//! - [`attention`]: attention with dropout of probabilities.
//! - [`gpu`]: the GPU that tensors may be on.
//! - [`linear_attention`]: attention in time linear in the length.
//! - [`random`]: counter-based dropout.
//! - [`net`]: the network of a generation, groups of ranks, transfers.
//! - [`memory`]: bytes that tensors take.
//!
//! How ranks use them is left to `coxswain-comm` and `coxswain-engine`.
#![allow(unsafe_code)]

pub mod attention;
mod error;
mod ffi;
pub mod gpu;
pub mod linear_attention;
pub mod memory;
pub mod net;
pub mod ops;
pub mod random;

pub use error::TorchError;
