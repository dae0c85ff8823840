//! Tokens before the first layer: look-up, positions, and what follows them.
//!
//! The tables are cut over the logical shards by rows. A look-up has no gradient for its ids, so it
//! stands outside of autograd; what follows it (the *stem*) is a piece like those of layers.

use std::rc::Rc;

use coxswain_native::ops;
use coxswain_types::model::Positions;
use coxswain_types::params::{EMBEDDING, Place, stack_prefix};
use tch::Tensor;

use super::layer::on_device;
use super::linear::Row;
use super::norm::Norm;
use super::param::{Param, Parameters, kind};
use super::pass::{Pass, Site};
use super::positions::sinusoids;
use super::stage::Context;
use crate::EngineError;

/// The embedding of a stack.
#[derive(Debug)]
pub struct Embedding {
    shards: Vec<EmbeddingShard>,
    norm: Option<Norm>,
    map: Option<Row>,
    /// The layer that follows it.
    before: u32,
    /// Whether it is that of an encoder in front of a decoder.
    encoder: bool,
    context: Rc<Context>,
}

/// The rows of one logical shard.
#[derive(Debug)]
struct EmbeddingShard {
    tokens: Rc<Param>,
    positions: Option<Rc<Param>>,
    types: Option<Rc<Param>>,
}

impl Embedding {
    pub(super) fn build(
        place: Place,
        parameters: &Parameters,
        context: &Rc<Context>,
    ) -> Result<Embedding, EngineError> {
        let (model, prefix) = (&context.model, stack_prefix(&context.model, place));
        let learned = matches!(model.positions, Positions::Learned { .. });
        let table = |part: &str, shard| parameters.take(place, &format!("{prefix}.{part}.weight"), shard);
        let shard = |index| -> Result<EmbeddingShard, EngineError> {
            Ok(EmbeddingShard {
                tokens: parameters.take(place, EMBEDDING, index)?,
                positions: learned.then(|| table("embed_positions", index)).transpose()?,
                types: (model.embedding.types > 0).then(|| table("embed_types", index)).transpose()?,
            })
        };
        let norm = || Norm::build(place, &format!("{prefix}.embed_norm"), parameters, context);
        let map = || Row::build(place, &format!("{prefix}.embed_map"), true, parameters, context);
        Ok(Embedding {
            shards: context.shards.clone().map(shard).collect::<Result<_, _>>()?,
            norm: model.embedding.norm.then(norm).transpose()?,
            map: (model.embedding.dim != model.dim).then(map).transpose()?,
            encoder: place != Place::Bridge && model.encoder_layers > 0,
            before: if place == Place::Bridge { model.encoder_layers } else { 0 },
            context: Rc::clone(context),
        })
    }

    /// Whether anything follows the look-up.
    pub fn has_stem(&self, pass: &Pass<'_>) -> bool {
        let sinusoidal = self.context.model.positions == Positions::Sinusoidal;
        sinusoidal || self.norm.is_some() || self.map.is_some() || pass.drops()
    }

    /// What the tables hold of `ids_bt`, `[b, t, e]`, which [`Embedding::expect_rows`] has seen.
    pub fn look_up(&self, ids_bt: &Tensor, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        let shape = [ids_bt.size(), vec![-1]].concat();
        let kind = kind(self.context.precision);
        let mut parts = Vec::new();
        for shard in &self.shards {
            let mut sum: Option<Tensor> = None;
            for (table, ids_n, factor) in self.tables(shard, ids_bt, pass)? {
                let mut rows_ne = ops::embed(&ids_n, &table.weight, table.row.offset, kind)?;
                if factor != 1.0 {
                    rows_ne = rows_ne.f_mul_scalar(factor)?;
                }
                sum = Some(sum.map_or(Ok(rows_ne.shallow_clone()), |sum| sum.f_add(&rows_ne))?);
            }
            let rows_ne = sum.ok_or_else(|| EngineError::Table("an embedding has no table".to_owned()))?;
            parts.push(rows_ne.f_view(shape.as_slice())?);
        }
        self.context.reduce_from_shards(&parts)
    }

    /// Refuses ids and positions outside the tables. A shard returns zeros for rows it does not hold, so an id out of
    /// range would give zeros everywhere.
    pub fn expect_rows(&self, ids_bt: &Tensor, pass: &Pass<'_>) -> Result<(), EngineError> {
        let model = &self.context.model;
        expect_within("a token", ids_bt, 0, model.vocab)?;
        if let Positions::Learned { max, .. } = model.positions {
            let positions_bt = pass.positions(self.encoder, ids_bt.size()[1])?;
            expect_within("a position", &positions_bt, 0, max)?;
        }
        Ok(())
    }

