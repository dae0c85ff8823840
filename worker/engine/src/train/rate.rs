//! The learning rate.

pub use coxswain_types::rate::learning_rate;

#[cfg(test)]
pub(super) mod tests {
    use coxswain_types::job::{
        LossScale, OptimizerKind, OptimizerSpec, Precision, RateSchedule, RecomputePolicy, Reduction,
        TrainSpec,
    };

    use super::*;

    /// A training of 110 steps, ten of them warm-up.
    pub(crate) fn train_spec() -> TrainSpec {
        TrainSpec {
            steps: 110,
            seed: 1,
            sequence: 8,
            micro_batch_size: 1,
            global_micro_batches: 1,
            gradient_groups: 1,
            threads: None,
            reduction: Reduction::Canonical,
            tensor_shards: None,
            precision: Precision::Fp32,
            loss_scale: LossScale { initial: 65_536.0, growth_steps: 2_000 },
            non_finite_max: 10,
            dropout: 0.0,
            attention_dropout: 0.0,
            recompute: RecomputePolicy::None,
            optimizer: OptimizerSpec {
                kind: OptimizerKind::AdamW,
                momentum: 0.95,
                schedule: RateSchedule::Cosine,
                learning_rate: 1.0,
                min_learning_rate: 0.1,
                warmup_steps: 10,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                clip_norm: 1.0,
            },
            validate_every: 0,
            parameter_norms: false,
            mask_rate: 0.15,
            corruption: coxswain_types::job::Corruption::Spans,
            separate_documents: false,
            whole_words: false,
            pairs: false,
            start_from: None,
        }
    }

    #[test]
    fn rates_rise_then_follow_their_schedule() {
        for (schedule, rows) in [
            (RateSchedule::Cosine, [(35, 0.8682), (60, 0.55), (110, 0.1)]),
            (RateSchedule::Linear, [(35, 0.775), (60, 0.55), (110, 0.1)]),
            (RateSchedule::Wsd { decay_steps: 20 }, [(90, 1.0), (100, 0.55), (110, 0.1)]),
            (RateSchedule::Constant, [(35, 1.0), (60, 1.0), (110, 1.0)]),
        ] {
            let spec = OptimizerSpec { schedule, ..train_spec().optimizer };
            let rate = |step| learning_rate(&spec, step, 110);
            assert_eq!((rate(1), rate(5), rate(10)), (0.1, 0.5, 1.0), "{schedule:?}");
            for (step, wanted) in rows {
                assert!((rate(step) - wanted).abs() < 1e-3, "{schedule:?}, {step}: {}", rate(step));
            }
            assert!((11..110).all(|step| rate(step + 1) <= rate(step)), "{schedule:?}");
            let cold = OptimizerSpec { warmup_steps: 0, ..spec };
            assert!(learning_rate(&cold, 1, 1).is_finite());
        }
    }
}
