//! The axes of a layout: what each divides, what it is called, and in which order ranks are numbered along them.

use crate::job::Layout;

/// What an axis divides. In this order ranks are numbered, from the outside in: consecutive ranks share a tensor
/// group, the one that exchanges most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AxisKind {
    /// The micro-batches of a step.
    Data,
    /// The layers of the model.
    Pipeline,
    /// The operations inside a layer.
    Tensor,
}

/// An axis of the mesh of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshAxis {
    /// Its key below `layout`.
    pub name: &'static str,
    /// How it is written in the name of a layout, such as `pp2xtp2`.
    pub short: &'static str,
    /// What it divides.
    pub kind: AxisKind,
}

/// The axes that a job's layout has, in the order in which people name them.
pub const AXES: [MeshAxis; 3] = [
    MeshAxis { name: "pipeline", short: "pp", kind: AxisKind::Pipeline },
    MeshAxis { name: "tensor", short: "tp", kind: AxisKind::Tensor },
    MeshAxis { name: "data", short: "dp", kind: AxisKind::Data },
];

impl Layout {
    /// How many ranks there are along an axis of the layout.
    pub fn ways(&self, axis: &MeshAxis) -> u32 {
        match axis.kind {
            AxisKind::Data => self.data,
            AxisKind::Pipeline => self.pipeline,
            AxisKind::Tensor => self.tensor,
        }
    }
}
