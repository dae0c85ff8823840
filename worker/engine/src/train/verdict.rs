//! What becomes of a step once all ranks know its sums: pure, so that all come to the same end.

use coxswain_types::job::{Precision, TrainSpec};

use super::closing::Closing;
use super::rate::learning_rate;

/// The least and the greatest loss scale: beyond them gradients of any size over- or underflow.
const SCALE_MIN: f64 = 1.0 / 16_777_216.0;
const SCALE_MAX: f64 = 16_777_216.0 * 16_777_216.0;

/// What a training remembers beside weights and moments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trainer {
    /// Steps that changed weights.
    pub applied: u64,
    /// What the mean loss is multiplied by.
    pub loss_scale: f64,
    /// Good steps since the scale last changed.
    pub good: u64,
    /// Steps in a row that were skipped.
    pub skipped: u64,
}

/// What becomes of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The weights change.
    Apply {
        /// The learning rate.
        learning_rate: f64,
        /// What gradients are divided by: tokens, loss scale and clip.
        divisor: f64,
    },
    /// The loss or a gradient is not finite: no weight changes.
    Skip,
    /// As before, and once too often: the run ends.
    Stop,
}

impl Trainer {
    /// Before the first step.
    pub fn new(train: &TrainSpec) -> Trainer {
        let loss_scale = if train.precision == Precision::Fp16 { train.loss_scale.initial } else { 1.0 };
        Trainer { applied: 0, loss_scale, good: 0, skipped: 0 }
    }

    /// What the sum of a micro-batch's losses is multiplied by: the scale over the number of its
    /// tokens, which is rounded up to a power of two so that nothing is rounded.
    pub fn multiplier(&self, train: &TrainSpec) -> f64 {
        let tokens = u64::from(train.sequence) * u64::from(train.micro_batch_size);
        match train.precision {
            Precision::Fp16 => self.loss_scale / tokens.next_power_of_two() as f64,
            Precision::Fp32 | Precision::Bf16 => 1.0,
        }
    }

    /// Decides `step` (counted from 1), and remembers.
    pub fn judge(&mut self, closing: &Closing, train: &TrainSpec, step: u64) -> Verdict {
        let multiplier = self.multiplier(train);
        let norm = closing.mean_norm(multiplier);
        if !norm.is_finite() || !closing.loss.is_finite() {
            self.good = 0;
            self.skipped += 1;
            if train.precision == Precision::Fp16 {
                self.loss_scale = (self.loss_scale / 2.0).max(SCALE_MIN);
            }
            return if self.skipped >= u64::from(train.non_finite_max) {
                Verdict::Stop
            } else {
                Verdict::Skip
            };
        }
        // Gradients are of the scaled sum of losses: one division by weights, scale and clip.
        let clip = train.optimizer.clip_norm;
        let shrink = if clip > 0.0 && norm > clip { norm / clip } else { 1.0 };
        let divisor = closing.weight * multiplier * shrink;
        self.applied += 1;
        self.skipped = 0;
        self.good += 1;
        if train.precision == Precision::Fp16 && self.good >= train.loss_scale.growth_steps {
            self.loss_scale = (self.loss_scale * 2.0).min(SCALE_MAX);
            self.good = 0;
        }
        Verdict::Apply { learning_rate: learning_rate(&train.optimizer, step, train.steps), divisor }
    }

    /// How many numbers [`Trainer::encode`] gives.
    pub const NUMBERS: u64 = 7;

    /// As numbers that fp32 holds exactly, for checkpoints.
    pub fn encode(&self) -> [f32; 7] {
        let split = |n: u64| [(n >> 24) as f32, (n & 0xff_ffff) as f32];
        let ([a, b], [c, d], [e, f]) = (split(self.applied), split(self.good), split(self.skipped));
        [a, b, c, d, e, f, self.loss_scale.log2() as f32]
    }

    /// From [`Trainer::encode`]'s numbers; `None` where they are not such.
    pub fn decode(values: &[f32]) -> Option<Trainer> {
        let &[a, b, c, d, e, f, scale] = values else { return None };
        let join = |high: f32, low: f32| ((high as u64) << 24) | low as u64;
        Some(Trainer {
            applied: join(a, b),
            good: join(c, d),
            skipped: join(e, f),
            loss_scale: f64::from(scale).exp2(),
        })
    }
}

#[cfg(test)]
mod tests {
    use coxswain_types::job::LossScale;
    use coxswain_types::status::Directive;

    use super::*;
    use crate::train::rate::tests::train_spec;

    fn closing(norm: f64, loss: f64) -> Closing {
        Closing { directive: Directive::NONE, norm, squares: Vec::new(), loss, tokens: 10, weight: 10.0 }
    }

    #[test]
    fn a_scale_halves_after_an_overflow_and_doubles_after_good_steps() {
        let train = TrainSpec {
            precision: Precision::Fp16,
            loss_scale: LossScale { initial: 1024.0, growth_steps: 2 },
            non_finite_max: 3,
            sequence: 5,
            micro_batch_size: 2,
            ..train_spec()
        };
        let mut trainer = Trainer::new(&train);
        let mut story = Vec::new();
        for (norm, loss) in [(1.0, 1.0), (f64::INFINITY, 1.0), (1.0, f64::NAN), (1.0, 1.0), (1.0, 1.0)] {
            let verdict = trainer.judge(&closing(norm, loss), &train, 1);
            story.push((trainer.applied, trainer.loss_scale, matches!(verdict, Verdict::Skip)));
        }
        let wanted =
            [(1, 1024.0, false), (1, 512.0, true), (1, 256.0, true), (2, 256.0, false), (3, 512.0, false)];
        assert_eq!(story, wanted);
        // Ten tokens round up to sixteen.
        assert_eq!(trainer.multiplier(&train), 512.0 / 16.0);
        let verdicts: Vec<_> = (0..3).map(|_| trainer.judge(&closing(f64::NAN, 1.0), &train, 1)).collect();
        assert_eq!(verdicts, [Verdict::Skip, Verdict::Skip, Verdict::Stop]);
        assert_eq!(trainer.applied, 3);
    }

    #[test]
    fn the_clip_and_the_scale_are_in_the_divisor() {
        let mut train = train_spec();
        train.optimizer.clip_norm = 1.0;
        let divisor = |norm| match Trainer::new(&train).judge(&closing(norm, 1.0), &train, 1) {
            Verdict::Apply { divisor, .. } => divisor,
            other => panic!("{other:?}"),
        };
        // Norms are of sums over ten tokens.
        assert_eq!((divisor(5.0), divisor(40.0)), (10.0, 40.0));
    }

    #[test]
    fn what_a_training_remembers_survives_fp32() {
        let trainer =
            Trainer { applied: (1 << 29) + 12_345, loss_scale: 1.0 / 4096.0, good: 1_999, skipped: 3 };
        assert_eq!(Trainer::decode(&trainer.encode()), Some(trainer));
        assert_eq!(Trainer::decode(&[1.0]), None);
    }
}
