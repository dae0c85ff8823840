//! AdamW over a rank's parameters, by libtorch's fused kernel.

use coxswain_native::ops::{self, AdamW, Update};
use coxswain_types::job::OptimizerSpec;
use tch::Tensor;

use crate::EngineError;
use crate::model::Parameters;
use crate::parallel::Reduction;

/// The moments of all parameters, bucket by bucket.
#[derive(Debug)]
pub struct Optimizer {
    exp_avg: Vec<Tensor>,
    exp_avg_sq: Vec<Tensor>,
    numbers: OptimizerSpec,
}

impl Optimizer {
    /// Moments at zero.
    pub fn new(parameters: &Parameters, numbers: &OptimizerSpec) -> Optimizer {
        let zeros = || parameters.buckets().iter().map(|bucket| bucket.buffer()).collect();
        Optimizer { exp_avg: zeros(), exp_avg_sq: zeros(), numbers: numbers.clone() }
    }

    /// The two moments of a bucket.
    pub fn moments(&self, at: usize) -> (&Tensor, &Tensor) {
        (&self.exp_avg[at], &self.exp_avg_sq[at])
    }

    /// Takes `step` (counted from 1): gradients are divided by `divisor`, and decay goes to the rows
    /// that want it.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        reduction: &Reduction,
        step: u64,
        learning_rate: f64,
        divisor: f64,
    ) -> Result<(), EngineError> {
        for decay in [true, false] {
            let mut views = Vec::new();
            for (at, bucket) in parameters.buckets().iter().enumerate() {
                let grads = reduction.total(at)?;
                for param in bucket.params.iter().filter(|param| param.row.decay == decay) {
                    let moments = (param.view_of(&self.exp_avg[at])?, param.view_of(&self.exp_avg_sq[at])?);
                    views.push((&param.weight, param.view_of(grads)?, moments));
                }
            }
            let updates: Vec<_> = views
                .iter()
                .map(|(param, grad, (exp_avg, exp_avg_sq))| Update { param, grad, exp_avg, exp_avg_sq })
                .collect();
            ops::adamw(
                &updates,
                &AdamW {
                    step,
                    learning_rate,
                    beta1: self.numbers.beta1,
                    beta2: self.numbers.beta2,
                    weight_decay: if decay { self.numbers.weight_decay } else { 0.0 },
                    eps: self.numbers.eps,
                    divisor,
                },
            )?;
        }
        Ok(())
    }
}
