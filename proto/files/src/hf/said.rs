//! What an export says beside the weights: `config.json`, `generation_config.json`, and the files of a tokenizer.
//!
//! What came in leaves as it was, as long as it is true. Of a tokenizer that was trained here, and of one that came
//! without such files, everything is said from the framing of texts.

use std::collections::BTreeMap;

use coxswain_types::framing::Framing;
use coxswain_types::model::{Architecture, Head, ModelSpec, Positions};
use serde_json::{Map, Value};

use super::config::{self, class_default};
use super::family::Family;
use super::framing::{Files, GENERATION, SPECIAL, TOKENIZER};
use super::{CONFIG, HfError, Kept};
use crate::atomic::digest_bytes;
use crate::tokenizer::Tokenizer;

mod words;

use words::Words;

/// The tokenizer itself.
const TOKENS: &str = "tokenizer.json";

/// Keys of `generation_config.json` that older models have in `config.json`. The library reads them there no more once
/// there is such a file.
const OF_GENERATION: [&str; 19] = [
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "length_penalty",
    "max_length",
    "max_new_tokens",
    "min_length",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "repetition_penalty",
    "suppress_tokens",
    "temperature",
    "top_k",
    "top_p",
    "typical_p",
];

/// A model that is exported, and all that is known of it beside its weights.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// The model.
    pub model: &'a ModelSpec,
    /// How its texts are framed.
    pub framing: &'a Framing,
    /// `None` where its tokens were synthetic, or came without one.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The names of classes, in the order of their numbers; none, where they have numbers only.
    pub class_names: &'a [String],
    /// The most tokens that a sample of its training had.
    pub trained: Option<u32>,
    /// What was kept of the import that it began with.
    pub kept: Option<&'a Kept>,
}

/// The form in which a model is exported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The `model_type`.
    pub family: &'static str,
    /// The class of the `transformers` library that loads it.
    pub class: String,
    /// What that class computes in another way.
    pub caveats: Vec<&'static str>,
}

/// The form in which a model would be exported. The framing of its texts is given where it is known.
///
/// # Errors
/// [`HfError::NoFamily`], with what the nearest one cannot say.
pub fn form(model: &ModelSpec, kept: Option<&Kept>, framing: Option<&Framing>) -> Result<Form, HfError> {
    let (family, config) = config::write(model, kept.map(|kept| &kept.config), &[])?;
    let class = config.get("architectures").and_then(|list| list.get(0)?.as_str()).unwrap_or_default();
    let pads = padding(family, model)
        .filter(|pad| framing.is_some_and(|framing| framing.pad != Some(*pad) && !between(framing, *pad)));
    let scaled = model.logit_scale != 1.0;
    let caveats = [
        pads.is_some().then_some(
            "the class takes a token that texts may hold for padding, and moves the positions after it; \
             model.position_offset 0 is a BERT's, which does not",
        ),
        (family == Family::T5 && scaled != model.tied_embeddings).then_some(
            "transformers 5 loads it as it is, and version 4 scales a T5's logits if its embeddings are tied",
        ),
    ];
    Ok(Form {
        family: family.name(),
        class: class.to_owned(),
        caveats: caveats.into_iter().flatten().collect(),
    })
}

/// Whether a token stands between texts and never in one.
fn between(framing: &Framing, id: u32) -> bool {
    id == framing.end && !framing.begin.contains(&id) && !framing.close.contains(&id)
}

/// The token from which a family's positions are counted on, which is that of padding.
fn padding(family: Family, model: &ModelSpec) -> Option<u32> {
    match model.positions {
        Positions::Learned { offset, .. } if matches!(family, Family::Roberta | Family::Longformer) => {
            Some(offset.saturating_sub(1))
        }
        _ => None,
    }
}

/// The bytes of files, by their names.
type Written = BTreeMap<&'static str, Vec<u8>>;

/// Whose files say something of the tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TokenizerSource {
    /// They are made here.
    Own,
    /// Those of an import, with the tokenizer that came with them; what they leave out is added.
    Import,
    /// Those of an import that came without a tokenizer.
    Untold,
}

/// The ids of tokens, as the library names them.
struct Ids {
    end: Value,
    begin: Option<u32>,
    pad: Option<u32>,
    decoder_start: Option<u32>,
    forced: Option<u32>,
}

