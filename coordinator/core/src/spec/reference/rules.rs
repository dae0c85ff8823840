//! What keys must be to each other, each rule with values that break it.

use super::Sets;

/// What keys must be to each other, and the values that break it in the minimal job.
pub(super) const RULES: [(&str, Sets); 100] = [
    ("`model.heads` divides `model.dim`, unless `model.head_dim` is set.", &[("model.heads", "7")]),
    ("`model.dim / model.heads` is even with `rope`.", &[("model.heads", "128")]),
    ("`model.head_dim` is even with `rope`.", &[("model.head_dim", "15")]),
    ("`model.layer_groups` is at most `model.layers`.", &[("model.layer_groups", "5")]),
    (
        "`model.layer_groups` is `model.layers` in an encoder-decoder.",
        &[("model.architecture", "encoder-decoder"), ("model.layer_groups", "2")],
    ),
    ("`model.kv_heads` divides `model.heads`.", &[("model.kv_heads", "3")]),
    ("`model.preset` is known.", &[("model.preset", "gpt5")]),
    ("`model.encoder_layers` goes with `encoder-decoder` only.", &[("model.encoder_layers", "2")]),
    (
        "`model.max_positions` goes with `learned` positions only, and so on.",
        &[("model.max_positions", "64")],
    ),
    ("`learned` positions need `model.max_positions`.", &[("model.positions", "learned")]),
    (
        "`train.sequence` is at most `model.max_positions`.",
        &[("model.positions", "learned"), ("model.max_positions", "63")],
    ),
    (
        "Under span corruption a decoder reads a multiple of 16 tokens, at most `model.max_positions`.",
        &[
            ("model.architecture", "encoder-decoder"),
            ("model.positions", "learned"),
            ("model.max_positions", "15"),
            ("train.sequence", "15"),
        ],
    ),
    (
        "`sinusoidal` positions have pairs.",
        &[("model", "{layers: 1, dim: 129, heads: 3, vocab: 300, positions: sinusoidal}")],
    ),
    (
        "`model.rope_scaling.original` is needed with `llama3` and `yarn`.",
        &[("model.rope_scaling", "{kind: yarn, factor: 2}")],
    ),
    (
        "`model.rope_scaling.low` goes with `llama3` only, and so on.",
        &[("model.rope_scaling", "{kind: linear, factor: 2, low: 1}")],
    ),
    ("`model.classes` goes with the head `pooled` only.", &[("model.classes", "2")]),
    ("`model.head_activation` goes with the head `masked-lm` only.", &[("model.head_activation", "gelu")]),
    (
        "`model.head_activation` has no gate.",
        &[("model.architecture", "encoder"), ("model.head_activation", "geglu")],
    ),
    ("The head `lm` is not an encoder's.", &[("model.architecture", "encoder"), ("model.head", "lm")]),
    ("The head `masked-lm` is an encoder's.", &[("model.head", "masked-lm"), ("model.vocab", "600")]),
    (
        "The head `pooled` is an encoder's.",
        &[("data", "{labelled: a}"), ("model.head", "pooled"), ("model.classes", "2")],
    ),
    (
        "The head `lm` is tied to an embedding of the model's width only.",
        &[("model.tied_embeddings", "true"), ("model.embedding_dim", "64")],
    ),
    (
        "`model.attention.window` goes with kinds that have one, and so on.",
        &[("model.attention", "{kind: linear, window: 16}")],
    ),
    ("A window is needed where a kind has no other default.", &[("model.attention", "window")]),
    ("The window of `bigbird` is odd.", &[("model.attention", "{kind: bigbird, window: 4}")]),
    (
        "`linear` attention has no positions that add to scores.",
        &[("model.attention", "linear"), ("model.positions", "alibi")],
    ),
    (
        "`compressed` attention has no positions that add to scores.",
        &[("model.attention", "{kind: compressed, window: 16}"), ("model.positions", "relative")],
    ),
    (
        "`linear` attention forgets in decoders only.",
        &[("model.attention", "{kind: linear, decay: true}"), ("model.architecture", "encoder")],
    ),
    (
        "`compressed` attention is a decoder's.",
        &[("model.attention", "{kind: compressed, window: 16}"), ("model.architecture", "encoder")],
    ),
    (
        "`latent` attention needs `rope`.",
        &[("model.attention", "{kind: latent, rank: 16, rope_dim: 8}"), ("model.positions", "none")],
    ),
    (
        "`latent` attention has as many key/value heads as query heads.",
        &[("model.attention", "{kind: latent, rank: 16, rope_dim: 8}"), ("model.kv_heads", "4")],
    ),
    (
        "`latent` attention goes without `model.qk_norm`.",
        &[("model.attention", "{kind: latent, rank: 16, rope_dim: 8}"), ("model.qk_norm", "true")],
    ),
    ("`model.attention.rope_dim` is even.", &[("model.attention", "{kind: latent, rank: 16, rope_dim: 7}")]),
    (
        "`model.attention.rope_dim` is below `model.head_dim`.",
        &[("model.attention", "{kind: latent, rank: 16, rope_dim: 16}")],
    ),
    (
        "`longformer` has projections of its own for global tokens in encoders only.",
        &[("model.attention", "{kind: longformer, window: 16, projections: true}")],
    ),
    (
        "`longformer` with projections of its own has global tokens, fewer than `train.sequence`.",
        &[
            ("model.architecture", "encoder"),
            ("model.attention", "{kind: longformer, window: 16, global: 0, projections: true}"),
        ],
    ),
    (
        "`bigbird` has global blocks at the end in encoders only.",
        &[("model.attention", "{kind: bigbird, last: 1}")],
    ),
    (
        "`train.separate_documents` is false with `compressed` attention, and with `linear` in an encoder.",
        &[("model.attention", "{kind: compressed, window: 16}"), ("train.separate_documents", "true")],
    ),
    (
        "`train.attention_dropout` is 0 with `linear` attention.",
        &[("model.attention", "linear"), ("train.attention_dropout", "0.1")],
    ),
    (
        "`train.mask_rate` goes with the head `masked-lm` and encoder-decoders only.",
        &[("train.mask_rate", "0.15")],
    ),
    ("`train.whole_words` goes with the head `masked-lm` only.", &[("train.whole_words", "true")]),
    (
        "`train.corruption` goes with `data.text` only.",
        &[("model.architecture", "encoder-decoder"), ("data", "{pairs: a}"), ("train.corruption", "spans")],
    ),
    (
        "`data.pairs` is for decoders and encoder-decoders.",
        &[("data", "{pairs: a}"), ("model.architecture", "encoder")],
    ),
    ("`data.classes` goes with `data.labelled` only.", &[("data.classes", "[neg, pos]")]),
    (
        "`data.classes` has as many names as `model.classes` says.",
        &[
            ("data", "{labelled: a, classes: [neg, pos]}"),
            ("model.architecture", "encoder"),
            ("model.head", "pooled"),
            ("model.classes", "3"),
        ],
    ),
    ("`data.weights` goes with `data.labelled` and `data.pairs` only.", &[("data.weights", "true")]),
    (
        "`train.separate_documents` goes with `data.text` only.",
        &[("data", "{pairs: a}"), ("train.separate_documents", "true")],
    ),
    ("`train.corruption` goes with encoder-decoders only.", &[("train.corruption", "spans")]),
    (
        "Encoder-decoders have a `train.sequence` of 4 or more.",
        &[("model.architecture", "encoder-decoder"), ("train.sequence", "3")],
    ),
    (
        "With `data.text` and the head `masked-lm`, `model.vocab` is at least 258.",
        &[("model.architecture", "encoder"), ("model.vocab", "257")],
    ),
    ("With `data.text`, `model.vocab` is at least 257.", &[("model.vocab", "256")]),
    (
        "With `data.synthetic`, `model.vocab` is larger than the number of tokens reserved for corruption.",
        &[
            ("model.architecture", "encoder-decoder"),
            ("model.vocab", "3"),
            ("data", "{synthetic: {tokens: 999}}"),
        ],
    ),
    (
        "`data` has one of `text`, `labelled`, `pairs` and `synthetic`.",
        &[("data.synthetic", "{tokens: 999}")],
    ),
    (
        "`data.labelled` and `model.head: pooled` go together.",
        &[("model.architecture", "encoder"), ("model.head", "pooled"), ("model.classes", "2")],
    ),
    ("`data.labelled` goes with `model.head: pooled` only.", &[("data", "{labelled: a}")]),
    (
        "`model.classes` is 2 or more where a `pooled` head is trained.",
        &[
            ("data", "{labelled: a}"),
            ("model.architecture", "encoder"),
            ("model.head", "pooled"),
            ("model.classes", "1"),
        ],
    ),
    (
        "`layout.sequence_parallel` is false with the head `pooled`.",
        &[
            ("data", "{labelled: a}"),
            ("model.architecture", "encoder"),
            ("model.head", "pooled"),
            ("model.classes", "2"),
            ("layout.sequence_parallel", "true"),
        ],
    ),
    (
        "`data.validation` does not go with `data.synthetic`.",
        &[("data", "{synthetic: {tokens: 999}, validation: 0.1}")],
    ),
    ("`data.synthetic.tokens` is at least `train.sequence` + 1.", &[("data", "{synthetic: {tokens: 64}}")]),
    (
        "`train.sequence` x `train.micro_batch_size` is at most 16777216 tokens.",
        &[("train.sequence", "1048576"), ("train.micro_batch_size", "17")],
    ),
    (
        "`train.batch_size` is left out with `train.global_micro_batches`.",
        &[("train.batch_size", "8"), ("train.global_micro_batches", "4")],
    ),
    (
        "`train.batch_size` is a multiple of `train.micro_batch_size`.",
        &[("train.batch_size", "8"), ("train.micro_batch_size", "3")],
    ),
    ("A layout is chosen before a job is formed.", &[("layout", "auto")]),
    ("`layout.memory` goes with `auto` only.", &[("layout.memory", "24GiB")]),
    ("`layout.max_tensor` goes with `auto` only.", &[("layout.max_tensor", "2")]),
    ("`layout.keep_exact` goes with `auto` only.", &[("layout.keep_exact", "fast")]),
    ("`train.gradient_groups` is at most `train.global_micro_batches`.", &[("train.gradient_groups", "2")]),
    (
        "`train.gradient_groups` is left out with `train.reduction: fast`.",
        &[("train.reduction", "fast"), ("train.gradient_groups", "1")],
    ),
    ("`train.tensor_shards` divides `model.heads`.", &[("train.tensor_shards", "16")]),
    (
        "`train.tensor_shards` divides `model.kv_heads`, or is a multiple of it.",
        &[
            ("model", "{layers: 1, dim: 96, heads: 12, kv_heads: 6, vocab: 300}"),
            ("train.tensor_shards", "4"),
        ],
    ),
    (
        "`train.tensor_shards` is at most `model.ffn` and `model.vocab`.",
        &[("model.ffn", "4"), ("train.tensor_shards", "8")],
    ),
    (
        "`train.initial_loss_scale` and `train.loss_scale_growth_steps` go with `train.precision: fp16` only.",
        &[("train.initial_loss_scale", "65536")],
    ),
    ("`train.momentum` goes with `train.optimizer: muon` only.", &[("train.momentum", "0.9")]),
    (
        "`train.decay_steps` goes with `train.learning_rate_schedule: wsd` only.",
        &[("train.decay_steps", "10")],
    ),
    (
        "`train.decay_steps` is at most `train.steps` - `train.warmup_steps`.",
        &[("train.learning_rate_schedule", "wsd"), ("train.decay_steps", "181")],
    ),
    (
        "`train.min_learning_rate` is left out with `train.learning_rate_schedule: constant`.",
        &[("train.learning_rate_schedule", "constant"), ("train.min_learning_rate", "0")],
    ),
    ("`train.warmup_steps` is at most `train.steps`.", &[("train.warmup_steps", "201")]),
    ("`train.min_learning_rate` is at most `train.learning_rate`.", &[("train.min_learning_rate", "1")]),
    (
        "`train.validate_every` is 0 without a validation split.",
        &[("data.validation", "0"), ("train.validate_every", "10")],
    ),
    ("`layout.pipeline` is at most `model.layers`.", &[("layout.pipeline", "5")]),
    (
        "`layout.pipeline` x `layout.chunks` is at most `model.layers`.",
        &[("layout.pipeline", "2"), ("layout.schedule", "interleaved"), ("layout.chunks", "3")],
    ),
    ("`layout.chunks` goes with `interleaved` and `custom` only.", &[("layout.chunks", "2")]),
    (
        "`layout.chunks` is at least 2 with `interleaved`.",
        &[("layout.schedule", "interleaved"), ("layout.chunks", "1")],
    ),
    ("`layout.actions` goes with `layout.schedule: custom` only.", &[("layout.actions", "0F0,0B0")]),
    ("`layout.schedule: custom` needs `layout.actions`.", &[("layout.schedule", "custom")]),
    (
        "`layout.actions` has a line for each pipeline rank.",
        &[("layout.schedule", "custom"), ("layout.pipeline", "2"), ("layout.actions", "0F0,0B0")],
    ),
    (
        "`layout.actions` has actions between commas, at most 65536 in all.",
        &[("layout.schedule", "custom"), ("layout.actions", "0F0,0X0")],
    ),
    (
        "An action is of one of its rank's stages.",
        &[
            ("layout.schedule", "custom"),
            ("layout.pipeline", "2"),
            ("layout.actions", "\"0F0,0B0\\n1F0,0B0\""),
        ],
    ),
    (
        "An action is of one of a data rank's micro-batches.",
        &[("layout.schedule", "custom"), ("layout.actions", "0F0,0B0,0F1,0B1")],
    ),
    (
        "With `custom`, `layout.data` divides `train.global_micro_batches` and `train.gradient_groups`.",
        &[
            ("layout.schedule", "custom"),
            ("layout.actions", "0F0,0B0"),
            ("train.global_micro_batches", "3"),
            ("layout.data", "2"),
        ],
    ),
    (
        "With `layout.sequence_parallel`, `layout.tensor` and `train.tensor_shards` divide `train.sequence`.",
        &[("layout.sequence_parallel", "true"), ("layout.tensor", "2"), ("train.sequence", "63")],
    ),
    ("`layout.zero` shards the optimizer's state only.", &[("layout.zero", "2")]),
    ("`layout.zero` does not shard parameters.", &[("layout.zero", "3")]),
    (
        "`layout.tensor` divides `train.tensor_shards` where that is set.",
        &[("train.tensor_shards", "2"), ("layout.tensor", "4")],
    ),
    ("`layout.tensor` divides `model.heads`.", &[("layout.tensor", "3")]),
    (
        "With `muon`, `layout.tensor` and `train.tensor_shards` divide `model.ffn`.",
        &[("train.optimizer", "muon"), ("layout.tensor", "2"), ("model.ffn", "97")],
    ),
    (
        "`layout.tensor` divides `model.kv_heads`, or is a multiple of it.",
        &[("model", "{layers: 1, dim: 96, heads: 12, kv_heads: 6, vocab: 300}"), ("layout.tensor", "4")],
    ),
    ("`layout.data` is at most `train.global_micro_batches`.", &[("layout.data", "2")]),
    (
        "`layout.data` is at most `train.gradient_groups`.",
        &[("train.global_micro_batches", "16"), ("layout.data", "9")],
    ),
    (
        "The product of the layout is at most 16384 workers.",
        &[
            ("train.global_micro_batches", "4096"),
            ("train.gradient_groups", "4096"),
            ("layout.tensor", "8"),
            ("layout.data", "2049"),
        ],
    ),
];
