//! How a model in Hugging Face's form frames a text, from five files: `config.json`, `generation_config.json`,
//! `tokenizer_config.json`, `special_tokens_map.json` and the post-processor of `tokenizer.json`.
//!
//! As the `transformers` library reads them: the post-processor says what stands around a text, and
//! `generation_config.json` goes before `config.json`. Only where the post-processor says nothing at all,
//! `add_bos_token` and `add_eos_token` count.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use coxswain_types::framing::{Framing, Sentinels};
use coxswain_types::model::{Architecture, ModelSpec, Positions};
use serde_json::{Map, Value};

use super::HfError;
use super::config::class_default;
use super::store::read_limited;
use crate::tokenizer::Tokenizer;

pub(super) const GENERATION: &str = "generation_config.json";
pub(super) const TOKENIZER: &str = "tokenizer_config.json";
pub(super) const SPECIAL: &str = "special_tokens_map.json";
const DECODER_START: &str = "decoder_start_token_id";

/// Keys of `generation_config.json` that are followed, and those that change no token.
const KNOWN: [&str; 13] = [
    "_from_model_config",
    "bos_token_id",
    "decoder_start_token_id",
    "eos_token_id",
    "forced_bos_token_id",
    "max_length",
    "max_new_tokens",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
];

/// The names of tokens that end a text, and of those that stand for others, where no file says which they are.
const ENDS: [&str; 3] = ["<|endoftext|>", "</s>", "[SEP]"];
const MASKS: [&str; 3] = ["[MASK]", "<mask>", "<extra_id_0>"];

/// What the files beside a model say of its tokens.
pub(super) struct Files<'a> {
    config: &'a Map<String, Value>,
    generation: Map<String, Value>,
    words: Map<String, Value>,
    tokenizer: Option<&'a Tokenizer>,
}

/// The files of a folder that say something of its tokens, but for `config.json` and `tokenizer.json`, by their names.
pub(super) type Beside = BTreeMap<String, Map<String, Value>>;

/// Reads those that are there.
pub(super) fn beside(folder: &Path) -> Result<Beside, HfError> {
    let mut found = Beside::new();
    for name in [GENERATION, TOKENIZER, SPECIAL] {
        found.extend(object(folder, name)?.map(|keys| (name.to_owned(), keys)));
    }
    Ok(found)
}

/// The framing of the model in a folder, whose tokenizer is one from elsewhere. Without a tokenizer there are
/// ids alone.
///
/// # Errors
/// [`HfError`] for files that cannot be read, and ids or tokens that are not there.
pub fn framing(
    folder: &Path,
    config: &Map<String, Value>,
    model: &ModelSpec,
    tokenizer: Option<&Tokenizer>,
) -> Result<Framing, HfError> {
    let framing = Files::of(config, &beside(folder)?, tokenizer).framing(model)?;
    for (what, id) in framing.tokens() {
        if id >= model.vocab {
            let last = model.vocab.saturating_sub(1);
            return Err(framing_error(format!("{what}: the id is {id}, and the vocabulary ends at {last}")));
        }
    }
    Ok(framing)
}

/// Keys of `generation_config.json` that a program which generates has to be told by its user.
///
/// # Errors
/// [`HfError`] where the file cannot be read.
pub fn unread(folder: &Path) -> Result<Vec<String>, HfError> {
    let all = object(folder, GENERATION)?.unwrap_or_default();
    let unread = all.into_iter().filter(|(key, value)| !value.is_null() && !KNOWN.contains(&key.as_str()));
    Ok(unread.map(|(key, value)| format!("{key}: {value}")).collect())
}

fn framing_error(what: String) -> HfError {
    HfError::Framing(what)
}

/// The keys of a file; `None`, where it is not there.
fn object(folder: &Path, name: &str) -> Result<Option<Map<String, Value>>, HfError> {
    let path = folder.join(name);
    match read_limited(&path) {
        Err(HfError::Io { cause, .. }) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| HfError::damaged(&path, e)),
    }
}

