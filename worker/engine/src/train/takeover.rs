//! The values that a rank of a new generation begins with: those that ranks hold in memory from an earlier
//! generation, where they hold all of them; else those of a checkpoint; else those at birth.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use coxswain_comm::{Axis, Links, Transfer};
use coxswain_types::assignment::Assignment;
use coxswain_types::status::StepReport;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::closing::Closing;
use super::handover::{Decision, End, Mark, Move, Roster, What, decide};
use super::optimizer::Optimizer;
use super::state::{Closed, State, origin};
use super::verdict::Trainer;
use crate::error::Doing;
use crate::model::{Param, Parameters, initial_values};
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

/// The state that this rank begins with. What an earlier generation left here stays in `remains` where this
/// fails, for another try.
pub(super) fn take_up(
    a: &Assignment,
    directory: &Path,
    runtime: &str,
    links: &Links,
    remains: &mut Option<State>,
) -> Result<State, EngineError> {
    remains.take_if(|remains| !remains.is_of(a));
    let mut state = State::new(a, remains.as_ref())?;
    let roster = State::roster(remains.as_ref(), state.pieces(true));
    let rosters: Vec<Roster> = share(links, &roster, "finding out what the ranks hold")?;
    let least = a.resume.as_ref().map_or(0, |resume| resume.step.0);
    match decide(&rosters, least) {
        Some(decision) => {
            hand_over(a, links, &decision, remains.as_mut(), &mut state)?;
            // From here on everything is held as often again as it shall be; nobody trains before.
            let all = links.close_sum(&[0.0]).doing(|| "ending the handover".to_owned());
            if let Err(error) = all {
                // This rank has all that it needs, and may be the only one that does.
                *remains = Some(state);
                return Err(error);
            }
        }
        None => {
            // Its tensors may be the very ones that are filled now.
            *remains = None;
            state.trainer = load(a, directory, runtime, links, &state)?;
            let digest = a.resume.as_ref().map_or("birth", |resume| &resume.digest);
            state.mark = Mark { step: least, lineage: origin(digest) };
        }
    }
    state.parameters.refresh()?;
    Ok(state)
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

fn hand_over(
    a: &Assignment,
    links: &Links,
    decision: &Decision,
    mut remains: Option<&mut State>,
    state: &mut State,
) -> Result<(), EngineError> {
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
    let closed = will.closed.map(|(before, bits)| Closed::of_bits(before, &bits));
    let rolls = decision.rolls.get(links.rank() as usize) == Some(&true);
    if let (true, Some(remains), Some(closed)) = (rolls, remains.as_deref_mut(), &closed) {
        let closing = Closing::decode(&closed.list, a.norm_slots, a.spec.train.micro_batches);
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
    carry(&decision.moves, links, remains.as_deref(), state)?;
    state.trainer = Trainer::decode(&will.trainer)
        .ok_or_else(|| EngineError::Other("the trainer's numbers are not readable".to_owned()))?;
    (state.mark, state.closed) = (decision.mark, closed);
    (state.reports, state.unfinished) = (will.reports, will.unfinished);
    tracing::info!(
        "goes on from step {}, which the ranks held in memory; {} of them had yet to take it",
        decision.mark.step,
        decision.rolls.iter().filter(|rolls| **rolls).count()
    );
    Ok(())
}

/// Where a slice lies: in which bucket of which parameters, and whose state goes with it.
#[derive(Clone, Copy)]
struct Place<'a> {
    parameters: &'a Parameters,
    optimizer: &'a Optimizer,
    bucket: usize,
    param: &'a Param,
}

/// The slices of a state, by whether they are of the copy, by name and by offset.
struct Places<'a>(BTreeMap<(bool, &'a str, u64), Place<'a>>);

