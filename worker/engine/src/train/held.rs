//! What a rank holds of a training, bucket by bucket: a state is made of such parts, and goes from one cut of the
//! model to another as them.

use std::ops::Range;

use coxswain_types::assignment::Assignment;
use coxswain_types::buckets::BucketLayout;
use coxswain_types::job::Precision;
use coxswain_types::params::ParameterRow;
use tch::{Device, Tensor};

use super::handover::{HandoverPiece, Move, What};
use super::optimizer::{Moments, Optimizer};
use crate::EngineError;
use crate::model::{Parameters, zeros};

/// A bucket of a rank's own state, or of the copy that it keeps for another, apart from its values.
#[derive(Clone, Debug)]
pub struct Part {
    /// Whether it is of the copy.
    pub copy: bool,
    /// What lies where.
    pub layout: BucketLayout,
    /// The slice whose moments are here.
    pub own: Range<i64>,
    /// Whether all weights count, or those of that slice only.
    pub whole: bool,
    /// Where its values are.
    pub device: Device,
}

impl Part {
    /// All parts of an assignment: its own in the order of its rows, then those of the copy.
    pub fn all(a: &Assignment, device: Device) -> Vec<Part> {
        let (kind, parts) = (a.spec.train.optimizer.kind, a.optimizer_group.len());
        let of = |copy: bool, rows: &[ParameterRow], index: u32| {
            let index = if parts > 1 { index as usize } else { 0 };
            let part = move |layout: BucketLayout| {
                let own = layout.part((index, parts));
                Part { copy, layout, own, whole: !copy || parts == 1, device }
            };
            BucketLayout::of(rows, kind).into_iter().map(part)
        };
        let copy = a
            .peer_replica
            .iter()
            .flat_map(|peer_replica| of(true, &peer_replica.parameters, peer_replica.slice));
        of(false, &a.parameters, a.data_index).chain(copy).collect()
    }

    /// The slices of parameters that lie in it.
    pub fn pieces(&self) -> impl Iterator<Item = HandoverPiece> {
        self.layout.homes().map(|(row, range)| {
            let elements = row.elements();
            let inside = |border: i64| u64::try_from(border - range.start).unwrap_or(0).min(elements);
            let moments = inside(self.own.start)..inside(self.own.end);
            HandoverPiece {
                name: row.name.clone(),
                offset: row.offset,
                len: row.len,
                place: self.layout.place,
                copy: self.copy,
                weights: if self.whole { 0..elements } else { moments.clone() },
                moments,
            }
        })
    }

    /// Room for its values, zero.
    pub fn zeros(self) -> Result<Held, EngineError> {
        let weights = zeros(&self.layout, self.device)?;
        let moments = Moments::zeros(&self.layout, self.own.clone(), self.device)?;
        Ok(Held { part: self, weights, moments })
    }
}

/// A part and its values.
#[derive(Debug)]
pub struct Held {
    /// What they are of.
    pub part: Part,
    /// The weights, flat.
    pub weights: Tensor,
    /// The optimizer's state of the slice.
    pub moments: Moments,
}

impl Held {
    /// The very same tensors.
    pub fn shallow_clone(&self) -> Held {
        let (weights, moments) = (self.weights.shallow_clone(), self.moments.shallow_clone());
        Held { part: self.part.clone(), weights, moments }
    }

    /// The tensors that a move is of, if they are here.
    pub(super) fn tensors(&self, of: &Move) -> Option<Result<Vec<Tensor>, EngineError>> {
        let slice = |(row, _): &(&ParameterRow, Range<i64>)| {
            (row.name.as_str(), row.offset) == (of.name.as_str(), of.offset)
        };
        let (_, range) = self.part.layout.homes().find(slice)?;
        let start = range.start + of.range.start as i64;
        let (end, own) = (range.start + of.range.end as i64, &self.moments.own);
        let here = match of.what {
            What::Weights => self.part.whole || (own.start <= start && end <= own.end),
            What::Moments => own.start <= start && end <= own.end,
        };
        here.then(|| self.narrow(of.what, start, end - start))
    }

    fn narrow(&self, what: What, start: i64, len: i64) -> Result<Vec<Tensor>, EngineError> {
        let moment = |moment: &Tensor| moment.f_narrow(0, start - self.moments.own.start, len);
        Ok(match what {
            What::Weights => vec![self.weights.f_narrow(0, start, len)?],
            What::Moments => {
                let second = self.moments.second.as_ref().map(moment).transpose()?;
                [moment(&self.moments.first)?].into_iter().chain(second).collect()
            }
        })
    }
}

/// Parameters and the optimizer's state of these values.
pub(super) fn together(
    a: &Assignment,
    precision: Precision,
    held: Vec<Held>,
) -> Result<(Parameters, Optimizer), EngineError> {
    let (mut layouts, mut moments) = (Vec::new(), Vec::new());
    for held in held {
        layouts.push((held.weights, held.part.layout));
        moments.push(held.moments);
    }
    Ok((Parameters::of(layouts, precision)?, Optimizer::new(moments, &a.spec.train.optimizer)))
}
