//! Where a new generation goes on: which step its ranks hold in memory between them, who rolls forward to
//! it, and what travels. Pure: every rank decides the same from the same rosters.
//!
//! A rank votes on a step with its summed gradients in hand, and takes it once all have voted. So where one
//! rank has taken a step, every other can: it has the gradients, and the first hands it the list that
//! closed the step. Where no rank has, none does. What no survivor holds is not made up: then the
//! generation starts from the checkpoint that its assignments name.

use std::collections::BTreeMap;
use std::ops::Range;

use coxswain_types::params::Place;
use serde::{Deserialize, Serialize};

/// A state of the training. Two ranks hold parts of the same one only where they came to it by the same
/// closing lists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Mark {
    /// Steps taken.
    pub step: u64,
    /// A digest of where the training started and of all lists that closed steps since.
    pub lineage: u64,
}

/// What a rank brings to a handover, and what it needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Roster {
    /// The state of what it holds; `None` where it holds nothing of this training.
    pub mark: Option<Mark>,
    /// Whether it has voted on the step that follows, and so can take it.
    pub voted: bool,
    /// The lineage before the step that it took last, if it still has the list that closed it.
    pub closed: Option<u64>,
    /// What it holds.
    pub holds: Vec<HandoverPiece>,
    /// What it has to have.
    pub needs: Vec<HandoverPiece>,
}

/// A slice of a parameter on a rank, and which of its elements are meant, flat and counted from the
/// slice's start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandoverPiece {
    /// The parameter's name.
    pub name: String,
    /// Where the slice starts along its dim.
    pub offset: u64,
    /// How long it is along its dim.
    pub len: u64,
    /// Where its weights lie on the rank.
    pub place: Place,
    /// Whether it is of the copy that the rank keeps for another.
    pub copy: bool,
    /// The weights.
    pub weights: Range<u64>,
    /// The optimizer's state.
    pub moments: Range<u64>,
}

/// What travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Weights.
    Weights,
    /// The optimizer's state.
    Moments,
}

/// A part of a rank, or of the copy that it keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// The rank.
    pub rank: u32,
    /// Whether it is the copy that the rank keeps for another.
    pub copy: bool,
}

/// Elements of a slice that go from one place to another; both may be on one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Move {
    /// The parameter's name.
    pub name: String,
    /// Where the slice starts along its dim.
    pub offset: u64,
    /// Where it has to be, as places go.
    pub place: Place,
    /// Weights or the optimizer's state.
    pub what: What,
    /// The elements, counted from the slice's start.
    pub range: Range<u64>,
    /// Where they are.
    pub from: End,
    /// Where they have to be.
    pub to: End,
}

/// Who holds a slice, and what of it.
type Source<'a> = (End, &'a HandoverPiece);

/// How a generation goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// The state.
    pub mark: Mark,
    /// The first rank that is there already; it knows what goes with the state.
    pub first: u32,
    /// For each rank, whether it takes the step that it has voted on.
    pub rolls: Vec<bool>,
    /// What travels, in the order in which it does: place by place.
    pub moves: Vec<Move>,
}

/// The newest state from step `least` on that the ranks hold in full between them.
pub(super) fn decide(rosters: &[Roster], least: u64) -> Option<Decision> {
    let mut marks: Vec<Mark> = rosters.iter().filter_map(|roster| roster.mark).collect();
    marks.retain(|mark| mark.step >= least);
    marks.sort_unstable_by(|a, b| b.cmp(a));
    marks.dedup();
    marks.into_iter().find_map(|mark| at(rosters, mark))
}

