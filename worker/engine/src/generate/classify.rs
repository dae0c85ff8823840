//! Classes and embeddings of texts, by a model with a pooled head.

use coxswain_files::{Checkpoint, StoreFolder, Tokenizer};
use coxswain_types::framing::Framing;
use coxswain_types::job::DataSpec;
use coxswain_types::model::Head;
use tch::{Kind, Tensor};

use super::rank::Rank;
use super::{most_tokens, tokenizer_of};
use crate::EngineError;
use crate::checkpoint::load_weights;

/// A model that tells what a text is.
#[derive(Debug)]
pub struct Classifier {
    rank: Rank,
    tokenizer: Tokenizer,
    data: DataSpec,
    framing: Framing,
    /// The most tokens that it reads.
    most: Option<u32>,
}

/// What is told of a text.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The pooled output of its first token: as many numbers as the model is wide.
    pub embedding: Vec<f32>,
    /// The probability of each class; none where the head has no classes.
    pub probabilities: Vec<f32>,
}

impl Told {
    /// The likeliest class, the first of several; `None` where there are none, or a number is NaN.
    pub fn class(&self) -> Option<usize> {
        let mut all = self.probabilities.iter().enumerate();
        let first = all.next().filter(|_| self.probabilities.iter().all(|p| p.is_finite()))?;
        Some(all.fold(first, |most, next| if next.1 > most.1 { next } else { most }).0)
    }
}

impl Classifier {
    /// Loads the weights of a checkpoint and the tokenizer of its run.
    pub fn load(run: &StoreFolder, folder: &StoreFolder) -> Result<Classifier, EngineError> {
        let checkpoint = Checkpoint::open(folder, None)?;
        checkpoint.verify()?;
        checkpoint.expect_model()?;
        let manifest = checkpoint.manifest();
        let (model, train) = (&manifest.spec.model, &manifest.spec.train);
        if !matches!(model.head, Head::Pooled { .. }) {
            return Err(EngineError::Other(
                "the checkpoint's head tells tokens, not classes; `coxswain generate` lets it write, and a job with \
                 model.head pooled and train.start_from teaches it classes"
                    .to_owned(),
            ));
        }
        let (tokenizer, framing) = (tokenizer_of(run, &manifest.data)?, manifest.data.framing.clone());
        let most = most_tokens(model, &framing);
        let (rank, parameters) = Rank::alone(model, train.seed)?;
        load_weights(&checkpoint, &parameters)?;
        let data = manifest.spec.data.clone();
        Ok(Classifier { rank, tokenizer, data, framing, most })
    }

    /// What a class is called.
    pub fn name(&self, class: usize) -> String {
        self.data.class_name(class)
    }

    /// Reads a text. One that is longer than the samples of its training, or than its positions, is cut.
    pub fn read(&self, text: &str) -> Result<Told, EngineError> {
        let mut ids = self.framing.whole(&self.tokenizer.encode(text)?, self.most);
        if ids.is_empty() {
            ids.push(self.framing.end);
        }
        let ids: Vec<i64> = ids.into_iter().map(i64::from).collect();
        let (pooled_d, logits_c) = tch::no_grad(|| self.rank.pooled(&ids))?;
        let probabilities = logits_c.map(|logits| logits.f_softmax(-1, Kind::Float)).transpose()?;
        let numbers = |x: &Tensor| -> Result<Vec<f32>, EngineError> {
            Ok(Vec::try_from(&x.f_to_kind(Kind::Float)?.f_contiguous()?)?)
        };
        let probabilities = probabilities.as_ref().map(numbers).transpose()?.unwrap_or_default();
        Ok(Told { embedding: numbers(&pooled_d)?, probabilities })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_class_is_the_first_of_the_largest() {
        let class = |probabilities: &[f32]| {
            Told { embedding: Vec::new(), probabilities: probabilities.to_vec() }.class()
        };
        assert_eq!(class(&[0.2, 0.5, 0.3]), Some(1));
        assert_eq!(class(&[0.4, 0.4, 0.2]), Some(0));
        assert_eq!(class(&[]), None);
        assert_eq!(class(&[0.4, f32::NAN]), None);
    }
}
