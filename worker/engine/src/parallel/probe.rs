//! Where the first value that is not finite arose: a step is run again with every output and every
//! gradient looked at.

use coxswain_types::model::ModelSpec;
use coxswain_types::params::{Parameter, Place};
use tch::Tensor;

use super::GradientSum;
use crate::EngineError;
use crate::model::Parameters;

/// The first value that was not finite, in the order of a step: forward passes by micro-batch and
/// depth, then backward passes by micro-batch and height.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Finding {
    /// Whether it is a gradient.
    pub backward: bool,
    /// Of which micro-batch.
    pub micro_batch: u32,
    /// At which place, counted from the embedding (0) to the head.
    pub depth: u32,
    /// Which parameter of the table, for gradients.
    pub parameter: u32,
    /// On which rank.
    pub rank: u32,
}

/// Numbers below which each part of a finding stays, so that their product is exact in a double.
const MICRO_BATCHES: u64 = 1 << 13;
const DEPTHS: u64 = 1 << 11;
const PARAMETERS: u64 = 1 << 14;
const RANKS: u64 = 1 << 13;

impl Finding {
    /// A number that is smaller for what comes earlier; it fits a double exactly.
    pub fn code(self) -> f64 {
        // Backward passes go from the head down.
        let depth = u64::from(self.depth);
        let order = if self.backward { DEPTHS - 1 - depth } else { depth };
        let high = u64::from(self.backward) * MICRO_BATCHES + u64::from(self.micro_batch);
        (((high * DEPTHS + order) * PARAMETERS + u64::from(self.parameter)) * RANKS + u64::from(self.rank))
            as f64
    }

    /// The finding of a code; `None` for infinity, which says that nothing was found.
    pub fn decode(code: f64) -> Option<Finding> {
        if !code.is_finite() {
            return None;
        }
        let mut rest = code as u64;
        let mut take = |size: u64| {
            let part = rest % size;
            rest /= size;
            part as u32
        };
        let (rank, parameter, order) = (take(RANKS), take(PARAMETERS), take(DEPTHS));
        let micro_batch = take(MICRO_BATCHES);
        let backward = rest > 0;
        let depth = if backward { DEPTHS as u32 - 1 - order } else { order };
        Some(Finding { backward, micro_batch, depth, parameter, rank })
    }

    /// Says it for people.
    pub fn describe(self, table: &[Parameter], model: &ModelSpec) -> String {
        let layers = (0..model.all_layers()).map(Place::Layer);
        let bridge = (model.encoder_layers > 0).then_some(Place::Bridge);
        let mut places = std::iter::once(Place::Embedding).chain(bridge).chain(layers);
        let place = match places.find(|place| depth(model, *place) == self.depth) {
            Some(Place::Embedding) => "the embedding".to_owned(),
            Some(Place::Bridge) => "the decoder's embedding".to_owned(),
            Some(Place::Layer(layer)) if layer < model.encoder_layers => {
                format!("layer {layer} of the encoder")
            }
            Some(Place::Layer(layer)) => format!("layer {}", layer - model.encoder_layers),
            Some(Place::Head) | None => "the head".to_owned(),
        };
        let what = match table.get(self.parameter as usize).filter(|_| self.backward) {
            Some(parameter) => format!("the gradient of {} at {place}", parameter.name),
            None => format!("the output of {place}"),
        };
        format!("rank {}: {what}, in micro-batch {}", self.rank, self.micro_batch)
    }
}

/// Looks at what a step computes.
#[derive(Debug)]
pub struct Probe {
    /// The first value that was not finite on this rank.
    pub first: Option<Finding>,
    rank: u32,
    model: ModelSpec,
    table: Vec<Parameter>,
}

impl Probe {
    /// Has seen nothing yet.
    pub fn new(rank: u32, model: ModelSpec, table: Vec<Parameter>) -> Probe {
        Probe { first: None, rank, model, table }
    }

    fn note(&mut self, finding: Finding) {
        if self.first.is_none_or(|first| finding.code() < first.code()) {
            self.first = Some(finding);
        }
    }

    /// Looks at the output of a place.
    pub fn activation(&mut self, micro_batch: u32, place: Place, x: &Tensor) -> Result<(), EngineError> {
        if !finite(x)? {
            let depth = depth(&self.model, place);
            self.note(Finding { backward: false, micro_batch, depth, parameter: 0, rank: self.rank });
        }
        Ok(())
    }

    /// Looks at the gradients that a place has accumulated.
    pub fn gradients(
        &mut self,
        micro_batch: u32,
        place: Place,
        reduction: &GradientSum,
        parameters: &Parameters,
    ) -> Result<(), EngineError> {
        for at in parameters.buckets_of(place) {
            let Some(buffer) = reduction.current(at) else { continue };
            for param in &parameters.buckets()[at].params {
                if !finite(&param.view_of(buffer)?)? {
                    let index = self.table.iter().position(|row| row.name == param.row.name);
                    self.note(Finding {
                        backward: true,
                        micro_batch,
                        depth: depth(&self.model, place),
                        parameter: index.unwrap_or(0) as u32,
                        rank: self.rank,
                    });
                }
            }
        }
        Ok(())
    }
}

/// How many places a value has come through: an encoder and its decoder have a bridge between them.
fn depth(model: &ModelSpec, place: Place) -> u32 {
    let encoder = model.encoder_layers;
    let bridge = u32::from(encoder > 0);
    match place {
        Place::Embedding => 0,
        Place::Layer(layer) if layer < encoder => layer + 1,
        Place::Bridge => encoder + 1,
        Place::Layer(layer) => layer + 1 + bridge,
        Place::Head => model.all_layers() + 1 + bridge,
    }
}

fn finite(x: &Tensor) -> Result<bool, EngineError> {
    Ok(x.f_isfinite()?.f_all()?.f_int64_value(&[])? != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_ordered_as_a_step_runs_and_decode_to_their_findings() {
        let finding = |backward, micro_batch, depth, parameter, rank| Finding {
            backward,
            micro_batch,
            depth,
            parameter,
            rank,
        };
        let in_order = [
            finding(false, 0, 0, 0, 3),
            finding(false, 0, 5, 0, 0),
            finding(false, 1, 2, 0, 0),
            finding(true, 0, 9, 40, 1),
            finding(true, 0, 3, 2, 0),
            finding(true, 0, 3, 7, 0),
            finding(true, 4095, 0, 10_240, 4095),
        ];
        for pair in in_order.windows(2) {
            assert!(pair[0].code() < pair[1].code(), "{pair:?}");
        }
        for finding in in_order {
            assert_eq!(Finding::decode(finding.code()), Some(finding));
        }
        assert_eq!(Finding::decode(f64::INFINITY), None);
    }
}
