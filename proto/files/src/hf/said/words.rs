//! The files of a tokenizer: `tokenizer.json`, which encodes a text and puts its frame around it, and
//! `tokenizer_config.json`, which names its special tokens.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Files, HfError, SPECIAL, Said, TOKENIZER, TOKENS, Written, pretty};
use crate::hf::family::Family;
use crate::tokenizer::{Tokenizer, template};

/// A class of the library that takes `tokenizer.json` as it is, in all its versions.
const CLASS: &str = "PreTrainedTokenizerFast";

/// The tokenizer of an export.
pub(super) struct Words<'a> {
    pub(super) said: &'a Said<'a>,
    pub(super) family: Family,
    pub(super) tokenizer: &'a Tokenizer,
    /// Whether it came with an import, and is still the same.
    pub(super) import: bool,
}

impl Words<'_> {
    /// Writes the files, beside this `config.json`.
    pub(super) fn write(&self, config: &Map<String, Value>, files: &mut Written) -> Result<(), HfError> {
        let beside = self.said.kept.filter(|_| self.import).map(|kept| &kept.beside);
        let stand_ins = self.stand_ins();
        let given = |name: &str| beside.filter(|_| stand_ins.is_empty()).and_then(|beside| beside.get(name));
        let framed = match beside {
            Some(beside) => {
                let before = Files::of(config, beside, Some(self.tokenizer)).framing(self.said.model)?;
                (before.begin, before.close)
            }
            None => self.tokenizer.frame().map_err(|e| HfError::Framing(e.to_string()))?,
        };
        let framing = self.said.framing;
        let same = framed.0 == framing.begin && framed.1 == framing.close;
        let bytes = match same && stand_ins.is_empty() {
            true => self.tokenizer.to_bytes(),
            false => self.edited(&stand_ins)?,
        };
        let mut keys = given(TOKENIZER).cloned().unwrap_or_else(|| self.named(&stand_ins));
        if !same {
            // Another class may put a frame of its own around a text.
            keys.insert("tokenizer_class".to_owned(), CLASS.into());
        }
        if given(TOKENIZER).is_none() || !same {
            keys.insert("add_bos_token".to_owned(), (!framing.begin.is_empty()).into());
            keys.insert("add_eos_token".to_owned(), (!framing.close.is_empty()).into());
        }
        let told = given(TOKENIZER).is_some() && !self.said.encodes();
        if let Some(most) = self.most(config).filter(|_| !told) {
            keys.insert("model_max_length".to_owned(), most.into());
        }
        files.insert(TOKENS, bytes);
        files.insert(TOKENIZER, pretty(TOKENIZER, &keys)?);
        if let Some(keys) = given(SPECIAL) {
            files.insert(SPECIAL, pretty(SPECIAL, keys)?);
        }
        Ok(())
    }

    /// The most tokens that a text may have.
    fn most(&self, config: &Map<String, Value>) -> Option<u32> {
        let told =
            || config.get("max_position_embeddings").and_then(|most| u32::try_from(most.as_u64()?).ok());
        let rows = self.said.model.positions.longest().or_else(told);
        rows.into_iter().chain(self.said.framing.longest).min()
    }

    /// Tokens that stand for others and that the tokenizer has no name for: those of a tokenizer that was trained
    /// here lie behind its own.
    fn stand_ins(&self) -> BTreeMap<u32, String> {
        let Some(sentinels) = self.said.framing.sentinels.filter(|_| self.tokenizer.is_own()) else {
            return BTreeMap::new();
        };
        let named = (0..sentinels.count).filter_map(|index| {
            let name = if sentinels.count == 1 { "<mask>".to_owned() } else { format!("<extra_id_{index}>") };
            Some((sentinels.at(index)?, name))
        });
        let free = |(id, name): &(u32, String)| {
            self.tokenizer.spelling(*id).is_none() && self.tokenizer.id_of(name).is_none()
        };
        named.filter(free).collect()
    }

    /// The `tokenizer.json` with these tokens too, and with the frame of texts.
    fn edited(&self, stand_ins: &BTreeMap<u32, String>) -> Result<Vec<u8>, HfError> {
        let damaged = |what: String| HfError::Framing(format!("{TOKENS}: {what}"));
        let mut json: Value =
            serde_json::from_slice(&self.tokenizer.to_bytes()).map_err(|e| damaged(e.to_string()))?;
        let framing = self.said.framing;
        let spelled = |id: u32| self.tokenizer.spelling(id);
        json["post_processor"] = template(&framing.begin, &framing.close, &spelled)
            .ok_or_else(|| damaged("a token around a text has no spelling".to_owned()))?;
        for (id, name) in stand_ins {
            let added = json!({
                "id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            });
            if let Some(list) = json["added_tokens"].as_array_mut() {
                list.push(added);
            }
            // A place in the vocabulary, for the library gives what is only added the next free id.
            if let Some(vocabulary) = json["model"]["vocab"].as_object_mut() {
                vocabulary.insert(name.clone(), (*id).into());
            }
        }
        serde_json::to_vec(&json).map_err(|e| damaged(e.to_string()))
    }

    /// The special tokens by their spelling.
    fn named(&self, stand_ins: &BTreeMap<u32, String>) -> Map<String, Value> {
        let (framing, encodes) = (self.said.framing, self.said.encodes());
        let ids = self.said.ids(self.family);
        let spelled = |id: u32| stand_ins.get(&id).cloned().or_else(|| self.tokenizer.spelling(id));
        let mask =
            framing.sentinels.filter(|sentinels| sentinels.count == 1).map(|sentinels| sentinels.first);
        // Of a class that counts positions from its padding on, that id may be a token of texts.
        let pad = framing.pad.or(self.said.own_tokens().then_some(framing.end));
        let tokens = [
            ("bos_token", ids.begin),
            ("eos_token", Some(framing.end)),
            ("pad_token", pad),
            ("mask_token", mask),
            ("cls_token", framing.begin.first().copied().filter(|_| encodes)),
            ("sep_token", Some(framing.end).filter(|_| encodes)),
        ];
        let mut keys: Map<String, Value> =
            tokens.into_iter().filter_map(|(key, id)| Some((key.to_owned(), spelled(id?)?.into()))).collect();
        keys.insert("tokenizer_class".to_owned(), CLASS.into());
        // Types of tokens are not told apart here, and most classes have none.
        keys.insert("model_input_names".to_owned(), json!(["input_ids", "attention_mask"]));
        keys.insert("clean_up_tokenization_spaces".to_owned(), false.into());
        keys.extend(self.unknown().map(|token| ("unk_token".to_owned(), token)));
        keys
    }

    /// What stands for text that no token holds.
    fn unknown(&self) -> Option<Value> {
        let json: Value = serde_json::from_slice(&self.tokenizer.to_bytes()).ok()?;
        json.get("model")?.get("unk_token").filter(|token| token.is_string()).cloned()
    }
}
