//! What generation keeps of the tokens so far, for each layer.

use tch::Tensor;

use crate::EngineError;

/// What a layer keeps, for each of the rank's logical shards.
#[derive(Debug, Default)]
pub struct Cache {
    shards: Vec<Kept>,
}

impl Cache {
    pub(super) fn shard(&mut self, at: usize) -> &mut Kept {
        while self.shards.len() <= at {
            self.shards.push(Kept::default());
        }
        &mut self.shards[at]
    }
}

/// What a shard of a layer keeps.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// Keys and values, `[b, s, g, k]`.
    pairs: Option<(Tensor, Tensor)>,
    /// Keys and values of the encoder's output, which are made once.
    crossed: Option<(Tensor, Tensor)>,
}

impl Kept {
    /// Keeps keys and values of the encoder's output.
    pub(super) fn cross(&mut self, k: &Tensor, v: &Tensor) {
        self.crossed = Some((k.shallow_clone(), v.shallow_clone()));
    }

    /// Keys and values of the encoder's output.
    pub(super) fn crossed(&self) -> Option<(Tensor, Tensor)> {
        self.crossed.as_ref().map(|(k, v)| (k.shallow_clone(), v.shallow_clone()))
    }

    /// Adds keys and values of further tokens; returns those of all.
    pub(super) fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor), EngineError> {
        let (k, v) = match &self.pairs {
            None => (k.shallow_clone(), v.shallow_clone()),
            Some((old_k, old_v)) => (Tensor::f_cat(&[old_k, k], 1)?, Tensor::f_cat(&[old_v, v], 1)?),
        };
        self.pairs = Some((k.shallow_clone(), v.shallow_clone()));
        Ok((k, v))
    }
}
