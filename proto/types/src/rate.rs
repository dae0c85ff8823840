//! The learning rate: linear warm-up, then what the job's schedule says.

use crate::job::{OptimizerSpec, RateSchedule};

/// The rate of `step` (counted from 1) of `steps`.
pub fn learning_rate(spec: &OptimizerSpec, step: u64, steps: u64) -> f64 {
    if step <= spec.warmup_steps {
        return spec.learning_rate * step as f64 / spec.warmup_steps as f64;
    }
    // How far the way from `from` to the last step is done, in 0..=1.
    let done = |from: u64| {
        let way = steps.saturating_sub(from).max(1) as f64;
        (step.saturating_sub(from) as f64 / way).min(1.0)
    };
    let left = match spec.schedule {
        RateSchedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done(spec.warmup_steps)).cos()),
        RateSchedule::Linear => 1.0 - done(spec.warmup_steps),
        RateSchedule::Wsd { decay_steps } => 1.0 - done(steps.saturating_sub(decay_steps)),
        RateSchedule::Constant => 1.0,
    };
    spec.min_learning_rate + (spec.learning_rate - spec.min_learning_rate) * left
}
