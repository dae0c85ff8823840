//! Squared norms of the gradient: sums over fixed blocks of each slice, added in a fixed tree, so
//! that it does not matter which data rank has which block.

use coxswain_comm::{Axis, Links};
use coxswain_native::ops;
use coxswain_types::tree::NORM_BLOCK;

use crate::EngineError;
use crate::error::Doing;
use crate::model::Parameters;
use crate::parallel::GradientSum;

/// Where slices are cut and where sums are cut is said twice, on either side of libtorch.
const _: () = assert!(NORM_BLOCK as usize == ops::NORM_BLOCK);

/// The squared norms that this rank contributes to the closing exchange, by slot. `group` are the
/// ranks among which sums are spread; the first of them contributes.
pub(super) fn norms(
    parameters: &Parameters,
    reduction: &GradientSum,
    group: &[u32],
    links: &Links,
) -> Result<Vec<(u32, f64)>, EngineError> {
    let (mut blocks, mut rows) = (Vec::new(), Vec::new());
    // What is summed here, and where its first block goes.
    let (mut parts, mut places) = (Vec::new(), Vec::new());
    for (at, bucket) in parameters.buckets().iter().enumerate() {
        let (own, total) = (reduction.own(at), reduction.total(at)?);
        for param in bucket.homes() {
            let (start, elements) = (param.range().start, param.row.elements() as i64);
            let first = blocks.len();
            blocks.resize(first + (elements as u64).div_ceil(NORM_BLOCK) as usize, 0.0);
            let from = (own.start - start).clamp(0, elements);
            let to = (own.end - start).clamp(0, elements);
            if from < to {
                parts.push(total.f_narrow(0, start + from, to - from)?);
                places.push(first + from as usize / NORM_BLOCK as usize);
            }
            rows.push((param.row.norm_slot, first..blocks.len()));
        }
    }
    let sums = ops::sum_squares_blocks(&parts)?;
    let mut sums = sums.into_iter();
    for (part, place) in parts.iter().zip(places) {
        let own = part.numel().div_ceil(NORM_BLOCK as usize);
        blocks[place..place + own].iter_mut().zip(sums.by_ref()).for_each(|(block, sum)| *block = sum);
    }
    let blocks = links
        .sum_to_first(group, blocks, Axis::Optimizer)
        .doing(|| "adding norms over data ranks".to_owned())?;
    let slot = |(slot, range): (Option<u32>, std::ops::Range<usize>)| {
        slot.map(|slot| (slot, ops::tree_sum(&blocks[range])))
    };
    Ok(rows.into_iter().filter_map(slot).collect())
}
