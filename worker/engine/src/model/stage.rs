//! A run of layers, with the embedding before it on the first stage and the head after it on the
//! last.

use std::ops::Range;
use std::rc::Rc;

use coxswain_comm::Group;
use coxswain_native::ops::{self, WgradQueue};
use coxswain_types::assignment::{Assignment, Recompute};
use coxswain_types::job::{ModelSpec, Precision};
use coxswain_types::params::Place;
use tch::{Device, Tensor};

use super::bridge::Bridge;
use super::embedding::Embedding;
use super::head::HeadModule;
use super::layer::Layer;
use super::param::{Param, Parameters};
use crate::EngineError;

/// What all parts of the model on a rank share.
#[derive(Debug)]
pub struct Context {
    /// Where the rank computes.
    pub device: Device,
    /// The model.
    pub model: ModelSpec,
    /// The job's seed, for random masks.
    pub seed: u64,
    /// What products compute in.
    pub precision: Precision,
    /// This rank's logical tensor shards.
    pub shards: Range<u32>,
    /// Logical tensor shards in all.
    pub shard_count: u32,
    /// Whether what lies between tensor-parallel products is split over the sequence.
    pub sequence_parallel: bool,
    /// The tensor ranks.
    pub group: Group,
    /// This rank's place among them.
    pub group_index: i64,
    /// How many there are.
    pub group_size: i64,
    /// Weight gradients that wait to be computed.
    pub wgrad_queue: WgradQueue,
}

impl Context {
    /// The context of a rank of an assignment.
    pub fn of(assignment: &Assignment, group: Group, device: Device) -> Context {
        Context {
            device,
            model: assignment.spec.model.clone(),
            seed: assignment.spec.train.seed,
            precision: assignment.spec.train.precision,
            shards: assignment.shards.clone(),
            shard_count: assignment.shard_count,
            sequence_parallel: assignment.spec.layout.sequence_parallel,
            group,
            group_index: i64::from(assignment.tensor_index),
            group_size: assignment.tensor_group.len() as i64,
            wgrad_queue: WgradQueue::new(),
        }
    }

    /// The context of the whole model on one rank, for forward passes.
    pub fn alone(model: &ModelSpec, seed: u64, group: Group, device: Device) -> Context {
        Context {
            device,
            model: model.clone(),
            seed,
            precision: Precision::Fp32,
            shards: 0..1,
            shard_count: 1,
            sequence_parallel: false,
            group,
            group_index: 0,
            group_size: 1,
            wgrad_queue: WgradQueue::new(),
        }
    }

    /// Hands x to every shard of this rank (Megatron's f).
    pub(super) fn copy_to_shards(&self, x_btd: &Tensor) -> Result<Vec<Tensor>, EngineError> {
        Ok(ops::copy_to_shards(
            x_btd,
            &self.group,
            &self.wgrad_queue,
            self.shards.len(),
            self.sequence_parallel,
        )?)
    }

    /// Adds the partial sums of all shards (Megatron's g).
    pub(super) fn reduce_from_shards(&self, parts: &[Tensor]) -> Result<Tensor, EngineError> {
        Ok(ops::reduce_from_shards(parts, &self.group, self.sequence_parallel)?)
    }

    pub(super) fn linear(&self, x: &Tensor, param: &Param) -> Result<Tensor, EngineError> {
        Ok(ops::linear(x, &param.compute, &param.slot, &self.wgrad_queue)?)
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
pub struct StageModule {
    /// The token embedding, on the first stage.
    pub embedding: Option<Embedding>,
    /// The layers, in order.
    pub layers: Vec<Layer>,
    /// What lies before the decoder's first layer, where it follows an encoder and is here.
    pub bridge: Option<Bridge>,
    /// The final norm and output head, on the last stage.
    pub head: Option<HeadModule>,
    /// What each layer computes again.
    pub recompute: Vec<Recompute>,
    /// The places of the layers.
    pub places: Vec<Place>,
    /// Which of the model's layers they are.
    pub range: Range<u32>,
    first_of_decoder: u32,
}

impl StageModule {
    /// Builds the stage from its parameters; fails when a row is missing.
    pub fn build(
        shape: Shape,
        parameters: &Parameters,
        context: &Rc<Context>,
    ) -> Result<StageModule, EngineError> {
        let layer = |index| Layer::build(index, parameters, context);
        let first = context.model.encoder_layers;
        let bridged = first > 0 && shape.layers.contains(&first);
        Ok(StageModule {
            embedding: shape
                .embedding
                .then(|| Embedding::build(Place::Embedding, parameters, context))
                .transpose()?,
            bridge: bridged.then(|| Bridge::build(parameters, context)).transpose()?,
            layers: shape.layers.clone().map(layer).collect::<Result<_, _>>()?,
            head: shape.head.then(|| HeadModule::build(parameters, context)).transpose()?,
            recompute: shape.recompute,
            places: shape.layers.clone().map(Place::Layer).collect(),
            range: shape.layers,
            first_of_decoder: first,
        })
    }

    /// What lies before the `at`-th layer here, if that is the decoder's first and follows an encoder.
    pub fn bridge_before(&self, at: usize) -> Option<&Bridge> {
        let here = self.range.start + at as u32 == self.first_of_decoder;
        self.bridge.as_ref().filter(|_| here)
    }
}
