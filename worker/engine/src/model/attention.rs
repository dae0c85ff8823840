//! The attention block of a layer: projections into heads, positions, the mixing of values, the
//! projection back.
//!
//! Heads are cut over the logical tensor shards, and each shard mixes its own. What a query sees is
//! said by a mask ([`coxswain_types::mask`]); where that is more than "all" or "all before", kernels are
//! handed the list of tiles that it leaves.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use coxswain_native::attention::{self, BlockList, Options, ProbabilityDropout, Visible};
use coxswain_native::ops;
use coxswain_types::mask::{Blocks, Mask, layer_mask};
use coxswain_types::model::Positions;
use coxswain_types::params::{Place, relative_bias};
use tch::Tensor;

use super::cache::Cache;
use super::linear::{Column, Row};
use super::param::{Param, Parameters};
use super::pass::{Pass, Site};
use super::positions::{alibi_slopes, relative_bucket};
use super::stage::Context;
use crate::EngineError;

/// Its weights on this rank.
#[derive(Debug)]
pub(super) struct AttentionBlock {
    layer: u32,
    /// Whether keys and values are of the encoder's output.
    cross: bool,
    shards: Vec<Shard>,
    output: Row,
    /// Lists of tiles that were made before, by shard and number of tokens.
    lists: RefCell<BTreeMap<(u32, i64), Rc<BlockList>>>,
    context: Rc<Context>,
}

/// The weights of one logical tensor shard.
#[derive(Debug)]
struct Shard {
    index: u32,
    q: Column,
    k: Column,
    v: Column,
    /// The table of relative positions.
    relative: Option<Rc<Param>>,
}

