//! A run of layers, with the embedding before it on the first stage and the head after it on the
//! last.

use std::ops::Range;
use std::rc::Rc;

use coxswain_comm::Group;
use coxswain_native::ops::{self, Tape};
use coxswain_types::assignment::{Assignment, Recompute};
use coxswain_types::job::{ModelSpec, Precision};
use coxswain_types::params::{EMBEDDING, HEAD, Place};
use tch::Tensor;

use super::layer::Layer;
use super::norm::Norm;
use super::param::{Param, Parameters, kind};
use super::pass::{Pass, Site};
use crate::EngineError;

/// What all parts of the model on a rank share.
#[derive(Debug)]
pub struct Context {
    /// The model.
    pub model: ModelSpec,
    /// What products compute in.
    pub precision: Precision,
    /// This rank's logical tensor shards.
    pub shards: Range<u32>,
    /// Logical tensor shards in all.
    pub shard_count: u32,
    /// Whether what lies between tensor-parallel products is split over the sequence.
    pub spread: bool,
    /// The tensor ranks.
    pub group: Group,
    /// This rank's place among them.
    pub group_index: i64,
    /// How many there are.
    pub group_size: i64,
    /// Weight gradients that wait to be computed.
    pub tape: Tape,
}

impl Context {
    /// The context of a rank of an assignment.
    pub fn of(assignment: &Assignment, group: Group) -> Context {
        Context {
            model: assignment.spec.model.clone(),
            precision: assignment.spec.train.precision,
            shards: assignment.shards.clone(),
            shard_count: assignment.shard_count,
            spread: assignment.spec.layout.sequence_parallel,
            group,
            group_index: i64::from(assignment.tensor_index),
            group_size: assignment.tensor_group.len() as i64,
            tape: Tape::new(),
        }
    }

    /// The context of the whole model on one rank, for forward passes.
    pub fn alone(model: &ModelSpec, group: Group) -> Context {
        Context {
            model: model.clone(),
            precision: Precision::Fp32,
            shards: 0..1,
            shard_count: 1,
            spread: false,
            group,
            group_index: 0,
            group_size: 1,
            tape: Tape::new(),
        }
    }

    /// Hands x to every shard of this rank (Megatron's f).
    pub(super) fn copy_to_shards(&self, x_btd: &Tensor) -> Result<Vec<Tensor>, EngineError> {
        Ok(ops::copy_to_shards(x_btd, &self.group, &self.tape, self.shards.len(), self.spread)?)
    }

    /// Adds the partial sums of all shards (Megatron's g).
    pub(super) fn reduce_from_shards(&self, parts: &[Tensor]) -> Result<Tensor, EngineError> {
        Ok(ops::reduce_from_shards(parts, &self.group, self.spread)?)
    }

    pub(super) fn linear(&self, x: &Tensor, param: &Param) -> Result<Tensor, EngineError> {
        Ok(ops::linear(x, &param.compute, &param.slot, &self.tape)?)
    }
}

/// Which part of the model a stage is.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Whether it starts with the embedding.
    pub embedding: bool,
    /// Its layers.
    pub layers: Range<u32>,
    /// Whether it ends with the head.
    pub head: bool,
    /// What each layer computes again.
    pub recompute: Vec<Recompute>,
}

/// A stage's weights on this rank, and how they are applied.
#[derive(Debug)]
pub struct Stage {
    /// The token embedding, on the first stage.
    pub embedding: Option<Embedding>,
    /// The layers, in order.
    pub layers: Vec<Layer>,
    /// The final norm and output head, on the last stage.
    pub head: Option<Head>,
    /// What each layer computes again.
    pub recompute: Vec<Recompute>,
    /// The places of the layers.
    pub places: Vec<Place>,
}

impl Stage {
    /// Builds the stage from its parameters; fails when a row is missing.
    pub fn build(shape: Shape, parameters: &Parameters, context: &Rc<Context>) -> Result<Stage, EngineError> {
        let layer = |index| Layer::build(index, parameters, context);
        Ok(Stage {
            embedding: shape.embedding.then(|| Embedding::build(parameters, context)).transpose()?,
            layers: shape.layers.clone().map(layer).collect::<Result<_, _>>()?,
            head: shape.head.then(|| Head::build(parameters, context)).transpose()?,
            recompute: shape.recompute,
            places: shape.layers.map(Place::Layer).collect(),
        })
    }

