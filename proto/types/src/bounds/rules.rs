//! What the numbers of a model must be to each other. Each refusal says why the combination has no meaning.

use crate::model::{Architecture, Attention, Head, ModelSpec, Positions};

/// What is refused: whether it is so, where, and why.
type Rule = (bool, &'static str, &'static str);

/// The rules that a model breaks: the key of a job file that is at fault, and what it must be and why.
pub fn broken_rules(model: &ModelSpec) -> impl Iterator<Item = (&'static str, &'static str)> {
    let rules = attention(model).into_iter().chain(heads(model)).chain(positions(model));
    rules.filter(|(broken, ..)| *broken).map(|(_, key, message)| (key, message))
}

fn attention(model: &ModelSpec) -> Vec<Rule> {
    let linear = matches!(model.attention, Attention::Linear { .. });
    let decay = matches!(model.attention, Attention::Linear { decay: true });
    let compressed = matches!(model.attention, Attention::Compressed { .. });
    let latent = matches!(model.attention, Attention::Latent { .. });
    let last = matches!(model.attention, Attention::BigBird { last: 1.., .. });
    let own_projections = matches!(model.attention, Attention::Longformer { projections: true, .. });
    let scores = matches!(model.positions, Positions::Alibi | Positions::RelativeBias { .. });
    let encodes = model.architecture != Architecture::Decoder;
    let rope = matches!(model.positions, Positions::Rope { .. });
    let rope_dim = match model.attention {
        Attention::Latent { rope_dim, .. } => rope_dim,
        _ => 0,
    };
    vec![
        (
            linear && scores,
            "model.positions",
            "alibi and relative add to scores, and model.attention linear makes none; must be rope, learned, \
             sinusoidal or none",
        ),
        (
            compressed && scores,
            "model.positions",
            "alibi and relative depend on distances, and a summary of model.attention compressed has none; must be \
             rope, learned, sinusoidal or none",
        ),
        (
            decay && encodes,
            "model.attention.decay",
            "forgets what came before, and an encoder's tokens see both sides; must be false, or the architecture \
             decoder",
        ),
        (
            compressed && encodes,
            "model.attention",
            "compressed summarizes what came before, and an encoder's tokens see both sides; take another kind, or \
             the architecture decoder",
        ),
        (
            last && model.architecture != Architecture::Encoder,
            "model.attention.last",
            "a decoder's tokens see nothing after themselves; must be 0",
        ),
        (
            own_projections && model.architecture != Architecture::Encoder,
            "model.attention.projections",
            "the first tokens see all others by projections of their own, and in a decoder they see only each other; \
             must be false, or the architecture encoder",
        ),
        (
            latent && !rope,
            "model.positions",
            "model.attention latent rotates a part of each head; must be rope",
        ),
        (
            latent && model.kv_heads != model.heads,
            "model.kv_heads",
            "model.attention latent makes keys and values for every head from its latent; leave it out",
        ),
        (latent && rope_dim % 2 == 1, "model.attention.rope_dim", "must be even, because RoPE rotates pairs"),
        (
            latent && rope_dim > 0 && model.head_dim > 0 && rope_dim >= model.head_dim,
            "model.attention.rope_dim",
            "must be below the width of a head, whose other part has no positions",
        ),
    ]
}

fn heads(model: &ModelSpec) -> Vec<Rule> {
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

fn positions(model: &ModelSpec) -> Vec<Rule> {
    vec![(
        model.positions == Positions::Sinusoidal && model.embedding.dim % 2 == 1,
        "model.positions",
        "sinusoidal has a cosine beside each sine; needs an even model.dim or model.embedding_dim",
    )]
}
