//! The values that a rank of a new generation begins with: those that ranks hold in memory from an earlier
//! generation, where they hold all of them; else those of a checkpoint; else the initial ones.

use std::collections::VecDeque;

use coxswain_comm::{Axis, Links};
use coxswain_files::StoreFolder;
use coxswain_types::assignment::Assignment;
use coxswain_types::status::{Origin, StepReport};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::closing::Closing;
use super::crossing::Crossing;
use super::handover::{Decision, Mark, Roster, decide};
use super::held::Part;
use super::saving;
use super::state::{Closed, State, origin as lineage};
use super::verdict::Trainer;
use crate::error::Doing;
use crate::model::initial_values;
use crate::{EngineError, checkpoint};

/// What goes with a state, from the first rank that has it to all.
#[derive(Debug, Serialize, Deserialize)]
struct Will {
    /// The lineage before the newest step and the bits of the list that closed it.
    closed: Option<(u64, Vec<u64>)>,
    /// The training's own numbers.
    trainer: Vec<f32>,
    reports: VecDeque<StepReport>,
    unfinished: Option<StepReport>,
}

/// The state that this rank begins with, and where it was. What an earlier generation left here stays in `remains`
/// where this fails, for another try.
pub(super) fn take_up(
    a: &Assignment,
    run: &StoreFolder,
    (runtime, device): (&str, Device),
    links: &Links,
    remains: &mut Option<State>,
) -> Result<(State, Origin), EngineError> {
    remains.take_if(|remains| !remains.is_of(a));
    let needs = Part::all(a, device).iter().flat_map(Part::pieces).collect();
    let roster = State::roster(remains.as_ref(), needs);
    let rosters: Vec<Roster> = share(links, &roster, "finding out what the ranks hold")?;
    let least = a.resume.as_ref().map_or(0, |resume| resume.step.0);
    let (state, origin) = match decide(&rosters, least) {
        Some(decision) => (hand_over((a, device), links, &decision, remains)?, Origin::Memory),
        None => {
            *remains = None;
            let mut state = State::zeros(a, device)?;
            state.trainer = load(a, run, runtime, links, &state)?;
            let digest = a.resume.as_ref().map_or("initial", |resume| &resume.digest);
            state.mark = Mark { step: least, lineage: lineage(digest) };
            (state, if a.resume.is_some() { Origin::Checkpoint } else { Origin::Initial })
        }
    };
    state.parameters.refresh()?;
    Ok((state, origin))
}

/// What every rank says, by rank.
fn share<T: Serialize + for<'de> Deserialize<'de>>(
    links: &Links,
    own: &T,
    doing: &str,
) -> Result<Vec<T>, EngineError> {
    let own = serde_json::to_vec(own).map_err(|error| EngineError::Other(format!("{doing}: {error}")))?;
    let all = links.share(&own).doing(|| doing.to_owned())?;
    let read = |bytes: &Vec<u8>| {
        serde_json::from_slice(bytes).map_err(|error| EngineError::Other(format!("{doing}: {error}")))
    };
    all.iter().map(read).collect()
}

/// Goes on from what ranks hold. Where this fails, `remains` has what is left here of it.
fn hand_over(
    (a, device): (&Assignment, Device),
    links: &Links,
    decision: &Decision,
    remains: &mut Option<State>,
) -> Result<State, EngineError> {
    let own = remains.as_ref().filter(|_| decision.first == links.rank()).map(|remains| Will {
        closed: remains.closed.as_ref().map(Closed::bits),
        trainer: remains.trainer.encode().to_vec(),
        reports: remains.reports.clone(),
        unfinished: remains.unfinished.clone(),
    });
    let wills: Vec<Option<Will>> = share(links, &own, "handing over what goes with the state")?;
    let will = wills.into_iter().nth(decision.first as usize).flatten();
    let will =
        will.ok_or_else(|| EngineError::Other("the rank that knows the state is silent".to_owned()))?;
    let trainer = Trainer::decode(&will.trainer)
        .ok_or_else(|| EngineError::Other("the trainer's numbers are not readable".to_owned()))?;
    let closed = will.closed.map(|(before, bits)| Closed::of_bits(before, &bits));
    let rolls = decision.rolls.get(links.rank() as usize) == Some(&true);
    if let (true, Some(remains), Some(closed)) = (rolls, remains.as_mut(), &closed) {
        let closing = Closing::decode(&closed.list, a.norm_slots, a.spec.train.global_micro_batches);
        // Matrices are whole here: where they are not, a rank does not say that it can take the step.
        let alone = Links::alone().group(&[0], Axis::Tensor)?;
        remains.close(&closing, closed.list.clone(), &alone)?;
        if remains.mark != decision.mark {
            return Err(EngineError::Other(format!(
                "rolled forward to {:?}, not {:?}",
                remains.mark, decision.mark
            )));
        }
    }
    // What is of another step is of no use. Of the rest, all but weights and moments goes now.
    let old = remains.take().filter(|remains| remains.is_at(decision.mark));
    let old = old.map_or(Vec::new(), |remains| remains.held());
    let mut crossing = Crossing::new(links.rank(), old, Part::all(a, device));
    let carried = crossing.carry(&decision.moves, links);
    let mut state = match carried {
        Ok(()) => State::of(a, crossing.into_new()?)?,
        Err(_) => State::left(a, crossing.into_all())?,
    };
    (state.trainer, state.mark, state.closed) = (trainer, decision.mark, closed);
    (state.reports, state.unfinished) = (will.reports, will.unfinished);
    if let Err(error) = carried {
        // This rank may be the only one that has all that it needs.
        *remains = Some(state);
        return Err(error);
    }
    tracing::info!(
        "goes on from step {}, which the ranks held in memory; {} of them had yet to take it",
        decision.mark.step,
        decision.rolls.iter().filter(|rolls| **rolls).count()
    );
    Ok(state)
}

/// Values of the assignment's checkpoint, or the initial ones.
fn load(
    a: &Assignment,
    run: &StoreFolder,
    runtime: &str,
    links: &Links,
    state: &State,
) -> Result<Trainer, EngineError> {
    let copy = state.copy.as_ref().map(|copy| (&copy.parameters, &copy.optimizer));
    let stores: Vec<_> = [(&state.parameters, &state.optimizer)].into_iter().chain(copy).collect();
    if let Some(resume) = &a.resume {
        return saving::load(run, resume, a, runtime, &stores, links);
    }
    for (parameters, _) in stores {
        for param in parameters.iter().filter(|param| param.home) {
            links.expect_wanted()?;
            let values = Tensor::from_slice(&initial_values(&param.row, a.spec.train.seed));
            let shape = param.row.local_shape();
            param.weight.shallow_clone().f_copy_(&values.f_view(shape.as_slice())?)?;
        }
        if let Some(weights) = &a.data.weights {
            let initialized = checkpoint::start(weights, parameters, links)?;
            tracing::info!("weights from {}; initialized: {initialized:?}", weights.folder);
        }
    }
    Ok(Trainer::new(&a.spec.train))
}
