//! The tokenizer: a byte-level BPE, as GPT-2's, trained on the job's own text; or any other that came
//! with a model.
//!
//! It is kept as a `tokenizer.json` that other programs can read. By a tokenizer that was trained here any
//! text can be encoded, byte by byte where nothing better is known, and decodes to itself.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use serde_json::json;
use tokenizers::models::ModelWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{AddedToken, Encoding, Model as _, Token};

use crate::progress::{PreparationPhase, PreparationProgress, Stopped, Watch};
use crate::store::StoreFolder;

mod merges;
mod pieces;
mod stream;
mod template;
mod threads;
mod words;

use pieces::{TextCut, pieces};
use words::byte_level;

pub(crate) use pieces::Cutter;
pub use stream::TextStream;
pub(crate) use template::template;
pub(crate) use threads::{Batch, Threads};
pub(crate) use words::{Counter, WordCounts};

/// The token between documents, as text.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The id of the token between documents.
pub const END_OF_TEXT_ID: u32 = 0;

/// The smallest vocabulary: every byte and the token between documents.
pub const SMALLEST_VOCAB: u32 = 257;

/// A pair of tokens must be seen so often to become a token: what is seen once is only remembered.
const MIN_FREQUENCY: u64 = 2;

/// The largest `tokenizer.json` that is read; one of a million tokens takes less.
const MAX_JSON_BYTES: u64 = 1 << 28;

/// What can be wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The vocabulary has no room for all bytes.
    #[error(
        "a vocabulary of {0} tokens is too small: a byte-level tokenizer needs at least {SMALLEST_VOCAB} \
         (256 bytes and {END_OF_TEXT}); raise model.vocab"
    )]
    VocabTooSmall(u32),
    /// The file could not be read or written.
    #[error("tokenizer {path}: {cause}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The library gave up.
    #[error("the tokenizer could not be trained: {0}")]
    Training(String),
    /// The caller stopped the work.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// The text is not a `tokenizer.json` of ours.
    #[error("this is not a byte-level tokenizer that was trained here: {0}; let the data be prepared again")]
    Foreign(String),
    /// The text is not a `tokenizer.json` at all.
    #[error("this is not a tokenizer.json that can be read: {0}")]
    Unreadable(String),
    /// A tokenizer from elsewhere has no tokens for a text.
    #[error("the tokenizer has no tokens for a text: {0}")]
    Encoding(String),
    /// A token of the file would get another id than the file says.
    #[error(
        "tokenizer.json gives the added token `{token}` the id {given}, and its place in the vocabulary is {found}"
    )]
    AddedId {
        /// The token.
        token: String,
        /// What the file says.
        given: u64,
        /// What its place says.
        found: u32,
    },
    /// A token's id is outside of the model's vocabulary.
    #[error("{what} has the id {id}, and the model's vocabulary ends at {last}")]
    OutsideVocabulary {
        /// What has it.
        what: String,
        /// The id.
        id: u32,
        /// The largest id that the model knows.
        last: u32,
    },
}

/// A tokenizer.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    json: Vec<u8>,
    /// What is known of one that was trained here.
    own: Option<Own>,
}

/// A byte-level BPE that was trained here.
#[derive(Clone, Debug)]
struct Own {
    /// The bytes of each token, by id.
    spelling: Vec<Vec<u8>>,
    /// The token of each single byte.
    byte_ids: Vec<u32>,
}

