//! How a rank's values go from one cut of the model to another without two of them in memory: place by place. A
//! rank makes room for its new part of a place, gets it, and lets go of its old part once all ranks have theirs. What
//! lies as it did stays where it is. So where layers shift by a few a rank holds little more than one state. At any
//! time each value is held by at least as many ranks as in one of the two cuts, so an interrupted handover loses
//! nothing.

use coxswain_comm::{Axis, Links, Transfer};
use coxswain_types::params::Place;
use tch::Tensor;

use super::handover::Move;
use super::held::{Held, Part};
use super::optimizer::Moments;
use crate::EngineError;
use crate::error::Doing;

const DOING: &str = "handing over what ranks hold in memory";

/// A rank's values on their way.
pub(super) struct Crossing {
    rank: u32,
    old: Vec<Old>,
    /// What is wanted, in its order, and its values, where they are here.
    new: Vec<(Part, Option<Held>)>,
}

/// A part of the old cut.
struct Old {
    held: Held,
    /// How many moves are to be made before it may go.
    needed: usize,
}

impl Crossing {
    pub(super) fn new(rank: u32, old: Vec<Held>, new: Vec<Part>) -> Crossing {
        let old = old.into_iter().map(|held| Old { held, needed: 0 });
        let new = new.into_iter().map(|part| (part, None));
        Crossing { rank, old: old.collect(), new: new.collect() }
    }

    /// Does the moves, those of this rank; all ranks go through the same list, in which the moves to a place are
    /// neighbours. Ends when all ranks have what they want.
    pub(super) fn carry(&mut self, moves: &[Move], links: &Links) -> Result<(), EngineError> {
        self.rounds(moves, links)?;
        // What has no weights of its own is in no move.
        self.make(|_| true)?;
        links.barrier().doing(|| "ending the handover".to_owned())
    }

    fn rounds(&mut self, moves: &[Move], links: &Links) -> Result<(), EngineError> {
        for (at, one) in moves.iter().enumerate().filter(|(_, one)| one.from.rank == self.rank) {
            let source = self.source(one).map(|(source, _)| source);
            if let Some(old) = source.and_then(|source| self.old.get_mut(source)) {
                old.needed = at + 1;
            }
        }
        let mut done = 0;
        for round in moves.chunk_by(|a, b| a.place == b.place) {
            let place = round[0].place;
            self.make(|part| part.layout.place == place)?;
            if let Err(error) = self.exchange(round, links) {
                self.drop_new(place);
                return Err(error);
            }
            // Where this fails, others may have let go of what is here now.
            expect_all(links, round)?;
            done += round.len();
            self.old.retain(|old| old.held.part.layout.place > place || old.needed > done);
        }
        Ok(())
    }

    /// The values that were wanted, in their order.
    pub(super) fn into_new(self) -> Result<Vec<Held>, EngineError> {
        let held = self.new.into_iter().map(|(part, held)| {
            let place = part.layout.place;
            held.ok_or_else(|| EngineError::Other(format!("nothing was handed over for {place:?}")))
        });
        held.collect()
    }

    /// Whatever is here, of the old cut and of the new one.
    pub(super) fn into_all(self) -> Vec<Held> {
        let old = self.old.into_iter().map(|old| old.held);
        old.chain(self.new.into_iter().filter_map(|(_, held)| held)).collect()
    }

    /// Makes room for the new parts for which there is none.
    fn make(&mut self, wanted: impl Fn(&Part) -> bool) -> Result<(), EngineError> {
        for at in 0..self.new.len() {
            let (part, held) = &self.new[at];
            if held.is_none() && wanted(part) {
                self.new[at].1 = Some(self.room(part)?);
            }
        }
        Ok(())
    }

