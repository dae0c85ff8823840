//! What a plan says of a rank's memory is what its worker takes: tensors on bytes counted by the allocator, and beside
//! them the resident memory of the process.
#![allow(clippy::print_stdout, reason = "what was measured")]

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use coxswain_core::plan::{Memory, RUNTIME, sketch};
use coxswain_core::spec::{JobText, parse};
use coxswain_tests::{Folder, skip};
use coxswain_types::JobSpec;

/// Activations are most of it, and a step takes some milliseconds.
const JOB: &str = "
name: estimate
model: {layers: 3, dim: 128, heads: 4, kv_heads: 4, ffn: 320, vocab: 1000}
data: {synthetic: {tokens: 20000}}
train: {steps: 2, sequence: 128, micro_batch_size: 2, global_micro_batches: 2, threads: 1}
";

/// The plan may count a tenth more than tensors take, and hardly anything less.
const MOST: f64 = 1.10;
const LEAST: f64 = 0.98;
/// What is not counted at all: of models of a few MiB it is more than a fiftieth.
const SMALL_BYTES: u64 = 64 << 10;

/// A name; pipeline, tensor and data ranks; and what the job has else.
type Row = (&'static str, [u32; 3], &'static [&'static str]);

const ONE: [u32; 3] = [1, 1, 1];

const GPT: [&str; 6] = [
    "model.positions=learned",
    "model.max_positions=128",
    "model.norm=layer",
    "model.biases=true",
    "model.activation=gelu",
    "model.tied_embeddings=true",
];
const T5: [&str; 4] = [
    "model.architecture=encoder-decoder",
    "model.positions=relative",
    "model.activation=relu",
    "train.corruption=infilling",
];
const ENCODER: &str = "model.architecture=encoder";
const WIDE: [&str; 3] = ["model.vocab=8000", "train.sequence=16", "model.layers=2"];

/// What goes wrong first.
const TELLING: &[Row] = &[
    ("wide, short", ONE, &WIDE),
    ("t5, bf16, full", ONE, &[T5[0], T5[1], T5[2], T5[3], "train.precision=bf16", "train.recompute=full"]),
    ("pp2", [2, 1, 1], &["train.global_micro_batches=4"]),
    ("tp2, split", [1, 2, 1], &["layout.sequence_parallel=true"]),
    ("dp2, ZeRO", [1, 1, 2], &["train.global_micro_batches=4", "layout.zero=1", "train.optimizer=muon"]),
];

/// The rest: with these all parts of a model and all layouts have been there.
const ROWS: &[Row] = &[
    ("llama", ONE, &[]),
    (
        "one row, eight runs",
        ONE,
        &["train.micro_batch_size=1", "train.global_micro_batches=8", "train.gradient_groups=8"],
    ),
    ("grouped heads", ONE, &["model.kv_heads=2"]),
    ("bf16", ONE, &["train.precision=bf16"]),
    ("qk norm", ONE, &["model.qk_norm=true", "model.kv_heads=2"]),
    ("tp2, qk norm", [1, 2, 1], &["model.qk_norm=true"]),
    ("fp16", ONE, &["train.precision=fp16", "train.sequence=32", "model.vocab=300"]),
    ("full", ONE, &["train.recompute=full"]),
    ("attention again", ONE, &["train.recompute=attention"]),
    ("ffn again", ONE, &["train.recompute=ffn"]),
    ("dropout", ONE, &["train.dropout=0.1", "train.attention_dropout=0.1", "model.kv_heads=2"]),
    ("muon", ONE, &["train.optimizer=muon", "train.sequence=16"]),
    ("gpt", ONE, &GPT),
    ("post norms", ONE, &["model.norm_placement=post"]),
    ("groups", ONE, &["model.layer_groups=1"]),
    ("wide, short, tied", ONE, &[WIDE[0], WIDE[1], WIDE[2], "model.tied_embeddings=true"]),
    ("wide, short, bf16", ONE, &[WIDE[0], WIDE[1], WIDE[2], "train.precision=bf16"]),
    ("wide, short, muon", ONE, &[WIDE[0], WIDE[1], WIDE[2], "train.optimizer=muon"]),
    ("window", ONE, &["model.attention={kind: window, window: 24}"]),
    ("longformer", ONE, &["model.attention={kind: longformer, window: 12, global: 3}"]),
    (
        "own projections",
        ONE,
        &["model.attention={kind: longformer, window: 12, global: 3, projections: true}", ENCODER],
    ),
    ("bigbird", ONE, &["model.attention={kind: bigbird, block: 8}", ENCODER]),
    ("linear", ONE, &["model.attention={kind: linear}", "model.kv_heads=2"]),
    ("decay", ONE, &["model.attention={kind: linear, decay: true}", "model.positions=none"]),
    ("compressed", ONE, &["model.attention={kind: compressed, window: 20, block: 8}"]),
    ("latent", ONE, &["model.attention={kind: latent, rank: 48, rope_dim: 8}"]),
    ("alibi", ONE, &["model.positions=alibi"]),
    ("masked", ONE, &[ENCODER, "model.activation=gelu"]),
    (
        "albert",
        ONE,
        &[ENCODER, "model.embedding_dim=32", "model.embedding_norm=true", "model.layer_groups=1"],
    ),
    ("sinusoids", ONE, &["model.positions=sinusoidal", "model.embedding_norm=true"]),
    ("t5", ONE, &T5),
    ("four shards", ONE, &["train.tensor_shards=4"]),
    ("four shards, split", ONE, &["train.tensor_shards=4", "layout.sequence_parallel=true"]),
    ("chunks", ONE, &["layout.schedule=interleaved", "layout.chunks=3"]),
    ("zb-h1", ONE, &["layout.schedule=zb-h1"]),
    ("gpipe", ONE, &["layout.schedule=gpipe", "train.global_micro_batches=4"]),
    ("narrow ffn", ONE, &["model.ffn=32"]),
    // Layouts.
    ("tp2", [1, 2, 1], &[]),
    ("dp2", [1, 1, 2], &["train.global_micro_batches=4"]),
    ("pp2, peer replicas, tied", [2, 1, 1], &["recovery.peer_replica=true", "model.tied_embeddings=true"]),
    ("pp2, zb-h1", [2, 1, 1], &["train.global_micro_batches=4", "layout.schedule=zb-h1"]),
    ("pp2 tp2, bf16", [2, 2, 1], &["train.global_micro_batches=4", "train.precision=bf16"]),
    (
        "dp2, ZeRO, bf16",
        [1, 1, 2],
        &["train.global_micro_batches=4", "layout.zero=1", "train.precision=bf16"],
    ),
    ("pp2, t5", [2, 1, 1], &[T5[0], T5[1], T5[2], T5[3], "train.global_micro_batches=4", "model.layers=2"]),
    // The sizes that people train.
    ("long", ONE, &["train.sequence=1024", "train.micro_batch_size=1"]),
    (
        "README",
        ONE,
        &["model={layers: 8, dim: 512, heads: 8, kv_heads: 4, ffn: 1408, vocab: 8192}", "train.sequence=256"],
    ),
    (
        "README, bf16",
        ONE,
        &[
            "model={layers: 8, dim: 512, heads: 8, kv_heads: 4, ffn: 1408, vocab: 8192}",
            "train.sequence=256",
            "train.precision=bf16",
        ],
    ),
    (
        "6 x 256",
        ONE,
        &[
            "model={layers: 6, dim: 256, heads: 4, vocab: 4096}",
            "train.sequence=256",
            "train.global_micro_batches=8",
        ],
    ),
    (
        "2 x 256, vocabulary 32000",
        ONE,
        &["model={layers: 2, dim: 256, heads: 4, vocab: 32000}", "train.sequence=64"],
    ),
    (
        "2 x 512, vocabulary 32000",
        ONE,
        &["model={layers: 2, dim: 512, heads: 8, vocab: 32000}", "train.sequence=64"],
    ),
    ("smollm2", ONE, &["model={preset: smollm2-135m}", "train.sequence=64", "train.micro_batch_size=1"]),
];

fn spec(sets: &[String]) -> Result<JobSpec> {
    let pairs = sets.iter().map(|set| set.split_once('=').context("a set has no `=`"));
    let pairs = pairs.map(|pair| pair.map(|(path, value)| (path.to_owned(), value.to_owned())));
    let sets = pairs.collect::<Result<Vec<_>>>()?;
    parse(&JobText { source: "estimate", text: JOB, sets: &sets, base: Path::new("/") })
        .map_err(|error| anyhow!("{error}"))
}

/// What the plan counts of a rank, what its tensors took at their peak, and what its process held beside them.
struct Measured {
    said: Memory,
    tensors: u64,
    beside: u64,
}

/// Runs a row with real workers.
fn measure(folder: &Folder, (name, [pipeline, tensor, data], changes): &Row) -> Result<Vec<Measured>> {
    let run =
        changes.iter().fold(folder.run(name).layout(*pipeline, *tensor, *data), |run, set| run.set(set));
    run.summary()?;
    let layout = [("pipeline", pipeline), ("tensor", tensor), ("data", data)];
    let layout = layout.map(|(axis, ways)| format!("layout.{axis}={ways}"));
    let sets: Vec<_> = layout.into_iter().chain(changes.iter().map(|set| (*set).to_owned())).collect();
    let plan = sketch(&spec(&sets)?, pipeline * tensor * data)?;
    let (tensors, resident) =
        (run.logged_by_rank("peak_tensor_bytes")?, run.logged_by_rank("peak_rss_bytes")?);
    let memory = plan.memory();
    ensure!(tensors.len() == memory.len(), "{} ranks have logged", tensors.len());
    let ranks = memory.iter().zip(tensors.iter().zip(&resident));
    let measured = |(said, (&tensors, &resident)): (&Memory, (&u64, &u64))| Measured {
        said: *said,
        tensors,
        beside: resident.saturating_sub(tensors),
    };
    Ok(ranks.map(measured).collect())
}

impl Measured {
    /// A line of the table, and whether the plan is off.
    fn verdict(&self, name: &str) -> Option<String> {
        let ratio = self.said.tensor_bytes() as f64 / self.tensors as f64;
        let kib = |bytes: u64| bytes >> 10;
        let line = format!(
            "{name:<28} {:>7} KiB counted {:>7} taken, ratio {ratio:.3} (weights {} gradients {} optimizer {} copies {} \
             activations {}), {} MiB beside",
            kib(self.said.tensor_bytes()),
            kib(self.tensors),
            kib(self.said.weights_bytes),
            kib(self.said.gradients_bytes),
            kib(self.said.optimizer_bytes),
            kib(self.said.copies_bytes),
            kib(self.said.activations_bytes),
            self.beside >> 20,
        );
        println!("{line}");
        let nearly = self.tensors.abs_diff(self.said.tensor_bytes()) <= SMALL_BYTES;
        let fits = (nearly || (LEAST..=MOST).contains(&ratio)) && RUNTIME.contains(&self.beside);
        (!fits).then_some(line)
    }
}

/// Five rows on every change; all of them take minutes.
#[test]
fn a_plan_says_what_each_rank_takes() -> Result<()> {
    let folder = Folder::new()?;
    std::fs::write(folder.job(), JOB)?;
    let mut off = Vec::new();
    for row in TELLING.iter().chain(ROWS.iter().filter(|_| skip::long())) {
        match measure(&folder, row) {
            Ok(ranks) => {
                let names = (0..).map(|rank| format!("{}, rank {rank}", row.0));
                off.extend(ranks.iter().zip(names).filter_map(|(measured, name)| measured.verdict(&name)));
            }
            Err(error) => off.push(format!("{}: {error:#}", row.0)),
        }
    }
    ensure!(off.is_empty(), "{} estimates are off:\n{}", off.len(), off.join("\n"));
    Ok(())
}
