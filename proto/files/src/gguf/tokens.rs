//! The tokenizer of a GGUF file as a `tokenizer.json`, and how it frames a text.
//!
//! Two kinds are read. `gpt2` is a byte-level BPE with its merges, whose name for how text is cut first is one
//! of a closed table. `llama` is a BPE of the sentencepiece library: pieces with scores, from which the merges
//! follow, and bytes for what no piece holds.

use std::collections::{BTreeSet, HashMap};

use coxswain_types::framing::Framing;
use serde_json::{Map, Value, json};

use super::header::Meta;
use crate::tokenizer::template;

/// What a token is.
const NORMAL: f64 = 1.0;
const CONTROL: f64 = 3.0;
const USER_DEFINED: f64 = 4.0;

/// A way to cut text before the BPE.
struct PreTokenization {
    /// Its names in files.
    names: &'static [&'static str],
    /// What is cut off; the ByteLevel's own where it is `None`.
    regex: Option<&'static str>,
    /// Whether each digit stands alone.
    digits: bool,
    /// Whether text is brought into Unicode's form C first.
    nfc: bool,
    /// Whether a piece that is a token is one, whatever the merges say.
    whole: bool,
    /// Whether a text begins with the first token where the file does not say.
    begins: bool,
}

const GPT2: PreTokenization = PreTokenization {
    names: &["gpt-2", "phi-2"],
    regex: None,
    digits: false,
    nfc: false,
    whole: false,
    begins: false,
};

const CUTS: [PreTokenization; 5] = [
    GPT2,
    PreTokenization { names: &["smollm", "starcoder", "refact"], digits: true, ..GPT2 },
    PreTokenization {
        names: &["llama-bpe", "llama3", "llama-v3"],
        regex: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        whole: true,
        begins: true,
        ..GPT2
    },
    PreTokenization {
        names: &["qwen2"],
        regex: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        nfc: true,
        ..GPT2
    },
    PreTokenization {
        names: &["tekken"],
        regex: Some(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        whole: true,
        begins: true,
        ..GPT2
    },
];

/// Control tokens that end a text or a turn, by their usual names; the first two go before the file's own end.
const ENDS: [&str; 8] = [
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
];

/// The tokens of a file.
struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: Vec<f64>,
    ids: HashMap<&'a str, u32>,
}

/// The `tokenizer.json`, and the framing of texts.
pub(super) fn read(meta: &Meta, vocab: u32, longest: Option<u32>) -> Result<(String, Framing), String> {
    let tokens = meta.texts("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokens"))?;
    if tokens.len() as u64 > u64::from(vocab) {
        return Err(format!("it has {} tokens, and token_embd.weight has {vocab} rows", tokens.len()));
    }
    let ids: HashMap<&str, u32> = tokens.iter().map(String::as_str).zip(0..).collect();
    if ids.len() < tokens.len() {
        let mut seen = BTreeSet::new();
        let twice = tokens.iter().find(|token| !seen.insert(token.as_str()));
        return Err(format!("two of its tokens are spelled {:?}", twice.map_or("", String::as_str)));
    }
    let vocabulary = Vocabulary { tokens, kinds: kinds(meta, tokens.len())?, ids };
    let kind = meta.text("tokenizer.ggml.model")?.unwrap_or("none");
    let (mut parts, begins) = match kind {
        "gpt2" => byte_level(meta, &vocabulary)?,
        "llama" => (sentence_pieces(meta, &vocabulary)?, true),
        other => {
            return Err(format!("its tokenizer is of the kind `{other}`; gpt2 and llama can be read"));
        }
    };
    let framing = framing(meta, &vocabulary, begins, longest)?;
    parts["version"] = "1.0".into();
    for nothing in ["truncation", "padding"] {
        parts[nothing] = Value::Null;
    }
    parts["added_tokens"] = vocabulary.added().into();
    let spelled = |id: u32| vocabulary.tokens.get(id as usize).cloned();
    parts["post_processor"] = template(&framing.begin, &framing.close, &spelled).unwrap_or_default();
    Ok((serde_json::to_string(&parts).map_err(|e| e.to_string())?, framing))
}

