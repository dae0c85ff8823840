//! The table of architectures and attentions: each in one process, and to the same bits in layouts that
//! cut it along every axis. Real processes, a small model.

use anyhow::{Context, Result};
use coxswain_tests::Equal::{Bits, Differs, Near};
use coxswain_tests::{Folder, Row, Site, Table, try_all};

const T4: &str = "train.tensor_shards=4";
const SEQUENCE: &str = "layout.sequence_parallel=true";
const ZERO: &str = "layout.zero=1";
const FULL: &str = "train.recompute=full";
const ATTENTION: &str = "train.recompute=attention";
const FFN: &str = "train.recompute=ffn";
const ZERO_BUBBLE: &str = "layout.schedule=zb-h1";
const DROP: &str = "train.dropout=0.1";
const DROP_ATTENTION: &str = "train.attention_dropout=0.1";
const WORDS: &str = "train.whole_words=true";
const BF16: &str = "train.precision=bf16";

/// Steps of each run: all that a step touches has been used twice over by then.
const SHORT: &str = "train.steps=8";

/// Runs the rows, each with these parts of a model, on the workers of the site.
fn hold(site: &Site<'_>, model: &[&'static str], rows: &[Row]) -> Result<()> {
    let folder = Folder::new()?;
    let mut table = Table::on(site, &folder);
    for row in rows {
        let run = model.iter().chain([&SHORT]).fold(table.job(row), |run, set| run.set(set));
        table.compare(row.0, &run, row.3)?;
    }
    table.end()
}

/// GPT-2: learned positions, LayerNorm, biases everywhere, GELU, one table at both ends.
const GPT: [&str; 6] = [
    "model.positions=learned",
    "model.max_positions=40",
    "model.norm=layer",
    "model.biases=true",
    "model.activation=gelu-tanh",
    "model.tied_embeddings=true",
];

/// BERT: an encoder, norms after blocks, a norm and types in the embedding, masked tokens.
const BERT: [&str; 10] = [
    "model.architecture=encoder",
    "model.positions=learned",
    "model.max_positions=32",
    "model.norm=layer",
    "model.norm_placement=post",
    "model.embedding_norm=true",
    "model.token_types=2",
    "model.biases=true",
    "model.activation=gelu",
    "model.tied_embeddings=true",
];

#[test]
fn decoders() -> Result<()> {
    let at = Folder::new()?;
    let site = Site::new(&at, 4)?;
    hold(
        &site,
        &GPT,
        &[
            ("gpt, one", (1, 1, 1), &[T4], &[]),
            ("gpt, pp3", (3, 1, 1), &[T4], &[Bits("gpt, one")]),
            ("gpt, pp2 tp2", (2, 2, 1), &[T4, FULL], &[Bits("gpt, one")]),
            ("gpt, tp4, split", (1, 4, 1), &[T4, SEQUENCE], &[Bits("gpt, one")]),
            ("gpt, tp2 dp2, ZeRO, split", (1, 2, 2), &[T4, ZERO, SEQUENCE], &[Bits("gpt, one")]),
            ("gpt, dropped", (1, 1, 1), &[T4, DROP], &[Differs("gpt, one")]),
            ("gpt, dropped, pp2 tp2, split", (2, 2, 1), &[T4, DROP, SEQUENCE], &[Bits("gpt, dropped")]),
        ],
    )
}

#[test]
fn encoders() -> Result<()> {
    let at = Folder::new()?;
    let site = Site::new(&at, 4)?;
    let albert = ["model.embedding_dim=32", "model.layer_groups=1"];
    let albert: Vec<_> = BERT.into_iter().chain(albert).collect();
    try_all([
        hold(
            &site,
            &BERT,
            &[
                ("bert, one", (1, 1, 1), &[T4], &[]),
                ("bert, pp4, zb-h1", (4, 1, 1), &[T4, ZERO_BUBBLE], &[Bits("bert, one")]),
                ("bert, pp2 tp2, split, ffn", (2, 2, 1), &[T4, SEQUENCE, FFN], &[Bits("bert, one")]),
                ("bert, tp4", (1, 4, 1), &[T4, ATTENTION], &[Bits("bert, one")]),
                ("bert, bf16", (1, 1, 1), &[T4, BF16], &[Near("bert, one")]),
                ("bert, bf16, pp2 tp2", (2, 2, 1), &[T4, BF16], &[Bits("bert, bf16")]),
                ("bert, whole words", (1, 1, 1), &[T4, WORDS], &[Differs("bert, one")]),
                ("bert, whole words, pp2", (2, 1, 1), &[T4, WORDS], &[Bits("bert, whole words")]),
            ],
        ),
        hold(
            &site,
            &albert,
            &[
                ("albert, one", (1, 1, 1), &[T4, DROP], &[]),
                ("albert, pp2 tp2", (2, 2, 1), &[T4, DROP], &[Bits("albert, one")]),
                ("albert, pp2 dp2, ZeRO", (2, 1, 2), &[T4, DROP, ZERO], &[Bits("albert, one")]),
                ("albert, tp2, split", (1, 2, 1), &[T4, DROP, SEQUENCE], &[Bits("albert, one")]),
            ],
        ),
    ])
}

