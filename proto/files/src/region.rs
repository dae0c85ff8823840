//! Slabs of a tensor and what two of them share: pure arithmetic on elements, row-major.
//!
//! A rank holds, writes and asks for slabs: all elements whose index along one dimension lies in a
//! range. [`runs`] says what to copy from one slab into another, whichever dimensions they are cut
//! along; [`cover`] says whether slabs make up a tensor.

use std::ops::Range;

/// Dimensions that a tensor may have; parameters of transformers have one to three.
pub const MAX_DIMS: usize = 8;

/// A slab of a tensor: the elements whose index along `dim` lies in `offset..offset + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slab {
    /// The dimension of the cut.
    pub dim: u8,
    /// Where the slab starts along it.
    pub offset: u64,
    /// How long it is along it.
    pub len: u64,
}

/// Consecutive elements that two slabs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// Where they start in the first slab.
    pub from: u64,
    /// Where they start in the second slab.
    pub to: u64,
    /// How many they are.
    pub len: u64,
}

impl Slab {
    /// The whole tensor as a slab.
    pub fn whole(shape: &[u64]) -> Slab {
        Slab { dim: 0, offset: 0, len: shape.first().copied().unwrap_or(0) }
    }

    /// Whether this is a slab of a tensor of this shape, and not empty.
    pub fn fits(&self, shape: &[u64]) -> bool {
        let end = self.offset.checked_add(self.len);
        match (shape.get(usize::from(self.dim)), end) {
            (Some(&size), Some(end)) => self.len > 0 && end <= size,
            _ => false,
        }
    }

    /// The slab's own shape; `None` where it does not fit.
    pub fn shape(&self, global: &[u64]) -> Option<Vec<u64>> {
        let mut shape = global.to_vec();
        *shape.get_mut(usize::from(self.dim))? = self.len;
        self.fits(global).then_some(shape)
    }

    fn range(&self, dim: usize, size: u64) -> Range<u64> {
        if dim == usize::from(self.dim) { self.offset..self.offset + self.len } else { 0..size }
    }
}

/// Number of elements of a tensor of this shape, so long as it has one to [`MAX_DIMS`] dimensions,
/// none of them empty, and its `f32`s can be counted in bytes.
pub fn elements(shape: &[u64]) -> Option<u64> {
    if shape.is_empty() || shape.len() > MAX_DIMS || shape.contains(&0) {
        return None;
    }
    let n = shape.iter().try_fold(1u64, |n, &size| n.checked_mul(size))?;
    n.checked_mul(4).filter(|&bytes| i64::try_from(bytes).is_ok()).map(|_| n)
}

/// What slabs `from` and `to` of a tensor share, as runs that are as long as can be, in ascending
/// order on both sides. `None` where the shape is none or a slab does not fit it.
pub fn runs(shape: &[u64], from: Slab, to: Slab) -> Option<impl Iterator<Item = Overlap> + use<>> {
    elements(shape)?;
    let (from_shape, to_shape) = (from.shape(shape)?, to.shape(shape)?);
    let shared: Vec<Range<u64>> = shape
        .iter()
        .enumerate()
        .map(|(dim, &size)| {
            let (a, b) = (from.range(dim, size), to.range(dim, size));
            a.start.max(b.start)..a.end.min(b.end)
        })
        .collect();
    let extents: Vec<u64> = shared.iter().map(|r| r.end.saturating_sub(r.start)).collect();

    // Elements follow one another in both slabs as long as the dimensions inside are whole in both.
    let mut outer = shape.len() - 1;
    while outer > 0 && extents[outer] == from_shape[outer] && extents[outer] == to_shape[outer] {
        outer -= 1;
    }
    let len = extents[outer..].iter().product();
    let start = |cut: Slab, own: &[u64]| -> u64 {
        shared
            .iter()
            .zip(strides(own))
            .enumerate()
            .map(|(dim, (range, stride))| (range.start - cut.range(dim, shape[dim]).start) * stride)
            .sum()
    };
    let empty = extents.contains(&0);
    let (from_start, to_start) =
        if empty { (0, 0) } else { (start(from, &from_shape), start(to, &to_shape)) };
    let (from_strides, to_strides) = (strides(&from_shape), strides(&to_shape));
    let extents = extents[..outer].to_vec();
    let count: u64 = if empty { 0 } else { extents.iter().product() };
    Some((0..count).map(move |i| {
        let (mut rest, mut run) = (i, Overlap { from: from_start, to: to_start, len });
        for (dim, extent) in extents.iter().enumerate().rev() {
            run.from += rest % extent * from_strides[dim];
            run.to += rest % extent * to_strides[dim];
            rest /= extent;
        }
        run
    }))
}

