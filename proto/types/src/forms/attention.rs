//! Attention: which keys a query sees, and in what form they are kept.

use serde::{Deserialize, Serialize};

use super::FormRule;
use crate::bounds::limits;
use crate::bounds::{OutOfBounds, count, expect};
use crate::mask::{Mask, RandomBlocks};
use crate::model::{Architecture, ModelSpec};
use crate::params::{Split, WeightRows};

mod cost;

pub use cost::AttentionSize;

/// Which keys a query sees, and in what form they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// All that the architecture lets it see.
    Full,
    /// The nearest ones. Causal: the last `window`, itself included. Else so many on each side.
    Window {
        /// How many.
        window: u32,
    },
    /// A window, and the first tokens of the sequence, which see all and are seen by all (arXiv
    /// 2004.05150).
    Longformer {
        /// As in [`Attention::Window`].
        window: u32,
        /// How many tokens are global.
        global: u32,
        /// Whether global tokens have projections of their own.
        projections: bool,
    },
    /// By blocks: a window, the first and the last blocks, which see all, and some drawn at random, of those
    /// not seen already, for each layer, head and row of blocks (arXiv 2007.14062). An encoder sees all of a
    /// sequence that is too short for so many blocks ([`Attention::sees_all`]).
    BigBird {
        /// Tokens in a block.
        block: u32,
        /// Width of the window, in blocks; odd.
        window: u32,
        /// Global blocks at the start.
        global: u32,
        /// Global blocks at the end, in an encoder.
        last: u32,
        /// Random blocks of a row.
        random: u32,
    },
    /// `phi(q) (phi(k)^T v)` with phi = elu + 1 (arXiv 2006.16236): linear in the length.
    Linear {
        /// Whether each head forgets by a learned share at each token (arXiv 2312.06635).
        decay: bool,
    },
    /// A causal window, and one learned summary for each finished block of older keys and values (after
    /// arXiv 1911.05507).
    Compressed {
        /// As in [`Attention::Window`].
        window: u32,
        /// Tokens of a summary.
        block: u32,
    },
    /// Keys and values are made from one low-rank latent a token (multi-head latent attention, arXiv
    /// 2405.04434).
    Latent {
        /// Width of the latent.
        rank: u32,
        /// Width of the rotated part of a head, whose key all heads share; the rest has no positions.
        rope_dim: u32,
    },
}

/// A projection of what a block takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Projection {
    /// Into queries.
    Query,
    /// Into keys.
    Key,
    /// Into values.
    Value,
    /// Into latents.
    Latent,
}

impl Projection {
    /// All of them.
    pub const ALL: [Projection; 4] =
        [Projection::Query, Projection::Key, Projection::Value, Projection::Latent];

    /// What its name begins with.
    fn name(self) -> &'static str {
        match self {
            Projection::Query => "q",
            Projection::Key => "k",
            Projection::Value => "v",
            Projection::Latent => "kv_down",
        }
    }
}

/// Names in GGUF files.
pub(super) const GGUF_NAMES: &[(&str, &str)] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
];

impl Attention {
    /// Key/value heads: those of the model, or where keys are made from latents one for each query head.
    pub fn key_heads(self, model: &ModelSpec) -> u32 {
        match self {
            Attention::Latent { .. } => model.heads,
            Attention::Full
            | Attention::Window { .. }
            | Attention::Longformer { .. }
            | Attention::BigBird { .. }
            | Attention::Linear { .. }
            | Attention::Compressed { .. } => model.kv_heads,
        }
    }

    /// How many numbers of a head of this width rotary positions rotate.
    pub fn rotated(self, head_dim: u32) -> u32 {
        match self {
            Attention::Latent { rope_dim, .. } => rope_dim,
            Attention::Full
            | Attention::Window { .. }
            | Attention::Longformer { .. }
            | Attention::BigBird { .. }
            | Attention::Linear { .. }
            | Attention::Compressed { .. } => head_dim,
        }
    }

    /// Whether each query has a probability for each key that it sees.
    pub fn has_probabilities(self) -> bool {
        !matches!(self, Attention::Linear { .. })
    }

    /// Whether a query sees all keys, or in a causal layer all up to its own.
    pub fn is_whole(self) -> bool {
        matches!(self, Attention::Full | Attention::Latent { .. })
    }

