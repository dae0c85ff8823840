//! What the numbers of a model must be to each other. Each refusal says why the combination has no meaning.

use crate::forms::FormRule;
use crate::model::{Architecture, Attention, Head, ModelSpec, NormSpec, Positions};

/// The rules that a model breaks: the key of a job file that is at fault, and what it must be and why.
pub fn broken_rules(model: &ModelSpec) -> impl Iterator<Item = (&'static str, &'static str)> {
    let rules = [Attention::rules(model), heads(model), Positions::rules(model), NormSpec::rules(model)]
        .into_iter()
        .flatten();
    rules.filter(|(broken, ..)| *broken).map(|(_, key, message)| (key, message))
}

fn heads(model: &ModelSpec) -> Vec<FormRule> {
    let encoder = model.architecture == Architecture::Encoder;
    let two = model.architecture == Architecture::EncoderDecoder;
    let masked = matches!(model.head, Head::MaskedLm { .. });
    vec![
        (
            encoder && model.head == Head::Lm,
            "model.head",
            "lm predicts the next token, and an encoder's tokens see it already; must be masked-lm or pooled",
        ),
        (
            !encoder && masked,
            "model.head",
            "masked-lm needs the tokens on both sides, which only an encoder sees; must be lm",
        ),
        (
            !encoder && matches!(model.head, Head::Pooled { .. }),
            "model.head",
            "pooled reads the first token's output, and in a decoder that token sees nothing else; must be lm",
        ),
        (
            model.tied_embeddings && model.head == Head::Lm && model.embedding.dim != model.dim,
            "model.tied_embeddings",
            "the head lm multiplies by model.dim numbers a token, and the embedding has model.embedding_dim; must be \
             false, or leave model.embedding_dim out",
        ),
        (
            two && model.layer_groups != model.layers,
            "model.layer_groups",
            "layers of an encoder-decoder do not share weights in this version; leave it out",
        ),
    ]
}
