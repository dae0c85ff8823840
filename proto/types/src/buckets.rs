//! Buckets: the uses of a place that are treated alike lie in one flat buffer of weights, and in others of
//! the same shape for gradients and moments. How a bucket is cut among data ranks is a function of its rows, so
//! that the planner counts what the engine allocates.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::job::OptimizerKind;
use crate::params::{ParameterRow, Place};
use crate::tree::NORM_BLOCK;

/// Elements. Rows start at multiples of this, and are updated up to one: the optimizer's vector loop
/// gives other bits at odd ends, and matrix products want aligned rows.
pub const ROW_ALIGN: u64 = 64;

/// What the rows of a bucket have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Class {
    /// Whether the slices have several uses, whose gradients are added after those of micro-batches.
    pub shared: bool,
    /// Whether Muon updates them.
    pub muon: bool,
}

/// The rows of a bucket.
#[derive(Clone, Debug)]
pub struct BucketRows<'a> {
    /// The place.
    pub place: Place,
    /// What the rows have in common.
    pub class: Class,
    /// The first use of each slice on the rank, whose weights lie here, in table order.
    pub homes: Vec<&'a ParameterRow>,
    /// Uses of slices whose weights lie elsewhere, or here already; they have gradients only.
    pub guests: Vec<&'a ParameterRow>,
}

/// The buckets of a rank, place by place in the order of its rows.
pub fn buckets(rows: &[ParameterRow], optimizer: OptimizerKind) -> Vec<BucketRows<'_>> {
    let class = |row: &ParameterRow| Class {
        shared: row.uses.len() > 1,
        muon: optimizer == OptimizerKind::Muon && row.is_layer_matrix(),
    };
    let (mut homes, mut buckets) = (BTreeSet::new(), Vec::new());
    for rows in rows.chunk_by(|a, b| a.place == b.place) {
        let classes: BTreeSet<_> = rows.iter().map(class).collect();
        for of in classes {
            let members = rows.iter().filter(|row| class(row) == of);
            let (homes, guests) = members.partition(|row| homes.insert((row.name.as_str(), row.offset)));
            buckets.push(BucketRows { place: rows[0].place, class: of, homes, guests });
        }
    }
    buckets
}

/// Elements of a row in its bucket, up to the next aligned one.
pub fn aligned(row: &ParameterRow) -> u64 {
    row.elements().next_multiple_of(ROW_ALIGN)
}

impl BucketRows<'_> {
    /// Elements of the weights.
    pub fn weight_elements(&self) -> u64 {
        self.homes.iter().map(|row| aligned(row)).sum()
    }

    /// Elements of a buffer for the gradients of all uses.
    pub fn elements(&self) -> u64 {
        self.weight_elements() + self.guests.iter().map(|row| aligned(row)).sum::<u64>()
    }

    /// The slices that `parts` data ranks own.
    pub fn slices(&self, parts: u64) -> Vec<Range<u64>> {
        let rows = self.homes.iter().chain(&self.guests);
        slices(rows.map(|row| (row.name.as_str(), aligned(row))), self.class.muon, parts)
    }
}

/// The slices of a bucket that `parts` data ranks own, from its rows' names and aligned elements: borders lie
/// between blocks of squared norms, and between matrices where a matrix must stay whole, whose rows here are
/// neighbours.
pub fn slices<'a>(rows: impl Iterator<Item = (&'a str, u64)>, whole: bool, parts: u64) -> Vec<Range<u64>> {
    let (mut borders, mut end, mut matrix) = (vec![0], 0, None);
    for (name, elements) in rows {
        if whole && matrix == Some(name) {
            borders.pop();
        }
        matrix = Some(name);
        let start = end;
        end += elements;
        if !whole {
            borders.extend((start..end).step_by(NORM_BLOCK as usize).skip(1));
        }
        borders.push(end);
    }
    let border = |part: u64| {
        let wanted = end * part / parts.max(1);
        borders.iter().copied().find(|at| *at >= wanted).unwrap_or(end)
    };
    (0..parts).map(|part| border(part)..border(part + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::ModelSpec;
    use crate::params::{Parameter, parameter_table, slice_of};

    /// The rows of a layer on a rank that holds these of `shards` logical shards.
    fn rows(held: Range<u32>, shards: u32) -> Vec<ParameterRow> {
        let table = parameter_table(&ModelSpec::llama(1, 64, 8, 2, 96, 300));
        let of_layer = table.iter().filter(|parameter| parameter.places[0] == Place::Layer(0));
        let row = |parameter: &Parameter, shard| {
            let mut row = parameter.row(&slice_of(parameter, shard, shards), shard);
            // Key/value heads are fewer than shards.
            row.uses = if parameter.slices(shards) < shards { vec![0; 2] } else { Vec::new() };
            row
        };
        of_layer.flat_map(|parameter| held.clone().map(move |shard| row(parameter, shard))).collect()
    }

    #[test]
    fn slices_follow_each_other_and_a_matrix_that_muon_updates_is_never_cut() {
        for (held, shards) in [(0..1, 1), (0..4, 4), (2..4, 4), (0..8, 8), (4..8, 8)] {
            let rows = rows(held.clone(), shards);
            for bucket in buckets(&rows, OptimizerKind::Muon) {
                for parts in 1..=5 {
                    let slices = bucket.slices(parts);
                    assert!(slices.windows(2).all(|pair| pair[0].end == pair[1].start), "{slices:?}");
                    assert_eq!((slices[0].start, slices[parts as usize - 1].end), (0, bucket.elements()));
                    let mut start = 0;
                    let owned: Vec<_> = bucket
                        .homes
                        .iter()
                        .chain(&bucket.guests)
                        .map(|row| {
                            let range = start..start + aligned(row);
                            start = range.end;
                            let owns = |s: &Range<u64>| s.start <= range.start && range.end <= s.end;
                            (&row.name, slices.iter().position(owns))
                        })
                        .collect();
                    for pair in owned.windows(2).filter(|pair| bucket.class.muon && pair[0].0 == pair[1].0) {
                        assert!(
                            pair[0].1.is_some() && pair[0].1 == pair[1].1,
                            "shards {held:?} of {shards}, {parts} parts: {} is cut: {slices:?}",
                            pair[0].0
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_bucket_is_cut_between_blocks_and_rows() {
        let of = |rows: &[(&'static str, u64)], parts| slices(rows.iter().copied(), false, parts);
        assert_eq!(
            of(&[("a", 3 * NORM_BLOCK), ("b", 64)], 2),
            [0..2 * NORM_BLOCK, 2 * NORM_BLOCK..3 * NORM_BLOCK + 64]
        );
        assert_eq!(of(&[("a", 64), ("b", 64)], 3), [0..64, 64..128, 128..128]);
    }
}