impl Tokenizer {
    /// Trains a tokenizer of at most `vocab` tokens; of fewer, where the texts give no more pairs.
    ///
    /// The same texts give the same bytes of `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::VocabTooSmall`] below [`SMALLEST_VOCAB`].
    pub fn train(texts: &[&str], vocab: u32) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::train_watched(texts, vocab, &|_| Ok(()))
    }

    /// Like [`Tokenizer::train`], reporting progress to `watch`.
    ///
    /// # Errors
    /// As [`Tokenizer::train`], and [`TokenizerError::Stopped`] where `watch` asks for the end.
    pub fn train_watched(texts: &[&str], vocab: u32, watch: Watch<'_>) -> Result<Tokenizer, TokenizerError> {
        expect_room(vocab)?;
        let mut counter = Counter::new(texts.iter().map(|text| text.len() as u64).sum(), watch);
        for text in texts {
            counter.push(text)?;
            counter.end_text()?;
        }
        Tokenizer::learn(counter.finish()?, vocab, watch)
    }

    /// Trains a tokenizer of at most `vocab` tokens on words.
    ///
    /// # Errors
    /// As [`Tokenizer::train_watched`].
    pub(crate) fn learn(
        words: WordCounts,
        vocab: u32,
        watch: Watch<'_>,
    ) -> Result<Tokenizer, TokenizerError> {
        expect_room(vocab)?;
        let mut letters = byte_letters();
        letters.sort_unstable();
        let special = AddedToken::from(END_OF_TEXT, true);
        let tokens = std::iter::once(special.content.clone()).chain(letters.iter().map(char::to_string));
        let total = u64::from(vocab);
        let merged = |tokens| {
            Ok(watch(PreparationProgress { phase: PreparationPhase::Merges, done: tokens as u64, total })?)
        };
        let size = (vocab as usize, MIN_FREQUENCY);
        let learned = merges::learn(words.counts, tokens.collect(), size, merged)?;

        let failed = |e: tokenizers::Error| TokenizerError::Training(e.to_string());
        let spelled = |id: u32| learned.tokens[id as usize].as_str();
        let pairs: Vec<_> = learned.merges.iter().map(|&(a, b)| [spelled(a), spelled(b)]).collect();
        let vocab: HashMap<&str, u32> = learned.tokens.iter().map(String::as_str).zip(0..).collect();
        let model = json!({ "type": "BPE", "vocab": vocab, "merges": pairs });
        // As text, since it reads no owned strings.
        let model: BPE = serde_json::from_str(&model.to_string()).map_err(|e| failed(e.into()))?;
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_pre_tokenizer(Some(byte_level()));
        inner.with_decoder(Some(byte_level()));
        inner.add_special_tokens([special]).map_err(failed)?;
        Tokenizer::from_bytes(inner.to_string(true).map_err(failed)?.as_bytes())
    }

    /// Reads a `tokenizer.json`, of a tokenizer that was trained here or of any other.
    ///
    /// # Errors
    /// [`TokenizerError::Io`] and [`TokenizerError::Unreadable`].
    pub fn load(folder: &StoreFolder, name: &str) -> Result<Tokenizer, TokenizerError> {
        let bytes = folder
            .read(name, MAX_JSON_BYTES)
            .map_err(|cause| TokenizerError::Io { path: folder.place(name), cause })?;
        Tokenizer::of_any(&bytes)
    }

    /// Reads the bytes of any `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Unreadable`].
    pub fn from_elsewhere(bytes: &[u8]) -> Result<Tokenizer, TokenizerError> {
        let unreadable = |e: tokenizers::Error| TokenizerError::Unreadable(e.to_string());
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(unreadable)?;
        inner.set_encode_special_tokens(true);
        inner.with_truncation(None).map_err(unreadable)?;
        inner.with_padding(None);
        expect_added_ids(&inner, bytes)?;
        Ok(Tokenizer { inner, json: bytes.to_vec(), own: None })
    }

    /// Reads the bytes of a `tokenizer.json`, of a tokenizer that was trained here or of any other.
    ///
    /// # Errors
    /// [`TokenizerError::Unreadable`].
    pub fn of_any(bytes: &[u8]) -> Result<Tokenizer, TokenizerError> {
        Tokenizer::from_bytes(bytes).or_else(|_| Tokenizer::from_elsewhere(bytes))
    }

    /// The same tokenizer for prompts: the spelling of a special token is that token, as in the programs that
    /// the model came from. Text that was found somewhere never holds one. Of a tokenizer that was trained here
    /// nothing changes.
    pub fn for_prompts(mut self) -> Tokenizer {
        self.inner.set_encode_special_tokens(self.own.is_some());
        self
    }

    /// Whether it was trained here.
    pub fn is_own(&self) -> bool {
        self.own.is_some()
    }

    /// Writes the `tokenizer.json`, whole or not at all.
    ///
    /// # Errors
    /// [`TokenizerError::Io`].
    pub fn save(&self, folder: &StoreFolder, name: &str) -> Result<(), TokenizerError> {
        let put = folder.put(name, &self.json);
        put.map_err(|cause| TokenizerError::Io { path: folder.place(name), cause })
    }

    /// The bytes of the `tokenizer.json`.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.json.clone()
    }

    /// Reads the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Foreign`] for anything but a tokenizer that was trained here.
    pub fn from_bytes(bytes: &[u8]) -> Result<Tokenizer, TokenizerError> {
        let foreign = |what: &str| TokenizerError::Foreign(what.to_owned());
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| TokenizerError::Foreign(e.to_string()))?;
        // Text may hold the spelling of the token between documents; there it is only text.
        inner.set_encode_special_tokens(true);
        let plain = inner.get_normalizer().is_none()
            && inner.get_truncation().is_none()
            && inner.get_padding().is_none();
        if !plain
            || !matches!(inner.get_pre_tokenizer(), Some(PreTokenizerWrapper::ByteLevel(level))
                if !level.add_prefix_space && level.use_regex)
        {
            return Err(foreign("it treats text in another way"));
        }
        let ModelWrapper::BPE(model) = inner.get_model() else {
            return Err(foreign("it is not a BPE"));
        };
        let spelling =
            spelling_of(model).ok_or_else(|| foreign("a token is missing or no sequence of bytes"))?;
        let by_bytes: HashMap<&[u8], u32> = spelling.iter().map(Vec::as_slice).zip(0..).collect();
        let byte_ids: Option<Vec<u32>> =
            (0..=255u8).map(|byte| by_bytes.get([byte].as_slice()).copied()).collect();
        let byte_ids = byte_ids.ok_or_else(|| foreign("a byte has no token"))?;
        if spelling.first().map(Vec::as_slice) != Some(END_OF_TEXT.as_bytes()) {
            return Err(foreign("its first token does not end a text"));
        }
        // An export names the tokens that stand for others; they are not sequences of bytes.
        if inner.get_added_tokens_decoder().len() != 1 {
            return Err(foreign("it has more special tokens than the one that ends a text"));
        }
        let own = Some(Own { spelling, byte_ids });
        Ok(Tokenizer { inner, json: bytes.to_vec(), own })
    }

    /// The tokens of a text, without any that stand around it. It never holds the token between documents.
    ///
    /// # Errors
    /// [`TokenizerError::Encoding`], never of a tokenizer that was trained here.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let Some(own) = &self.own else {
            let encoding = self.inner.encode_fast(text, false);
            return Ok(encoding.map_err(|e| TokenizerError::Encoding(e.to_string()))?.get_ids().to_vec());
        };
        let mut ids = Vec::with_capacity(text.len() / 3);
        for piece in pieces(text) {
            match self.inner.encode_fast(piece, false) {
                Ok(encoding) => ids.extend_from_slice(encoding.get_ids()),
                // Every byte has a token, so that the library has no reason to refuse; if it ever
                // does, single bytes still say the same text.
                Err(_) => ids.extend(own.encode_bytes(piece)),
            }
        }
        Ok(ids)
    }

    /// The tokens that its post-processor puts before a text and after it.
    ///
    /// # Errors
    /// [`TokenizerError::Encoding`] where the post-processor fails, or leaves the text out.
    pub fn frame(&self) -> Result<(Vec<u32>, Vec<u32>), TokenizerError> {
        // No token has this id, so that it marks the place of the text.
        let text = Encoding::from_tokens(vec![Token::new(u32::MAX, "a".to_owned(), (0, 1))], 0);
        let framed = self.inner.post_process(text, None, true);
        let framed = framed.map_err(|e| TokenizerError::Encoding(e.to_string()))?;
        let ids = framed.get_ids();
        let left_out = || TokenizerError::Encoding("its post-processor leaves the text out".to_owned());
        let at = ids.iter().position(|id| *id == u32::MAX).ok_or_else(left_out)?;
        Ok((ids[..at].to_vec(), ids[at + 1..].to_vec()))
    }

    /// What cuts a text that comes bit by bit into pieces to encode. A tokenizer that was trained here gives the
    /// tokens of the whole text; another may look at a text as a whole, so one of more than a mebibyte may get a few
    /// other tokens where it is cut.
    pub(crate) fn cutter(&self) -> Cutter {
        Cutter::new(if self.is_own() { TextCut::OWN } else { TextCut::ELSEWHERE })
    }

    /// The text of tokens. Bytes that are not UTF-8 become U+FFFD; ids that the tokenizer does not
    /// know (a model may have room for more) say nothing, nor do special tokens from elsewhere.
    pub fn decode(&self, ids: &[u32]) -> String {
        let Some(own) = &self.own else { return self.inner.decode(ids, true).unwrap_or_default() };
        let bytes: Vec<u8> =
            ids.iter().filter_map(|&id| own.spelling.get(id as usize)).flatten().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether each token, by id, begins a word, as far as tokens tell: by the blank before it, or of pieces
    /// (`##`) by the lack of their mark.
    pub fn word_starts(&self) -> Vec<bool> {
        let tokens: Vec<String> =
            (0..=self.largest_id()).map(|id| self.inner.id_to_token(id).unwrap_or_default()).collect();
        if tokens.iter().any(|token| token.starts_with("##")) {
            return tokens.iter().map(|token| !token.starts_with("##")).collect();
        }
        // What is not a letter ends a word, and so does a blank, in each of the forms in which it is written.
        let begins = |token: &String| {
            let first = token.chars().next();
            first.is_none_or(|first| {
                matches!(first, '\u{120}' | '\u{10a}' | '\u{2581}') || !first.is_alphanumeric()
            })
        };
        tokens.iter().map(begins).collect()
    }

    /// The token of that spelling, such as `[MASK]`.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The spelling of a token.
    pub fn spelling(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The largest id that a token has.
    pub fn largest_id(&self) -> u32 {
        self.inner.get_vocab(true).into_values().max().unwrap_or(0)
    }

    /// Refuses a tokenizer with tokens that a vocabulary of `vocab` does not have.
    ///
    /// # Errors
    /// [`TokenizerError::OutsideVocabulary`].
    pub fn expect_within(&self, vocab: u32) -> Result<(), TokenizerError> {
        let id = self.largest_id();
        if id < vocab {
            return Ok(());
        }
        let spelling = self.spelling(id).unwrap_or_default();
        let what = format!("the token `{spelling}` of tokenizer.json");
        Err(TokenizerError::OutsideVocabulary { what, id, last: vocab.saturating_sub(1) })
    }

    /// Number of tokens, the one between documents among them.
    pub fn vocab_size(&self) -> u32 {
        self.own.as_ref().map_or_else(|| self.inner.get_vocab_size(true), |own| own.spelling.len()) as u32
    }
}

/// Refuses a vocabulary that is too small.
pub(crate) fn expect_room(vocab: u32) -> Result<(), TokenizerError> {
    if vocab < SMALLEST_VOCAB { Err(TokenizerError::VocabTooSmall(vocab)) } else { Ok(()) }
}

/// The library gives an added token the id of its place, whatever the file says.
fn expect_added_ids(inner: &tokenizers::Tokenizer, bytes: &[u8]) -> Result<(), TokenizerError> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Added>,
    }
    #[derive(serde::Deserialize)]
    struct Added {
        id: u64,
        content: String,
    }
    let file: File = serde_json::from_slice(bytes).map_err(|e| TokenizerError::Unreadable(e.to_string()))?;
    for Added { id: given, content: token } in file.added_tokens {
        match inner.token_to_id(&token) {
            Some(found) if u64::from(found) != given => {
                return Err(TokenizerError::AddedId { token, given, found });
            }
            _ => {}
        }
    }
    Ok(())
}

impl Own {
    fn encode_bytes(&self, text: &str) -> impl Iterator<Item = u32> {
        text.bytes().map(|byte| self.byte_ids[usize::from(byte)])
    }
}

/// The letters that stand for bytes in a vocabulary: printable bytes stand for themselves, the
/// others for the letters from U+0100 on, in order. All programs that read such files agree on it.
fn byte_letters() -> Vec<char> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                let letter = char::from_u32(next).unwrap_or(char::REPLACEMENT_CHARACTER);
                next += 1;
                letter
            }
        })
        .collect()
}

/// The bytes of each token, by id; `None` where an id is unused or a token holds another letter.
fn spelling_of(model: &BPE) -> Option<Vec<Vec<u8>>> {
    let bytes: HashMap<char, u8> = byte_letters().into_iter().zip(0..=255).collect();
    (0..model.get_vocab_size() as u32)
        .map(|id| model.id_to_token(id)?.chars().map(|letter| bytes.get(&letter).copied()).collect())
        .collect()
}

#[cfg(test)]
mod tests;