/// How a generation goes on at `mark`; `None` where something of it is missing.
fn at(rosters: &[Roster], mark: Mark) -> Option<Decision> {
    let first = rosters.iter().position(|roster| roster.mark == Some(mark))?;
    // Ranks that are there may have lost the list that brought them, so that no rank can follow by it.
    let before = rosters[first].closed;
    let rolls: Vec<bool> = rosters
        .iter()
        .map(|roster| {
            let behind = roster.mark.filter(|own| own.step + 1 == mark.step && Some(own.lineage) == before);
            behind.is_some() && roster.voted
        })
        .collect();
    let mut held: BTreeMap<(&str, u64, u64), Vec<Source<'_>>> = BTreeMap::new();
    for (rank, roster) in rosters.iter().enumerate() {
        if roster.mark == Some(mark) || rolls[rank] {
            for piece in &roster.holds {
                let end = End { rank: rank as u32, copy: piece.copy };
                held.entry((&piece.name, piece.offset, piece.len)).or_default().push((end, piece));
            }
        }
    }
    let mut moves = Vec::new();
    for (rank, roster) in rosters.iter().enumerate() {
        for need in &roster.needs {
            let to = End { rank: rank as u32, copy: need.copy };
            let sources =
                held.get(&(need.name.as_str(), need.offset, need.len)).map_or(&[][..], Vec::as_slice);
            for what in [What::Weights, What::Moments] {
                fill(need, what, to, sources, &mut moves)?;
            }
        }
    }
    moves.sort_by_key(|one| one.place);
    Some(Decision { mark, first: first as u32, rolls, moves })
}

impl HandoverPiece {
    fn of(&self, what: What) -> &Range<u64> {
        match what {
            What::Weights => &self.weights,
            What::Moments => &self.moments,
        }
    }
}