/// Sequences of two tiles, so that masks leave some out.
const LONG: [&str; 2] = ["train.sequence=160", "train.global_micro_batches=4"];

#[test]
fn attentions() -> Result<()> {
    let at = Folder::new()?;
    let site = Site::new(&at, 4)?;
    let forms: [(&str, &[&str]); 8] = [
        ("window, alibi", &["model.attention={kind: window, window: 24}", "model.positions=alibi"]),
        (
            "longformer, sinusoids",
            &[
                "model.attention={kind: longformer, window: 12, global: 3}",
                "model.positions=sinusoidal",
                "model.architecture=encoder",
            ],
        ),
        (
            "bigbird, relative",
            &[
                "model.attention={kind: bigbird, block: 8, window: 3, global: 1, last: 1, random: 2}",
                "model.positions=relative",
                "model.architecture=encoder",
            ],
        ),
        (
            "bigbird, causal, geglu",
            &[
                "model.attention={kind: bigbird, block: 8, window: 3, global: 1, random: 2}",
                "model.activation=geglu",
                "model.rope_scaling={kind: yarn, factor: 4, original: 40}",
            ],
        ),
        (
            "longformer, own projections",
            &[
                "model.attention={kind: longformer, window: 12, global: 3, projections: true}",
                "model.architecture=encoder",
            ],
        ),
        ("compressed", &["model.attention={kind: compressed, window: 20, block: 8}"]),
        ("documents", &["train.separate_documents=true"]),
        ("relative, causal", &["model.positions=relative", "model.activation=relu"]),
    ];
    try_all(forms.into_iter().map(|(name, form)| {
        let model: Vec<_> = LONG.into_iter().chain(form.iter().copied()).collect();
        let rows: [Row; 4] = [
            ("one", (1, 1, 1), &[T4], &[]),
            ("pp2 tp2", (2, 2, 1), &[T4, FULL], &[Bits("one")]),
            ("tp4 split, dropped", (1, 4, 1), &[T4, SEQUENCE, DROP_ATTENTION], &[Differs("one")]),
            ("dropped, one", (1, 1, 1), &[T4, DROP_ATTENTION], &[Bits("tp4 split, dropped")]),
        ];
        // Probabilities are dropped by one kernel for all lists, and at two sites where there are two.
        let rows = if DROPPED.contains(&name) { &rows[..] } else { &rows[..2] };
        hold(&site, &model, rows).context(name)
    }))
}

/// Forms of attention that are held to the bit with dropout too.
const DROPPED: [&str; 3] = ["bigbird, relative", "longformer, own projections", "relative, causal"];

/// Attention whose keys and values are not kept one by one, or are normed: the same bits in every layout.
#[test]
fn attentions_that_keep_less() -> Result<()> {
    let at = Folder::new()?;
    let site = Site::new(&at, 4)?;
    let forms: [(&str, &[&str]); 5] = [
        (
            "qk norm",
            &["model.qk_norm=true", "model.head_dim=8", "model.kv_heads=2", "train.global_micro_batches=4"],
        ),
        ("linear", &["model.attention={kind: linear}", "model.architecture=encoder"]),
        ("linear, documents", &["model.attention={kind: linear}", "train.separate_documents=true"]),
        ("decay", &["model.attention={kind: linear, decay: true}", "model.positions=none"]),
        ("latent", &[LATENT, "model.kv_heads=4"]),
    ];
    let held = forms.into_iter().map(|(name, form)| {
        let rows: [Row; 5] = [
            ("one", (1, 1, 1), &[T4], &[]),
            ("pp2 tp2", (2, 2, 1), &[T4, FULL], &[Bits("one")]),
            ("tp4, split", (1, 4, 1), &[T4, SEQUENCE, ATTENTION], &[Bits("one")]),
            ("bf16", (1, 1, 1), &[T4, BF16], &[Near("one")]),
            ("bf16, pp2 tp2, split", (2, 2, 1), &[T4, BF16, SEQUENCE, ZERO_BUBBLE], &[Bits("bf16")]),
        ];
        let rows = if ["decay", "latent", "qk norm"].contains(&name) { &rows[..] } else { &rows[..3] };
        hold(&site, form, rows).context(name)
    });
    let muon = [LATENT, "model.kv_heads=4", "train.optimizer=muon"];
    let rows: [Row; 2] = [
        ("muon, one", (1, 1, 1), &[T4], &[]),
        ("muon, tp2 dp2, ZeRO", (1, 2, 2), &[T4, ZERO], &[Bits("muon, one")]),
    ];
    try_all(held.chain(std::iter::once_with(|| hold(&site, &muon, &rows))))
}