fn missing(key: &str) -> String {
    format!("tokenizer.ggml.{key} is missing")
}

/// What each token is; all are text, where the file does not say.
fn kinds(meta: &Meta, tokens: usize) -> Result<Vec<f64>, String> {
    let Some(kinds) = meta.numbers("tokenizer.ggml.token_type")? else { return Ok(vec![NORMAL; tokens]) };
    if kinds.len() != tokens || kinds.iter().any(|kind| !(1.0..=6.0).contains(kind) || kind.fract() != 0.0) {
        return Err(format!("tokenizer.ggml.token_type must be {tokens} numbers from 1 to 6"));
    }
    Ok(kinds.to_vec())
}

impl Vocabulary<'_> {
    fn is(&self, id: u32, kind: f64) -> bool {
        self.kinds.get(id as usize) == Some(&kind)
    }

    /// The control token of that spelling.
    fn control(&self, spelling: &str) -> Option<u32> {
        self.ids.get(spelling).copied().filter(|id| self.is(*id, CONTROL))
    }

    /// Tokens that are found in a text before all others.
    fn added(&self) -> Vec<Value> {
        let all = (0..).zip(self.tokens).filter(|(_, token)| !token.is_empty());
        let added = all.filter(|(id, _)| self.is(*id, CONTROL) || self.is(*id, USER_DEFINED));
        added
            .map(|(id, content)| {
                json!({
                    "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": self.is(id, CONTROL),
                })
            })
            .collect()
    }

    fn map(&self) -> Map<String, Value> {
        self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect()
    }
}

/// A byte-level BPE, and whether its texts begin with the first token where the file does not say.
fn byte_level(meta: &Meta, vocabulary: &Vocabulary<'_>) -> Result<(Value, bool), String> {
    let merges = meta.texts("tokenizer.ggml.merges")?.ok_or_else(|| missing("merges"))?;
    // A byte-level BPE has no scores, and its texts get no blank in front.
    meta.numbers("tokenizer.ggml.scores")?;
    meta.only("tokenizer.ggml.add_space_prefix", 0)?;
    let name = meta.text("tokenizer.ggml.pre")?.ok_or_else(|| missing("pre (how text is cut)"))?;
    let cut = CUTS.iter().find(|cut| cut.names.contains(&name)).ok_or_else(|| {
        let all: Vec<_> = CUTS.iter().flat_map(|cut| cut.names).copied().collect();
        format!("its tokenizer cuts text by the rules of `{name}`; must be one of {}", all.join(", "))
    })?;
    let level = |regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex });
    let first = match cut.regex {
        Some(regex) => Some(json!({
            "type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false,
        })),
        None => cut.digits.then(|| json!({"type": "Digits", "individual_digits": true})),
    };
    let last = level(cut.regex.is_none());
    let parts: Vec<Value> = first.into_iter().chain([last]).collect();
    Ok((
        json!({
            "normalizer": cut.nfc.then(|| json!({"type": "NFC"})),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": parts},
            "decoder": level(true),
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": cut.whole, "vocab": vocabulary.map(), "merges": merges,
            },
        }),
        cut.begins,
    ))
}

/// A BPE of the sentencepiece library: blanks are letters, and what no piece holds is spelled in bytes.
fn sentence_pieces(meta: &Meta, vocabulary: &Vocabulary<'_>) -> Result<Value, String> {
    for key in ["remove_extra_whitespaces", "escape_whitespaces"] {
        meta.only(&format!("tokenizer.ggml.{key}"), u32::from(key == "escape_whitespaces"))?;
    }
    let name = meta.text("tokenizer.ggml.pre")?.unwrap_or("default");
    if name != "default" {
        return Err(format!("its tokenizer of the kind llama cuts text by the rules of `{name}`"));
    }
    let merges = match meta.texts("tokenizer.ggml.merges")? {
        Some(given) => {
            meta.numbers("tokenizer.ggml.scores")?;
            given.iter().map(|pair| json!(pair)).collect()
        }
        None => merges(meta, vocabulary)?,
    };
    let blank = json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let mut normalizers = vec![blank];
    if meta.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true) {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = id(meta, vocabulary, "unknown_token_id")?.unwrap_or(0);
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": vocabulary.tokens.get(unknown as usize),
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
            "byte_fallback": true, "ignore_merges": false, "vocab": vocabulary.map(), "merges": merges,
        },
    }))
}

