//! The optimizer's numbers and the course of the learning rate.

use coxswain_types::job::{OptimizerKind, OptimizerSpec, RateSchedule};

use super::super::error::KeyPath;
use super::super::raw::{RateScheduleName, RawTrain};
use super::Faults;

pub(super) fn optimizer(raw: &RawTrain, faults: &mut Faults) -> OptimizerSpec {
    let learning_rate = raw.learning_rate.unwrap_or(3e-4);
    let [beta1, beta2] = raw.betas.unwrap_or([0.9, 0.95]);
    let warmup_steps = raw.warmup_steps.unwrap_or((raw.steps / 10).min(100));
    let schedule = rate_schedule(raw, warmup_steps, faults);
    let least = if schedule == RateSchedule::Constant { learning_rate } else { learning_rate / 10.0 };
    let optimizer = OptimizerSpec {
        kind: raw.optimizer.map_or(OptimizerKind::AdamW, Into::into),
        momentum: raw.momentum.unwrap_or(0.95),
        schedule,
        learning_rate,
        min_learning_rate: raw.min_learning_rate.unwrap_or(least),
        warmup_steps,
        beta1,
        beta2,
        eps: raw.eps.unwrap_or(1e-8),
        weight_decay: raw.weight_decay.unwrap_or(0.1),
        clip_norm: raw.clip_norm.unwrap_or(1.0),
    };
    let known = faults.number("train.learning_rate", learning_rate, |x| x > 0.0, "a finite number above 0");
    if known && schedule != RateSchedule::Constant {
        let must = format!("0 or more and at most train.learning_rate ({learning_rate:?})");
        let least = optimizer.min_learning_rate;
        if faults.number("train.min_learning_rate", least, |x| x >= 0.0, &must) && least > learning_rate {
            faults.add("train.min_learning_rate", format!("found {least:?}; must be {must}"));
        }
    }
    if warmup_steps > raw.steps {
        let steps = raw.steps;
        faults.add(
            "train.warmup_steps",
            format!("found {warmup_steps}; must be at most train.steps ({steps})"),
        );
    }
    check_numbers(&optimizer, raw.momentum.is_some(), faults);
    optimizer
}

fn check_numbers(optimizer: &OptimizerSpec, momentum_given: bool, faults: &mut Faults) {
    let share = "0 or more and below 1";
    if optimizer.kind == OptimizerKind::Muon {
        faults.number("train.momentum", optimizer.momentum, |x| (0.0..1.0).contains(&x), share);
    } else {
        faults.only_with(
            "train.momentum",
            momentum_given,
            "train.optimizer muon only (adamw has train.betas)",
        );
    }
    for (i, beta) in [optimizer.beta1, optimizer.beta2].into_iter().enumerate() {
        if !(0.0..1.0).contains(&beta) {
            faults.never(KeyPath::from("train.betas").index(i), format!("found {beta:?}; must be {share}"));
        }
    }
    faults.number("train.eps", optimizer.eps, |x| x > 0.0, "a finite number above 0");
    faults.number("train.weight_decay", optimizer.weight_decay, |x| x >= 0.0, "a finite number, 0 or more");
    let clip = "a finite number, 0 or more (0 clips nothing)";
    faults.number("train.clip_norm", optimizer.clip_norm, |x| x >= 0.0, clip);
}

fn rate_schedule(raw: &RawTrain, warmup_steps: u64, faults: &mut Faults) -> RateSchedule {
    let path = "train.decay_steps";
    let name = raw.learning_rate_schedule.unwrap_or(RateScheduleName::Cosine);
    if name != RateScheduleName::Wsd {
        faults.only_with(path, raw.decay_steps.is_some(), "train.learning_rate_schedule wsd only");
    }
    match name {
        RateScheduleName::Cosine => RateSchedule::Cosine,
        RateScheduleName::Linear => RateSchedule::Linear,
        RateScheduleName::Wsd => {
            let most = raw.steps.saturating_sub(warmup_steps);
            let decay_steps = raw.decay_steps.unwrap_or((raw.steps / 10).max(1).min(most));
            if decay_steps > most {
                let must = format!("must be at most train.steps - train.warmup_steps ({most})");
                faults.add(path, format!("found {decay_steps}; {must}: the fall begins after warm-up"));
            }
            RateSchedule::Wsd { decay_steps }
        }
        RateScheduleName::Constant => {
            if let Some(found) = raw.min_learning_rate {
                let must =
                    "must be left out with train.learning_rate_schedule constant: the rate never falls";
                faults.add("train.min_learning_rate", format!("found {found:?}; {must}"));
            }
            RateSchedule::Constant
        }
    }
}
