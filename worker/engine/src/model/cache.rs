//! What generation keeps of the tokens so far, for each layer.

use coxswain_native::linear_attention::LinearState;
use tch::Tensor;

use crate::EngineError;

/// What a layer keeps.
#[derive(Debug, Default)]
pub struct Cache {
    /// For each of the rank's logical shards.
    shards: Vec<Kept>,
    /// What all heads share of keys and values, `[b, s, r]`.
    latents: Option<Tensor>,
}

impl Cache {
    pub(super) fn shard(&mut self, at: usize) -> &mut Kept {
        while self.shards.len() <= at {
            self.shards.push(Kept::default());
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
        let shards: u64 = self.shards.iter().map(Kept::held_bytes).sum();
        shards + self.latents.as_ref().map_or(0, bytes)
    }
}

fn bytes(x: &Tensor) -> u64 {
    (x.numel() * x.kind().elt_size_in_bytes()) as u64
}

/// Keys and values.
type Pair = (Tensor, Tensor);

fn shallow((k, v): &Pair) -> Pair {
    (k.shallow_clone(), v.shallow_clone())
}

/// What a shard of a layer keeps.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Keys and values, `[b, s, g, k]`.
    pairs: Option<Pair>,
    /// Keys and values of the encoder's output, which are made once.
    crossed: Option<Pair>,
    /// What linear attention has come to.
    state: Option<LinearState>,
    /// Of compressed attention.
    memory: Memory,
}

impl Kept {
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
        let (k, v) = joined(self.pairs.as_ref(), (k, v))?;
        let keys = k.size()[1];
        self.pairs = Some(match last {
            Some(last) if last < keys => (part(&k, keys - last, last)?, part(&v, keys - last, last)?),
            _ => (k.shallow_clone(), v.shallow_clone()),
        });
        Ok((k, v))
    }

    pub(super) fn state(&self) -> Option<&LinearState> {
        self.state.as_ref()
    }

    pub(super) fn go_on(&mut self, state: LinearState) {
        self.state = Some(state);
    }

    pub(super) fn memory(&self) -> &Memory {
        &self.memory
    }

    pub(super) fn remember(&mut self, memory: Memory) {
        self.memory = memory;
    }

    fn held_bytes(&self) -> u64 {
        let pairs = [&self.pairs, &self.crossed, &self.memory.tokens, &self.memory.summaries];
        let pairs = pairs.into_iter().flatten().map(|(k, v)| bytes(k) + bytes(v));
        pairs.sum::<u64>() + self.state.as_ref().map_or(0, LinearState::held_bytes)
    }
}

/// Keys and values in two forms: summaries of blocks, then tokens.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// The place of the first token that is kept by itself.
    pub start: i64,
    tokens: Option<Pair>,
    summaries: Option<Pair>,
}

impl Memory {
    /// With further tokens.
    pub(super) fn followed_by(&self, k: &Tensor, v: &Tensor) -> Result<Memory, EngineError> {
        Ok(Memory {
            start: self.start,
            tokens: Some(joined(self.tokens.as_ref(), (k, v))?),
            summaries: self.summaries.as_ref().map(shallow),
        })
    }

    /// With summaries of what its first tokens are summarized to, which stay beside them.
    pub(super) fn summarized(
        self,
        of: impl Fn(&Tensor) -> Result<Tensor, EngineError>,
    ) -> Result<Memory, EngineError> {
        let (k, v) = self.tokens.as_ref().ok_or_else(nothing)?;
        let (k, v) = (of(k)?, of(v)?);
        Ok(Memory { summaries: Some(joined(self.summaries.as_ref(), (&k, &v))?), ..self })
    }

    /// Number of tokens that are kept by themselves.
    pub(super) fn tokens(&self) -> Result<i64, EngineError> {
        Ok(self.tokens.as_ref().ok_or_else(nothing)?.0.size()[1])
    }

    /// Number of summaries.
    pub(super) fn summaries(&self) -> Result<i64, EngineError> {
        Ok(self.summaries.as_ref().ok_or_else(nothing)?.0.size()[1])
    }

    /// Summaries, then tokens.
    pub(super) fn all(&self) -> Result<Pair, EngineError> {
        let (k, v) = self.tokens.as_ref().ok_or_else(nothing)?;
        joined(self.summaries.as_ref(), (k, v))
    }

    /// Without the tokens before a place.
    pub(super) fn forget_before(self, place: i64) -> Result<Memory, EngineError> {
        let (k, v) = self.tokens.as_ref().ok_or_else(nothing)?;
        let (gone, all) = (place - self.start, k.size()[1]);
        let tokens = Some((part(k, gone, all - gone)?, part(v, gone, all - gone)?));
        Ok(Memory { start: place, tokens, ..self })
    }
}

fn joined(old: Option<&Pair>, (k, v): (&Tensor, &Tensor)) -> Result<Pair, EngineError> {
    match old {
        None => Ok((k.shallow_clone(), v.shallow_clone())),
        Some((old_k, old_v)) => Ok((Tensor::f_cat(&[old_k, k], 1)?, Tensor::f_cat(&[old_v, v], 1)?)),
    }
}

/// A copy of some tokens: a view would keep them all.
fn part(x: &Tensor, first: i64, count: i64) -> Result<Tensor, EngineError> {
    Ok(Tensor::f_cat(&[x.f_narrow(1, first, count)?], 1)?)
}

fn nothing() -> EngineError {
    EngineError::Other("nothing is kept of a layer's tokens".to_owned())
}
