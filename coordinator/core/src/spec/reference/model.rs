//! What the keys of the model may be, and what has to stand beside them.

use super::Allowed::{self, Words};
use super::{FLAG, POSITIVE, Sets};

/// Beside this, keys have the rules of [`super::RULES`].
pub(super) const MODEL: [(&str, Allowed); 35] = [
    (
        "model.preset",
        Words { words: "a name [below](#presets)", fit: &["gpt2", "t5-small"], unfit: &["gpt5", "7", "''"] },
    ),
    (
        "model.architecture",
        Words {
            words: "`decoder`, `encoder` or `encoder-decoder`",
            fit: &["decoder", "encoder", "encoder-decoder"],
            unfit: &["encoder_decoder", "7"],
        },
    ),
    (
        "model.positions",
        Words {
            words: "`rope`, `learned`, `sinusoidal`, `alibi`, `relative` or `none`",
            fit: &["rope", "learned", "sinusoidal", "alibi", "relative", "none"],
            unfit: &["rotary", "null_"],
        },
    ),
    ("model.rope_theta", Words { words: "above 1", fit: &["1.1", "500000"], unfit: &["1", "0"] }),
    (
        "model.rope_scaling.kind",
        Words { words: "`linear`, `llama3` or `yarn`", fit: &["llama3", "yarn"], unfit: &["none", "ntk"] },
    ),
    ("model.rope_scaling.factor", Words { words: "1 or more", fit: &["1", "32.5"], unfit: &["0.9", ".inf"] }),
    (
        "model.rope_scaling.low",
        Words { words: "above 0 and below `high`", fit: &["1", "3.9"], unfit: &["0"] },
    ),
    ("model.rope_scaling.high", Words { words: "above `low`", fit: &["1.1", "8"], unfit: &["1", ".nan"] }),
    ("model.rope_scaling.beta_fast", Words { words: "above `beta_slow`", fit: &["1.1"], unfit: &["1", "0"] }),
    (
        "model.rope_scaling.beta_slow",
        Words { words: "above 0 and below `beta_fast`", fit: &["0.5", "31"], unfit: &["0", "-1"] },
    ),
    ("model.position_offset", Words { words: "0 to 1024", fit: &["0", "1024"], unfit: &["-1", "1025"] }),
    (
        "model.relative_buckets",
        Words { words: "a multiple of 4, 4 to 4096", fit: &["4", "128"], unfit: &["0", "30", "4100"] },
    ),
    (
        "model.relative_max_distance",
        Words {
            words: "above half of `relative_buckets`, to 1048576",
            fit: &["17", "1048576"],
            unfit: &["16", "1048577"],
        },
    ),
    ("model.norm", Words { words: "`rms` or `layer`", fit: &["rms", "layer"], unfit: &["batch"] }),
    ("model.norm_placement", Words { words: "`pre` or `post`", fit: &["pre", "post"], unfit: &["both"] }),
    ("model.norm_eps", Words { words: "above 0 and below 1", fit: &["1e-12", "0.9"], unfit: &["0", "1"] }),
    (
        "model.activation",
        Words {
            words: "`relu`, `gelu`, `gelu-tanh`, `silu`, `swiglu`, `geglu` or `geglu-tanh`",
            fit: &["relu", "gelu", "gelu-tanh", "silu", "swiglu", "geglu", "geglu-tanh"],
            unfit: &["gelu_tanh", "tanh"],
        },
    ),
    (
        "model.biases",
        Words {
            words: "`true`, `false`, or a list of `qkv`, `out` and `ffn`",
            fit: &["true", "false", "[qkv]", "[ffn, out, qkv]", "[]"],
            unfit: &["qkv", "[q]", "1"],
        },
    ),
    (
        "model.attention.kind",
        Words {
            words: "`full`, `window`, `longformer`, `bigbird`, `linear`, `compressed` or `latent`",
            fit: &["window"],
            unfit: &["flash", "7"],
        },
    ),
    ("model.attention.global", Words { words: "0 to 65536", fit: &["0", "65536"], unfit: &["-1", "65537"] }),
    ("model.attention.last", Words { words: "0 to 65536", fit: &["0", "65536"], unfit: &["-1", "65537"] }),
    ("model.attention.projections", FLAG),
    ("model.attention.random", Words { words: "0 to 65536", fit: &["0", "65536"], unfit: &["-1", "65537"] }),
    ("model.attention.decay", FLAG),
    (
        "model.attention.rope_dim",
        Words { words: "even, below `head_dim`", fit: &["2", "14"], unfit: &["0", "3", "16", "65537"] },
    ),
    ("model.attention_scale", POSITIVE),
    ("model.token_types", Words { words: "0 to 1024", fit: &["0", "1024"], unfit: &["-1", "1025"] }),
    ("model.embedding_norm", FLAG),
    ("model.embedding_scaled", FLAG),
    (
        "model.head",
        Words {
            words: "`lm`, `masked-lm` or `pooled`",
            fit: &["lm"],
            unfit: &["mlm", "pooled", "masked-lm"],
        },
    ),
    (
        "model.head_activation",
        Words {
            words: "`relu`, `gelu`, `gelu-tanh` or `silu`",
            fit: &["relu", "gelu", "gelu-tanh", "silu"],
            unfit: &["swiglu", "geglu-tanh", "tanh"],
        },
    ),
    ("model.classes", Words { words: "0 to 65536", fit: &["0", "65536"], unfit: &["-1", "65537"] }),
    ("model.logit_scale", POSITIVE),
    ("model.tied_embeddings", FLAG),
    ("model.layer_groups", Words { words: "1 to `layers`", fit: &["1", "4"], unfit: &["0", "5"] }),
];