    /// Accumulates the tables' gradients, given that of the look-up `[b, t, e]`.
    pub fn look_up_backward(
        &self,
        ids_bt: &Tensor,
        dx_bte: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<(), EngineError> {
        let gathered = if self.context.sequence_parallel {
            self.context.group.gather(dx_bte, 1)?
        } else {
            dx_bte.shallow_clone()
        };
        let dx_ne = gathered.f_flatten(0, 1)?;
        for shard in &self.shards {
            for (table, ids_n, factor) in self.tables(shard, ids_bt, pass)? {
                let dx_ne = if factor == 1.0 { dx_ne.shallow_clone() } else { dx_ne.f_mul_scalar(factor)? };
                ops::embed_grad(&ids_n, &dx_ne, &table.slot, table.row.offset)?;
            }
        }
        Ok(())
    }

    /// A shard's tables, which of their rows each token adds, and what those are multiplied by.
    fn tables<'s>(
        &self,
        shard: &'s EmbeddingShard,
        ids_bt: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Vec<(&'s Param, Tensor, f64)>, EngineError> {
        let (model, ids_n) = (&self.context.model, ids_bt.f_flatten(0, 1)?);
        let factor = if model.embedding.scaled { f64::from(model.dim).sqrt() } else { 1.0 };
        let mut tables: Vec<(&Param, Tensor, f64)> = vec![(&shard.tokens, ids_n, factor)];
        if let (Some(table), Positions::Learned { offset, .. }) = (&shard.positions, model.positions) {
            let positions_bt = on_device(&pass.positions(self.encoder, ids_bt.size()[1])?, ids_bt.device())?;
            let positions_bt = positions_bt.f_expand_as(ids_bt)?;
            let rows_n = positions_bt.f_add_scalar(i64::from(offset))?.f_flatten(0, 1)?;
            tables.push((table, added_once(table, rows_n)?, 1.0));
        }
        if let Some(table) = &shard.types {
            // All tokens are of the first type.
            let rows_n = ids_bt.f_flatten(0, 1)?.f_zeros_like()?;
            tables.push((table, added_once(table, rows_n)?, 1.0));
        }
        Ok(tables)
    }

    /// What follows the look-up: `[b, t, e]` to `[b, t, d]`.
    pub fn stem(&self, x_bte: &Tensor, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        let mut x = x_bte.shallow_clone();
        if self.context.model.positions == Positions::Sinusoidal {
            let (here, context) = (x.size()[1], &self.context);
            let (parts, part) =
                if context.sequence_parallel { (context.group_size, context.group_index) } else { (1, 0) };
            let positions_bt = pass.positions(self.encoder, here * parts)?.f_narrow(1, part * here, here)?;
            let table = on_device(&sinusoids(x.size()[2], &positions_bt)?, x.device())?;
            x = x.f_add(&table.f_to_kind(x.kind())?)?;
        }
        if let Some(norm) = &self.norm {
            x = norm.forward(&x)?;
        }
        x = pass.dropout(&x, self.before, Site::Embedding, &self.context)?;
        self.map.as_ref().map_or(Ok(x.shallow_clone()), |map| map.whole(&x))
    }
}

/// The rows of a table that a shard adds. A slice that several shards hold is added by one: no row has the id -1, so the
/// others add zeros and file a gradient of zeros.
fn added_once(table: &Param, rows_n: Tensor) -> Result<Tensor, EngineError> {
    Ok(if table.row.use_index == 0 { rows_n } else { rows_n.f_full_like(-1)? })
}

/// Refuses numbers outside of `least..count`.
pub(super) fn expect_within(what: &str, x: &Tensor, least: i64, count: u32) -> Result<(), EngineError> {
    if x.numel() == 0 {
        return Ok(());
    }
    let (low, high) = (x.f_min()?.f_int64_value(&[])?, x.f_max()?.f_int64_value(&[])?);
    if low >= least && high < i64::from(count) {
        return Ok(());
    }
    let found = if low < least { low } else { high };
    Err(EngineError::Other(format!(
        "{what} has the number {found}, and the model has those from 0 to {}",
        count.saturating_sub(1)
    )))
}
