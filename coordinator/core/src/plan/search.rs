//! The layout of a job for given machines: of all that the job leaves open, the one whose step takes the least time
//! and whose memory fits.
//!
//! - `settings`: what is chosen, and a job with it.
//! - `space`: all shapes of a layout that a job allows, in a fixed order.
//! - `bound`: the least time that a shape can take, whatever is chosen beside it.
//! - `weigh`: what a shape takes: its best recompute, ZeRO and gradient groups, with counted memory and simulated time.
//! - `reason`: why a layout lost, and what would make one fit.
//! - `print`, `page`, `saved`: a choice for people, as a page, and as a file.
//!
//! Shapes are weighed in the order of their bounds until no bound is below the best time: the search is exact by its
//! own model. The same question has the same answer, byte for byte.

mod bound;
mod page;
mod print;
mod reason;
mod saved;
mod settings;
mod space;
mod weigh;

use coxswain_types::JobSpec;

use super::{Memory, PlanError};
use crate::hardware::Machines;
use crate::plan::time::Prediction;
use crate::spec::OpenKeys;

pub use print::ToTheEnd;
pub use saved::{NoSavedChoice, SavedChoice};
pub use settings::Settings;

use bound::ShapeBounds;
#[cfg(test)]
use space::LayoutShape;

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct LayoutQuestion<'a> {
    /// The job, with any value at the keys that are open.
    pub spec: &'a JobSpec,
    /// What is open.
    pub open: OpenKeys,
    /// The machines.
    pub cluster: &'a Machines,
    /// How many of their devices may be used.
    pub workers: u32,
}

/// A layout that was weighed.
#[derive(Clone, Debug, PartialEq)]
pub struct Weighed {
    /// What is chosen.
    pub settings: Settings,
    /// What a step takes.
    pub prediction: Prediction,
    /// What each pipeline rank needs.
    pub memory: Vec<Memory>,
    /// Layers of each stage.
    pub layers: Vec<u32>,
    /// How many layers of each pipeline rank are computed again, whole or in part.
    pub again: Vec<u32>,
    /// Whether its tensor groups lie across hosts.
    pub tensor_crosses: bool,
}

/// A layout that does not fit.
#[derive(Clone, Debug, PartialEq)]
pub struct Unfit {
    /// With these settings it comes nearest.
    pub settings: Settings,
    /// The pipeline rank that lacks the most.
    pub pipeline: u32,
    /// Bytes that it lacks.
    pub short: u64,
}

/// Another layout, and why it was not chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct RunnerUp {
    /// What it takes, where it fits.
    pub weighed: Option<Weighed>,
    /// Its settings.
    pub settings: Settings,
    /// Why it lost.
    pub reason: String,
}

/// The answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The job with everything that was open.
    pub spec: JobSpec,
    /// What was chosen.
    pub best: Weighed,
    /// The best of other layouts, in order.
    pub others: Vec<RunnerUp>,
    /// Shapes that there are, and those of them that were weighed.
    pub shapes: [u64; 2],
    /// Bytes that tensors of a worker may have.
    pub limit: u64,
    /// What `train.reduction: fast` would save, if anything.
    pub exactness: Option<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NoChoice {
    /// The keys that are not open leave nothing for so many workers.
    #[error(
        "no layout of this job takes {workers} {} or fewer: {why}",
        if *workers == 1 { "worker" } else { "workers" }
    )]
    None {
        /// How many there are.
        workers: u32,
        /// What stands in the way.
        why: String,
    },
    /// Nothing fits.
    #[error("no layout fits into {}; the nearest is {nearest}: {hint}", super::print::mebibytes(*.limit))]
    Unfit {
        /// Bytes of a worker.
        limit: u64,
        /// The layout that comes nearest.
        nearest: String,
        /// What is missing, and what would help.
        hint: String,
    },
    /// The planner refuses the job itself.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl NoChoice {
    /// What kind of refusal it is.
    pub fn code(&self) -> crate::code::ErrorCode {
        match self {
            NoChoice::None { .. } | NoChoice::Unfit { .. } => crate::code::ErrorCode::LayoutUnfit,
            NoChoice::Plan(error) => error.code(),
        }
    }
}

impl Choice {
    /// The values that make the choice of a job that leaves `open`: paths with values, as `--set` takes them.
    pub fn sets(&self, open: &OpenKeys) -> Vec<(String, String)> {
        let keys = self.best.settings.keys(open).into_iter().filter(|(key, _)| !key.starts_with("layout."));
        let keys = keys.map(|(key, value)| (key.to_owned(), value));
        std::iter::once(("layout".to_owned(), crate::spec::layout_value(&self.spec))).chain(keys).collect()
    }
}

