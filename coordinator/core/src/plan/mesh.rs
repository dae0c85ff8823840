//! The mesh of ranks: data, pipeline and tensor axes, in this order from the outside in, so that
//! consecutive ranks share a tensor group, the one that talks most.

use coxswain_types::job::Layout;

/// A place in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Coordinates {
    pub(super) data: u32,
    pub(super) pipeline: u32,
    pub(super) tensor: u32,
}

/// Ranks and coordinates of a layout.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mesh {
    layout: Layout,
}

impl Mesh {
    pub(super) fn new(layout: Layout) -> Mesh {
        Mesh { layout }
    }

    pub(super) fn world(&self) -> u32 {
        self.layout.world()
    }

    pub(super) fn rank(&self, at: Coordinates) -> u32 {
        (at.data * self.layout.pipeline + at.pipeline) * self.layout.tensor + at.tensor
    }

    pub(super) fn coordinates(&self, rank: u32) -> Coordinates {
        let Layout { pipeline, tensor, .. } = self.layout;
        Coordinates {
            data: rank / (pipeline * tensor),
            pipeline: rank / tensor % pipeline,
            tensor: rank % tensor,
        }
    }

    /// The places before and after `at` in the ring of its data group, or of its pipeline where that is one
    /// rank only, or of its tensor group; `None` where it is alone.
    pub(super) fn neighbours(&self, at: Coordinates) -> Option<(Coordinates, Coordinates)> {
        let Layout { pipeline, tensor, data, .. } = self.layout;
        let ring = |index: u32, len: u32| ((index + len - 1) % len, (index + 1) % len);
        if data > 1 {
            let (before, after) = ring(at.data, data);
            return Some((Coordinates { data: before, ..at }, Coordinates { data: after, ..at }));
        }
        if pipeline > 1 {
            let (before, after) = ring(at.pipeline, pipeline);
            return Some((Coordinates { pipeline: before, ..at }, Coordinates { pipeline: after, ..at }));
        }
        let (before, after) = ring(at.tensor, tensor);
        (tensor > 1).then_some((Coordinates { tensor: before, ..at }, Coordinates { tensor: after, ..at }))
    }

    /// The ranks that differ from `at` along the tensor axis only, itself among them.
    pub(super) fn tensor_group(&self, at: Coordinates) -> Vec<u32> {
        (0..self.layout.tensor).map(|tensor| self.rank(Coordinates { tensor, ..at })).collect()
    }

    /// The ranks that differ from `at` along the data axis only, itself among them.
    pub(super) fn data_group(&self, at: Coordinates) -> Vec<u32> {
        (0..self.layout.data).map(|data| self.rank(Coordinates { data, ..at })).collect()
    }
}

#[cfg(test)]
mod tests {
    use coxswain_types::job::Schedule;

    use super::*;

    #[test]
    fn ranks_and_coordinates_are_each_others_inverse_and_groups_differ_along_one_axis() {
        let layout = Layout {
            pipeline: 3,
            tensor: 2,
            data: 4,
            schedule: Schedule::OneFOneB,
            sequence_parallel: false,
            zero: false,
        };
        let mesh = Mesh::new(layout);
        for rank in 0..mesh.world() {
            assert_eq!(mesh.rank(mesh.coordinates(rank)), rank);
        }
        let at = Coordinates { data: 1, pipeline: 1, tensor: 1 };
        assert_eq!(mesh.rank(at), 9);
        assert_eq!(mesh.tensor_group(at), [8, 9]);
        assert_eq!(mesh.data_group(at), [3, 9, 15, 21]);
        let ring = mesh.neighbours(at).map(|(before, after)| (mesh.rank(before), mesh.rank(after)));
        assert_eq!(ring, Some((3, 15)));
        let first = mesh.neighbours(Coordinates { data: 0, ..at }).map(|(before, _)| mesh.rank(before));
        assert_eq!(first, Some(21));
    }
}
