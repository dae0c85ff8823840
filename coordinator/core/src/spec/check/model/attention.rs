//! Which keys a query sees: a kind, and the numbers that go with it.

use coxswain_types::model::Attention;

use super::super::super::limits;
use super::super::super::raw::{AttentionName, RawAttention};
use super::Faults;

use AttentionName::{BigBird, Compressed, Full, Latent, Linear, Longformer, Window};

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

pub(super) fn attention(raw: Option<&RawAttention>, faults: &mut Faults) -> Attention {
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