impl<'a> Files<'a> {
    pub(super) fn of(
        config: &'a Map<String, Value>,
        beside: &Beside,
        tokenizer: Option<&'a Tokenizer>,
    ) -> Files<'a> {
        let keys = |name| beside.get(name).cloned().unwrap_or_default();
        let mut words = keys(SPECIAL);
        words.extend(keys(TOKENIZER));
        Files { config, generation: keys(GENERATION), words, tokenizer }
    }

    pub(super) fn framing(&self, model: &ModelSpec) -> Result<Framing, HfError> {
        let both = model.architecture == Architecture::EncoderDecoder;
        let frame = self.tokenizer.map(Tokenizer::frame).transpose();
        let (mut begin, mut close) = frame.map_err(|e| framing_error(e.to_string()))?.unwrap_or_default();
        let bos = self.token("bos_token")?.or(self.id("bos_token_id")?);
        let stops = self.ids("eos_token_id")?;
        let end = self.end(model, &stops, &close)?;
        if begin.is_empty() && close.is_empty() {
            let added = |key, token: Option<u32>| -> Result<Vec<u32>, HfError> {
                if !self.flag(key)? {
                    return Ok(Vec::new());
                }
                let name = format!("{TOKENIZER}: {key} is true, and nothing says which token that is");
                token.map(|id| vec![id]).ok_or_else(|| framing_error(name))
            };
            (begin, close) = (added("add_bos_token", bos)?, added("add_eos_token", Some(end))?);
        }
        let mut decoder_start = Vec::new();
        if both {
            let said =
                self.id(DECODER_START)?.or_else(|| class_default(self.config, DECODER_START).and_then(id_in));
            let start = said.or(bos).ok_or_else(|| {
                let what = format!("config.json does not say what its decoder begins with: {DECODER_START}");
                framing_error(what)
            })?;
            decoder_start.push(start);
            decoder_start.extend(self.id("forced_bos_token_id")?);
        }
        Ok(Framing {
            begin,
            close,
            end,
            stops: stops.into_iter().filter(|id| *id != end).collect(),
            sentinels: self.sentinels()?,
            decoder_start,
            bos,
            pad: self.token("pad_token")?.or(self.id("pad_token_id")?),
            longest: self.longest(model)?,
        })
    }

    /// The token that ends a text. Of an encoder that which closes one; without a tokenizer there are no texts.
    fn end(&self, model: &ModelSpec, stops: &[u32], close: &[u32]) -> Result<u32, HfError> {
        let encoder = model.architecture == Architecture::Encoder;
        let named = match self.token("sep_token")?.filter(|_| encoder) {
            Some(id) => Some(id),
            None => self.token("eos_token")?,
        };
        let known = || self.known(&ENDS);
        let end = named.or(stops.first().copied()).or(close.last().copied()).or_else(known);
        match (end, self.tokenizer) {
            (Some(id), _) => Ok(id),
            (None, None) => Ok(0),
            (None, Some(_)) => Err(framing_error(format!(
                "no file says which token ends a text; name it as eos_token in {TOKENIZER}"
            ))),
        }
    }

    /// The mask, and how many tokens below it stand for others too.
    fn sentinels(&self) -> Result<Option<Sentinels>, HfError> {
        let named = match self.token("mask_token")? {
            Some(id) => Some(id),
            None => self.known(&MASKS),
        };
        let (Some(first), Some(tokenizer)) = (named, self.tokenizer) else { return Ok(None) };
        let follows = |index: &u32| {
            tokenizer
                .id_of(&format!("<extra_id_{index}>"))
                .is_some_and(|id| id.checked_add(*index) == Some(first))
        };
        let count = (0..).take_while(follows).count() as u32;
        Ok(Some(Sentinels { first, count: count.max(1) }))
    }

    /// The most tokens that the model was made to read.
    fn longest(&self, model: &ModelSpec) -> Result<Option<u32>, HfError> {
        let own = match model.positions {
            Positions::Learned { max, .. } => Some(max),
            Positions::RelativeBias { .. } => None,
            _ => self.count(self.config, "max_position_embeddings")?,
        };
        if model.architecture != Architecture::Encoder {
            return Ok(own);
        }
        // Tokenizers without a limit say 1e30.
        let said = self.words.get("model_max_length").and_then(Value::as_f64);
        let said = said.filter(|most| (1.0..=f64::from(u32::MAX)).contains(most)).map(|most| most as u32);
        Ok(own.into_iter().chain(said).min())
    }

    fn known(&self, names: &[&str]) -> Option<u32> {
        names.iter().find_map(|name| self.tokenizer?.id_of(name))
    }

    fn flag(&self, key: &str) -> Result<bool, HfError> {
        match self.words.get(key) {
            None | Some(Value::Null) => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => {
                Err(framing_error(format!("{TOKENIZER}: {key} is {other}; must be true or false")))
            }
        }
    }

    fn count(&self, of: &Map<String, Value>, key: &str) -> Result<Option<u32>, HfError> {
        match of.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => id_in(value)
                .map(Some)
                .ok_or_else(|| framing_error(format!("config.json: `{key}` is {value}; must be a count"))),
        }
    }

    /// A token by its spelling: `tokenizer_config.json` has it as a word, or as an object with the word.
    fn token(&self, key: &str) -> Result<Option<u32>, HfError> {
        let Some(tokenizer) = self.tokenizer else { return Ok(None) };
        let value = match self.words.get(key) {
            None | Some(Value::Null) => return Ok(None),
            Some(value) => value,
        };
        let word = value.as_str().or_else(|| value.get("content")?.as_str());
        let id = word.and_then(|word| tokenizer.id_of(word));
        match id {
            Some(id) => Ok(Some(id)),
            // Nothing is padded here by a token of the model's.
            None if key == "pad_token" => Ok(None),
            None => Err(framing_error(format!(
                "{TOKENIZER}: {key} is {value}, which tokenizer.json has no token for"
            ))),
        }
    }

    /// One id, of `generation_config.json` or else of `config.json`.
    fn id(&self, key: &str) -> Result<Option<u32>, HfError> {
        match self.ids(key)?.as_slice() {
            [] => Ok(None),
            [id] => Ok(Some(*id)),
            several => Err(framing_error(format!("{key} is {several:?}; must be one id"))),
        }
    }

    /// Ids, of `generation_config.json` or else of `config.json`.
    fn ids(&self, key: &str) -> Result<Vec<u32>, HfError> {
        let given = [(GENERATION, &self.generation), ("config.json", self.config)];
        let mut given = given.into_iter().filter_map(|(file, of)| Some((file, of.get(key)?)));
        let Some((file, value)) = given.find(|(_, value)| !value.is_null()) else { return Ok(Vec::new()) };
        // -1 is how some say that there is none.
        let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let list = list.iter().filter(|id| id.as_i64() != Some(-1));
        let ids: Option<Vec<u32>> = list.map(id_in).collect();
        ids.ok_or_else(|| framing_error(format!("{file}: {key} is {value}; must be an id, or a list of ids")))
    }
}

