//! What generation keeps of the tokens so far, for each layer.

use coxswain_native::linear_attention::LinearState;
use tch::Tensor;

use super::attention::Summarized;
use crate::EngineError;

/// What a layer keeps.
#[derive(Debug, Default)]
pub struct Cache {
    /// For each of the rank's logical shards.
    shards: Vec<ShardCache>,
    /// What all heads share of keys and values, `[b, s, r]`.
    latents: Option<Tensor>,
}

impl Cache {
    pub(super) fn shard(&mut self, at: usize) -> &mut ShardCache {
        while self.shards.len() <= at {
            self.shards.push(ShardCache::default());
        }
        &mut self.shards[at]
    }

    /// Adds latents of further tokens; returns those of all.
    pub(super) fn append_latents(&mut self, latents: &Tensor) -> Result<Tensor, EngineError> {
        let all = match &self.latents {
            None => latents.shallow_clone(),
            Some(old) => Tensor::f_cat(&[old, latents], 1)?,
        };
        self.latents = Some(all.shallow_clone());
        Ok(all)
    }

    /// Bytes of memory that it takes.
    pub fn held_bytes(&self) -> u64 {
        let shards: u64 = self.shards.iter().map(ShardCache::held_bytes).sum();
        shards + self.latents.as_ref().map_or(0, bytes)
    }
}

fn bytes(x: &Tensor) -> u64 {
    (x.numel() * x.kind().elt_size_in_bytes()) as u64
}

/// Bytes of memory that keys and values take.
pub(super) fn pair_bytes((k, v): &Pair) -> u64 {
    bytes(k) + bytes(v)
}

/// Keys and values.
pub(super) type Pair = (Tensor, Tensor);

pub(super) fn shallow((k, v): &Pair) -> Pair {
    (k.shallow_clone(), v.shallow_clone())
}

/// What a shard of a layer keeps.
#[derive(Debug, Default)]
pub(super) struct ShardCache {
    own: OwnCache,
    /// Keys and values of the encoder's output, which are made once.
    crossed: Option<Pair>,
}

/// What a shard keeps of its own tokens, by the form of its attention.
#[derive(Debug, Default)]
enum OwnCache {
    /// Nothing so far, or what all shards share.
    #[default]
    Nothing,
    /// Keys and values, `[b, s, g, k]`.
    Pairs(Pair),
    /// What linear attention has come to.
    State(LinearState),
    /// Of compressed attention.
    Summarized(Summarized),
}

impl ShardCache {
    /// Keeps keys and values of the encoder's output.
    pub(super) fn cross(&mut self, k: &Tensor, v: &Tensor) {
        self.crossed = Some((k.shallow_clone(), v.shallow_clone()));
    }

    /// Keys and values of the encoder's output.
    pub(super) fn crossed(&self) -> Option<Pair> {
        self.crossed.as_ref().map(shallow)
    }

    /// Adds keys and values of further tokens; returns those of all. Of more than `last`, where that is
    /// given, the older ones are then forgotten.
    pub(super) fn append(&mut self, k: &Tensor, v: &Tensor, last: Option<i64>) -> Result<Pair, EngineError> {
        let old = match &self.own {
            OwnCache::Pairs(pair) => Some(pair),
            OwnCache::Nothing | OwnCache::State(_) | OwnCache::Summarized(_) => None,
        };
        let (k, v) = joined(old, (k, v))?;
        let keys = k.size()[1];
        self.own = OwnCache::Pairs(match last {
            Some(last) if last < keys => (part(&k, keys - last, last)?, part(&v, keys - last, last)?),
            _ => (k.shallow_clone(), v.shallow_clone()),
        });
        Ok((k, v))
    }

    /// What linear attention has come to.
    pub(super) fn state(&self) -> Option<&LinearState> {
        match &self.own {
            OwnCache::State(state) => Some(state),
            OwnCache::Nothing | OwnCache::Pairs(_) | OwnCache::Summarized(_) => None,
        }
    }

    /// Linear attention has come to this.
    pub(super) fn go_on(&mut self, state: LinearState) {
        self.own = OwnCache::State(state);
    }

    /// What compressed attention keeps.
    pub(super) fn summarized(&self) -> Option<&Summarized> {
        match &self.own {
            OwnCache::Summarized(kept) => Some(kept),
            OwnCache::Nothing | OwnCache::Pairs(_) | OwnCache::State(_) => None,
        }
    }

    /// Compressed attention keeps this.
    pub(super) fn remember(&mut self, kept: Summarized) {
        self.own = OwnCache::Summarized(kept);
    }

    fn held_bytes(&self) -> u64 {
        let own = match &self.own {
            OwnCache::Nothing => 0,
            OwnCache::Pairs(pair) => pair_bytes(pair),
            OwnCache::State(state) => state.held_bytes(),
            OwnCache::Summarized(kept) => kept.held_bytes(),
        };
        own + self.crossed.as_ref().map_or(0, pair_bytes)
    }
}

/// Old keys and values followed by new ones.
pub(super) fn joined(old: Option<&Pair>, (k, v): (&Tensor, &Tensor)) -> Result<Pair, EngineError> {
    match old {
        None => Ok((k.shallow_clone(), v.shallow_clone())),
        Some((old_k, old_v)) => Ok((Tensor::f_cat(&[old_k, k], 1)?, Tensor::f_cat(&[old_v, v], 1)?)),
    }
}

/// A copy of some tokens: a view would keep them all.
pub(super) fn part(x: &Tensor, first: i64, count: i64) -> Result<Tensor, EngineError> {
    Ok(Tensor::f_cat(&[x.f_narrow(1, first, count)?], 1)?)
}

pub(super) fn nothing() -> EngineError {
    EngineError::Other("nothing is kept of a layer's tokens".to_owned())
}
