//! Into and out of tensor-parallel products, and the loss over a split vocabulary.
//!
//! A rank holds consecutive *logical shards*. Each one's part is computed apart, and partial sums are
//! added in one binary tree over all shards, the rank's own subtree first: ranks that hold a power of
//! two of them each get the same bits as one rank that holds all.

use std::ffi::c_void;

use tch::Tensor;

use super::{WgradQueue, made, raw};
use crate::TorchError;
use crate::error::check;
use crate::ffi;
use crate::net::Group;

/// Megatron's f (arXiv 1909.08053) for each of this rank's `count` shards: `count` copies of x forward,
/// the sum over all shards backward. Weight gradients deferred so far are computed while the sum travels,
/// unless the queue is held.
///
/// `sequence_parallel` (sequence parallelism, arXiv 2205.05198): x `[b, t / ranks, ..]` is this rank's tokens, the
/// copies `[b, t, ..]` are those of all ranks, and the gradient is again this rank's.
pub fn copy_to_shards(
    x: &Tensor,
    group: &Group,
    wgrad_queue: &WgradQueue,
    count: usize,
    sequence_parallel: bool,
) -> Result<Vec<Tensor>, TorchError> {
    let mut outs: Vec<*mut c_void> = vec![std::ptr::null_mut(); count];
    // SAFETY: all are alive during the call, the list has room for `count` tensors, and the graph takes
    // references of its own to the group and the queue.
    check(unsafe {
        ffi::cx_copy_to_shards(
            raw(x),
            group.raw(),
            wgrad_queue.0,
            count,
            sequence_parallel,
            outs.as_mut_ptr(),
        )
    })?;
    // SAFETY: on success the shim has stored `count` new tensors, which are ours.
    Ok(outs.into_iter().map(|out| unsafe { Tensor::from_ptr(out.cast()) }).collect())
}

/// Megatron's g: the sum over all shards forward, of which `parts` are this rank's; the identity
/// backward.
///
/// `sequence_parallel`: parts `[b, t, ..]` are of all tokens, the sum `[b, t / ranks, ..]` is of this rank's
/// tokens, and t must divide evenly.
pub fn reduce_from_shards(
    parts: &[Tensor],
    group: &Group,
    sequence_parallel: bool,
) -> Result<Tensor, TorchError> {
    let list: Vec<_> = parts.iter().map(raw).collect();
    // SAFETY: as for `copy_to_shards`.
    made(|out| unsafe {
        ffi::cx_reduce_from_shards(list.as_ptr(), list.len(), group.raw(), sequence_parallel, out)
    })
}

/// The sum of `-log softmax(logits)[target]` over rows, a double scalar; a target of -1 counts nothing, the
/// others by their weight, fp32 `[n]`, which is 1 where there is none.
///
/// Logits `[n, v_s]` are the columns from `starts[s]` on, for each of this rank's shards, in fp32, bf16
/// or fp16. They are consumed: their memory becomes their gradient, so there is one backward pass.
/// Statistics are fp32. The loss's gradient may be any factor; a power of two scales the logits'
/// gradients exactly.
pub fn cross_entropy(
    logits: Vec<Tensor>,
    targets_n: &Tensor,
    weights_n: Option<&Tensor>,
    starts: &[u64],
    group: &Group,
) -> Result<Tensor, TorchError> {
    if logits.len() != starts.len() {
        return Err(TorchError(format!(
            "cross_entropy has {} first columns for {} shards",
            starts.len(),
            logits.len()
        )));
    }
    let list: Vec<_> = logits.iter().map(raw).collect();
    let starts: Vec<_> = starts.iter().map(|&start| start as i64).collect();
    // SAFETY: as for `copy_to_shards`; both lists have `list.len()` entries. Taking the logits by value
    // keeps anyone from reading them after.
    made(|out| unsafe {
        let weights = weights_n.map_or(std::ptr::null(), raw);
        let targets = raw(targets_n);
        ffi::cx_cross_entropy(list.as_ptr(), starts.as_ptr(), list.len(), targets, weights, group.raw(), out)
    })
}