/// Other layouts that are told.
const RUNNERS_UP: usize = 6;

/// Shapes that are weighed after the best is known, to tell of others.
const MORE: u64 = 24;

/// The best layout.
///
/// # Errors
/// The job allows none for so many workers, or none fits.
pub fn choose(question: &LayoutQuestion<'_>) -> Result<Choice, NoChoice> {
    let shapes = space::shapes(question);
    if shapes.is_empty() {
        let why = reason::nothing(question);
        return Err(NoChoice::None { workers: question.workers, why });
    }
    let mut bounds = ShapeBounds::new(question);
    let mut ordered: Vec<(f64, usize)> =
        shapes.iter().enumerate().map(|(index, shape)| (bounds.seconds(shape), index)).collect();
    ordered.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut found = Weighing::default();
    for (bound, index) in ordered {
        let shape = &shapes[index];
        if found.is_enough(bound) {
            break;
        }
        found.weighed += 1;
        found.note(index, weigh::shape(question, shape)?);
    }
    found.answer(question, shapes.len() as u64)
}

/// What was weighed so far.
#[derive(Default)]
struct Weighing {
    fits: Vec<(usize, Weighed)>,
    unfit: Vec<(usize, Unfit)>,
    weighed: u64,
    /// How many were weighed since none could be better.
    since: u64,
}

impl Weighing {
    fn best(&self) -> Option<&(usize, Weighed)> {
        let order = |a: &&(usize, Weighed), b: &&(usize, Weighed)| {
            let steps = a.1.prediction.step.total_cmp(&b.1.prediction.step);
            steps.then_with(|| a.1.settings.plainness().cmp(&b.1.settings.plainness())).then(a.0.cmp(&b.0))
        };
        self.fits.iter().min_by(order)
    }

    /// Whether shapes whose bound is this, and all that follow, change neither the answer nor what is told.
    fn is_enough(&mut self, bound: f64) -> bool {
        let Some((_, best)) = self.best() else { return false };
        if bound <= best.prediction.step {
            return false;
        }
        self.since += 1;
        let axes: std::collections::BTreeSet<[u32; 3]> =
            self.fits.iter().map(|(_, weighed)| weighed.settings.axes()).collect();
        self.since > MORE || axes.len() > RUNNERS_UP
    }

    fn note(&mut self, index: usize, outcome: weigh::ShapeVerdict) {
        match outcome {
            weigh::ShapeVerdict::Fits(weighed) => self.fits.push((index, *weighed)),
            weigh::ShapeVerdict::Unfit(unfit) => self.unfit.push((index, unfit)),
        }
    }

    fn answer(self, question: &LayoutQuestion<'_>, shapes: u64) -> Result<Choice, NoChoice> {
        let limit = weigh::limit(question);
        let Some((_, best)) = self.best().cloned() else {
            return Err(match self.unfit.iter().min_by_key(|(index, unfit)| (unfit.short, *index)) {
                Some((_, unfit)) => NoChoice::Unfit {
                    limit,
                    nearest: unfit.settings.words(),
                    hint: reason::short(question, unfit),
                },
                None => NoChoice::None { workers: question.workers, why: reason::nothing(question) },
            });
        };
        let mut others: Vec<RunnerUp> = Vec::new();
        let mut seen = vec![best.settings.axes()];
        let mut fits = self.fits;
        fits.sort_by(|a, b| a.1.prediction.step.total_cmp(&b.1.prediction.step).then(a.0.cmp(&b.0)));
        for (_, weighed) in fits {
            if others.len() < RUNNERS_UP && !seen.contains(&weighed.settings.axes()) {
                seen.push(weighed.settings.axes());
                let reason = reason::slower(&best, &weighed);
                others.push(RunnerUp { settings: weighed.settings, weighed: Some(weighed), reason });
            }
        }
        // What would have been faster if it fitted, one for each of the axes.
        let mut unfit = self.unfit;
        unfit.sort_by_key(|(index, unfit)| (unfit.short, *index));
        for (_, lacks) in unfit {
            if others.len() < RUNNERS_UP && !seen.contains(&lacks.settings.axes()) {
                seen.push(lacks.settings.axes());
                let reason = reason::short(question, &lacks);
                others.push(RunnerUp { settings: lacks.settings, weighed: None, reason });
            }
        }
        let exactness = reason::exactness(question, &best);
        let spec = best.settings.apply(question.spec);
        Ok(Choice { spec, best, others, shapes: [shapes, self.weighed], limit, exactness })
    }
}

/// The shapes of a question, for tests that try all of them.
#[cfg(test)]
fn all(question: &LayoutQuestion<'_>) -> Vec<LayoutShape> {
    space::shapes(question)
}

#[cfg(test)]
mod tests;