/// Covers what is needed of a slice from those who have it: from the same place where that is possible,
/// else from the same rank, else from the first that has it, copies last.
fn fill(
    need: &HandoverPiece,
    what: What,
    to: End,
    sources: &[Source<'_>],
    moves: &mut Vec<Move>,
) -> Option<()> {
    let Range { mut start, end } = need.of(what).clone();
    while start < end {
        let here = sources.iter().filter(|(_, piece)| piece.of(what).contains(&start));
        let (from, piece) =
            here.min_by_key(|(from, _)| (*from != to, from.rank != to.rank, from.copy, from.rank))?;
        let until = piece.of(what).end.min(end);
        let (name, offset, place) = (need.name.clone(), need.offset, need.place);
        moves.push(Move { name, offset, place, what, range: start..until, from: *from, to });
        start = until;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: u64 = 70;
    const AFTER: u64 = 80;

    fn mark(step: u64) -> Mark {
        Mark { step, lineage: if step == 7 { BEFORE } else { AFTER } }
    }

    fn piece(name: &str, copy: bool, elements: Range<u64>) -> HandoverPiece {
        let (place, weights) = (Place::Embedding, elements.clone());
        HandoverPiece { name: name.into(), offset: 0, len: 9, place, copy, weights, moments: elements }
    }

    fn whole(name: &str) -> HandoverPiece {
        piece(name, false, 0..90)
    }

    /// A rank that is after `step` and holds these; it needs them too.
    fn rank(step: u64, voted: bool, holds: &[HandoverPiece]) -> Roster {
        Roster {
            mark: Some(mark(step)),
            voted,
            closed: (step == 8).then_some(BEFORE),
            holds: holds.to_vec(),
            needs: holds.to_vec(),
        }
    }

    fn fresh(needs: &[HandoverPiece]) -> Roster {
        Roster { needs: needs.to_vec(), ..Roster::default() }
    }

    /// The step, who rolls forward, and what travels between ranks, as text.
    fn told(rosters: &[Roster], least: u64) -> String {
        let Some(decision) = decide(rosters, least) else { return "the checkpoint".to_owned() };
        let rolls: Vec<_> =
            (0..).zip(&decision.rolls).filter(|(_, rolls)| **rolls).map(|(r, _)| r).collect::<Vec<u32>>();
        let end = |end: End| format!("{}{}", end.rank, if end.copy { "'" } else { "" });
        let moves: Vec<_> = decision
            .moves
            .iter()
            .filter(|m| m.from != m.to && m.what == What::Moments)
            .map(|m| format!("{} {:?} {}>{}", m.name, m.range, end(m.from), end(m.to)))
            .collect();
        format!("step {} by {}, rolls {rolls:?}, moves {moves:?}", decision.mark.step, decision.first)
    }

    #[test]
    fn the_newest_step_that_can_be_had_is_taken_up() {
        let (a, b) = ([whole("a")], [whole("b")]);
        let copy_of_a = piece("a", true, 0..90);
        let rows = [
            // Two stages by two data ranks; the second rank of stage a is a spare.
            (
                "no rank has taken it",
                vec![rank(7, true, &a), fresh(&a), rank(7, false, &b), rank(7, true, &b)],
                "step 7 by 0, rolls [], moves [\"a 0..90 0>1\"]",
            ),
            (
                "one has taken it",
                vec![rank(7, true, &a), fresh(&a), rank(8, false, &b), rank(7, true, &b)],
                "step 8 by 2, rolls [0, 3], moves [\"a 0..90 0>1\"]",
            ),
            (
                "one has taken it and one has not voted, which cannot be",
                vec![rank(7, false, &a), rank(8, false, &b)],
                "the checkpoint",
            ),
            ("a stage is lost", vec![fresh(&a), rank(7, true, &b)], "the checkpoint"),
            (
                "a stage is lost, and its neighbour has a copy",
                vec![fresh(&a), rank(7, true, &[whole("b"), copy_of_a.clone()])],
                "step 7 by 1, rolls [], moves [\"a 0..90 1'>0\"]",
            ),
            (
                "the neighbour rolls forward with its copy",
                vec![
                    fresh(&a),
                    rank(7, true, &[whole("b"), copy_of_a.clone()]),
                    rank(8, false, &[whole("c")]),
                ],
                "step 8 by 2, rolls [1], moves [\"a 0..90 1'>0\"]",
            ),
            ("no rank holds anything", vec![fresh(&a), fresh(&b)], "the checkpoint"),
        ];
        for (case, rosters, wanted) in rows {
            assert_eq!(told(&rosters, 0), wanted, "{case}");
            let above = decide(&rosters, 9);
            assert_eq!(above, None, "{case}: a newer checkpoint is better");
        }
    }

    #[test]
    fn the_same_step_of_another_history_is_another_state() {
        let mut other = rank(8, false, &[whole("b")]);
        other.mark = Some(Mark { step: 8, lineage: 99 });
        assert_eq!(told(&[rank(8, false, &[whole("a")]), other.clone()], 0), "the checkpoint");
        // A rank that holds an older whole does not stand in its way, nor is it followed.
        let all = [whole("a"), whole("b")];
        let mut one = rank(8, false, &all);
        one.needs = vec![whole("a")];
        other.needs = vec![whole("b")];
        other.mark = Some(Mark { step: 8, lineage: 3 });
        assert_eq!(told(&[one, other], 0), "step 8 by 0, rolls [], moves [\"b 0..90 0>1\"]");
    }

    #[test]
    fn slices_of_a_sharded_optimizer_are_put_together_anew() {
        let slice = |range: Range<u64>| HandoverPiece { moments: range, ..whole("a") };
        let of = |range: Range<u64>| rank(7, false, &[slice(range)]);
        let need = |range: Range<u64>| Roster { needs: vec![slice(range)], ..Roster::default() };
        // Three data ranks become two.
        let mut ranks = vec![of(0..30), of(30..60), of(60..90)];
        ranks[0].needs = vec![slice(0..45)];
        ranks[1].needs = vec![slice(45..90)];
        ranks[2].needs = Vec::new();
        assert_eq!(told(&ranks, 0), "step 7 by 0, rolls [], moves [\"a 30..45 1>0\", \"a 60..90 2>1\"]");
        // A lost slice is nowhere.
        assert_eq!(told(&[of(0..30), need(30..60), of(60..90)], 0), "the checkpoint");
        // A slice cut otherwise is another one.
        let mut other = whole("a");
        other.offset = 9;
        assert_eq!(told(&[of(0..90), fresh(&[other])], 0), "the checkpoint");
    }
}
