//! Where parameters lie: the uses of a place that are treated alike form a *bucket*, one flat buffer of weights,
//! with others of the same shape for gradients and moments. The engine allocates by this, and the planner counts by
//! it. Offsets are signed, as libtorch counts.

use std::collections::BTreeSet;
use std::ops::Range;

use crate::job::OptimizerKind;
use crate::params::{ParameterRow, Place};
use crate::tree::NORM_BLOCK;

/// Elements. Rows start at multiples of this, and are updated up to one: the optimizer's vector loop
/// gives other bits at odd ends, and matrix products want aligned rows.
pub const ROW_ALIGN: i64 = 64;

/// What the rows of a bucket have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BucketClass {
    /// Whether the slices have several uses, whose gradients are added after those of micro-batches.
    pub shared: bool,
    /// Whether Muon updates them.
    pub muon: bool,
}

/// Elements of a row in its bucket, up to the next aligned one.
pub fn aligned(row: &ParameterRow) -> i64 {
    (row.elements() as i64 + ROW_ALIGN - 1) / ROW_ALIGN * ROW_ALIGN
}

/// Where the uses of one class of one place lie, flat: what a bucket is apart from its values.
#[derive(Clone, Debug, PartialEq)]
pub struct BucketLayout {
    /// The place.
    pub place: Place,
    /// What the rows have in common.
    pub class: BucketClass,
    /// The uses and where they start: first those whose weights lie here, each in table order.
    rows: Vec<(ParameterRow, i64)>,
    homes: usize,
}

impl BucketLayout {
    /// The layouts of all rows, places in the order of the rows.
    pub fn of(rows: &[ParameterRow], optimizer: OptimizerKind) -> Vec<BucketLayout> {
        let class = |row: &ParameterRow| BucketClass {
            shared: row.uses.len() > 1,
            muon: optimizer == OptimizerKind::Muon && row.is_layer_matrix(),
        };
        // The slices that have a home.
        let mut housed = BTreeSet::new();
        let mut layouts = Vec::new();
        for rows in rows.chunk_by(|a, b| a.place == b.place) {
            let classes: BTreeSet<_> = rows.iter().map(class).collect();
            for of in classes {
                let members = rows.iter().filter(|row| class(row) == of);
                let (at_home, guests): (Vec<_>, Vec<_>) =
                    members.partition(|row| housed.insert((row.name.clone(), row.offset)));
                let homes = at_home.len();
                let mut end = 0;
                let place = |row: &ParameterRow| {
                    let start = end;
                    end += aligned(row);
                    (row.clone(), start)
                };
                let placed = at_home.into_iter().chain(guests).map(place).collect();
                layouts.push(BucketLayout { place: rows[0].place, class: of, rows: placed, homes });
            }
        }
        layouts
    }

    /// All uses and where they start, first those whose weights lie here.
    pub fn rows(&self) -> impl Iterator<Item = (&ParameterRow, i64)> {
        self.rows.iter().map(|(row, start)| (row, *start))
    }

    /// The uses whose weights lie here, and where each does, up to the next aligned element.
    pub fn homes(&self) -> impl Iterator<Item = (&ParameterRow, Range<i64>)> {
        self.rows[..self.homes].iter().map(|(row, start)| (row, *start..start + aligned(row)))
    }

    /// Elements of a buffer for the gradients of all uses.
    pub fn elements(&self) -> i64 {
        end(&self.rows)
    }

    /// Elements of the weights.
    pub fn weight_elements(&self) -> i64 {
        end(&self.rows[..self.homes])
    }

    /// Whether weights in this layout lie as in the other.
    pub fn same_weights(&self, other: &BucketLayout) -> bool {
        let slices = |layout: &BucketLayout| -> Vec<_> {
            let slice = |(row, range): (&ParameterRow, _)| (row.name.clone(), row.offset, row.len, range);
            layout.homes().map(slice).collect()
        };
        self.class.muon == other.class.muon && slices(self) == slices(other)
    }

    /// The slices that `parts` data ranks own, as [`BucketLayout::slice`] cuts them.
    pub fn slices(&self, parts: usize) -> Vec<Range<i64>> {
        (0..parts).map(|part| self.slice((part, parts))).collect()
    }

    /// The slice that data rank `index` of `parts` owns: borders lie between blocks of squared norms, and
    /// between matrices where a matrix must stay whole, whose logical shards here are neighbours.
    pub fn slice(&self, (index, parts): (usize, usize)) -> Range<i64> {
        let (index, parts) = (index as i64, parts as i64);
        let wanted = |part: i64| self.elements() * part / parts;
        self.border(wanted(index))..self.border(wanted(index + 1))
    }

    /// The first border at or after an element.
    fn border(&self, wanted: i64) -> i64 {
        let together =
            |a: &(ParameterRow, i64), b: &(ParameterRow, i64)| self.class.muon && a.0.name == b.0.name;
        let mut start = 0;
        for rows in self.rows.chunk_by(together) {
            if wanted <= start {
                break;
            }
            let end = end(rows);
            if wanted <= end {
                let block = if self.class.muon { end - start } else { NORM_BLOCK as i64 };
                return (start + (wanted - start + block - 1) / block * block).min(end);
            }
            start = end;
        }
        start
    }

    /// The slice of the weights that is number `index` of `parts`.
    pub fn part(&self, (index, parts): (usize, usize)) -> Range<i64> {
        let own = if index < parts { self.slice((index, parts)) } else { 0..0 };
        own.start.min(self.weight_elements())..own.end.min(self.weight_elements())
    }
}

fn end(rows: &[(ParameterRow, i64)]) -> i64 {
    rows.last().map_or(0, |(row, start)| start + aligned(row))
}
