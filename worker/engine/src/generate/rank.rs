//! One rank of a model that writes: its stage, and what it exchanges with the others. Activations go from
//! stage to stage; the last one has the logits, and one exchange tells all ranks what was chosen.

use std::ops::ControlFlow;
use std::rc::Rc;

use coxswain_comm::{Axis, Links};
use coxswain_native::net::Op;
use coxswain_types::Assignment;
use coxswain_types::assignment::Recompute;
use coxswain_types::job::{ModelSpec, OptimizerKind, Precision};
use coxswain_types::params::{ParameterRow, Place, parameter_table, slice_of};
use tch::{Device, Kind, Tensor};

use crate::EngineError;
use crate::error::Doing;
use crate::model::{Cache, Context, Embedding, Parameters, Pass, Piece, Rotary, Shape, StageModule};
use crate::parallel::{Seat, seats};

/// Text is written on the CPU.
const DEVICE: Device = Device::Cpu;

/// A rank and its part of the model.
#[derive(Debug)]
pub(super) struct Rank {
    seat: Seat,
    context: Rc<Context>,
    links: Links,
}

impl Rank {
    /// A rank that has no others, with the whole model, zero.
    pub(super) fn alone(model: &ModelSpec, seed: u64) -> Result<(Rank, Parameters), EngineError> {
        let table = parameter_table(model);
        let bridge = (model.encoder_layers > 0).then_some(Place::Bridge);
        let places = std::iter::once(Place::Embedding)
            .chain((0..model.encoder_layers).map(Place::Layer))
            .chain(bridge)
            .chain((model.encoder_layers..model.all_layers()).map(Place::Layer))
            .chain([Place::Head]);
        let rows: Vec<_> = places
            .flat_map(|place| {
                let used = table.iter().filter(move |parameter| parameter.places.contains(&place));
                used.map(move |p| ParameterRow { place, ..p.row(&slice_of(p, 0, 1), 0) })
            })
            .collect();
        let parameters = Parameters::allocate(&rows, Precision::Fp32, OptimizerKind::AdamW, DEVICE)?;
        let links = Links::alone();
        let context = Rc::new(Context::alone(model, seed, links.group(&[0], Axis::Tensor)?, DEVICE));
        let recompute = vec![Recompute::Nothing; model.all_layers() as usize];
        let shape = Shape { embedding: true, layers: 0..model.all_layers(), head: true, recompute };
        let stage = StageModule::build(shape, &parameters, &context)?;
        parameters.expect_all_taken()?;
        Ok((Rank { seat: Seat { index: 0, stage, previous: None, next: None }, context, links }, parameters))
    }

    /// A rank of a layout, zero.
    pub(super) fn of(a: &Assignment, links: Links) -> Result<(Rank, Parameters), EngineError> {
        tch::set_num_threads(a.threads as i32);
        let train = &a.spec.train;
        let parameters = Parameters::allocate(&a.parameters, train.precision, train.optimizer.kind, DEVICE)?;
        let context = Rc::new(Context::of(a, links.group(&a.tensor_group, Axis::Tensor)?, DEVICE));
        let mut all = seats(a, &parameters, &context)?;
        let seat = all.pop().filter(|_| all.is_empty());
        let seat = seat.ok_or_else(|| EngineError::Other("a rank that writes has one stage".to_owned()))?;
        Ok((Rank { seat, context, links }, parameters))
    }

    /// What the layers of this rank keep.
    pub(super) fn caches(&self) -> Vec<Cache> {
        self.seat.stage.range.clone().map(|_| Cache::default()).collect()
    }

    /// Layers of the encoder in front of the decoder.
    fn encoder_layers(&self) -> u32 {
        self.context.model.encoder_layers
    }

    /// Whether this rank has a part of the last stack.
    fn decodes(&self) -> bool {
        self.seat.stage.range.end > self.encoder_layers()
    }

