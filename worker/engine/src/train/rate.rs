//! The learning rate: linear warm-up, then a cosine to the minimum.

use coxswain_types::job::OptimizerSpec;

/// The rate of `step` (counted from 1) of `steps`.
pub fn learning_rate(spec: &OptimizerSpec, step: u64, steps: u64) -> f64 {
    if step <= spec.warmup_steps {
        return spec.learning_rate * step as f64 / spec.warmup_steps as f64;
    }
    let done = (step - spec.warmup_steps) as f64 / (steps - spec.warmup_steps).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos());
    spec.min_learning_rate + (spec.learning_rate - spec.min_learning_rate) * cosine
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_falls_and_ends_at_the_minimum() {
        let spec = OptimizerSpec {
            learning_rate: 1.0,
            min_learning_rate: 0.1,
            warmup_steps: 10,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
        };
        let rate = |step| learning_rate(&spec, step, 110);
        assert_eq!((rate(1), rate(5), rate(10)), (0.1, 0.5, 1.0));
        assert!((rate(60) - 0.55).abs() < 1e-12);
        assert!((rate(110) - 0.1).abs() < 1e-12);
        assert!((11..110).all(|step| rate(step + 1) < rate(step)));
        let cold = OptimizerSpec { warmup_steps: 0, ..spec };
        assert!(learning_rate(&cold, 1, 1).is_finite());
    }
}