impl<'a> Places<'a> {
    fn of(state: &'a State) -> Places<'a> {
        let mut places = BTreeMap::new();
        let copy = state.copy.as_ref().map(|copy| (true, &*copy.parameters, &*copy.optimizer));
        for (copy, parameters, optimizer) in
            [(false, &*state.parameters, &*state.optimizer)].into_iter().chain(copy)
        {
            for (at, bucket) in parameters.buckets().iter().enumerate() {
                for param in bucket.homes() {
                    let (name, offset) = param.slice();
                    places.insert((copy, name, offset), Place { parameters, optimizer, bucket: at, param });
                }
            }
        }
        Places(places)
    }

    /// The tensors that a move is of, at one of its ends.
    fn tensors(&self, part: &Move, end: End) -> Result<Vec<Tensor>, EngineError> {
        let place = self.0.get(&(end.copy, part.name.as_str(), part.offset));
        let &Place { parameters, optimizer, bucket: at, param } = place
            .ok_or_else(|| EngineError::Other(format!("{} at {} is not here", part.name, part.offset)))?;
        let (start, len) =
            (param.range().start + part.range.start as i64, (part.range.end - part.range.start) as i64);
        let moments = optimizer.moments(at);
        Ok(match part.what {
            What::Weights => vec![parameters.buckets()[at].weights.f_narrow(0, start, len)?],
            What::Moments => {
                let here = |moment: &Tensor| moment.f_narrow(0, start - moments.own.start, len);
                let second = moments.second.as_ref().map(here).transpose()?;
                [here(&moments.first)?].into_iter().chain(second).collect()
            }
        })
    }
}

/// Does the moves, those of this rank; all ranks go through the same list.
fn carry(moves: &[Move], links: &Links, remains: Option<&State>, state: &State) -> Result<(), EngineError> {
    let (sources, targets) = (remains.map(Places::of), Places::of(state));
    let mut transfers: Vec<Transfer> = Vec::new();
    for part in moves {
        let from = match &sources {
            Some(sources) if part.from.rank == links.rank() => Some(sources.tensors(part, part.from)?),
            _ => None,
        };
        let to = (part.to.rank == links.rank()).then(|| targets.tensors(part, part.to)).transpose()?;
        match (from, to) {
            (Some(from), Some(to)) => {
                for (from, to) in from.iter().zip(&to).filter(|(from, to)| from.data_ptr() != to.data_ptr()) {
                    to.shallow_clone().f_copy_(from)?;
                }
            }
            (Some(from), None) => {
                for x in from {
                    transfers.push(links.send(&x, part.to.rank, Axis::Handover)?);
                }
            }
            (None, Some(to)) => {
                for x in to {
                    transfers.push(links.recv(&x, part.from.rank, Axis::Handover)?);
                }
            }
            (None, None) => {}
        }
    }
    for transfer in transfers {
        transfer.wait().doing(|| "handing over what ranks hold in memory".to_owned())?;
    }
    Ok(())
}

/// Values of the assignment's checkpoint, or at birth.
fn load(
    a: &Assignment,
    directory: &Path,
    runtime: &str,
    links: &Links,
    state: &State,
) -> Result<Trainer, EngineError> {
    let copy = state.copy.as_ref().map(|copy| (&*copy.parameters, &*copy.optimizer));
    let stores: Vec<_> = [(&*state.parameters, &*state.optimizer)].into_iter().chain(copy).collect();
    if let Some(resume) = &a.resume {
        return checkpoint::load(directory, resume, a, runtime, &stores, links);
    }
    for (parameters, optimizer) in stores {
        optimizer.clear()?;
        for param in parameters.iter().filter(|param| param.home) {
            links.expect_wanted()?;
            let values = Tensor::from_slice(&initial_values(&param.row, a.spec.train.seed));
            let shape = param.row.local_shape();
            param.weight.shallow_clone().f_copy_(&values.f_view(shape.as_slice())?)?;
        }
        if let Some(weights) = &a.data.weights {
            let born = checkpoint::start(weights, parameters, links)?;
            tracing::info!("weights from {}; born anew: {born:?}", weights.folder);
        }
    }
    Ok(Trainer::new(&a.spec.train))
}