    /// What the encoder makes of `ids`, `[1, s, d]`, for the ranks that have a part of its decoder; `None` for
    /// the others, and where there is no encoder.
    pub(super) fn encode(&self, ids: &[i64]) -> Result<Option<Tensor>, EngineError> {
        if self.encoder_layers() == 0 {
            return Ok(None);
        }
        let (stage, tokens) = (&self.seat.stage, ids.len() as i64);
        let rotary = Rotary::new(&self.context.model, 0, tokens, DEVICE)?;
        let pass = pass(rotary.as_ref(), 0);
        let mut x_bsd = match &stage.embedding {
            Some(table) => embedded(table, ids, &pass)?,
            None => self.received(tokens)?,
        };
        for layer in stage.layers.iter().take_while(|layer| !layer.crosses()) {
            x_bsd = layer.forward(Piece::Whole, &x_bsd, &pass)?;
        }
        // From the bridge on it is what the decoder reads.
        if let Some(bridge) = &stage.bridge {
            x_bsd = bridge.memory(&x_bsd)?;
        }
        self.hand_on(&x_bsd)?;
        Ok(self.decodes().then_some(x_bsd))
    }

    /// The logits `[v]` after the last of `ids`, which stand at `position` and on, where this rank has the
    /// head. The encoder's output comes with the first of them.
    pub(super) fn decode(
        &self,
        ids: &[i64],
        memory: Option<Tensor>,
        position: i64,
        caches: &mut [Cache],
    ) -> Result<Option<Tensor>, EngineError> {
        if !self.decodes() {
            return Ok(None);
        }
        let (stage, tokens) = (&self.seat.stage, ids.len() as i64);
        let rotary = Rotary::new(&self.context.model, position, tokens, DEVICE)?;
        let pass = pass(rotary.as_ref(), position);
        let first = match self.encoder_layers() {
            0 => stage.embedding.as_ref(),
            _ => stage.bridge.as_ref().map(|bridge| &bridge.embedding),
        };
        let mut x_btd = match first {
            Some(table) => embedded(table, ids, &pass)?,
            None => self.received(tokens)?,
        };
        let own = stage.range.clone().zip(&stage.layers).zip(caches);
        for ((_, layer), cache) in own.filter(|((index, _), _)| *index >= self.encoder_layers()) {
            x_btd = layer.forward_cached(&x_btd, memory.as_ref(), &pass, cache)?;
        }
        self.hand_on(&x_btd)?;
        self.logits(&x_btd.f_narrow(1, tokens - 1, 1)?)
    }

    /// The pooled output `[d]` of a text and the logits of its classes `[c]`, where the head has some, of a rank
    /// that has the whole model.
    pub(super) fn pooled(&self, ids: &[i64]) -> Result<(Tensor, Option<Tensor>), EngineError> {
        let rotary = Rotary::new(&self.context.model, 0, ids.len() as i64, DEVICE)?;
        let (stage, pass) = (&self.seat.stage, pass(rotary.as_ref(), 0));
        let (Some(table), Some(head)) = (&stage.embedding, &stage.head) else {
            return Err(EngineError::Other("a rank that tells classes has the whole model".to_owned()));
        };
        let mut x_btd = embedded(table, ids, &pass)?;
        for layer in &stage.layers {
            x_btd = layer.forward(Piece::Whole, &x_btd, &pass)?;
        }
        let (pooled_bd, logits_bc) = head.pooled(&x_btd)?;
        Ok((pooled_bd.f_squeeze_dim(0)?, logits_bc.map(|logits| logits.f_squeeze_dim(0)).transpose()?))
    }

    /// The logits of one token `[1, 1, d]`, of the whole vocabulary.
    fn logits(&self, last: &Tensor) -> Result<Option<Tensor>, EngineError> {
        let Some(head) = &self.seat.stage.head else { return Ok(None) };
        let vocab = i64::from(self.context.model.vocab);
        let own = Tensor::f_cat(&head.logits(last)?, 1)?.f_view([-1])?.f_to_kind(Kind::Float)?;
        // Each tensor rank puts its own part into zeros; the sum is exact.
        let all = Tensor::f_zeros([vocab], (Kind::Float, DEVICE))?;
        all.f_narrow(0, head.first_token() as i64, own.size()[0])?.f_copy_(&own)?;
        Ok(Some(self.context.group.reduce(&all, Op::Sum)?))
    }

