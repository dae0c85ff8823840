//! The mesh of ranks: a list of named axes from the outside in, and the groups of ranks along them.
//!
//! Several axes may divide the same thing: data ranks as replicas by shards, say. What is planned needs to know only
//! what an axis divides, so [`Coordinates`] have one index for each kind, whatever axes it is made of.

use coxswain_types::axis::{AXES, AxisKind, MeshAxis};
use coxswain_types::job::Layout;

/// A place in the mesh: which of the data ranks, of the pipeline ranks and of the tensor ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Coordinates {
    pub(super) data: u32,
    pub(super) pipeline: u32,
    pub(super) tensor: u32,
}

impl Coordinates {
    fn along(&mut self, kind: AxisKind) -> &mut u32 {
        match kind {
            AxisKind::Data => &mut self.data,
            AxisKind::Pipeline => &mut self.pipeline,
            AxisKind::Tensor => &mut self.tensor,
        }
    }
}

/// Ranks and coordinates of a layout.
#[derive(Clone, Debug)]
pub(super) struct Mesh {
    /// From the outside in, each with its number of ranks.
    axes: Vec<(MeshAxis, u32)>,
}

impl Mesh {
    /// The mesh of a job's layout.
    pub(super) fn new(layout: &Layout) -> Mesh {
        let mut axes = AXES.map(|axis| (axis, layout.ways(&axis)));
        axes.sort_by_key(|(axis, _)| axis.kind);
        Mesh { axes: axes.to_vec() }
    }

    pub(super) fn world(&self) -> u32 {
        self.axes.iter().map(|(_, ways)| ways).product()
    }

    pub(super) fn rank(&self, mut at: Coordinates) -> u32 {
        let (mut rank, mut stride) = (0, 1);
        for (axis, ways) in self.axes.iter().rev() {
            let index = at.along(axis.kind);
            rank += *index % ways * stride;
            *index /= ways;
            stride *= ways;
        }
        rank
    }

    pub(super) fn coordinates(&self, mut rank: u32) -> Coordinates {
        let mut at = Coordinates::default();
        let mut scale = Coordinates { data: 1, pipeline: 1, tensor: 1 };
        for (axis, ways) in self.axes.iter().rev() {
            let scale = scale.along(axis.kind);
            *at.along(axis.kind) += rank % ways * *scale;
            *scale *= ways;
            rank /= ways;
        }
        at
    }

    /// The ranks that differ from `at` along the axes that `varies` accepts only, in order; itself among them.
    pub(super) fn group(&self, at: Coordinates, varies: impl Fn(&MeshAxis) -> bool) -> Vec<u32> {
        let own = self.rank(at);
        let mut stride = self.world();
        let mut group = vec![own];
        for (axis, ways) in &self.axes {
            stride /= ways;
            if varies(axis) {
                let own_share = own / stride % ways * stride;
                let along = |base: u32| (0..*ways).map(move |index| base - own_share + index * stride);
                group = group.into_iter().flat_map(along).collect();
            }
        }
        group
    }

    /// The ranks before and after `at` in the ring of the outermost kind of axis that has more than one; `None` where
    /// it is alone.
    pub(super) fn neighbours(&self, at: Coordinates) -> Option<(Coordinates, Coordinates)> {
        let own = self.rank(at);
        let (axis, _) = self.axes.iter().find(|(_, ways)| *ways > 1)?;
        let ring = self.group(at, |other| other.kind == axis.kind);
        let index = ring.iter().position(|rank| *rank == own)?;
        let step = |by: usize| ring.get((index + by) % ring.len()).map(|rank| self.coordinates(*rank));
        step(ring.len() - 1).zip(step(1))
    }

    /// The ranks that differ from `at` in their index of this kind only.
    pub(super) fn group_of(&self, at: Coordinates, kind: AxisKind) -> Vec<u32> {
        self.group(at, |axis| axis.kind == kind)
    }
}

#[cfg(test)]
mod tests {
    use coxswain_types::job::Layout;

    use super::*;

    fn laid_out() -> Mesh {
        Mesh::new(&Layout { pipeline: 3, tensor: 2, data: 4, ..Layout::ONE })
    }

    #[test]
    fn ranks_and_coordinates_are_each_others_inverse_and_groups_differ_along_one_axis() {
        let mesh = laid_out();
        assert_eq!(mesh.world(), 24);
        for rank in 0..mesh.world() {
            assert_eq!(mesh.rank(mesh.coordinates(rank)), rank);
        }
        let at = Coordinates { data: 1, pipeline: 1, tensor: 1 };
        assert_eq!(mesh.rank(at), 9);
        assert_eq!(mesh.group_of(at, AxisKind::Tensor), [8, 9]);
        assert_eq!(mesh.group_of(at, AxisKind::Pipeline), [7, 9, 11]);
        assert_eq!(mesh.group_of(at, AxisKind::Data), [3, 9, 15, 21]);
        let ring = mesh.neighbours(at).map(|(before, after)| (mesh.rank(before), mesh.rank(after)));
        assert_eq!(ring, Some((3, 15)));
        let first = mesh.neighbours(Coordinates { data: 0, ..at }).map(|(before, _)| mesh.rank(before));
        assert_eq!(first, Some(21));
        assert_eq!(Mesh::new(&Layout::ONE).neighbours(Coordinates::default()), None);
    }

    /// Four data ranks as two replicas of two shards: the plan sees the same data ranks, and one axis has its own group.
    #[test]
    fn an_axis_may_be_made_of_two() {
        let whole = laid_out();
        let mut axes = vec![
            (MeshAxis { name: "replicas", short: "rp", kind: AxisKind::Data }, 2),
            (MeshAxis { name: "shards", short: "sh", kind: AxisKind::Data }, 2),
        ];
        axes.extend(whole.axes.iter().filter(|(axis, _)| axis.kind != AxisKind::Data));
        let cut = Mesh { axes: axes.clone() };
        for rank in 0..whole.world() {
            let at = cut.coordinates(rank);
            assert_eq!(at, whole.coordinates(rank));
            for kind in [AxisKind::Data, AxisKind::Pipeline, AxisKind::Tensor] {
                assert_eq!(cut.group_of(at, kind), whole.group_of(at, kind), "{kind:?} of {rank}");
            }
        }
        let at = cut.coordinates(9);
        assert_eq!(cut.group(at, |axis| axis.name == "shards"), [3, 9]);
        assert_eq!(cut.group(at, |axis| axis.name == "replicas"), [9, 21]);

        // With the shards innermost the ranks are others, and the coordinates still say who shares what.
        let shards = axes.remove(1);
        axes.push(shards);
        let apart = Mesh { axes };
        for rank in 0..apart.world() {
            let at = apart.coordinates(rank);
            assert_eq!(apart.rank(at), rank);
            let data = apart.group_of(at, AxisKind::Data);
            assert_eq!(data.len(), 4);
            let alike = |other: &u32| Coordinates { data: at.data, ..apart.coordinates(*other) } == at;
            assert!(data.iter().all(alike), "{rank}: {data:?}");
        }
        assert_eq!(apart.group(apart.coordinates(9), |axis| axis.name == "shards"), [8, 9]);
    }
}
