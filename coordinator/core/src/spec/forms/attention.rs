//! `model.attention` of a job file: its keys, the form that they say, and the keys that say a form.

use std::fmt;

use coxswain_types::model::Attention;
use schemars::JsonSchema;
use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{Deserializer, Error, MapAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::super::check::Faults;
use super::super::limits;
use super::super::schema::{or_its_kind, within};

use AttentionName::{BigBird, Compressed, Full, Latent, Linear, Longformer, Window};

/// `model.attention`: which keys a query sees, and in what form they are kept. A kind whose numbers all
/// have defaults may stand alone, without a map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schemars(transform = or_its_kind)]
pub struct RawAttention {
    /// `full`: all that the architecture lets it see. `window`: the nearest. `longformer`: a window, and
    /// first tokens that see all and are seen by all (arXiv 2004.05150). `bigbird`: by blocks, a window,
    /// the first ones, and some at random (arXiv 2007.14062). `linear`: sums instead of scores (arXiv
    /// 2006.16236). `compressed`: a causal window, and a learned summary of each older block. `latent`:
    /// keys and values made from one narrow latent a token (arXiv 2405.04434).
    pub kind: AttentionName,
    /// Tokens of the window: the last ones, itself included, in a decoder; so many on each side in an
    /// encoder. With `bigbird` blocks, an odd number, 3 if left out; required with the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::LENGTH))]
    pub window: Option<u32>,
    /// Tokens (`longformer`) or blocks (`bigbird`) at the start that see all and are seen by all. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::GLOBAL))]
    pub global: Option<u32>,
    /// Whether the global tokens of `longformer` have projections of their own. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projections: Option<bool>,
    /// Tokens of a block of `bigbird`, or of a summary of `compressed`. Default: 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::LENGTH))]
    pub block: Option<u32>,
    /// Blocks of `bigbird` at the end that see all and are seen by all, in an encoder. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::GLOBAL))]
    pub last: Option<u32>,
    /// Blocks that a row of blocks of `bigbird` sees at random, beside those that it sees already. An encoder
    /// sees all of a sequence of at most `window + global + last + 2 * random` blocks. Default: 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::GLOBAL))]
    pub random: Option<u32>,
    /// Whether each head of `linear` forgets by a learned share at each token (arXiv 2312.06635). Default:
    /// false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay: Option<bool>,
    /// Width of the latent of `latent`, which needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::DIM))]
    pub rank: Option<u32>,
    /// Width of the rotated part of a head of `latent`, which needs it; even, and below the width of a head.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::DIM))]
    pub rope_dim: Option<u32>,
}

/// The kind of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AttentionName {
    /// All keys.
    Full,
    /// The nearest.
    Window,
    /// A window and global tokens.
    Longformer,
    /// Blocks.
    BigBird,
    /// Sums.
    Linear,
    /// Summaries.
    Compressed,
    /// Low rank.
    Latent,
}

impl AttentionName {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            AttentionName::Full => "full",
            AttentionName::Window => "window",
            AttentionName::Longformer => "longformer",
            AttentionName::BigBird => "bigbird",
            AttentionName::Linear => "linear",
            AttentionName::Compressed => "compressed",
            AttentionName::Latent => "latent",
        }
    }
}

impl RawAttention {
    /// A kind alone.
    pub fn of(kind: AttentionName) -> RawAttention {
        RawAttention {
            kind,
            window: None,
            global: None,
            projections: None,
            block: None,
            last: None,
            random: None,
            decay: None,
            rank: None,
            rope_dim: None,
        }
    }
}

impl Serialize for RawAttention {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawAttention::serialize(self, serializer)
    }
}

impl<'de> Deserialize<'de> for RawAttention {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<RawAttention, D::Error> {
        struct WordOrMap;

        impl<'de> Visitor<'de> for WordOrMap {
            type Value = RawAttention;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(
                    "full, window, longformer, bigbird, linear, compressed, latent, or a map with kind",
                )
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<RawAttention, E> {
                AttentionName::deserialize(StrDeserializer::new(word)).map(RawAttention::of)
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<RawAttention, A::Error> {
                RawAttention::deserialize(MapAccessDeserializer::new(map))
            }
        }