    /// What those with the head have chosen; `None` where some rank breaks off.
    pub(super) fn agree(
        &self,
        chosen: Option<u32>,
        ended: ControlFlow<()>,
    ) -> Result<Option<u32>, EngineError> {
        let own = [chosen.map_or(-1.0, f64::from), f64::from(ended.is_break())];
        let most = |lists: Vec<Vec<f64>>| {
            (0..2).map(|at| lists.iter().map(|list| list[at]).fold(-1.0, f64::max)).collect()
        };
        let all = self.links.close(&own, most).doing(|| "telling the next token".to_owned())?;
        match all[..] {
            [_, ended] if ended > 0.0 => Ok(None),
            [id, _] if id >= 0.0 => Ok(Some(id as u32)),
            _ => Err(EngineError::Other("no rank has the head of the model".to_owned())),
        }
    }

    /// Activations of so many tokens from the stage before.
    fn received(&self, tokens: i64) -> Result<Tensor, EngineError> {
        let from = self.seat.previous.ok_or_else(|| {
            EngineError::Other(format!("stage {} has no embedding and no stage before it", self.seat.index))
        })?;
        let kind = crate::model::kind(self.context.precision);
        let x = crate::model::buffer(&[1, tokens, self.context.model.dim.into()], kind, DEVICE)?;
        let edge = Axis::Edge { stage: self.seat.index.wrapping_sub(1), backward: false };
        let what = || format!("stage {} waiting for activations", self.seat.index);
        self.links.recv(&x, from, edge)?.wait().doing(what)?;
        Ok(x)
    }

    /// Hands activations to the stage after this one, if there is one.
    fn hand_on(&self, x: &Tensor) -> Result<(), EngineError> {
        let Some(to) = self.seat.next else { return Ok(()) };
        let edge = Axis::Edge { stage: self.seat.index, backward: false };
        let what = || format!("stage {} sending activations", self.seat.index);
        self.links.send(&x.f_contiguous()?, to, edge)?.wait().doing(what)
    }
}

/// What the tables hold of these tokens, and what follows it.
fn embedded(table: &Embedding, ids: &[i64], pass: &Pass<'_>) -> Result<Tensor, EngineError> {
    let ids_bt = Tensor::from_slice(ids).f_view([1, -1])?;
    table.expect_rows(&ids_bt, pass)?;
    table.stem(&table.look_up(&ids_bt, pass)?, pass)
}

fn pass(rotary: Option<&Rotary>, first: i64) -> Pass<'_> {
    Pass { rotary, first, documents: None, source: 0, padded: None, dropout: None }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]
pub(super) mod tests {
    use std::sync::Arc;

    use coxswain_types::model::{Architecture, Attention, Head, Positions};

    use super::*;
    use crate::data::Documents;
    use crate::model::initial_values;

    /// The whole model, with larger initial values: attention has something to choose from.
    pub(in super::super) fn random(model: &ModelSpec) -> Rank {
        let (rank, parameters) = Rank::alone(model, 1).unwrap();
        for param in parameters.iter().filter(|param| param.home) {
            let values = Tensor::from_slice(&initial_values(&param.row, 5)) * 5.0;
            param.weight.shallow_clone().copy_(&values.view(param.row.local_shape().as_slice()));
        }
        rank
    }

