//! Squared norms, and one step of the optimizer.

use std::ffi::c_void;

use tch::Tensor;

use super::raw;
use crate::TorchError;
use crate::error::check;
use crate::ffi;

/// Squared norms are sums over blocks of this many elements, so that a tensor that is cut at their
/// borders has the same norm.
pub const NORM_BLOCK: usize = 65_536;

/// The sum of squares of an fp32 tensor, in blocks of [`NORM_BLOCK`] elements that are added in a fixed
/// tree.
pub fn sum_squares(x: &Tensor) -> Result<f64, TorchError> {
    Ok(tree_sum(&sum_squares_blocks(std::slice::from_ref(x))?))
}

/// The sums of squares of consecutive blocks of [`NORM_BLOCK`] elements of fp32 tensors, those of one after those of
/// another; the last block of each may be shorter.
pub fn sum_squares_blocks(xs: &[Tensor]) -> Result<Vec<f64>, TorchError> {
    let list: Vec<_> = xs.iter().map(raw).collect();
    let mut sums = vec![0.0; xs.iter().map(|x| x.numel().div_ceil(NORM_BLOCK)).sum()];
    // SAFETY: the tensors are alive during the call, and the shim fills no more than the list's length.
    check(unsafe { ffi::cx_sum_squares_blocks(list.as_ptr(), list.len(), sums.as_mut_ptr(), sums.len()) })?;
    Ok(sums)
}

/// The sum in a binary tree whose left part is the largest power of two below the length; 0 of
/// nothing.
pub fn tree_sum(values: &[f64]) -> f64 {
    match values {
        [] => 0.0,
        [value] => *value,
        _ => {
            let (left, right) = values.split_at(values.len().next_power_of_two() / 2);
            tree_sum(left) + tree_sum(right)
        }
    }
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