        deserializer.deserialize_any(WordOrMap)
    }
}

/// Keys of the map that go with some kinds only.
const KEYS: [(&str, &[AttentionName]); 9] = [
    ("window", &[Window, Longformer, BigBird, Compressed]),
    ("global", &[Longformer, BigBird]),
    ("projections", &[Longformer]),
    ("block", &[BigBird, Compressed]),
    ("last", &[BigBird]),
    ("random", &[BigBird]),
    ("decay", &[Linear]),
    ("rank", &[Latent]),
    ("rope_dim", &[Latent]),
];

/// The form that a job file says.
pub(in super::super) fn read(raw: Option<&RawAttention>, faults: &mut Faults) -> Attention {
    let Some(raw) = raw else { return Attention::Full };
    check_keys(raw, faults);
    let (global, block) = (raw.global.unwrap_or(1), raw.block.unwrap_or(64));
    match raw.kind {
        Full => Attention::Full,
        Window => Attention::Window { window: window(raw, faults) },
        Longformer => {
            let projections = raw.projections.unwrap_or(false);
            faults.count("model.attention.global", global, &limits::GLOBAL);
            Attention::Longformer { window: window(raw, faults), global, projections }
        }
        BigBird => bigbird(raw, global, block, faults),
        Linear => Attention::Linear { decay: raw.decay.unwrap_or(false) },
        Compressed => {
            faults.count("model.attention.block", block, &limits::LENGTH);
            Attention::Compressed { window: window(raw, faults), block }
        }
        Latent => {
            let with = "model.attention.kind latent";
            Attention::Latent {
                rank: faults.need("model.attention.rank", raw.rank, with, &limits::DIM),
                rope_dim: faults.need("model.attention.rope_dim", raw.rope_dim, with, &limits::DIM),
            }
        }
    }
}

fn check_keys(raw: &RawAttention, faults: &mut Faults) {
    let given = [
        raw.window.is_some(),
        raw.global.is_some(),
        raw.projections.is_some(),
        raw.block.is_some(),
        raw.last.is_some(),
        raw.random.is_some(),
        raw.decay.is_some(),
        raw.rank.is_some(),
        raw.rope_dim.is_some(),
    ];
    for ((key, kinds), given) in KEYS.iter().zip(given) {
        if !kinds.contains(&raw.kind) {
            let names: Vec<_> = kinds.iter().map(|kind| kind.word()).collect();
            let with = format!("model.attention.kind {} only", names.join(", "));
            faults.only_with(&format!("model.attention.{key}"), given, &with);
        }
    }
}

fn window(raw: &RawAttention, faults: &mut Faults) -> u32 {
    let with = format!("model.attention.kind {}", raw.kind.word());
    faults.need("model.attention.window", raw.window, &with, &limits::LENGTH)
}

fn bigbird(raw: &RawAttention, global: u32, block: u32, faults: &mut Faults) -> Attention {
    let (window, random) = (raw.window.unwrap_or(3), raw.random.unwrap_or(3));
    let last = raw.last.unwrap_or(0);
    for (path, found, limit) in [
        ("model.attention.global", global, &limits::GLOBAL),
        ("model.attention.block", block, &limits::LENGTH),
        ("model.attention.last", last, &limits::GLOBAL),
        ("model.attention.random", random, &limits::GLOBAL),
    ] {
        faults.count(path, found, limit);
    }
    let path = "model.attention.window";
    if faults.count(path, window, &limits::LENGTH) && window.is_multiple_of(2) {
        let why = "the block itself, and as many on each side";
        let near = window + 1;
        faults.add(path, format!("found {window}; must be odd with bigbird, such as {near}: {why}"));
    }
    Attention::BigBird { block, window, global, last, random }
}

/// The keys that say this form.
pub(in super::super) fn written(attention: Attention) -> RawAttention {
    let of = RawAttention::of;
    match attention {
        Attention::Full => of(AttentionName::Full),
        Attention::Window { window } => RawAttention { window: Some(window), ..of(AttentionName::Window) },
        Attention::Longformer { window, global, projections } => RawAttention {
            window: Some(window),
            global: Some(global),
            projections: Some(projections),
            ..of(AttentionName::Longformer)
        },
        Attention::BigBird { block, window, global, last, random } => RawAttention {
            block: Some(block),
            window: Some(window),
            global: Some(global),
            last: Some(last),
            random: Some(random),
            ..of(AttentionName::BigBird)
        },
        Attention::Linear { decay } => RawAttention { decay: Some(decay), ..of(AttentionName::Linear) },
        Attention::Compressed { window, block } => {
            RawAttention { window: Some(window), block: Some(block), ..of(AttentionName::Compressed) }
        }
        Attention::Latent { rank, rope_dim } => {
            RawAttention { rank: Some(rank), rope_dim: Some(rope_dim), ..of(AttentionName::Latent) }
        }
    }
}