fn id_in(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    fn model(name: &str, vocab: u32) -> ModelSpec {
        let plain = ModelSpec::llama(1, 8, 1, 1, 8, vocab);
        match name {
            "bert" => ModelSpec {
                architecture: Architecture::Encoder,
                positions: Positions::Learned { max: 32, offset: 0 },
                ..plain
            },
            "bart" | "t5" => ModelSpec {
                architecture: Architecture::EncoderDecoder,
                encoder_layers: 1,
                positions: Positions::RelativeBias { buckets: 8, max_distance: 16 },
                ..plain
            },
            _ => plain,
        }
    }

    /// The files of a folder of `tests/parity/tokens.json`, with other keys, and what they are read as.
    fn read(
        name: &str,
        of: &Value,
        changes: &[(&str, &str, Value)],
    ) -> Result<(Tokenizer, Framing), HfError> {
        let mut files = of["files"].clone();
        for (file, key, value) in changes {
            files[file][key] = value.clone();
        }
        let folder = tempfile::tempdir().unwrap();
        for (file, value) in files.as_object().unwrap() {
            fs::write(folder.path().join(file), value.to_string()).unwrap();
        }
        let tokenizer = Tokenizer::from_elsewhere(files["tokenizer.json"].to_string().as_bytes()).unwrap();
        let model = model(name, of["vocab"].as_u64().unwrap() as u32);
        tokenizer.expect_within(model.vocab).unwrap();
        let config = files["config.json"].as_object().unwrap();
        let framing = framing(folder.path(), config, &model, Some(&tokenizer))?;
        Ok((tokenizer.for_prompts(), framing))
    }

    fn folders() -> Map<String, Value> {
        let all: Value = serde_json::from_str(include_str!("../../../../tests/parity/tokens.json")).unwrap();
        all["folders"].as_object().unwrap().clone()
    }

    #[test]
    fn prompts_have_the_tokens_that_transformers_gives_them() {
        let folders = folders();
        assert_eq!(folders.len(), 5);
        for (name, of) in &folders {
            let (tokenizer, framing) = read(name, of, &[]).unwrap();
            let ids = |text: &str, most| json!(framing.whole(&tokenizer.encode(text).unwrap(), most));
            for case in of["prompts"].as_array().unwrap() {
                assert_eq!(ids(case[0].as_str().unwrap(), None), case[1], "{name}: {}", case[0]);
            }
            let long = "Größe naïve e\u{301}t\u{e9} \u{4f60}\u{597d} \u{1F6A3}!".repeat(3);
            assert_eq!(ids(&long, Some(12)), of["cut"][0], "{name}");
        }
    }

    #[test]
    fn files_say_how_texts_begin_and_end() {
        let folders = folders();
        let framing = |name: &str, changes: &[(&str, &str, Value)]| read(name, &folders[name], changes);
        let begins = framing("begins", &[]).unwrap().1;
        assert_eq!((begins.begin, begins.end, begins.stops), (vec![0], 1, vec![2]));
        assert_eq!((begins.bos, begins.longest), (Some(0), Some(64)));
        // generation_config.json goes before config.json, and -1 is none.
        let other = framing("begins", &[("generation_config.json", "eos_token_id", json!(-1))]).unwrap().1;
        assert_eq!((other.end, other.stops), (1, vec![]));

        let bart = framing("bart", &[]).unwrap().1;
        assert_eq!((bart.begin.clone(), bart.close.clone(), bart.end), (vec![0], vec![2], 2));
        assert_eq!((bart.decoder_start.clone(), bart.pad), (vec![2, 0], Some(1)));
        assert_eq!(bart.sentinels, Some(Sentinels { first: 3, count: 1 }));
        // Its class has a default.
        let mut silent = folders["bart"].clone();
        silent["files"]["config.json"].as_object_mut().unwrap().remove(DECODER_START);
        assert_eq!(read("bart", &silent, &[]).unwrap().1, bart);

        let bert = framing("bert", &[]).unwrap().1;
        assert_eq!((bert.begin, bert.close, bert.end), (vec![2], vec![3], 3));
        assert_eq!((bert.sentinels.unwrap().first, bert.longest), (4, Some(24)));

        let t5 = framing("t5", &[]).unwrap().1;
        assert_eq!((t5.begin, t5.close, t5.decoder_start), (vec![], vec![1], vec![0]));
        let last = folders["t5"]["vocab"].as_u64().unwrap() as u32 - 1;
        assert_eq!(t5.sentinels, Some(Sentinels { first: last, count: 3 }));

        let words = "tokenizer_config.json";
        assert!(framing("plain", &[]).unwrap().1.begin.is_empty());
        let added = framing("plain", &[(words, "add_bos_token", json!(true))]).unwrap().1;
        assert_eq!(added.begin, [0], "where the post-processor says nothing");
        for (name, change, told) in [
            (
                "plain",
                (words, "eos_token", json!("<end>")),
                "eos_token is \"<end>\", which tokenizer.json has no",
            ),
            ("plain", (words, "add_bos_token", json!("yes")), "add_bos_token is \"yes\""),
            ("plain", ("config.json", "eos_token_id", json!("0")), "config.json: eos_token_id is \"0\""),
            (
                "plain",
                ("config.json", "eos_token_id", json!([0, 50256])),
                "the id is 50256, and the vocabulary ends",
            ),
            ("t5", ("config.json", "decoder_start_token_id", Value::Null), "decoder_start_token_id"),
        ] {
            let error = framing(name, &[change]).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }
}
