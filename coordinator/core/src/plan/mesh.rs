//! The mesh of ranks: data, pipeline and tensor axes, in this order from the outside in, so that
//! consecutive ranks share a tensor group, the one that talks most.

use coxswain_types::job::Layout;

/// A place in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Coordinates {
    pub(super) data: u32,
    pub(super) stage: u32,
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
        (at.data * self.layout.pipeline + at.stage) * self.layout.tensor + at.tensor
    }

    pub(super) fn coordinates(&self, rank: u32) -> Coordinates {
        let Layout { pipeline, tensor, .. } = self.layout;
        Coordinates {
            data: rank / (pipeline * tensor),
            stage: rank / tensor % pipeline,
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

    pub(super) fn previous(&self, at: Coordinates) -> Option<u32> {
        let stage = at.stage.checked_sub(1)?;
        Some(self.rank(Coordinates { stage, ..at }))
    }

    pub(super) fn next(&self, at: Coordinates) -> Option<u32> {
        let stage = at.stage + 1;
        (stage < self.layout.pipeline).then(|| self.rank(Coordinates { stage, ..at }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_and_coordinates_are_each_others_inverse_and_groups_differ_along_one_axis() {
        let mesh = Mesh::new(Layout { pipeline: 3, tensor: 2, data: 4 });
        for rank in 0..mesh.world() {
            assert_eq!(mesh.rank(mesh.coordinates(rank)), rank);
        }
        let at = Coordinates { data: 1, stage: 1, tensor: 1 };
        assert_eq!(mesh.rank(at), 9);
        assert_eq!(mesh.tensor_group(at), [8, 9]);
        assert_eq!(mesh.data_group(at), [3, 9, 15, 21]);
        assert_eq!((mesh.previous(at), mesh.next(at)), (Some(7), Some(11)));
        assert_eq!(mesh.previous(Coordinates { stage: 0, ..at }), None);
        assert_eq!(mesh.next(Coordinates { stage: 2, ..at }), None);
    }
}