/// The most bytes of all merges that follow from scores; those of vocabularies in use take some megabytes.
const MAX_MERGES_BYTES: usize = 1 << 28;

/// The merges that follow from scores: each piece from each two that make it up, the best piece first.
fn merges(meta: &Meta, vocabulary: &Vocabulary<'_>) -> Result<Vec<Value>, String> {
    let scores = meta.numbers("tokenizer.ggml.scores")?.ok_or_else(|| missing("scores"))?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(format!("tokenizer.ggml.scores must be {} numbers", vocabulary.tokens.len()));
    }
    let score = |part: &str| {
        let id = vocabulary.ids.get(part).copied().filter(|id| vocabulary.is(*id, NORMAL))?;
        Some(scores[id as usize])
    };
    let (mut all, mut bytes) = (Vec::new(), 0);
    for piece in vocabulary.tokens {
        let Some(own) = score(piece) else { continue };
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(of_left), Some(of_right)) = (score(left), score(right)) {
                bytes += piece.len();
                if bytes > MAX_MERGES_BYTES {
                    return Err("its tokenizer makes too many merges".to_owned());
                }
                all.push(([own, of_left, of_right], (left, right)));
            }
        }
    }
    // Equal scores stay in the order of ids.
    all.sort_by(|(one, _), (other, _)| {
        let pairs = other.iter().zip(one).map(|(other, one)| other.total_cmp(one));
        pairs.fold(std::cmp::Ordering::Equal, std::cmp::Ordering::then)
    });
    Ok(all.into_iter().map(|(_, (left, right))| json!([left, right])).collect())
}

/// An id of the file's keys; some say -1 for none.
fn id(meta: &Meta, vocabulary: &Vocabulary<'_>, key: &str) -> Result<Option<u32>, String> {
    let key = format!("tokenizer.ggml.{key}");
    if meta.number(&key)?.is_some_and(|id| id == -1.0 || id == f64::from(u32::MAX)) {
        return Ok(None);
    }
    match meta.count(&key)? {
        Some(id) if id as usize >= vocabulary.tokens.len() => {
            Err(format!("{key} is {id}, and there are {} tokens", vocabulary.tokens.len()))
        }
        found => Ok(found),
    }
}

fn framing(
    meta: &Meta,
    vocabulary: &Vocabulary<'_>,
    begins: bool,
    longest: Option<u32>,
) -> Result<Framing, String> {
    let id = |key| id(meta, vocabulary, key);
    let (bos, eos, pad) = (id("bos_token_id")?, id("eos_token_id")?, id("padding_token_id")?);
    for unused in
        ["unknown_token_id", "seperator_token_id", "separator_token_id", "cls_token_id", "mask_token_id"]
    {
        id(unused)?;
    }
    let named = ENDS[..2].iter().find_map(|name| vocabulary.control(name));
    let end = named.or(eos).ok_or_else(|| missing("eos_token_id"))?;
    let mut stops: Vec<u32> = Vec::new();
    let all = [eos, id("eot_token_id")?, id("eom_token_id")?];
    for stop in all.into_iter().chain(ENDS.iter().map(|name| vocabulary.control(name))).flatten() {
        if stop != end && !stops.contains(&stop) {
            stops.push(stop);
        }
    }
    let flag = |key: &str| meta.flag(&format!("tokenizer.ggml.{key}"));
    let added = |key: &str, default: bool, token: Option<u32>| match flag(key)?.unwrap_or(default) {
        false => Ok(Vec::new()),
        true => {
            token.map(|id| vec![id]).ok_or_else(|| format!("tokenizer.ggml.{key} adds a token that it lacks"))
        }
    };
    let (begin, close) = (added("add_bos_token", begins, bos)?, added("add_eos_token", false, eos)?);
    meta.only("tokenizer.ggml.add_sep_token", 0)?;
    Ok(Framing { begin, close, end, stops, bos, pad, longest, ..Framing::default() })
}
