//! Which links the axes of a layout use, and what sums over them take.
//!
//! Ranks take devices in order, the tensor axis innermost and the data axis outermost.

use coxswain_types::job::{JobSpec, Layout, Precision};

use crate::hardware::{Device, Machines, NetworkLink};
use crate::plan::mesh::{Coordinates, Mesh};
use crate::plan::reduction::FP32;

/// A layout on machines.
#[derive(Clone, Debug)]
pub(in crate::plan) struct LayoutNetwork<'a> {
    cluster: &'a Machines,
    layout: Layout,
    mesh: Mesh,
    tensor: NetworkLink,
    data: NetworkLink,
}

impl<'a> LayoutNetwork<'a> {
    pub(in crate::plan) fn new(spec: &JobSpec, cluster: &'a Machines) -> LayoutNetwork<'a> {
        let layout = spec.layout;
        let mesh = Mesh::new(&layout);
        let far = |at: Coordinates| mesh.rank(at);
        let link = |at: Coordinates| cluster.link(0, far(at));
        let last = |ways: u32| ways.saturating_sub(1);
        // The tensor group of every stage and data rank counts: one that lies across two hosts holds up the others.
        let groups = (0..layout.data).flat_map(|data| (0..layout.pipeline).map(move |stage| (data, stage)));
        let tensor = groups
            .take(if layout.tensor > 1 { usize::MAX } else { 1 })
            .map(|(data, pipeline)| {
                let at = |tensor| mesh.rank(Coordinates { data, pipeline, tensor });
                cluster.link(at(0), at(last(layout.tensor)))
            })
            .min_by(|a, b| a.bandwidth.total_cmp(&b.bandwidth))
            .unwrap_or(cluster.between);
        let data = link(Coordinates { data: last(layout.data), ..Coordinates::default() });
        LayoutNetwork { cluster, layout, mesh, tensor, data }
    }

    /// Whether a tensor group lies across hosts.
    pub(in crate::plan) fn tensor_crosses(&self) -> bool {
        self.layout.tensor > 1 && self.tensor == self.cluster.between
    }

    /// The slowest device of a pipeline rank, over all data and tensor ranks.
    pub(in crate::plan) fn slowest(&self, pipeline: u32, precision: Precision) -> Option<&'a Device> {
        if let [one] = self.cluster.hosts.as_slice() {
            return Some(&one.device);
        }
        let Layout { data, tensor, .. } = self.layout;
        let ranks = (0..data).flat_map(|data| (0..tensor).map(move |tensor| (data, tensor)));
        let device = |(data, tensor): (u32, u32)| {
            let rank = self.mesh.rank(Coordinates { data, pipeline, tensor });
            self.cluster.host_of(rank).map(|(_, group)| &group.device)
        };
        let rate = |device: &&Device| device.peak.of(precision) * device.product_share;
        ranks.filter_map(device).min_by(|a, b| rate(a).total_cmp(&rate(b)))
    }

    /// What lies between two pipeline ranks.
    pub(super) fn between_stages(&self, from: u32, to: u32) -> NetworkLink {
        let rank = |pipeline| self.mesh.rank(Coordinates { pipeline, ..Coordinates::default() });
        self.cluster.link(rank(from), rank(to))
    }

    /// How long tensor ranks take to add so many bytes that each of them has: parts go to their owners, and sums come
    /// back.
    pub(super) fn tensor_seconds(&self, bytes: f64) -> f64 {
        exchange(self.layout.tensor, &self.tensor, 2.0 * bytes, 2.0)
    }

    /// How long data ranks take to send nodes of the gradient tree to the owners of their slices.
    pub(super) fn gradient_seconds(&self, elements: f64, nodes: usize) -> f64 {
        exchange(self.layout.data, &self.data, nodes as f64 * elements * FP32 as f64, 1.0)
    }

    /// How long sums, or with ZeRO weights, take back to all.
    pub(super) fn gather_seconds(&self, elements: f64) -> f64 {
        exchange(self.layout.data, &self.data, elements * FP32 as f64, 1.0)
    }

    /// How long the exchange takes that closes a step: up a tree of all ranks, and down again.
    pub(super) fn closing_seconds(&self) -> f64 {
        let world = self.layout.world();
        let link = self.cluster.link(0, world.saturating_sub(1));
        2.0 * link.latency * f64::from(u32::BITS - world.saturating_sub(1).leading_zeros())
    }
}

/// Bytes that each of so many ranks has and hands to the others, all at once.
fn exchange(ranks: u32, link: &NetworkLink, bytes: f64, rounds: f64) -> f64 {
    if ranks < 2 {
        return 0.0;
    }
    let others = f64::from(ranks - 1) / f64::from(ranks);
    rounds * link.latency + bytes * others / link.bandwidth
}