    /// What training's forward pass hands to the head, `[t, d]`, of what an encoder and the last stack read.
    fn trained(rank: &Rank, [source, own]: [&[i64]; 2], documents: Option<&Documents>) -> Tensor {
        let (stage, model) = (&rank.seat.stage, &rank.context.model);
        let both = model.encoder_layers > 0;
        let source_tokens = if both { source.len() as i64 } else { 0 };
        let pass = |tokens| {
            let rotary = Rotary::new(model, 0, tokens, DEVICE).unwrap();
            let rotary: &'static Option<Rotary> = Box::leak(Box::new(rotary));
            Pass { rotary: rotary.as_ref(), source: source_tokens, documents, ..super::pass(None, 0) }
        };
        let (ids, longest) = (if both { source } else { own }, source.len().max(own.len()) as i64);
        let (pass, table) = (pass(longest), stage.embedding.as_ref().unwrap());
        let mut x = embedded(table, ids, &pass).unwrap();
        for (at, layer) in stage.layers.iter().enumerate() {
            if let Some(bridge) = stage.bridge_before(at) {
                let look_up =
                    bridge.embedding.look_up(&Tensor::from_slice(own).view([1, -1]), &pass).unwrap();
                let flat = bridge.join(&look_up, &x).unwrap();
                x = bridge.forward(&flat, [1, own.len() as i64], &pass).unwrap();
            }
            x = layer.forward(Piece::Whole, &x, &pass).unwrap();
        }
        x.get(0).narrow(0, 0, own.len() as i64)
    }

    #[test]
    fn a_text_of_first_tokens_alone_is_read_by_their_own_projections() {
        let read = |global, ids: &[i64]| {
            let attention = Attention::Longformer { window: 2, global, projections: true };
            let plain = ModelSpec::llama(2, 48, 6, 2, 64, 99);
            let head = Head::Pooled { classes: 3 };
            let model = ModelSpec { architecture: Architecture::Encoder, attention, head, ..plain };
            Vec::<f32>::try_from(&tch::no_grad(|| random(&model).pooled(ids)).unwrap().0).unwrap()
        };
        assert_eq!(read(5, &[7, 8]), read(2, &[7, 8]));
        assert_ne!(read(2, &[7, 8]), read(1, &[7, 8]));
    }

    #[test]
    fn documents_in_a_row_are_what_they_are_apart() {
        let plain = ModelSpec::llama(2, 48, 6, 2, 64, 99);
        let encoder = ModelSpec { architecture: Architecture::Encoder, ..plain.clone() };
        let both =
            ModelSpec { architecture: Architecture::EncoderDecoder, encoder_layers: 2, ..plain.clone() };
        let relative = Positions::RelativeBias { buckets: 8, max_distance: 16 };
        let learned = Positions::Learned { max: 40, offset: 0 };
        let mut models = vec![ModelSpec { attention: Attention::Linear { decay: false }, ..plain.clone() }];
        for model in [plain, encoder, both] {
            for positions in [learned, relative, Positions::Sinusoidal, Positions::Alibi, model.positions] {
                models.push(ModelSpec { positions, ..model.clone() });
            }
            models.push(ModelSpec { attention: Attention::Window { window: 3 }, ..model });
        }
        // How much the encoder and the last stack read of each document, and padding.
        let lens = [[5_usize, 9], [7, 4], [6, 1], [2, 3]];
        let of = |side: usize| -> Arc<[u32]> {
            let of = lens.iter().enumerate().flat_map(|(at, lens)| {
                let padding = at == 3;
                vec![if padding { (90 + side) as u32 } else { at as u32 }; lens[side]]
            });
            of.collect()
        };
        let documents = Documents { own: vec![of(1)], source: vec![of(0)] };
        let ids = |side: usize| (0..).map(|i| (i * 31 + 7 * side as i64) % 99).take(of(side).len()).collect();
        let [source, own]: [Vec<i64>; 2] = [ids(0), ids(1)];
        for model in models {
            let rank = random(&model);
            let _guard = tch::no_grad_guard();
            let packed = trained(&rank, [&source, &own], Some(&documents));
            let mut at = [0, 0];
            for [read, told] in &lens[..3] {
                let part = [&source[at[0]..at[0] + read], &own[at[1]..at[1] + told]];
                let apart = trained(&rank, part, None);
                let error = (packed.narrow(0, at[1] as i64, *told as i64) - &apart).abs().max();
                let most = apart.abs().max().double_value(&[]);
                assert!(error.double_value(&[]) < 2e-5 * most, "{model:?}: {error:?} of {most}");
                at = [at[0] + read, at[1] + told];
            }
        }
    }
}
