//! Why a layout lost, what a layout lacks and what would help, in words.

use coxswain_types::job::{Block, Precision, RecomputePolicy, Reduction};

use super::{LayoutQuestion, Settings, Unfit, Weighed, weigh};
use crate::plan::print::mebibytes;

/// Why one layout is slower than another: by how much, and by what most.
pub(super) fn slower(best: &Weighed, other: &Weighed) -> String {
    let (ours, theirs) = (&best.prediction, &other.prediction);
    let percent = 100.0 * (theirs.step / ours.step - 1.0);
    let more = |of: fn(&crate::plan::time::TimeLosses) -> f64| of(&theirs.losses) - of(&ours.losses);
    let world = |weighed: &Weighed| weighed.settings.layout.world();
    let causes = [
        (more(|losses| losses.idle), {
            let stages = other.settings.layout.pipeline;
            format!("{stages} stages are idle {:.0} % of the step", 100.0 * theirs.idle)
        }),
        (more(|losses| losses.sums), {
            let where_ = if other.tensor_crosses { "sums cross the network" } else { "sums of tensor ranks" };
            format!("{where_} ({} a step)", seconds(theirs.losses.sums))
        }),
        (more(|losses| losses.again), format!("computes {} again to fit", seconds(theirs.losses.again))),
        (more(|losses| losses.reduction), {
            format!("sums of gradients take {}", seconds(theirs.losses.reduction))
        }),
        (more(|losses| losses.update), format!("updates take {}", seconds(theirs.losses.update))),
    ];
    let lost: f64 = causes.iter().map(|(seconds, _)| seconds.max(0.0)).sum();
    let computes = (theirs.step - ours.step) - causes.iter().map(|(seconds, _)| seconds).sum::<f64>();
    let worst = causes.iter().max_by(|a, b| a.0.total_cmp(&b.0)).map_or("", |(_, words)| words.as_str());
    let why = match () {
        () if computes > lost && world(other) < world(best) => {
            format!("uses {} of {} workers", world(other), world(best))
        }
        () if computes > lost => "more to compute on the busiest rank".to_owned(),
        () => worst.to_owned(),
    };
    if percent < 0.05 {
        format!("as fast, but less plain: {why}")
    } else {
        format!("{percent:.1} % slower: {why}")
    }
}

/// Seconds for people.
pub(in crate::plan) fn seconds(seconds: f64) -> String {
    match seconds {
        _ if seconds < 1e-3 => format!("{:.0} µs", 1e6 * seconds),
        _ if seconds < 1.0 => format!("{:.0} ms", 1e3 * seconds),
        _ if seconds < 120.0 => format!("{seconds:.2} s"),
        _ if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        _ if seconds < 172_800.0 => format!("{:.1} h", seconds / 3600.0),
        _ => format!("{:.1} days", seconds / 86_400.0),
    }
}

/// What a layout lacks, and what would make it fit.
pub(super) fn short(question: &LayoutQuestion<'_>, unfit: &Unfit) -> String {
    let lacks = format!("{} short on pipeline rank {}", mebibytes(unfit.short), unfit.pipeline);
    let helps = helps(question, unfit);
    if helps.is_empty() { lacks } else { format!("{lacks}; what would help: {}", helps.join(", or ")) }
}

/// Single changes after which the layout fits, on as many more workers as they take.
fn helps(question: &LayoutQuestion<'_>, unfit: &Unfit) -> Vec<String> {
    let limit = weigh::limit(question);
    let settings = unfit.settings;
    let layout = settings.layout;
    let mut helps = Vec::new();
    let mut attempt = |words: String, settings: Settings, precision: Option<Precision>| {
        let mut spec = weigh::spec_of(question, &settings);
        if let Some(precision) = precision {
            spec.train.precision = precision;
        }
        let fits = crate::plan::pipeline::slowest(&spec).is_ok_and(|assignments| {
            assignments.iter().all(|a| crate::plan::memory::memory(a).tensor_bytes() <= limit)
        });
        if fits && helps.len() < 3 {
            helps.push(words);
        }
    };
    if !question.open.recompute {
        for (words, recompute) in [
            ("recompute attention", RecomputePolicy::Selective(Block::Attention)),
            ("recompute all layers", RecomputePolicy::Full),
        ] {
            attempt(words.to_owned(), Settings { recompute, ..settings }, None);
        }
    }
    if question.spec.train.precision == Precision::Fp32 {
        attempt("train.precision bf16".to_owned(), settings, Some(Precision::Bf16));
    }
    if !layout.zero && layout.data > 1 {
        let layout = coxswain_types::job::Layout { zero: true, ..layout };
        attempt("layout.zero 1".to_owned(), Settings { layout, ..settings }, None);
    }
    let layers = question.spec.model.all_layers() / layout.schedule.chunks();
    let more =
        (layout.pipeline + 1..=layers).filter(|pipeline| pipeline.is_power_of_two() || *pipeline == layers);
    let mut found = false;
    for pipeline in more {
        let before = found;
        let words = format!("pipeline {pipeline} ({} workers)", pipeline * layout.tensor * layout.data);
        let layout = coxswain_types::job::Layout { pipeline, ..layout };
        let spec = weigh::spec_of(question, &Settings { layout, ..settings });
        let fits = crate::plan::pipeline::slowest(&spec).is_ok_and(|assignments| {
            assignments.iter().all(|a| crate::plan::memory::memory(a).tensor_bytes() <= limit)
        });
        found |= fits;
        if found && !before {
            attempt(words, Settings { layout, ..settings }, None);
            break;
        }
    }
    if settings.micro_batch_size > 1 {
        let smaller = Settings {
            micro_batch_size: 1,
            global_micro_batches: settings.global_micro_batches * settings.micro_batch_size,
            ..settings
        };
        attempt("train.micro_batch_size 1".to_owned(), smaller, None);
    }
    helps
}

/// Why there are no shapes at all.
pub(super) fn nothing(question: &LayoutQuestion<'_>) -> String {
    let spec = question.spec;
    let mut fixed = Vec::new();
    for (open, key, value) in [
        (question.open.pipeline, "layout.pipeline", spec.layout.pipeline),
        (question.open.tensor, "layout.tensor", spec.layout.tensor),
        (question.open.data, "layout.data", spec.layout.data),
    ] {
        if !open {
            fixed.push(format!("{key} is {value}"));
        }
    }
    if fixed.is_empty() {
        return "the model has no layers to divide".to_owned();
    }
    fixed.push(format!(
        "the model has {} layers and {} heads, a step {} micro-batches",
        spec.model.all_layers(),
        spec.model.heads,
        spec.train.global_micro_batches
    ));
    fixed.join(", ")
}

/// What sums in one group for each data rank would save.
pub(super) fn exactness(question: &LayoutQuestion<'_>, best: &Weighed) -> Option<String> {
    let settings = best.settings;
    if settings.reduction == Reduction::Fast || settings.gradient_groups == settings.layout.data {
        return None;
    }
    let fast = Settings { reduction: Reduction::Fast, gradient_groups: settings.layout.data, ..settings };
    let Ok(weigh::ShapeVerdict::Fits(fast)) = weigh::one(question, fast, u64::MAX) else { return None };
    let most =
        |weighed: &Weighed| weighed.memory.iter().map(|memory| memory.tensor_bytes()).max().unwrap_or(0);
    let bytes = most(best).saturating_sub(most(&fast));
    let time = 100.0 * (1.0 - fast.prediction.step / best.prediction.step);
    (bytes > 0).then(|| {
        format!(
            "train.reduction fast would save {} of a worker and {time:.1} % of the step",
            mebibytes(bytes)
        )
    })
}
