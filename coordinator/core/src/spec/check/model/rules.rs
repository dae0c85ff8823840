//! What the keys of the model must be to each other ([`broken_rules`]), and what the training asks of it. Each
//! refusal says why the combination has no meaning.

use coxswain_types::bounds::broken_rules;
use coxswain_types::job::{DataSpec, Lengths, TrainSpec};
use coxswain_types::model::{Architecture, Head, ModelSpec};

use super::super::super::raw::RawTrain;
use super::Faults;

pub(super) fn check(model: &ModelSpec, faults: &mut Faults) {
    for (path, message) in broken_rules(model) {
        faults.add(path, message.to_owned());
    }
}

/// Checks that every token of a sample has a position.
fn check_length(model: &ModelSpec, train: &TrainSpec, faults: &mut Faults) {
    let Some(max) = model.positions.longest() else { return };
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
    if let Some((path, message)) = model.attention.untrained(train.sequence) {
        faults.add(path, message);
    }
    if !model.attention.has_probabilities() && train.attention_dropout > 0.0 {
        let (found, why) = (train.attention_dropout, "model.attention linear makes no probabilities");
        faults.add("train.attention_dropout", format!("found {found:?}; must be 0: {why}"));
    }
    let mixes = model.attention.mixes_documents(model.architecture);
    if let Some(why) = mixes.filter(|_| train.separate_documents) {
        faults.add("train.separate_documents", format!("must be false: {why}"));
    }
    let masked = matches!(model.head, Head::MaskedLm { .. });
    if !masked {
        let with = "model.head masked-lm only";
        faults.only_with("train.whole_words", raw.whole_words.is_some(), with);
    }
    let both = model.architecture == Architecture::EncoderDecoder;
    let corrupts = both && !train.pairs;
    if !masked && !corrupts {
        let with = "model.head masked-lm and model.architecture encoder-decoder only";
        faults.only_with("train.mask_rate", raw.mask_rate.is_some(), with);
    }
    if !corrupts {
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