    /// Room for a new part: that of an old part which lies as it does, unless another new part is there.
    fn room(&self, part: &Part) -> Result<Held, EngineError> {
        let new = || self.new.iter().filter_map(|(_, held)| held.as_ref());
        let free = |old: &Held| new().all(|held| held.weights.data_ptr() != old.weights.data_ptr());
        let old = self.old.iter().map(|old| &old.held);
        let fits = old.filter(|old| old.part.layout.same_weights(&part.layout) && free(old));
        // What was its own first, so that what stays is not taken for the copy.
        let Some(old) = fits.min_by_key(|old| old.part.copy != part.copy) else {
            return part.clone().zeros();
        };
        let moments = match old.moments.own == part.own {
            true => old.moments.shallow_clone(),
            false => Moments::zeros(&part.layout, part.own.clone(), part.device)?,
        };
        Ok(Held { part: part.clone(), weights: old.weights.shallow_clone(), moments })
    }

    fn exchange(&self, round: &[Move], links: &Links) -> Result<(), EngineError> {
        let mut transfers: Vec<Transfer> = Vec::new();
        for one in round {
            let from = (one.from.rank == self.rank).then(|| self.source(one).map(|(_, from)| from));
            let to = (one.to.rank == self.rank).then(|| self.target(one));
            match (from.map(|from| here(one, from)).transpose()?, to.map(|to| here(one, to)).transpose()?) {
                (Some(from), Some(to)) => {
                    for (from, to) in
                        from.iter().zip(&to).filter(|(from, to)| from.data_ptr() != to.data_ptr())
                    {
                        to.shallow_clone().f_copy_(from)?;
                    }
                }
                (Some(from), None) => {
                    for x in from {
                        transfers.push(links.send(&x, one.to.rank, Axis::Handover)?);
                    }
                }
                (None, Some(to)) => {
                    for x in to {
                        transfers.push(links.recv(&x, one.from.rank, Axis::Handover)?);
                    }
                }
                (None, None) => {}
            }
        }
        for transfer in transfers {
            transfer.wait().doing(|| DOING.to_owned())?;
        }
        Ok(())
    }

    fn source(&self, one: &Move) -> Option<(usize, Result<Vec<Tensor>, EngineError>)> {
        let mut old = self.old.iter().enumerate().filter(|(_, old)| old.held.part.copy == one.from.copy);
        old.find_map(|(at, old)| Some((at, old.held.tensors(one)?)))
    }

    fn target(&self, one: &Move) -> Option<Result<Vec<Tensor>, EngineError>> {
        let new = self.new.iter().filter_map(|(_, held)| held.as_ref());
        let mut new = new.filter(|held| held.part.copy == one.to.copy);
        new.find_map(|held| held.tensors(one))
    }

    /// Lets go of new parts of which not all may be there.
    fn drop_new(&mut self, place: Place) {
        for (_, held) in self.new.iter_mut().filter(|(part, _)| part.layout.place == place) {
            *held = None;
        }
    }
}

fn here(one: &Move, found: Option<Result<Vec<Tensor>, EngineError>>) -> Result<Vec<Tensor>, EngineError> {
    found.unwrap_or_else(|| Err(EngineError::Other(format!("{} at {} is not here", one.name, one.offset))))
}