/// What has to stand beside a key of the model that goes with another choice only.
pub(super) fn beside_model(path: &str) -> Sets {
    match path {
        "model.classes" => &[("model.architecture", "encoder"), ("model.head", "pooled")],
        "model.head_activation" => &[("model.architecture", "encoder"), ("model.vocab", "600")],
        "model.encoder_layers" => &[("model.architecture", "encoder-decoder")],
        "model.max_positions" | "model.position_offset" => {
            &[("model.positions", "learned"), ("model.max_positions", "2048")]
        }
        "model.relative_buckets" | "model.relative_max_distance" => &[("model.positions", "relative")],
        "model.rope_scaling.kind"
        | "model.rope_scaling.factor"
        | "model.rope_scaling.original"
        | "model.rope_scaling.low"
        | "model.rope_scaling.high" => &[("model.rope_scaling", "{kind: llama3, factor: 8, original: 8192}")],
        "model.rope_scaling.beta_fast" | "model.rope_scaling.beta_slow" => {
            &[("model.rope_scaling", "{kind: yarn, factor: 8, original: 4096}")]
        }
        "model.attention.kind" | "model.attention.window" => {
            &[("model.attention", "{kind: window, window: 16}")]
        }
        "model.attention.global" => &[("model.attention", "{kind: longformer, window: 16}")],
        "model.attention.projections" => &[
            ("model.attention", "{kind: longformer, window: 16}"),
            ("model.architecture", "encoder"),
            ("model.vocab", "600"),
        ],
        "model.attention.last" => &[
            ("model.attention", "{kind: bigbird}"),
            ("model.architecture", "encoder"),
            ("model.vocab", "600"),
        ],
        "model.attention.block" | "model.attention.random" => &[("model.attention", "{kind: bigbird}")],
        "model.attention.decay" => &[("model.attention", "{kind: linear}")],
        "model.attention.rank" | "model.attention.rope_dim" => {
            &[("model.attention", "{kind: latent, rank: 16, rope_dim: 8}")]
        }
        _ => &[],
    }
}
