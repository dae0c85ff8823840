//! What the sum of gradients takes beside the buffers that it adds in: parts of them that data ranks send each
//! other, uses of shared slices, and what follows the sum when activations are gone.

use std::collections::BTreeMap;

use coxswain_types::Assignment;
use coxswain_types::buckets::BucketLayout;
use coxswain_types::params::{ParameterRow, Place};

/// Bytes of an fp32 number.
pub(super) const FP32: u64 = 4;

/// Bytes of gradients that arrive from other data ranks once a place's last micro-batch is done.
#[derive(Debug, Default)]
pub(super) struct Arriving(BTreeMap<Place, u64>);

impl Arriving {
    pub(super) fn new(a: &Assignment, buckets: &[BucketLayout]) -> Arriving {
        let mut places = BTreeMap::new();
        for bucket in buckets {
            *places.entry(bucket.place).or_insert(0) += peers(a) * own(a, bucket) * FP32;
        }
        Arriving(places)
    }

    pub(super) fn of(&self, place: Place) -> u64 {
        self.0.get(&place).copied().unwrap_or(0)
    }
}

/// Nodes of the tree of sums that other data ranks have.
fn peers(a: &Assignment) -> u64 {
    let others = a.data_nodes.iter().enumerate().filter(|(at, _)| *at != a.data_index as usize);
    others.map(|(_, nodes)| nodes.len() as u64).sum()
}

/// Elements of a bucket whose sum this rank finishes.
fn own(a: &Assignment, bucket: &BucketLayout) -> u64 {
    let slice = bucket.slice((a.data_index as usize, a.data_group.len().max(1)));
    (slice.end - slice.start) as u64
}

/// The most bytes at once after the last backward: while sums are finished, weights are updated, and a
/// checkpoint is written.
pub(super) fn after(a: &Assignment, buckets: &[BucketLayout]) -> u64 {
    let (mut arrived, mut most) = (0, 0);
    for bucket in buckets {
        arrived += peers(a) * own(a, bucket) * FP32;
    }
    for bucket in buckets {
        // A sum is made beside its parts; a second one beside it, where there are more than two.
        let nodes: u64 = a.data_nodes.iter().map(|nodes| nodes.len() as u64).sum();
        let sums = if a.data_group.len() > 1 { nodes.saturating_sub(1).min(2) } else { 0 };
        most = most.max(arrived + sums * own(a, bucket) * FP32);
        arrived -= peers(a) * own(a, bucket) * FP32;
    }
    most.max(shared(a)).max(muon(buckets)).max(saving(a, buckets))
}

/// Uses of a slice that other ranks bring to the one that adds them.
fn shared(a: &Assignment) -> u64 {
    let rank = a.rank.0;
    let brought = |row: &ParameterRow| {
        let adds =
            row.holders.first() == Some(&rank) && row.uses.first() == Some(&rank) && row.use_index == 0;
        let uses = row.uses.iter().filter(|from| **from != rank).count() as u64;
        if adds { uses * row.elements() * FP32 } else { 0 }
    };
    a.parameters.iter().map(brought).max().unwrap_or(0)
}

/// Muon's largest matrix, of which there are two at a time, and squares of its shorter side.
fn muon(buckets: &[BucketLayout]) -> u64 {
    let homes = buckets.iter().filter(|bucket| bucket.class.muon).flat_map(BucketLayout::homes);
    let matrix = |row: &ParameterRow| {
        let (long, short) = (row.shape[0].max(row.shape[1]), row.shape[0].min(row.shape[1]));
        let gathered = if row.elements() < long * short { long * short } else { 0 };
        FP32 * (2 * long * short + 2 * short * short + gathered)
    };
    homes.map(|(row, _)| matrix(row)).max().unwrap_or(0)
}

/// The largest row, whose moments are put together where data ranks share them.
fn saving(a: &Assignment, buckets: &[BucketLayout]) -> u64 {
    if a.optimizer_group.len() < 2 {
        return 0;
    }
    let mut names: BTreeMap<&str, u64> = BTreeMap::new();
    for (row, range) in buckets.iter().flat_map(BucketLayout::homes) {
        *names.entry(&row.name).or_insert(0) += FP32 * (range.end - range.start) as u64;
    }
    names.into_values().max().unwrap_or(0)
}
