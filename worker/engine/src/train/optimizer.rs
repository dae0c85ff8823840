//! The update of the weights this rank owns: all of them, or under ZeRO-1 (arXiv 1910.02054) its
//! slice of each bucket, whose new weights then go to the other data ranks; and of copies of them.

use std::ops::Range;

use coxswain_comm::{Axis, Group, Links};
use coxswain_native::ops::{self, AdamW, Update};
use coxswain_types::buckets::BucketLayout;
use coxswain_types::job::OptimizerSpec;
use tch::{Device, Kind, Tensor};

use super::muon;
use crate::EngineError;
use crate::error::Doing;
use crate::model::{Param, Parameters};
use crate::parallel::GradientSum;

/// The optimizer's state of all buckets.
#[derive(Debug)]
pub struct Optimizer {
    moments: Vec<Moments>,
    numbers: OptimizerSpec,
}

/// The state of a bucket's slice.
#[derive(Debug)]
pub struct Moments {
    /// The slice of the bucket's weights.
    pub own: Range<i64>,
    /// Running mean of gradients; Muon's momentum.
    pub first: Tensor,
    /// Running mean of squared gradients; Muon has none.
    pub second: Option<Tensor>,
}

impl Moments {
    /// At zero, of this slice of a bucket.
    pub fn zeros(layout: &BucketLayout, own: Range<i64>, device: Device) -> Result<Moments, EngineError> {
        let zeros = || Tensor::f_zeros([own.end - own.start], (Kind::Float, device));
        let second = if layout.class.muon { None } else { Some(zeros()?) };
        Ok(Moments { first: zeros()?, second, own })
    }

    /// The very same tensors.
    pub fn shallow_clone(&self) -> Moments {
        let second = self.second.as_ref().map(Tensor::shallow_clone);
        Moments { own: self.own.clone(), first: self.first.shallow_clone(), second }
    }

    /// The part of a moment that belongs to a row, flat and up to the aligned end; empty where the row
    /// lies outside of the slice. With it, where it starts in the bucket.
    pub fn segment(&self, moment: &Tensor, row: &Range<i64>) -> Result<(i64, Tensor), EngineError> {
        let (start, end) = (row.start.max(self.own.start), row.end.min(self.own.end));
        let len = (end - start).max(0);
        let at = if len > 0 { start - self.own.start } else { 0 };
        Ok((start, moment.f_narrow(0, at, len)?))
    }
}

/// The numbers of one step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepNumbers {
    /// Steps that changed weights, this one among them.
    pub applied: u64,
    /// The learning rate.
    pub learning_rate: f64,
    /// What gradients are divided by.
    pub divisor: f64,
}

impl Optimizer {
    /// Of the moments of each bucket.
    pub fn new(moments: Vec<Moments>, numbers: &OptimizerSpec) -> Optimizer {
        Optimizer { moments, numbers: numbers.clone() }
    }

    /// The slice of each bucket that is updated here.
    pub fn owned(&self) -> impl Iterator<Item = &Range<i64>> {
        self.moments.iter().map(|moments| &moments.own)
    }

    /// The state of a bucket.
    pub fn moments(&self, at: usize) -> &Moments {
        &self.moments[at]
    }

    /// Updates the weights of the slices. `grads` are the summed gradients of the buckets, flat; `tensor` is
    /// the group over which matrices are split.
    pub fn step(
        &self,
        parameters: &Parameters,
        grads: &[Tensor],
        step: &StepNumbers,
        tensor: &Group,
    ) -> Result<(), EngineError> {
        if grads.len() != parameters.buckets().len() {
            return Err(EngineError::Other("gradients and weights have other buckets".to_owned()));
        }
        for decay in [true, false] {
            self.adamw(parameters, grads, step, decay)?;
        }
        for (at, bucket) in parameters.buckets().iter().enumerate().filter(|(_, b)| b.layout.class.muon) {
            let moments = &self.moments[at];
            let owned = |param: &&std::rc::Rc<Param>| moments.own.contains(&param.range().start);
            let params: Vec<&Param> = bucket.homes().filter(owned).map(AsRef::as_ref).collect();
            muon::step(&params, bucket, moments, &grads[at], &self.numbers, step, tensor)?;
        }
        Ok(())
    }

    fn adamw(
        &self,
        parameters: &Parameters,
        grads: &[Tensor],
        step: &StepNumbers,
        decay: bool,
    ) -> Result<(), EngineError> {
        let mut views = Vec::new();
        for (at, bucket) in parameters.buckets().iter().enumerate() {
            let moments = &self.moments[at];
            let Some(second) = &moments.second else { continue };
            for param in bucket.homes().filter(|param| param.row.decay == decay) {
                let (start, first) = moments.segment(&moments.first, &param.range())?;
                let (_, second) = moments.segment(second, &param.range())?;
                let len = first.size().first().copied().unwrap_or(0);
                if len > 0 {
                    let of = |flat: &Tensor| flat.f_narrow(0, start, len);
                    views.push((of(&bucket.weights)?, of(&grads[at])?, first, second));
                }
            }
        }
        let updates: Vec<_> = views
            .iter()
            .map(|(param, grad, exp_avg, exp_avg_sq)| Update { param, grad, exp_avg, exp_avg_sq })
            .collect();
        ops::adamw(
            &updates,
            &AdamW {
                step: step.applied,
                learning_rate: step.learning_rate,
                beta1: self.numbers.beta1,
                beta2: self.numbers.beta2,
                weight_decay: if decay { self.numbers.weight_decay } else { 0.0 },
                eps: self.numbers.eps,
                divisor: step.divisor,
            },
        )?;
        Ok(())
    }
}

/// Hands the new weights of each owner's slice to all data ranks.
pub(super) fn gather_weights(
    parameters: &Parameters,
    reduction: &GradientSum,
    links: &Links,
    data_group: &[u32],
) -> Result<(), EngineError> {
    let mut transfers = Vec::new();
    for (at, bucket) in parameters.buckets().iter().enumerate() {
        let axis = Axis::Data { bucket: at as u32, gather: true };
        let whole = bucket.layout.weight_elements();
        let slice = |slice: &Range<i64>| -> Result<Option<Tensor>, EngineError> {
            let (start, end) = (slice.start.min(whole), slice.end.min(whole));
            Ok(if start < end { Some(bucket.weights.f_narrow(0, start, end - start)?) } else { None })
        };
        let own = reduction.own(at);
        for (owner, &rank) in data_group.iter().enumerate().filter(|(_, rank)| **rank != links.rank()) {
            if let Some(theirs) = slice(&reduction.slices(at)[owner])? {
                transfers.push(links.recv(&theirs, rank, axis)?);
            }
            if let Some(own) = slice(&own)? {
                transfers.push(links.send(&own, rank, axis)?);
            }
        }
    }
    for transfer in transfers {
        transfer.wait().doing(|| "gathering weights over data ranks".to_owned())?;
    }
    Ok(())
}