/// Elements between neighbours along each dimension.
fn strides(shape: &[u64]) -> Vec<u64> {
    let mut strides = vec![1; shape.len()];
    for dim in (1..shape.len()).rev() {
        strides[dim - 1] = strides[dim] * shape[dim];
    }
    strides
}

/// Why slabs do not make up a tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoverError {
    /// The shape is none that a tensor here can have.
    #[error("shape {0:?} has no elements, too many dimensions or too many elements")]
    Shape(Vec<u64>),
    /// A slab lies outside.
    #[error("the slab {}..{} along dimension {} lies outside shape {shape:?}", cut.offset, u128::from(cut.offset) + u128::from(cut.len), cut.dim)]
    Outside {
        /// The slab.
        cut: Slab,
        /// The tensor's shape.
        shape: Vec<u64>,
    },
    /// Elements are in no slab.
    #[error("a gap: {}..{} along dimension {dim} is in no file", gap.start, gap.end)]
    Gap {
        /// The dimension of the cut.
        dim: u8,
        /// The indices that are missing.
        gap: Range<u64>,
    },
    /// Elements are in two slabs.
    #[error("an overlap: {}..{} along dimension {dim} is in more than one file", overlap.start, overlap.end)]
    Overlap {
        /// The dimension of the cut.
        dim: u8,
        /// The indices that are there twice.
        overlap: Range<u64>,
    },
    /// Slabs along two dimensions always share elements.
    #[error("an overlap: slabs along dimension {0} cross slabs along dimension {1}")]
    Crossing(u8, u8),
}