impl AttentionBlock {
    pub(super) fn build(
        (layer, cross): (u32, bool),
        prefix: &str,
        parameters: &Parameters,
        context: &Rc<Context>,
    ) -> Result<AttentionBlock, EngineError> {
        let (place, model) = (Place::Layer(layer), &context.model);
        let column = |part: &str, shard, biased| {
            Column::build((place, &format!("{prefix}.{part}"), shard), biased, parameters, context)
        };
        let table = relative_bias(model, layer);
        let relative = !cross && matches!(model.positions, Positions::RelativeBias { .. });
        let shard = |index| -> Result<Shard, EngineError> {
            Ok(Shard {
                index,
                q: column("q_proj", index, model.biases.qkv)?,
                k: column("k_proj", index, model.biases.qkv)?,
                v: column("v_proj", index, model.biases.qkv)?,
                relative: relative.then(|| parameters.take(place, &table, index)).transpose()?,
            })
        };
        Ok(AttentionBlock {
            layer,
            cross,
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
        cache: Option<&mut Cache>,
    ) -> Result<Tensor, EngineError> {
        let shared = self.context.copy_to_shards(x_btd)?;
        let (mut parts, mut kept) = (Vec::new(), cache);
        for (at, (shard, x_btd)) in self.shards.iter().zip(&shared).enumerate() {
            let (mut q_bthk, mut k_btgk) = (self.heads(x_btd, &shard.q)?, self.heads(x_btd, &shard.k)?);
            if let Some(rotary) = pass.rotary {
                let (cos, sin) = rotary.first(q_bthk.size()[1])?;
                q_bthk = ops::rope(&q_bthk, &cos, &sin)?;
                k_btgk = ops::rope(&k_btgk, &cos, &sin)?;
            }
            let v_btgk = self.heads(x_btd, &shard.v)?;
            let (k_bsgk, v_bsgk) = match kept.as_deref_mut() {
                Some(cache) => cache.shard(at).append(&k_btgk, &v_btgk)?,
                None => (k_btgk, v_btgk),
            };
            let mixed_bthk = self.mix(shard, x_btd, [&q_bthk, &k_bsgk, &v_bsgk], pass)?;
            parts.push(self.output.part(at, &mixed_bthk.f_flatten(2, 3)?)?);
        }
        self.output.sum(&parts)
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
        let (mut parts, mut kept) = (Vec::new(), cache);
        for (at, (shard, x_btd)) in self.shards.iter().zip(&shared).enumerate() {
            let q_bthk = self.heads(x_btd, &shard.q)?;
            let (k_bsgk, v_bsgk) = match (&memory, kept.as_deref_mut()) {
                (Some(memory), kept) => {
                    let memory_bsd = &memory[at];
                    let pair = (self.heads(memory_bsd, &shard.k)?, self.heads(memory_bsd, &shard.v)?);
                    if let Some(cache) = kept {
                        cache.shard(at).cross(&pair.0, &pair.1);
                    }
                    pair
                }
                (None, Some(cache)) => cache.shard(at).crossed().ok_or_else(unread)?,
                (None, None) => return Err(unread()),
            };
            let mixed_bthk = self.mix(shard, x_btd, [&q_bthk, &k_bsgk, &v_bsgk], pass)?;
            parts.push(self.output.part(at, &mixed_bthk.f_flatten(2, 3)?)?);
        }
        self.output.sum(&parts)
    }

    /// `softmax(q k^T scale + bias) v` over the keys that the mask leaves: q `[b, t, h, k]`, k and v
    /// `[b, s, g, k]`, whose last t keys are those of q's tokens.
    fn mix(
        &self,
        shard: &Shard,
        x_btd: &Tensor,
        [q, k, v]: [&Tensor; 3],
        pass: &Pass<'_>,
    ) -> Result<Tensor, EngineError> {
        let model = &self.context.model;
        let (queries, keys) = (q.size()[1], k.size()[1]);
        let causal = self.causal();
        let heads = i64::from(model.heads);
        let first_head = i64::from(shard.index) * (heads / i64::from(self.context.shard_count));
        let site = if self.cross { Site::CrossProbabilities } else { Site::Probabilities };
        let dropout = pass.probabilities(self.layer, site).map(|(key, rate)| ProbabilityDropout {
            key,
            rate,
            first_head,
            heads,
        });
        let bias = self.bias(shard, x_btd, queries, keys)?;
        let list = self.list(shard, q.size()[2], (queries, keys), pass)?;
        let usual = (model.attention_scale * f64::from(model.head_dim).sqrt() - 1.0).abs() < 1e-12;
        if list.is_none() && bias.is_none() && dropout.is_none() && usual {
            // One query after all keys sees them all; libtorch's own kernel wants as many of both otherwise.
            if !causal || queries == keys {
                return Ok(ops::attention(q, k, v, causal)?);
            }
            if queries == 1 {
                return Ok(ops::attention(q, k, v, false)?);
            }
        }
        let visible = match &list {
            Some(list) => Visible::Blocks(list),
            None if causal => Visible::Causal,
            None => Visible::All,
        };
        let options = Options { visible, scale: model.attention_scale, bias_hr: bias.as_ref(), dropout };
        Ok(attention::attention(q, k, v, &options)?)
    }

    /// The tiles that the mask leaves; `None` where it is all keys, or all before a query.
    fn list(
        &self,
        shard: &Shard,
        heads: i64,
        (queries, keys): (i64, i64),
        pass: &Pass<'_>,
    ) -> Result<Option<Rc<BlockList>>, EngineError> {
        let model = &self.context.model;
        let causal = self.causal();
        let own = if self.cross {
            None
        } else {
            layer_mask(model.attention, causal, self.layer, self.context.seed, keys as u32)
        };
        let rows = self.rows(pass);
        // A list of a whole sequence that is the same for all rows comes again at each micro-batch.
        let (known, again) = ((shard.index, keys), queries == keys && rows.is_none());
        let masks = match (own, rows) {
            (None, None) => return Ok(None),
            (Some(own), None) => vec![own],
            (own, Some(rows)) => {
                let plain = if causal { Mask::Causal } else { Mask::All };
                let own = own.unwrap_or(plain);
                rows.into_iter().map(|row| Mask::And(vec![own.clone(), row])).collect()
            }
        };
        if let Some(list) = self.lists.borrow().get(&known).filter(|_| again) {
            return Ok(Some(Rc::clone(list)));
        }
        let first = shard.index * heads as u32;
        let blocks = Blocks::of(&masks, first..first + heads as u32, queries as u32, keys as u32);
        let list = Rc::new(BlockList::new(&blocks)?);
        if again {
            self.lists.borrow_mut().insert(known, Rc::clone(&list));
        }
        Ok(Some(list))
    }

    /// What the rows of a micro-batch differ in: documents, or the padding of what the encoder reads.
    fn rows(&self, pass: &Pass<'_>) -> Option<Vec<Mask>> {
        if self.cross || self.layer < self.context.model.encoder_layers {
            let padded = pass.padded?;
            return Some(padded.iter().map(|count| Mask::Keys { count: *count }).collect());
        }
        let documents = pass.documents?;
        Some(documents.iter().map(|row| Mask::Documents(Arc::clone(row))).collect())
    }

    fn causal(&self) -> bool {
        !self.cross && self.context.model.causal(self.layer)
    }

    /// What is added to scores, by relative position; see [`Options`].
    fn bias(
        &self,
        shard: &Shard,
        x_btd: &Tensor,
        queries: i64,
        keys: i64,
    ) -> Result<Option<Tensor>, EngineError> {
        let model = &self.context.model;
        if self.cross {
            return Ok(None);
        }
        // The distance of a key from a query, from that of the first key to the last query on.
        let distances = 1 - keys..queries;
        match model.positions {
            Positions::Alibi => {
                let each = model.heads / self.context.shard_count;
                let slopes = alibi_slopes(model.heads);
                let own = slopes.iter().skip((shard.index * each) as usize).take(each as usize);
                let values: Vec<f32> = own
                    .flat_map(|slope| {
                        distances.clone().map(move |distance| (-slope * distance.abs() as f64) as f32)
                    })
                    .collect();
                Ok(Some(Tensor::from_slice(&values).f_view([i64::from(each), -1])?))
            }
            Positions::RelativeBias { buckets, max_distance } => {
                let table = shard.relative.as_ref();
                let table =
                    table.ok_or_else(|| EngineError::Table("a layer has no relative bias".to_owned()))?;
                let causal = self.causal();
                let rows: Vec<i64> = distances
                    .map(|distance| relative_bucket(distance, !causal, buckets, max_distance))
                    .collect();
                let rows_r = Tensor::from_slice(&rows);
                Ok(Some(ops::table_columns(x_btd, &table.weight, &rows_r, &table.slot, &self.context.tape)?))
            }
            _ => Ok(None),
        }
    }

    /// A product cut into heads: `[b, t, heads, k]`.
    fn heads(&self, x_btd: &Tensor, column: &Column) -> Result<Tensor, EngineError> {
        let head_dim = i64::from(self.context.model.head_dim);
        Ok(column.forward(x_btd)?.f_unflatten(2, [-1, head_dim].as_slice())?)
    }
}

fn unread() -> EngineError {
    EngineError::Other("a decoder has nothing that its encoder has read".to_owned())
}
