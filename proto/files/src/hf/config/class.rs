//! What a configuration's class reads of its model's output.

use serde_json::{Map, Value};

use super::Keys;
use crate::hf::HfError;
use crate::hf::family::{Family, FamilyKind};

/// What a class is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Logits of tokens.
    Tokens,
    /// The output as it is: features of an encoder; of others what tied embeddings make logits of.
    Bare,
    /// Classes of texts.
    Classes,
}

/// The classes of a family, the usual one first, by what follows the family's name.
fn known(family: Family) -> &'static [(&'static str, Class)] {
    use Class::{Bare, Classes, Tokens};
    match (family.kind(), family) {
        (FamilyKind::Gpt2, _) => &[("LMHeadModel", Tokens), ("Model", Bare)],
        (FamilyKind::Llama(_), _) => &[("ForCausalLM", Tokens), ("Model", Bare)],
        (_, Family::Bert | Family::Albert) => &[
            ("ForMaskedLM", Tokens),
            ("Model", Bare),
            ("ForSequenceClassification", Classes),
            ("ForPreTraining", Tokens),
        ],
        (_, Family::BigBird) => &[("ForMaskedLM", Tokens), ("Model", Bare), ("ForPreTraining", Tokens)],
        (FamilyKind::Encoder, _) => {
            &[("ForMaskedLM", Tokens), ("Model", Bare), ("ForSequenceClassification", Classes)]
        }
        (FamilyKind::T5, _) => {
            &[("ForConditionalGeneration", Tokens), ("Model", Bare), ("WithLMHeadModel", Tokens)]
        }
        (FamilyKind::Bart, _) => &[("ForConditionalGeneration", Tokens), ("Model", Bare)],
    }
}

/// What the first of `architectures` is for; the family's usual class where there is none.
pub(super) fn class(family: Family, keys: &Keys<'_>) -> Result<Class, HfError> {
    let names: Vec<(String, Class)> =
        known(family).iter().map(|(ends, class)| (format!("{}{ends}", family.title()), *class)).collect();
    let given = match keys.value("architectures") {
        None => return Ok(Class::Tokens),
        Some(Value::Array(list)) if list.is_empty() => return Ok(Class::Tokens),
        Some(list) => list.as_array().and_then(|list| list[0].as_str()),
    };
    let found = names.iter().find(|(name, _)| given.is_some_and(|given| name.eq_ignore_ascii_case(given)));
    found.map(|(_, class)| *class).ok_or_else(|| {
        let names: Vec<_> = names.iter().map(|(name, _)| name.as_str()).collect();
        keys.wrong("architectures", &format!("one of {}", names.join(", ")))
    })
}

/// How many classes a text may be of.
pub(super) fn classes(keys: &Keys<'_>) -> Result<u32, HfError> {
    if keys.value("problem_type").is_some() {
        keys.only("problem_type", "single_label_classification")?;
    }
    // The names count where there are some; the library's own default is two.
    let (key, count) = match keys.value("id2label") {
        Some(map) => {
            let names = map.as_object().ok_or_else(|| keys.wrong("id2label", "a map"))?;
            ("id2label", u32::try_from(names.len()).unwrap_or(u32::MAX))
        }
        None => ("num_labels", keys.count_or("num_labels", 2)?),
    };
    if count < 2 {
        let must = "two classes or more for this program: one is a regression, whose loss it does not have";
        return Err(keys.wrong(key, must));
    }
    Ok(count)
}

/// The names of classes, in the order of their numbers; none, where some have no name.
pub(in super::super) fn class_names(config: &Map<String, Value>) -> Vec<String> {
    let Some(map) = config.get("id2label").and_then(Value::as_object) else { return Vec::new() };
    let name = |class: usize| Some(map.get(&class.to_string())?.as_str()?.to_owned());
    (0..map.len()).map(name).collect::<Option<_>>().unwrap_or_default()
}