impl Said<'_> {
    /// All files but those of weights.
    pub(super) fn files(&self) -> Result<(Family, Written), HfError> {
        let kept = self.kept.map(|kept| &kept.config);
        let (family, mut config) = config::write(self.model, kept, self.class_names)?;
        if kept.is_none() {
            config.insert("dtype".to_owned(), "float32".into());
        }
        self.longest(&mut config);
        let generation = self.generation(family, &mut config);
        let mut files = Written::new();
        if let Some(tokenizer) = self.tokenizer {
            let words =
                Words { said: self, family, tokenizer, import: self.source() == TokenizerSource::Import };
            words.write(&config, &mut files)?;
        }
        if let Some(keys) = generation {
            files.insert(GENERATION, pretty(GENERATION, &keys)?);
        }
        files.insert(CONFIG, pretty(CONFIG, &config)?);
        Ok((family, files))
    }

    fn source(&self) -> TokenizerSource {
        let digest = self.tokenizer.map(|tokenizer| digest_bytes(&tokenizer.to_bytes()));
        match self.kept {
            Some(kept) if kept.tokenizer != digest => TokenizerSource::Own,
            Some(_) if digest.is_some() => TokenizerSource::Import,
            Some(_) => TokenizerSource::Untold,
            None => TokenizerSource::Own,
        }
    }

    /// Whether no file has said yet what the tokens are: those of a tokenizer that was trained here.
    fn own_tokens(&self) -> bool {
        self.source() == TokenizerSource::Own && self.tokenizer.is_none_or(Tokenizer::is_own)
    }

    fn encodes(&self) -> bool {
        self.model.architecture == Architecture::Encoder
    }

    /// Says how many positions there are, where no table of the model has that many rows: as many as its files said,
    /// or its scaling is made for, or as it was trained on, whichever is more.
    fn longest(&self, config: &mut Map<String, Value>) {
        let Positions::Rope { scaling, .. } = self.model.positions else { return };
        let key = "max_position_embeddings";
        let told = config.get(key).and_then(Value::as_u64).and_then(|most| u32::try_from(most).ok());
        let scaled = scaling.scaled_length().filter(|_| self.kept.is_none());
        let told = told.or(self.framing.longest).or(scaled);
        if let Some(most) = told.into_iter().chain(self.trained).max() {
            config.insert(key.to_owned(), most.into());
        }
    }

    fn ids(&self, family: Family) -> Ids {
        let framing = self.framing;
        let own = |id: Option<u32>| id.filter(|_| self.own_tokens());
        // What a text of our own begins with, where nothing stands before it, is the end of the one before.
        let begin = if self.encodes() { framing.begin.first().copied() } else { Some(framing.end) };
        let decoder = match self.model.architecture {
            Architecture::EncoderDecoder => framing.decoder_begin(),
            _ => &[],
        };
        Ids {
            end: match framing.stops.as_slice() {
                [] => framing.end.into(),
                stops => [&[framing.end][..], stops].concat().into(),
            },
            begin: framing.bos.or(own(begin)),
            pad: padding(family, self.model).or(framing.pad).or(own(Some(framing.end))),
            decoder_start: decoder.first().copied(),
            forced: decoder.get(1).copied(),
        }
    }

    /// Says the ids of tokens in `config.json`, and makes `generation_config.json` of a model that writes.
    fn generation(&self, family: Family, config: &mut Map<String, Value>) -> Option<Map<String, Value>> {
        let source = self.source();
        let (before, there) = self.generation_before(config);
        let mut generation = if source == TokenizerSource::Own { Map::new() } else { before };
        let writes = self.model.head == Head::Lm;
        if source == TokenizerSource::Untold {
            return (writes && there).then_some(generation);
        }
        let ids = self.ids(family);
        let forced = ids.forced.map(Value::from);
        for (key, id) in self.named_ids(ids, source) {
            // What is left out of a configuration would be what its class says.
            say(config, source, key, id.clone().or((source == TokenizerSource::Own).then_some(Value::Null)));
            say(&mut generation, source, key, id);
        }
        if self.model.architecture == Architecture::EncoderDecoder {
            say(&mut generation, source, "forced_bos_token_id", forced);
            if source == TokenizerSource::Own {
                config.remove("forced_bos_token_id");
            }
        }
        if source == TokenizerSource::Own && family == Family::Bart {
            config.insert("forced_eos_token_id".to_owned(), Value::Null);
        }
        writes.then_some(generation)
    }

    /// The ids that both files say, by their keys.
    fn named_ids(&self, ids: Ids, source: TokenizerSource) -> Vec<(&'static str, Option<Value>)> {
        let mut named = vec![("pad_token_id", ids.pad.map(Value::from))];
        // The files of an encoder from elsewhere name its ends in words.
        if source == TokenizerSource::Own || !self.encodes() {
            named.extend([("eos_token_id", Some(ids.end)), ("bos_token_id", ids.begin.map(Value::from))]);
        }
        if self.model.architecture == Architecture::EncoderDecoder {
            named.push(("decoder_start_token_id", ids.decoder_start.map(Value::from)));
        }
        named
    }

    /// What an import said of generation, and whether it had a file of it.
    fn generation_before(&self, config: &Map<String, Value>) -> (Map<String, Value>, bool) {
        let Some(kept) = self.kept else { return (Map::new(), false) };
        if let Some(keys) = kept.beside.get(GENERATION) {
            return (keys.clone(), true);
        }
        let said = |key: &str| {
            let value = config.get(key).or_else(|| class_default(config, key));
            Some((key.to_owned(), value.filter(|value| !value.is_null())?.clone()))
        };
        (OF_GENERATION.iter().filter_map(|key| said(key)).collect(), false)
    }
}

/// Says a value, or that there is none; files of an import keep what they say.
fn say(keys: &mut Map<String, Value>, source: TokenizerSource, key: &str, value: Option<Value>) {
    let unsaid = keys.get(key).is_none_or(Value::is_null);
    match value {
        Some(value) if source == TokenizerSource::Own || unsaid => drop(keys.insert(key.to_owned(), value)),
        None if source == TokenizerSource::Own => drop(keys.remove(key)),
        _ => {}
    }
}

fn pretty(name: &str, keys: &Map<String, Value>) -> Result<Vec<u8>, HfError> {
    serde_json::to_vec_pretty(keys).map_err(|e| HfError::Framing(format!("{name} as JSON: {e}")))
}
