//! The attention block of a layer: projections into heads, positions, the mixing of values, the
//! projection back.
//!
//! Heads are cut over the logical tensor shards, and each shard mixes its own. How they are mixed is one
//! module for each form: [`softmax`] over the keys that a mask leaves, which the others but [`linear`]
//! come down to.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use coxswain_native::attention::BlockList;
use coxswain_types::mask::layer_mask;
use coxswain_types::model::{Attention, Positions};
use coxswain_types::params::{Place, relative_bias};
use tch::Tensor;

use super::cache::{Cache, Kept};
use super::linear::{Column, Row};
use super::param::{Param, Parameters};
use super::pass::{Pass, Site};
use super::stage::Context;
use crate::EngineError;

mod compressed;
mod global;
mod latent;
mod linear;
mod softmax;

use global::Projections;
use latent::Latent;
use softmax::Mixed;

/// Its weights on this rank.
#[derive(Debug)]
pub(super) struct AttentionBlock {
    layer: u32,
    /// Whether keys and values are of the encoder's output.
    cross: bool,
    /// The form; attention to an encoder's output is always full.
    form: Attention,
    /// What all heads share of keys and values, where they do.
    latent: Option<Latent>,
    shards: Vec<Shard>,
    output: Row,
    /// Lists of tiles that were made before, by shard, first query and number of keys.
    lists: RefCell<BTreeMap<(u32, i64, i64), Rc<BlockList>>>,
    context: Rc<Context>,
}

/// The weights of one logical tensor shard.
#[derive(Debug)]
struct Shard {
    index: u32,
    q: Column,
    pairs: Pairs,
    /// The table of relative positions.
    relative: Option<Rc<Param>>,
    /// What each head forgets at a token.
    decay: Option<Column>,
    /// The share of each token of a block in its summary, before a softmax.
    summary: Option<Rc<Param>>,
    /// Projections of the first tokens' own attention.
    global: Option<Projections>,
}

/// How keys and values are made.
#[derive(Debug)]
enum Pairs {
    /// By a projection each.
    Projected(Column, Column),
    /// By one projection of what all heads share.
    Latent(Column),
}

impl AttentionBlock {
    pub(super) fn build(
        (layer, cross): (u32, bool),
        prefix: &str,
        parameters: &Parameters,
        context: &Rc<Context>,
    ) -> Result<AttentionBlock, EngineError> {
        let (place, model) = (Place::Layer(layer), &context.model);
        let form = if cross { Attention::Full } else { model.attention };
        let column = |part: &str, shard, biased| {
            Column::build((place, &format!("{prefix}.{part}"), shard), biased, parameters, context)
        };
        let (qkv, latent) = (model.biases.qkv, matches!(form, Attention::Latent { .. }));
        let table = relative_bias(model, layer);
        let relative = !cross && matches!(model.positions, Positions::RelativeBias { .. });
        let decays = matches!(form, Attention::Linear { decay: true });
        let compressed = matches!(form, Attention::Compressed { .. });
        let globals = matches!(form, Attention::Longformer { projections: true, .. });
        let shard = |index| -> Result<Shard, EngineError> {
            let column = |part: &str, biased| column(part, index, biased);
            let pairs = if latent {
                Pairs::Latent(column("kv_up_proj", false)?)
            } else {
                Pairs::Projected(column("k_proj", qkv)?, column("v_proj", qkv)?)
            };
            let summary = || parameters.take(place, &format!("{prefix}.summary.weight"), index);
            let global = || -> Result<Projections, EngineError> {
                Ok(Projections {
                    q: column("global_q_proj", qkv)?,
                    k: column("global_k_proj", qkv)?,
                    v: column("global_v_proj", qkv)?,
                })
            };
            Ok(Shard {
                index,
                q: column("q_proj", qkv)?,
                pairs,
                relative: relative.then(|| parameters.take(place, &table, index)).transpose()?,
                decay: decays.then(|| column("decay_proj", true)).transpose()?,
                summary: compressed.then(summary).transpose()?,
                global: globals.then(global).transpose()?,
            })
        };
        Ok(AttentionBlock {
            layer,
            cross,
            form,
            latent: latent.then(|| Latent::build(place, prefix, parameters, context)).transpose()?,
            shards: context.shards.clone().map(shard).collect::<Result<_, _>>()?,
            output: Row::build(place, &format!("{prefix}.o_proj"), model.biases.out, parameters, context)?,
            lists: RefCell::default(),
            context: Rc::clone(context),
        })
    }

    /// x and the result are `[b, t, d]`. With a cache, x follows the tokens that it holds.
    pub(super) fn forward(
        &self,
        x_btd: &Tensor,
        pass: &Pass<'_>,
        mut cache: Option<&mut Cache>,
    ) -> Result<Tensor, EngineError> {
        let mut latents = Vec::new();
        if let Some(latent) = &self.latent {
            latents = latent.forward(x_btd, pass, cache.as_deref_mut())?;
        }
        let shared = self.context.copy_to_shards(x_btd)?;
        let mut parts = Vec::new();
        for (at, (shard, x_btd)) in self.shards.iter().zip(&shared).enumerate() {
            let kept = cache.as_deref_mut().map(|cache| cache.shard(at));
            let mixed_bthk = match (&shard.pairs, &shard.global) {
                (Pairs::Latent(up), _) => self.latent(shard, up, x_btd, &latents[at], pass)?,
                (Pairs::Projected(..), Some(own)) => self.global(shard, own, x_btd, pass)?,
                (Pairs::Projected(k, v), None) => {
                    let q_bthk = self.rotate(&self.heads(x_btd, &shard.q)?, pass)?;
                    let k_btgk = self.rotate(&self.heads(x_btd, k)?, pass)?;
                    let v_btgk = self.heads(x_btd, v)?;
                    self.projected(shard, x_btd, [&q_bthk, &k_btgk, &v_btgk], pass, kept)?
                }
            };
            parts.push(self.output.part(at, &mixed_bthk.f_flatten(2, 3)?)?);
        }
        self.output.sum(&parts)
    }