const LATENT: &str = "model.attention={kind: latent, rank: 24, rope_dim: 4}";

/// T5: norms before blocks, relative positions, one table at three places.
const T5: [&str; 6] = [
    "model.architecture=encoder-decoder",
    "model.encoder_layers=2",
    "model.layers=3",
    "model.positions=relative",
    "model.activation=relu",
    "model.tied_embeddings=true",
];

/// BART: norms after blocks, learned positions and norms in both embeddings; the text is filled in.
const BART: [&str; 10] = [
    "model.architecture=encoder-decoder",
    "model.layers=2",
    "model.positions=learned",
    "model.max_positions=32",
    "model.norm=layer",
    "model.norm_placement=post",
    "model.embedding_norm=true",
    "model.biases=true",
    "model.activation=gelu",
    "train.corruption=infilling",
];

#[test]
fn encoder_decoders() -> Result<()> {
    let at = Folder::new()?;
    let site = Site::new(&at, 6)?;
    try_all([
        hold(
            &site,
            &T5,
            &[
                ("t5, one", (1, 1, 1), &[T4], &[]),
                ("t5, pp2", (2, 1, 1), &[T4], &[Bits("t5, one")]),
                ("t5, pp3", (3, 1, 1), &[T4, FULL], &[Bits("t5, one")]),
                ("t5, pp4, zb-h1", (4, 1, 1), &[T4, ZERO_BUBBLE], &[Bits("t5, one")]),
                ("t5, pp2 tp2, split", (2, 2, 1), &[T4, SEQUENCE, ATTENTION], &[Bits("t5, one")]),
                ("t5, tp2 dp2, ZeRO", (1, 2, 2), &[T4, ZERO], &[Bits("t5, one")]),
                ("t5, bf16", (1, 1, 1), &[T4, BF16], &[Near("t5, one")]),
                ("t5, bf16, pp2 tp2", (2, 2, 1), &[T4, BF16], &[Bits("t5, bf16")]),
                ("t5, dropped", (1, 1, 1), &[T4, DROP, DROP_ATTENTION], &[Differs("t5, one")]),
                ("t5, dropped, pp4", (4, 1, 1), &[T4, DROP, DROP_ATTENTION, FFN], &[Bits("t5, dropped")]),
            ],
        ),
        hold(
            &site,
            &BART,
            &[
                ("bart, one", (1, 1, 1), &[T4], &[]),
                ("bart, pp4", (4, 1, 1), &[T4], &[Bits("bart, one")]),
                ("bart, pp3 tp2, split", (3, 2, 1), &[T4, SEQUENCE, FULL], &[Bits("bart, one")]),
            ],
        ),
    ])
}

/// Many documents of a line or a few, each of which sees itself only: in an encoder, in a decoder, and from a
/// decoder to what its encoder has read.
#[test]
fn many_documents() -> Result<()> {
    let at = Folder::new()?;
    let site = Site::new(&at, 4)?;
    const APART: &str = "train.separate_documents=true";
    let sinusoids = ["model.positions=sinusoidal"];
    let models: [(&str, &[&str]); 3] = [("t5", &T5), ("bart", &BART), ("sinusoids", &sinusoids)];
    try_all(models.into_iter().map(|(name, model)| {
        let folder = Folder::new()?;
        let (documents, mut table) = (folder.documents(120)?, Table::on(&site, &folder));
        let rows: [Row; 3] = [
            ("one", (1, 1, 1), &[T4, SHORT, APART], &[]),
            ("pp2 tp2, split", (2, 2, 1), &[T4, SHORT, SEQUENCE, FULL, APART], &[Bits("one")]),
            ("mixed", (1, 1, 1), &[T4, SHORT], &[Differs("one")]),
        ];
        for row in &rows {
            let run = model.iter().fold(table.job(row), |run, set| run.set(set)).set(&documents);
            table.compare(row.0, &run, row.3).context(name)?;
        }
        table.end().context(name)
    }))
}
