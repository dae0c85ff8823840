//! Dropout by a counter-based hash: whether an element is dropped is a function of a 64-bit key and
//! of the element's index in the whole tensor. So every split of a tensor draws the same mask, and
//! backward and recomputation draw it again instead of keeping it.
//!
//! Which key belongs to which step, micro-batch, layer and site is left to the engine.

use std::ffi::{c_char, c_void};

use tch::Tensor;

use crate::TorchError;
use crate::ops::{made, raw};

unsafe extern "C" {
    fn cx_dropout(
        x: *const c_void,
        key: u64,
        rate: f64,
        first: i64,
        tokens: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn cx_keep_mask(key: u64, rate: f64, first: u64, count: i64, out: *mut *mut c_void) -> *mut c_char;
}

/// Which tokens of the whole sequence a tensor `[b, t, d]` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenWindow {
    /// The first token at hand.
    pub first: i64,
    /// Tokens of the whole sequence.
    pub tokens: i64,
}

/// Drops elements of x `[b, t, d]`, in fp32, bf16 or fp16, at `rate` and multiplies the others by
/// `1 / (1 - rate)`. An element's index is its index in the whole `[b, place.tokens, d]`. Backward
/// draws the same mask. A rate of 0 gives x itself.
///
/// Fails where the rate is not in `0..1` and where x does not lie in `place`.
pub fn dropout(x: &Tensor, key: u64, rate: f64, place: TokenWindow) -> Result<Tensor, TorchError> {
    // SAFETY: the tensor is alive during the call.
    made(|out| unsafe { cx_dropout(raw(x), key, rate, place.first, place.tokens, out) })
}

/// Whether each of the indices `first..first + count` is kept at `rate`: a tensor of booleans.
///
/// Fails where the rate is not in `0..1` or the count is below zero.
pub fn keep_mask(key: u64, rate: f64, first: u64, count: i64) -> Result<Tensor, TorchError> {
    // SAFETY: numbers only.
    made(|out| unsafe { cx_keep_mask(key, rate, first, count, out) })
}

/// The 32 random bits of an index. The element is dropped when they are below the rate times 2^32.
pub fn draw32(key: u64, index: u64) -> u32 {
    // The finaliser of splitmix64 makes two salts for each 2^32 indices; two rounds of a 32-bit
    // bijection between them make the bits. The C++ side has the same function.
    let mut salt = key.wrapping_add(((index >> 32) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    salt = (salt ^ (salt >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    salt = (salt ^ (salt >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    salt ^= salt >> 31;
    mix(mix(index as u32 ^ salt as u32) ^ (salt >> 32) as u32)
}

fn mix(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}