    /// Mixes values that each token has for itself.
    fn projected(
        &self,
        shard: &Shard,
        x_btd: &Tensor,
        [q, k, v]: [&Tensor; 3],
        pass: &Pass<'_>,
        kept: Option<&mut Kept>,
    ) -> Result<Tensor, EngineError> {
        match self.form {
            Attention::Linear { .. } => self.linear(shard, x_btd, [q, k, v], pass, kept),
            Attention::Compressed { window, block } => {
                self.compressed(shard, x_btd, [q, k, v], (window, block), (pass, kept))
            }
            form => {
                let again = kept.is_none();
                // A window's cache forgets what no later token sees.
                let forgets = match form {
                    Attention::Window { window } if self.causal() => Some(i64::from(window) - 1),
                    _ => None,
                };
                let (k, v) = match kept {
                    Some(kept) => kept.append(k, v, forgets)?,
                    None => (k.shallow_clone(), v.shallow_clone()),
                };
                let (first, keys) = (k.size()[1] - q.size()[1], k.size()[1]);
                let own = layer_mask(form, self.causal(), self.layer, self.context.seed, keys as u32);
                self.mix(shard, x_btd, &Mixed { q, k: &k, v: &v, first, own, again }, pass, self.site())
            }
        }
    }

    /// Attention to the encoder's output, `[b, s, d]`; where there is none, to that of the cache.
    pub(super) fn cross(
        &self,
        x_btd: &Tensor,
        memory_bsd: Option<&Tensor>,
        pass: &Pass<'_>,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor, EngineError> {
        let shared = self.context.copy_to_shards(x_btd)?;
        let memory = memory_bsd.map(|memory| self.context.copy_to_shards(memory)).transpose()?;
        let again = cache.is_none();
        let (mut parts, mut kept) = (Vec::new(), cache);
        for (at, (shard, x_btd)) in self.shards.iter().zip(&shared).enumerate() {
            let q = self.heads(x_btd, &shard.q)?;
            let (k, v) = match (&memory, &shard.pairs, kept.as_deref_mut()) {
                (Some(memory), Pairs::Projected(k, v), kept) => {
                    let pair = (self.heads(&memory[at], k)?, self.heads(&memory[at], v)?);
                    if let Some(cache) = kept {
                        cache.shard(at).cross(&pair.0, &pair.1);
                    }
                    pair
                }
                (None, _, Some(cache)) => cache.shard(at).crossed().ok_or_else(unread)?,
                _ => return Err(unread()),
            };
            let mixed = Mixed { q: &q, k: &k, v: &v, first: 0, own: None, again };
            let mixed_bthk = self.mix(shard, x_btd, &mixed, pass, Site::CrossProbabilities)?;
            parts.push(self.output.part(at, &mixed_bthk.f_flatten(2, 3)?)?);
        }
        self.output.sum(&parts)
    }

    /// x `[b, t, h, k]` rotated by its tokens' positions, where the model rotates. A score depends on their
    /// difference alone, a product of features does not: there each document begins anew.
    fn rotate(&self, x_bthk: &Tensor, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        match (pass.rotary, self.form) {
            (Some(rotary), Attention::Linear { .. }) if pass.documents.is_some() => {
                rotary.rotate_by(&pass.positions(false, x_bthk.size()[1])?, x_bthk)
            }
            _ => pass.rotate(x_bthk),
        }
    }

    fn causal(&self) -> bool {
        !self.cross && self.context.model.causal(self.layer)
    }

    fn site(&self) -> Site {
        if self.cross { Site::CrossProbabilities } else { Site::Probabilities }
    }

    /// A product cut into heads: `[b, t, heads, k]`.
    fn heads(&self, x_btd: &Tensor, column: &Column) -> Result<Tensor, EngineError> {
        let head_dim = i64::from(self.context.model.head_dim);
        Ok(column.forward(x_btd)?.f_unflatten(2, [-1, head_dim].as_slice())?)
    }
}

impl Pass<'_> {
    /// x `[b, t, h, k]` rotated by its tokens' positions, where the model rotates.
    fn rotate(&self, x_bthk: &Tensor) -> Result<Tensor, EngineError> {
        self.rotate_from(0, x_bthk)
    }

    /// The same of tokens from `first` on.
    fn rotate_from(&self, first: i64, x_bthk: &Tensor) -> Result<Tensor, EngineError> {
        self.rotary.map_or_else(|| Ok(x_bthk.shallow_clone()), |rotary| rotary.rotate(first, x_bthk))
    }
}

fn unread() -> EngineError {
    EngineError::Other("a decoder has nothing that its encoder has read".to_owned())
}
