//! Values mixed by a softmax over the keys that a mask leaves, which all forms but the linear one come down to.
//!
//! What a query sees is said by a mask ([`coxswain_types::mask`]); where that is more than "all" or "all
//! before", kernels are handed the list of tiles that it leaves.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use coxswain_native::attention::{self, BlockList, Options, ProbabilityDropout, Visible};
use coxswain_native::ops;
use coxswain_types::mask::{Blocks, Mask};
use coxswain_types::model::Positions;
use tch::Tensor;

use super::heads::BlockBuilder;
use crate::EngineError;
use crate::model::on_device;
use crate::model::param::Param;
use crate::model::pass::{Pass, Site};
use crate::model::positions::{alibi_slopes, relative_bucket};
use crate::model::stage::Context;

/// What is mixed, and how it is seen.
pub(super) struct Mixed<'a> {
    /// Queries, `[b, t, h, k]`.
    pub q: &'a Tensor,
    /// Keys, `[b, s, g, k]`.
    pub k: &'a Tensor,
    /// Values, of the same shape.
    pub v: &'a Tensor,
    /// The place of the first query among the keys.
    pub first: i64,
    /// What a query sees; where it is `None`, all keys, or in a causal layer all up to its own.
    pub own: Option<Mask>,
    /// Whether the same lengths come again with each micro-batch.
    pub again: bool,
}

impl Mixed<'_> {
    fn lengths(&self) -> (i64, i64) {
        (self.q.size()[1], self.k.size()[1])
    }
}

/// Whose keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeysOf {
    /// Those of its own sequence.
    Own,
    /// Those of the encoder's output: all of them, without positions.
    EncoderOutput,
}

/// What the softmax knows of a logical tensor shard.
#[derive(Debug)]
pub(super) struct ScoreShard {
    /// Which of all shards.
    pub(super) index: u32,
    /// The table of relative positions.
    pub(super) relative: Option<Rc<Param>>,
}

/// The softmax of a layer.
#[derive(Debug)]
pub(super) struct Scores {
    pub(super) layer: u32,
    keys_of: KeysOf,
    /// Lists of tiles that were made before.
    lists: RefCell<BTreeMap<ListKey, Rc<BlockList>>>,
    pub(super) context: Rc<Context>,
}

/// What a list of tiles depends on within a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ListKey {
    shard: u32,
    /// The place of the first query among the keys.
    first: i64,
    keys: i64,
}

impl Scores {
    pub(super) fn new(builder: &BlockBuilder<'_>, keys_of: KeysOf) -> Scores {
        let context = Rc::clone(builder.context);
        Scores { layer: builder.layer, keys_of, lists: RefCell::default(), context }
    }

    /// Whether a query sees only keys up to its own.
    pub(super) fn causal(&self) -> bool {
        self.keys_of == KeysOf::Own && self.context.model.causal(self.layer)
    }

    /// `softmax(q k^T scale + bias) v` over the keys that the mask leaves, `[b, t, h, k]`. The anchor is what
    /// queries are made of.
    pub(super) fn mix(
        &self,
        shard: &ScoreShard,
        anchor: &Tensor,
        mixed: &Mixed<'_>,
        pass: &Pass<'_>,
        site: Site,
    ) -> Result<Tensor, EngineError> {
        let (Mixed { q, k, v, .. }, model) = (mixed, &self.context.model);
        let (queries, keys) = mixed.lengths();
        let causal = self.causal();
        let heads = i64::from(model.heads);
        let first_head = i64::from(shard.index) * (heads / i64::from(self.context.shard_count));
        let dropout = pass.probabilities(self.layer, site).map(|(key, rate)| ProbabilityDropout {
            key,
            rate,
            first_head,
            heads,
        });
        let bias = self.bias(shard, anchor, mixed)?;
        let list = self.list(shard, mixed, pass)?;
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
        shard: &ScoreShard,
        mixed: &Mixed<'_>,
        pass: &Pass<'_>,
    ) -> Result<Option<Rc<BlockList>>, EngineError> {
        let (heads, (queries, keys)) = (mixed.q.size()[2] as u32, mixed.lengths());
        let rows = self.rows(pass);
        let known = ListKey { shard: shard.index, first: mixed.first, keys };
        let again = mixed.again && rows.is_none();
        if let Some(list) = self.lists.borrow().get(&known).filter(|_| again) {
            return Ok(Some(Rc::clone(list)));
        }
        let masks = match (&mixed.own, rows) {
            (None, None) => return Ok(None),
            (Some(own), None) => vec![own.clone()],
            (own, Some(rows)) => {
                let plain = if self.causal() { Mask::Causal } else { Mask::All };
                let own = own.clone().unwrap_or(plain);
                rows.into_iter().map(|row| Mask::And(vec![own.clone(), row])).collect()
            }
        };
        let (first, of_queries) = (shard.index * heads, mixed.first as u32);
        let queries = of_queries..of_queries + queries as u32;
        let list = Rc::new(BlockList::new(&Blocks::of(&masks, first..first + heads, queries, keys as u32))?);
        if again {
            self.lists.borrow_mut().insert(known, Rc::clone(&list));
        }
        Ok(Some(list))
    }

    /// What the rows of a micro-batch differ in: documents, or the padding of what an encoder reads.
    fn rows(&self, pass: &Pass<'_>) -> Option<Vec<Mask>> {
        // Padding is a document too.
        let encoder = !self.causal() && pass.source > 0;
        if let (Some(queries), Some(keys)) =
            (pass.documents_of(encoder && self.keys_of == KeysOf::Own), pass.documents_of(encoder))
        {
            let of = |(queries, keys): (&Arc<[u32]>, &Arc<[u32]>)| Mask::Documents {
                queries: Arc::clone(queries),
                keys: Arc::clone(keys),
            };
            return Some(queries.iter().zip(keys).map(of).collect());
        }
        let padded = pass.padded.filter(|_| !self.causal());
        padded.map(|rows| rows.iter().map(|count| Mask::Keys(0..*count)).collect())
    }

    /// What is added to scores, by relative position; see [`Options`].
    fn bias(
        &self,
        shard: &ScoreShard,
        anchor: &Tensor,
        mixed: &Mixed<'_>,
    ) -> Result<Option<Tensor>, EngineError> {
        let model = &self.context.model;
        if self.keys_of == KeysOf::EncoderOutput {
            return Ok(None);
        }
        let (queries, keys) = mixed.lengths();
        // The distance of a key from a query, from that of the first key to the last query on.
        let distances = 1 - (mixed.first + queries)..keys - mixed.first;
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
                Ok(Some(on_device(
                    &Tensor::from_slice(&values).f_view([i64::from(each), -1])?,
                    anchor.device(),
                )?))
            }
            Positions::RelativeBias { buckets, max_distance } => {
                let table = shard.relative.as_ref();
                let table =
                    table.ok_or_else(|| EngineError::Table("a layer has no relative bias".to_owned()))?;
                let causal = self.causal();
                let rows: Vec<i64> = distances
                    .map(|distance| relative_bucket(distance, !causal, buckets, max_distance))
                    .collect();
                let rows_r = on_device(&Tensor::from_slice(&rows), anchor.device())?;
                Ok(Some(ops::table_columns(
                    anchor,
                    &table.weight,
                    &rows_r,
                    &table.slot,
                    &self.context.wgrad_queue,
                )?))
            }
            _ => Ok(None),
        }
    }
}