/// Waits until all ranks have what travelled in a round.
fn expect_all(links: &Links, round: &[Move]) -> Result<(), EngineError> {
    let stays = |one: &Move| one.from.rank == one.to.rank;
    if round.iter().all(stays) {
        return Ok(());
    }
    links.barrier().doing(|| DOING.to_owned())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use coxswain_comm::{DataPort, MemoryStore};
    use coxswain_types::buckets::BucketLayout;
    use coxswain_types::job::OptimizerKind;
    use coxswain_types::params::{Init, Parameter, Slice, Split};
    use tch::Device;

    use super::*;
    use crate::train::handover::{Mark, Roster, decide};

    const ROWS: u64 = 4;

    fn parts(layers: &[u32]) -> Vec<Part> {
        let row = |layer: &u32| {
            let parameter = Parameter {
                name: format!("layer {layer}"),
                shape: vec![ROWS, 64],
                split: Split::Replicated,
                places: vec![Place::Layer(*layer)],
                decay: true,
                init: Init::Ones,
            };
            parameter.row(&Slice { dim: 0, offset: 0, len: ROWS, ordinal: 0, holders: 0..1 }, 0)
        };
        let rows: Vec<_> = layers.iter().map(row).collect();
        let part = |layout: BucketLayout| {
            let own = layout.part((0, 1));
            Part { copy: false, own, layout, whole: true, device: Device::Cpu }
        };
        BucketLayout::of(&rows, OptimizerKind::AdamW).into_iter().map(part).collect()
    }

    fn held(layers: &[u32]) -> Vec<Held> {
        let fill = |(layer, part): (&u32, Part)| {
            let held = part.zeros().unwrap();
            for (x, of) in [(&held.weights, 1), (&held.moments.first, 2)] {
                drop(x.shallow_clone().fill_(f64::from(10 * layer + of)));
            }
            held
        };
        layers.iter().zip(parts(layers)).map(fill).collect()
    }

    /// The layers that are here, where their values are right.
    fn layers(all: &[Held]) -> Vec<u32> {
        let right = |held: &&Held| {
            let Place::Layer(layer) = held.part.layout.place else { return false };
            let is = |x: &Tensor, of: u32| x.eq(f64::from(10 * layer + of)).all().int64_value(&[]) == 1;
            is(&held.weights, 1) && is(&held.moments.first, 2)
        };
        let layer = |held: &Held| match held.part.layout.place {
            Place::Layer(layer) => layer,
            _ => u32::MAX,
        };
        all.iter().filter(right).map(layer).collect()
    }

    /// Goes from one cut to another; the second rank is gone after so many rounds. The layers that each rank has, and
    /// whether it has come to the end.
    fn cross(old: [&[u32]; 2], new: [&[u32]; 2], rounds: usize) -> Vec<(Vec<u32>, bool)> {
        let pieces = |layers: &[u32]| parts(layers).iter().flat_map(Part::pieces).collect::<Vec<_>>();
        let roster = |(old, new): (&[u32], &[u32])| Roster {
            mark: Some(Mark { step: 1, lineage: 1 }),
            holds: pieces(old),
            needs: pieces(new),
            ..Roster::default()
        };
        let rosters: Vec<_> = old.into_iter().zip(new).map(roster).collect();
        let moves = decide(&rosters, 0).unwrap().moves;
        let store = MemoryStore::default();
        // A rank that leaves while the other still connects would fail the other's join.
        let joined = Barrier::new(2);
        let rank = |rank: u32| {
            let links =
                Links::join(store.clone(), rank, 2, &DataPort::local().unwrap(), 5_000, 20_000).unwrap();
            joined.wait();
            let mut crossing = Crossing::new(rank, held(old[rank as usize]), parts(new[rank as usize]));
            let rounds = moves.chunk_by(|a, b| a.place == b.place).take(rounds);
            let here: usize = rounds.map(<[_]>::len).sum();
            let end = match rank {
                1 if here < moves.len() => crossing.rounds(&moves[..here], &links).is_err(),
                _ => crossing.carry(&moves, &links).is_ok(),
            };
            (layers(&crossing.into_all()), end)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2)
                .map(|at| {
                    scope.spawn({
                        let rank = &rank;
                        move || rank(at)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn values_get_where_they_are_wanted_and_nothing_else_is_left() {
        let ends = cross([&[0, 1, 2], &[3, 4, 5]], [&[0, 1, 2, 3], &[4, 5]], 9);
        assert_eq!(ends, [(vec![0, 1, 2, 3], true), (vec![4, 5], true)]);
        let ends = cross([&[0, 1], &[2, 3]], [&[2, 3], &[0, 1]], 9);
        assert_eq!(ends, [(vec![2, 3], true), (vec![0, 1], true)]);
    }

    #[test]
    fn where_it_breaks_off_everything_is_still_there() {
        for rounds in 0..4 {
            let ends = cross([&[0, 1], &[2, 3]], [&[2, 3], &[0, 1]], rounds);
            let mut all = [&ends[0].0[..], &ends[1].0].concat();
            all.sort_unstable();
            all.dedup();
            assert_eq!(all, [0, 1, 2, 3], "after {rounds} rounds: {ends:?}");
            assert!(!ends[0].1, "after {rounds} rounds: {ends:?}");
        }
    }
}