    /// The parameters of the block whose names begin with `prefix`.
    pub(crate) fn weights(self, prefix: &str, of: &mut WeightRows<'_>) {
        let model = of.model;
        let [dim, head, heads] = [model.dim, model.head_dim, model.heads].map(u64::from);
        let (q, kv) = (heads * head, u64::from(model.kv_heads) * head);
        let norm = |group: &str, projection: Projection, of: &mut WeightRows<'_>| {
            if let Some(norm) = model.norm.after(self, projection) {
                norm.weights(&format!("{prefix}.{group}"), of);
            }
        };
        let map = |group: &str, projection: Projection, of: &mut WeightRows<'_>| {
            let (width, units) = match projection {
                Projection::Query => (q, model.heads),
                _ => (kv, model.kv_heads),
            };
            let name = format!("{prefix}.{group}{}_proj", projection.name());
            of.column(&name, [width, dim], units, model.biases.qkv);
            norm(group, projection, of);
        };
        let own = |group: &str, of: &mut WeightRows<'_>| {
            map(group, Projection::Query, of);
            map(group, Projection::Key, of);
            map(group, Projection::Value, of);
        };
        match self {
            Attention::Full
            | Attention::Window { .. }
            | Attention::BigBird { .. }
            | Attention::Longformer { projections: false, .. }
            | Attention::Linear { decay: false } => own("", of),
            Attention::Longformer { projections: true, .. } => {
                own("", of);
                own("global_", of);
            }
            Attention::Linear { decay: true } => {
                own("", of);
                of.column(&format!("{prefix}.decay_proj"), [heads, dim], model.heads, true);
            }
            Attention::Compressed { block, .. } => {
                own("", of);
                of.matrix(
                    format!("{prefix}.summary.weight"),
                    [block, model.kv_heads].map(u64::from),
                    Split::Along { dim: 1, units: model.kv_heads },
                    0.0,
                );
            }
            Attention::Latent { rank, rope_dim } => {
                map("", Projection::Query, of);
                let (rank, rope_dim) = (u64::from(rank), u64::from(rope_dim));
                of.whole(format!("{prefix}.kv_down_proj.weight"), [rank + rope_dim, dim]);
                norm("", Projection::Latent, of);
                let up = heads * (2 * head - rope_dim);
                of.column(&format!("{prefix}.kv_up_proj"), [up, rank], model.heads, false);
            }
        }
        of.row_into_residual(&format!("{prefix}.o_proj"), [dim, q], model.heads, model.biases.out);
    }

    /// Whether a sequence is too short for the blocks of BigBird, so that its tokens see all: at most this many,
    /// `window + global + last + 2 * random`, as in its own code. A decoder's mask does not depend on the length, which
    /// grows as it writes.
    pub fn sees_all(self, causal: bool, tokens: u32) -> bool {
        let Attention::BigBird { block, window, global, last, random } = self else { return false };
        let blocks = [window, global, last, random, random].map(u64::from).iter().sum::<u64>();
        !causal && u64::from(tokens) <= blocks * u64::from(block)
    }

    /// The mask of a layer over a sequence of `keys` tokens; `None` where the form has no mask beside the causal one,
    /// or makes its own as it runs.
    pub fn mask(self, causal: bool, layer: u32, seed: u64, keys: u32) -> Option<Mask> {
        let within = |mut masks: Vec<Mask>| {
            let or = if masks.len() == 1 { masks.remove(0) } else { Mask::Or(masks) };
            if causal { Mask::And(vec![or, Mask::Causal]) } else { or }
        };
        let near = |window: u32| {
            let before = if causal { window.saturating_sub(1) } else { window };
            Mask::Window { before, after: if causal { 0 } else { window } }
        };
        match self {
            Attention::Window { window } => Some(near(window)),
            Attention::Longformer { window, global, .. } => {
                Some(within(vec![near(window), Mask::Keys(0..global), Mask::Queries(0..global)]))
            }
            Attention::BigBird { .. } if self.sees_all(causal, keys) => None,
            Attention::BigBird { block, window, global, last, random } => {
                let blocks = keys.div_ceil(block.max(1));
                let each = window / 2;
                let drawn = RandomBlocks {
                    seed,
                    layer,
                    block,
                    per_row: random,
                    blocks,
                    first: global,
                    last,
                    each,
                    causal,
                };
                let mut masks = vec![Mask::BlockWindow { block, each }];
                let first = 0..global.saturating_mul(block);
                let last = blocks.saturating_sub(last).saturating_mul(block)..u32::MAX;
                // In a decoder nothing sees the last blocks but themselves.
                let global = if causal { vec![first] } else { vec![first, last] };
                for places in global {
                    masks.extend([Mask::Keys(places.clone()), Mask::Queries(places)]);
                }
                masks.push(Mask::RandomBlocks(drawn));
                Some(within(masks))
            }
            Attention::Full
            | Attention::Linear { .. }
            | Attention::Compressed { .. }
            | Attention::Latent { .. } => None,
        }
    }

    /// Why documents in one row cannot be kept apart, if they cannot.
    pub fn mixes_documents(self, architecture: Architecture) -> Option<&'static str> {
        match self {
            Attention::Linear { .. } if architecture != Architecture::Decoder => {
                Some("in an encoder every token of model.attention linear sees the same sum over all tokens")
            }
            Attention::Compressed { .. } => {
                Some("a summary of model.attention compressed may be of two documents")
            }
            Attention::Full
            | Attention::Window { .. }
            | Attention::Longformer { .. }
            | Attention::BigBird { .. }
            | Attention::Linear { .. }
            | Attention::Latent { .. } => None,
        }
    }

    /// What an author of a job is told who trains on sequences of so many tokens that leave some weights without
    /// gradients: the key at fault, and what is wrong. Both the first tokens' projections and those of the rest are
    /// trained by what they see.
    pub fn untrained(self, sequence: u32) -> Option<(&'static str, String)> {
        let Attention::Longformer { global, projections: true, .. } = self else { return None };
        let fault = if global == 0 {
            let why = "projections of its own are for the first tokens, and there are none";
            format!("found 0; must be 1 or more, or model.attention.projections false: {why}")
        } else if sequence > 0 && global >= sequence {
            let why = "the usual projections are for the tokens after the first ones, and there are none";
            let must =
                format!("must be below train.sequence ({sequence}), or model.attention.projections false");
            format!("found {global}; {must}: {why}")
        } else {
            return None;
        };
        Some(("model.attention.global", fault))
    }

    /// The caveat that an import prints about this form, if any.
    pub fn import_note(self) -> Option<&'static str> {
        let longformer = matches!(self, Attention::Longformer { .. });
        longformer.then_some("the first token alone is global: it sees all tokens and all see it")
    }

    /// Checks that the numbers lie within bounds.
    pub(crate) fn check_bounds(self) -> Result<(), OutOfBounds> {
        let window = |window| count("model.attention.window", window, &limits::LENGTH);
        let block = |block| count("model.attention.block", block, &limits::LENGTH);
        let global = |global| count("model.attention.global", global, &limits::GLOBAL);
        match self {
            Attention::Full | Attention::Linear { .. } => Ok(()),
            Attention::Window { window: width } => window(width),
            Attention::Longformer { window: width, global: tokens, .. } => {
                window(width)?;
                global(tokens)
            }
            Attention::BigBird { block: tokens, window: width, global: first, last, random } => {
                block(tokens)?;
                window(width)?;
                expect(width % 2 == 1, "model.attention.window", || {
                    format!(
                        "found {width}; must be odd with bigbird: the block itself, and as many on each side"
                    )
                })?;
                global(first)?;
                count("model.attention.last", last, &limits::GLOBAL)?;
                count("model.attention.random", random, &limits::GLOBAL)
            }
            Attention::Compressed { window: width, block: tokens } => {
                window(width)?;
                block(tokens)
            }
            Attention::Latent { rank, rope_dim } => {
                count("model.attention.rank", rank, &limits::DIM)?;
                count("model.attention.rope_dim", rope_dim, &limits::DIM)
            }
        }
    }

    /// What it cannot be combined with.
    pub(crate) fn rules(model: &ModelSpec) -> Vec<FormRule> {
        let scores = model.positions.adds_to_scores();
        let encodes = model.architecture != Architecture::Decoder;
        let apart = model.architecture != Architecture::Encoder;
        match model.attention {
            Attention::Full | Attention::Window { .. } => Vec::new(),
            Attention::Longformer { projections, .. } => vec![(
                projections && apart,
                "model.attention.projections",
                "the first tokens see all others by projections of their own, and in a decoder they see only each \
                 other; must be false, or the architecture encoder",
            )],
            Attention::BigBird { last, .. } => vec![(
                last > 0 && apart,
                "model.attention.last",
                "a decoder's tokens see nothing after themselves; must be 0",
            )],
            Attention::Linear { decay } => vec![
                (
                    scores,
                    "model.positions",
                    "alibi and relative add to scores, and model.attention linear makes none; must be rope, learned, \
                     sinusoidal or none",
                ),
                (
                    decay && encodes,
                    "model.attention.decay",
                    "forgets what came before, and an encoder's tokens see both sides; must be false, or the \
                     architecture decoder",
                ),
            ],
            Attention::Compressed { .. } => vec![
                (
                    scores,
                    "model.positions",
                    "alibi and relative depend on distances, and a summary of model.attention compressed has none; \
                     must be rope, learned, sinusoidal or none",
                ),
                (
                    encodes,
                    "model.attention",
                    "compressed summarizes what came before, and an encoder's tokens see both sides; take another \
                     kind, or the architecture decoder",
                ),
            ],
            Attention::Latent { rope_dim, .. } => vec![
                (
                    !model.positions.rotates(),
                    "model.positions",
                    "model.attention latent rotates a part of each head; must be rope",
                ),
                (
                    model.kv_heads != model.heads,
                    "model.kv_heads",
                    "model.attention latent makes keys and values for every head from its latent; leave it out",
                ),
                (rope_dim % 2 == 1, "model.attention.rope_dim", "must be even, because RoPE rotates pairs"),
                (
                    rope_dim > 0 && model.head_dim > 0 && rope_dim >= model.head_dim,
                    "model.attention.rope_dim",
                    "must be below the width of a head, whose other part has no positions",
                ),
            ],
        }
    }
}