    /// The layers without cuts, for generation.
    pub fn forward_layers(
        &self,
        mut x_btd: Tensor,
        pass: &Pass<'_>,
        caches: &mut [super::Cache],
    ) -> Result<Tensor, EngineError> {
        for (layer, cache) in self.layers.iter().zip(caches) {
            x_btd = layer.forward_cached(&x_btd, pass, cache)?;
        }
        Ok(x_btd)
    }
}

/// The token embedding.
#[derive(Debug)]
pub struct Embedding {
    shards: Vec<Rc<Param>>,
    context: Rc<Context>,
}

impl Embedding {
    fn build(parameters: &Parameters, context: &Rc<Context>) -> Result<Embedding, EngineError> {
        let take = |shard| parameters.take(Place::Embedding, EMBEDDING, shard);
        let shards = context.shards.clone().map(take).collect::<Result<_, _>>()?;
        Ok(Embedding { shards, context: Rc::clone(context) })
    }

    /// The embedding of `ids_bt`, `[b, t, d]`; outside autograd, as ids have no gradient.
    pub fn forward(&self, ids_bt: &Tensor, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        let ids_n = ids_bt.f_flatten(0, 1)?;
        let shape = [ids_bt.size(), vec![-1]].concat();
        let part = |param: &Rc<Param>| -> Result<Tensor, EngineError> {
            let kind = kind(self.context.precision);
            Ok(ops::embed(&ids_n, &param.weight, param.row.offset, kind)?.f_view(shape.as_slice())?)
        };
        let parts: Vec<_> = self.shards.iter().map(part).collect::<Result<_, _>>()?;
        let x_btd = self.context.reduce_from_shards(&parts)?;
        pass.dropout(&x_btd, 0, Site::Embedding, &self.context)
    }

    /// Accumulates the gradient, given that of the output `[b, t, d]`.
    pub fn backward(&self, ids_bt: &Tensor, dx_btd: &Tensor, pass: &Pass<'_>) -> Result<(), EngineError> {
        // Dropout is its own derivative: the same values are dropped, the others scaled alike.
        let dx_btd = pass.dropout(dx_btd, 0, Site::Embedding, &self.context)?;
        let dx_btd = if self.context.spread { self.context.group.gather(&dx_btd, 1)? } else { dx_btd };
        let (ids_n, dx_nd) = (ids_bt.f_flatten(0, 1)?, dx_btd.f_flatten(0, 1)?);
        for param in &self.shards {
            ops::embed_grad(&ids_n, &dx_nd, &param.slot, param.row.offset)?;
        }
        Ok(())
    }
}

/// The final norm and the output head.
#[derive(Debug)]
pub struct Head {
    norm: Norm,
    shards: Vec<Rc<Param>>,
    context: Rc<Context>,
}

impl Head {
    fn build(parameters: &Parameters, context: &Rc<Context>) -> Result<Head, EngineError> {
        let name = if context.model.tied_embeddings { EMBEDDING } else { HEAD };
        let take = |shard| parameters.take(Place::Head, name, shard);
        Ok(Head {
            norm: Norm::build(Place::Head, "model.norm.weight", parameters, context)?,
            shards: context.shards.clone().map(take).collect::<Result<_, _>>()?,
            context: Rc::clone(context),
        })
    }

    /// The logits of each of this rank's shards of the vocabulary, `[n, v]`.
    pub fn logits(&self, x_btd: &Tensor) -> Result<Vec<Tensor>, EngineError> {
        let shared = self.context.copy_to_shards(&self.norm.forward(x_btd)?)?;
        let logits = |(param, x_btd): (&Rc<Param>, &Tensor)| -> Result<Tensor, EngineError> {
            Ok(self.context.linear(x_btd, param)?.f_flatten(0, 1)?)
        };
        self.shards.iter().zip(&shared).map(logits).collect()
    }

    /// The summed loss of the targets `[n]`, a double scalar; a target of -1 counts nothing.
    pub fn loss(&self, x_btd: &Tensor, targets_n: &Tensor) -> Result<Tensor, EngineError> {
        let starts: Vec<_> = self.shards.iter().map(|param| param.row.offset).collect();
        Ok(ops::cross_entropy(self.logits(x_btd)?, targets_n, &starts, &self.context.group)?)
    }
}