/// Whether `cuts` hold every element of a tensor exactly once.
///
/// # Errors
/// The first thing that is wrong, as a [`CoverError`].
pub fn cover(shape: &[u64], cuts: &[Slab]) -> Result<(), CoverError> {
    elements(shape).ok_or_else(|| CoverError::Shape(shape.to_vec()))?;
    if let Some(&cut) = cuts.iter().find(|cut| !cut.fits(shape)) {
        return Err(CoverError::Outside { cut, shape: shape.to_vec() });
    }
    let dim = cuts.first().map_or(0, |cut| cut.dim);
    if let Some(other) = cuts.iter().find(|cut| cut.dim != dim) {
        return Err(CoverError::Crossing(dim, other.dim));
    }
    let mut ranges: Vec<Range<u64>> = cuts.iter().map(|cut| cut.offset..cut.offset + cut.len).collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut end = 0;
    for range in ranges {
        if range.start > end {
            return Err(CoverError::Gap { dim, gap: end..range.start });
        }
        if range.start < end {
            return Err(CoverError::Overlap { dim, overlap: range.start..end.min(range.end) });
        }
        end = range.end;
    }
    let size = shape[usize::from(dim)];
    if end < size { Err(CoverError::Gap { dim, gap: end..size }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The elements of a slab by their global number, the plain way.
    fn slab(shape: &[u64], cut: Slab) -> Vec<u64> {
        let strides = strides(shape);
        let dim = usize::from(cut.dim);
        (0..shape.iter().product::<u64>())
            .filter(|n| (cut.offset..cut.offset + cut.len).contains(&(n / strides[dim] % shape[dim])))
            .collect()
    }

    fn cut_of(shape: Vec<u64>) -> impl Strategy<Value = Slab> {
        (0..shape.len()).prop_flat_map(move |dim| {
            let size = shape[dim];
            (0..size)
                .prop_flat_map(move |offset| (Just(offset), 1..=size - offset))
                .prop_map(move |(offset, len)| Slab { dim: dim as u8, offset, len })
        })
    }

    fn shape_and_cuts() -> impl Strategy<Value = (Vec<u64>, Slab, Slab)> {
        prop::collection::vec(1u64..6, 1..5)
            .prop_flat_map(|shape| (Just(shape.clone()), cut_of(shape.clone()), cut_of(shape)))
    }

    proptest! {
        #[test]
        fn runs_are_exactly_what_two_slabs_share((shape, from, to) in shape_and_cuts()) {
            let (a, b) = (slab(&shape, from), slab(&shape, to));
            let (mut shared, mut end) = (Vec::new(), (0, 0));
            for run in runs(&shape, from, to).unwrap() {
                prop_assert!(run.len > 0 && run.from >= end.0 && run.to >= end.1);
                prop_assert!(shared.is_empty() || (run.from, run.to) != end, "runs that could be one");
                end = (run.from + run.len, run.to + run.len);
                let part = &a[run.from as usize..end.0 as usize];
                prop_assert_eq!(part, &b[run.to as usize..end.1 as usize]);
                shared.extend_from_slice(part);
            }
            let expected: Vec<u64> = a.iter().copied().filter(|n| b.contains(n)).collect();
            prop_assert_eq!(shared, expected);
        }

        #[test]
        fn any_cuts_cover_exactly_when_each_element_is_there_once(
            (shape, cuts) in prop::collection::vec(1u64..5, 1..4).prop_flat_map(|shape| {
                (Just(shape.clone()), prop::collection::vec(cut_of(shape), 0..4))
            })
        ) {
            let mut all: Vec<u64> = cuts.iter().flat_map(|&cut| slab(&shape, cut)).collect();
            all.sort_unstable();
            let once: Vec<u64> = (0..shape.iter().product()).collect();
            prop_assert_eq!(cover(&shape, &cuts).is_ok(), all == once);
        }

        #[test]
        fn parts_of_a_split_cover((size, dim) in (1u64..40, 0usize..3), mut at in prop::collection::vec(0u64..40, 0..6)) {
            let mut shape = vec![2, 3, 4];
            shape[dim] = size;
            at.extend([0, size]);
            at.retain(|&a| a <= size);
            at.sort_unstable();
            at.dedup();
            let cuts: Vec<Slab> =
                at.windows(2).map(|w| Slab { dim: dim as u8, offset: w[0], len: w[1] - w[0] }).collect();
            prop_assert_eq!(cover(&shape, &cuts), Ok(()));
            prop_assert!(cover(&shape, &cuts[1..]).is_err());
        }
    }

    #[test]
    fn what_is_wrong_with_a_cover_is_said() {
        let cut = |dim, offset, len| Slab { dim, offset, len };
        let rows: [(&[u64], &[Slab], &str); 8] = [
            (&[4, 2], &[cut(0, 0, 1), cut(0, 2, 2)], "a gap: 1..2 along dimension 0 is in no file"),
            (&[4, 2], &[cut(0, 0, 3)], "a gap: 3..4 along dimension 0 is in no file"),
            (&[4], &[], "a gap: 0..4 along dimension 0 is in no file"),
            (
                &[4, 2],
                &[cut(0, 0, 3), cut(0, 2, 2)],
                "an overlap: 2..3 along dimension 0 is in more than one file",
            ),
            (
                &[4, 2],
                &[cut(0, 0, 4), cut(1, 0, 2)],
                "an overlap: slabs along dimension 0 cross slabs along dimension 1",
            ),
            (&[4, 2], &[cut(1, 1, 2)], "the slab 1..3 along dimension 1 lies outside shape [4, 2]"),
            (
                &[4],
                &[cut(0, u64::MAX, 2)],
                "the slab 18446744073709551615..18446744073709551617 along dimension 0 lies outside shape [4]",
            ),
            (
                &[u64::MAX, 2],
                &[],
                "shape [18446744073709551615, 2] has no elements, too many dimensions or too many elements",
            ),
        ];
        for (shape, cuts, expected) in rows {
            assert_eq!(cover(shape, cuts).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn odd_shapes_and_cuts_are_none() {
        assert_eq!(elements(&[]), None);
        assert_eq!(elements(&[3, 0]), None);
        assert_eq!(elements(&[1; 9]), None);
        assert_eq!(elements(&[1 << 61]), None);
        assert_eq!(elements(&[1 << 60]), Some(1 << 60));
        let whole = Slab::whole(&[3, 2]);
        assert!(runs(&[3, 2], whole, Slab { dim: 2, offset: 0, len: 1 }).is_none());
        assert!(runs(&[3, 2], Slab { dim: 0, offset: 3, len: 0 }, whole).is_none());
        assert_eq!(
            runs(&[3, 2], whole, whole).unwrap().collect::<Vec<_>>(),
            [Overlap { from: 0, to: 0, len: 6 }]
        );
    }
}
