//! The copy that a rank keeps of what another rank alone holds: its weights and its optimizer's state,
//! updated with the same summed gradients by the same operations, and so bit for bit the same.
//!
//! The gradients travel before the vote that closes the step. So when a step is taken anywhere, every copy
//! can be brought to it.

use std::ops::Range;

use coxswain_comm::{Axis, Group, Links};
use coxswain_types::assignment::{Assignment, PeerReplica};
use coxswain_types::job::Precision;
use tch::{Kind, Tensor};

use super::held::{Held, together};
use super::optimizer::{Optimizer, StepNumbers};
use crate::EngineError;
use crate::error::Doing;
use crate::model::{Bucket, Parameters, buffer};
use crate::parallel::GradientSum;

/// What a rank keeps for another.
#[derive(Debug)]
pub struct Replica {
    of: u32,
    by: u32,
    /// The other's weights.
    pub parameters: Parameters,
    /// The other's part of the optimizer's state.
    pub optimizer: Optimizer,
    /// The sums of the step at hand, by bucket.
    grads: Vec<Tensor>,
}

impl Replica {
    /// The copy that these values are of.
    pub fn of(a: &Assignment, peer_replica: &PeerReplica, held: Vec<Held>) -> Result<Replica, EngineError> {
        // Nothing is computed with these weights, so they are needed in fp32 only.
        let (parameters, optimizer) = together(a, Precision::Fp32, held)?;
        let flat = |bucket: &Bucket| {
            buffer(&[bucket.layout.weight_elements()], Kind::Float, bucket.weights.device())
        };
        let grads: Vec<_> = parameters.buckets().iter().map(flat).collect::<Result<_, _>>()?;
        Ok(Replica { of: peer_replica.of, by: peer_replica.by, parameters, optimizer, grads })
    }

    /// Hands this rank's sums to the rank that copies it, and takes those of the rank that it copies.
    pub fn exchange(
        &self,
        optimizer: &Optimizer,
        reduction: &GradientSum,
        links: &Links,
    ) -> Result<(), EngineError> {
        let mut transfers = Vec::new();
        let part = |x: &Tensor, own: &Range<i64>| x.f_narrow(0, own.start, own.end - own.start);
        for (grad, own) in self.grads.iter().zip(self.optimizer.owned()).filter(|(_, own)| !own.is_empty()) {
            transfers.push(links.recv(&part(grad, own)?, self.of, Axis::Replica)?);
        }
        for (at, own) in optimizer.owned().enumerate().filter(|(_, own)| !own.is_empty()) {
            transfers.push(links.send(&part(reduction.total(at)?, own)?, self.by, Axis::Replica)?);
        }
        for transfer in transfers {
            transfer.wait().doing(|| "handing gradients to the rank that keeps a copy".to_owned())?;
        }
        Ok(())
    }

    /// Takes the step that the other rank takes.
    pub fn step(&self, numbers: &StepNumbers, tensor: &Group) -> Result<(), EngineError> {
        self.optimizer.step(&self.parameters, &self.grads, numbers, tensor)
    }
}
