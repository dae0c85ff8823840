//! What has to stand beside a key that goes with another choice only.

use super::Sets;

pub(super) fn beside(path: &str) -> Sets {
    match path {
        "train.initial_loss_scale" | "train.loss_scale_growth_steps" => &[("train.precision", "fp16")],
        "train.momentum" => &[("train.optimizer", "muon")],
        "train.decay_steps" => &[("train.learning_rate_schedule", "wsd")],
        "train.mask_rate" => &[("model.architecture", "encoder"), ("model.vocab", "600")],
        "train.whole_words" => &[("model.architecture", "encoder"), ("model.vocab", "600")],
        "data.pairs" => &[("data", "{}")],
        "data.weights" => &[("data", "{pairs: a}")],
        "train.corruption" => &[("model.architecture", "encoder-decoder"), ("model.vocab", "600")],
        "data.classes" => &[
            ("data", "{labelled: a}"),
            ("model.architecture", "encoder"),
            ("model.head", "pooled"),
            ("model.classes", "2"),
        ],
        "data.labelled" => &[
            ("data", "{}"),
            ("model.architecture", "encoder"),
            ("model.head", "pooled"),
            ("model.classes", "2"),
        ],
        "layout.chunks" => &[("layout.schedule", "interleaved")],
        "layout.memory" | "layout.max_tensor" | "layout.keep_exact" => &[("layout.pipeline", "auto")],
        "layout.actions" => &[("layout.schedule", "custom")],
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
