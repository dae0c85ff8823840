//! What the keys of the model must be to each other, and what the training asks of it. Each refusal says
//! why the combination has no meaning.

use coxswain_types::job::{DataSpec, Lengths, TrainSpec};
use coxswain_types::model::{Architecture, Attention, Head, ModelSpec, Positions};

use super::super::super::raw::RawTrain;
use super::Faults;

/// What is refused: whether it is so, where, and why.
type Rule = (bool, &'static str, &'static str);

pub(super) fn check(model: &ModelSpec, faults: &mut Faults) {
    let rules = attention(model).into_iter().chain(heads(model)).chain(positions(model));
    for (_, path, message) in rules.filter(|(broken, ..)| *broken) {
        faults.add(path, message.to_owned());
    }
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

/// Checks that every token of a sample has a position.
fn check_length(model: &ModelSpec, train: &TrainSpec, faults: &mut Faults) {
    let Positions::Learned { max, .. } = model.positions else { return };
    let (sequence, Lengths { source, target, .. }) = (train.sequence, Lengths::of(model, train));
    let longest = source.max(target);
    if max == 0 || longest <= max {
        return;
    }
    let why = "there is a learned vector for each position";
    faults.add(
        "train.sequence",
        match longest == sequence {
            true => format!("found {sequence}; must be at most model.max_positions ({max}): {why}"),
            false => format!(
                "found {sequence}, which makes the decoder read {longest} tokens; it must read at most \
             model.max_positions ({max}): {why}"
            ),
        },
    );
}

/// Checks what the training asks of the model.
pub(in super::super) fn check_training(
    model: &ModelSpec,
    raw: &RawTrain,
    train: &TrainSpec,
    faults: &mut Faults,
) {
    check_length(model, train, faults);
    check_global(model, train, faults);
    let linear = matches!(model.attention, Attention::Linear { .. });
    if linear && train.attention_dropout > 0.0 {
        let (found, why) = (train.attention_dropout, "model.attention linear makes no probabilities");
        faults.add("train.attention_dropout", format!("found {found:?}; must be 0: {why}"));
    }
    let mixes = match model.attention {
        Attention::Linear { .. } if model.architecture != Architecture::Decoder => {
            Some("in an encoder every token of model.attention linear sees the same sum over all tokens")
        }
        Attention::Compressed { .. } => {
            Some("a summary of model.attention compressed may be of two documents")
        }
        _ => None,
    };
    if let Some(why) = mixes.filter(|_| train.separate_documents) {
        faults.add("train.separate_documents", format!("must be false: {why}"));
    }
    let masked = matches!(model.head, Head::MaskedLm { .. });
    if !masked {
        let with = "model.head masked-lm only";
        faults.only_with("train.whole_words", raw.whole_words.is_some(), with);
    }
    let both = model.architecture == Architecture::EncoderDecoder;
    let mends = both && !train.pairs;
    if !masked && !mends {
        let with = "model.head masked-lm and model.architecture encoder-decoder only";
        faults.only_with("train.masked", raw.masked.is_some(), with);
    }
    if !mends {
        let with = "model.architecture encoder-decoder on data.text only";
        faults.only_with("train.corruption", raw.corruption.is_some(), with);
    }
    if !both {
        return;
    }
    if (1..4).contains(&train.sequence) {
        let found = train.sequence;
        let why =
            "an encoder-decoder's sample is a kept token, one taken out, what stands for it, and an end";
        faults.add("train.sequence", format!("found {found}; must be at least 4: {why}"));
    }
}

/// Both the first tokens' projections and those of the rest are trained by what they see.
fn check_global(model: &ModelSpec, train: &TrainSpec, faults: &mut Faults) {
    let Attention::Longformer { global, projections: true, .. } = model.attention else { return };
    let (path, sequence) = ("model.attention.global", train.sequence);
    if global == 0 {
        let why = "projections of its own are for the first tokens, and there are none";
        faults.add(path, format!("found 0; must be 1 or more, or model.attention.projections false: {why}"));
    } else if sequence > 0 && global >= sequence {
        let why = "the usual projections are for the tokens after the first ones, and there are none";
        let must = format!("must be below train.sequence ({sequence}), or model.attention.projections false");
        faults.add(path, format!("found {global}; {must}: {why}"));
    }
}

/// Checks what a pooled head needs to be trained.
pub(in super::super) fn check_classes(
    model: &ModelSpec,
    data: Option<&DataSpec>,
    sequence_parallel: bool,
    faults: &mut Faults,
) {
    let Head::Pooled { classes } = model.head else { return };
    if classes < 2 {
        let why =
            "the loss of model.head pooled is over classes; `coxswain plan --preset` can plan it without";
        faults.add("model.classes", format!("found {classes}; must be 2 or more: {why}"));
    }
    let without = match data {
        Some(DataSpec::Text { .. }) => Some("data.text"),
        Some(DataSpec::Pairs { .. }) => Some("data.pairs"),
        Some(DataSpec::Synthetic { .. }) => Some("data.synthetic"),
        Some(DataSpec::Labelled { .. }) | None => None,
    };
    if let Some(path) = without {
        faults.add(path, "has no classes; model.head pooled is trained on data.labelled".to_owned());
    }
    if sequence_parallel {
        let why = "model.head pooled reads the first token only, which cannot be split";
        faults.add("layout.sequence_parallel", format!("must be false: {why}"));
    }
}
