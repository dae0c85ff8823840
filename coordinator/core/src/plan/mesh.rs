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
    }
}
