//! Exact attention over lists of tiles, with a bias by distance and with dropout of probabilities, by
//! kernels of our own: libtorch's fused one knows neither and refuses dropout on the CPU. Memory is linear
//! in the lengths (arXiv 2205.14135, 2307.08691).
//!
//! Bits depend on neither the number of threads nor the other heads of a call: heads computed apart
//! equal the whole. Positions and projections are left to the engine.

use std::ffi::{c_char, c_void};

use coxswain_types::mask::Blocks;
use tch::Tensor;

use crate::TorchError;
use crate::error::check;
use crate::ops::{made, raw};

unsafe extern "C" {
    fn cx_tiled_attention(
        q: *const c_void,
        k: *const c_void,
        v: *const c_void,
        bias: *const c_void,
        list: *const c_void,
        causal: bool,
        scale: f64,
        key: u64,
        rate: f64,
        first_head: i64,
        heads: i64,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn cx_block_list_new(
        queries: i64,
        keys: i64,
        heads: i64,
        patterns: *const FlatPattern,
        pattern_count: usize,
        pattern_of: *const u32,
        of_count: usize,
        bits: *const u64,
        bit_rows: usize,
        out: *mut *mut c_void,
    ) -> *mut c_char;
    fn cx_block_list_free(list: *mut c_void);
}

/// A pattern in the form in which it crosses to the shim.
#[repr(C)]
struct FlatPattern {
    first: *const u32,
    cols: *const u32,
    bits: *const i64,
    query_tiles: usize,
}

/// A list of tiles, as kernels take it. Graphs that need it in their backward pass keep it alive.
#[derive(Debug)]
pub struct BlockList(*mut c_void);

impl BlockList {
    /// The list of `blocks`.
    pub fn new(blocks: &Blocks) -> Result<BlockList, TorchError> {
        // Rows of all lists of bits one after another; the last tile of queries may have fewer.
        let rows: Vec<u64> = blocks
            .bits
            .iter()
            .flat_map(|tile| tile.iter().flat_map(|row| [*row as u64, (*row >> 64) as u64]))
            .collect();
        let starts: Vec<i64> = blocks
            .bits
            .iter()
            .scan(0, |next, tile| {
                let start = *next;
                *next += tile.len() as i64;
                Some(start)
            })
            .collect();
        let start = |bits: Option<u32>| bits.map_or(-1, |at| starts[at as usize]);
        let flat: Vec<(Vec<u32>, Vec<i64>)> = blocks
            .patterns
            .iter()
            .map(|pattern| pattern.tiles.iter().map(|(col, bits)| (*col, start(*bits))).unzip())
            .collect();
        let patterns: Vec<FlatPattern> = blocks
            .patterns
            .iter()
            .zip(&flat)
            .map(|(pattern, (cols, bits))| FlatPattern {
                first: pattern.first.as_ptr(),
                cols: cols.as_ptr(),
                bits: bits.as_ptr(),
                query_tiles: pattern.first.len() - 1,
            })
            .collect();
        let mut out = std::ptr::null_mut();
        // SAFETY: all lists are alive during the call and as long as said; the shim copies them.
        check(unsafe {
            cx_block_list_new(
                i64::from(blocks.queries),
                i64::from(blocks.keys),
                i64::from(blocks.heads),
                patterns.as_ptr(),
                patterns.len(),
                blocks.pattern_of.as_ptr(),
                blocks.pattern_of.len(),
                rows.as_ptr(),
                rows.len() / 2,
                &mut out,
            )
        })?;
        Ok(BlockList(out))
    }
}

impl Drop for BlockList {
    fn drop(&mut self) {
        // SAFETY: the list is ours, and is let go of once.
        unsafe { cx_block_list_free(self.0) }
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug)]
pub enum Visible<'a> {
    /// All.
    All,
    /// Query i the keys `j <= i + s - t`.
    Causal,
    /// Those of the tiles that are listed; no others are looked at.
    Blocks(&'a BlockList),
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

/// How values are mixed.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Which keys a query sees.
    pub visible: Visible<'a>,
    /// What products of queries and keys are multiplied by.
    pub scale: f64,
    /// What is added to the scores of each head, by the distance of key from query: fp32 `[h, s + t - 1]`,
    /// whose element `j - i + t - 1` is for query i and key j.
    pub bias_hr: Option<&'a Tensor>,
    /// What of the probabilities is dropped.
    pub dropout: Option<ProbabilityDropout>,
}

/// `softmax(q k^T scale + bias) v` with q `[b, t, h, k]`, k and v `[b, s, g, k]`, g a divisor of h: result
/// `[b, t, h, k]`. All in one of fp32, bf16 and fp16; computed in fp32. A query that sees no key gives
/// zero.
///
/// Fails where shapes, types, the rate or the heads do not fit.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, options: &Options<'_>) -> Result<Tensor, TorchError> {
    let none = ProbabilityDropout { key: 0, rate: 0.0, first_head: 0, heads: 0 };
    let drop = options.dropout.unwrap_or(none);
    let (list, causal) = match options.visible {
        Visible::All => (std::ptr::null_mut(), false),
        Visible::Causal => (std::ptr::null_mut(), true),
        Visible::Blocks(list) => (list.0, false),
    };
    // SAFETY: all are alive during the call; bias and list may be null, and the graph takes a reference of
    // its own to the list.
    made(|out| unsafe {
        cx_tiled_attention(
            raw(q),
            raw(k),
            raw(v),
            options.bias_hr.map_or(std::ptr::null(), raw),
            list,
            causal,
            options.scale,
            drop.key,
            drop.rate,
            drop.first_head,
            drop.heads,
            out,
        )
    })
}
