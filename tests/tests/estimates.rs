//! What a plan says of a rank's memory is what its tensors take, on bytes counted by the allocator.
//!
//! Jobs of one rank run in this process, one after the other; those of several in processes of their own.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use coxswain_comm::MemoryStore;
use coxswain_core::plan::{Memory, sketch};
use coxswain_core::spec::{JobText, parse};
use coxswain_engine::{Control, Engine, Event};
use coxswain_files::prepare;
use coxswain_native::memory;
use coxswain_tests::Folder;
use coxswain_types::{JobSpec, Step};

/// Activations are most of it, and a step takes some milliseconds.
const JOB: &str = "
name: estimate
model: {layers: 3, dim: 128, heads: 4, kv_heads: 4, ffn: 320, vocab: 1000}
data: {synthetic: {tokens: 20000}}
train: {steps: 2, sequence: 128, micro_batch: 2, micro_batches: 2, threads: 1}
";

/// The plan may say so much too much, and hardly anything too little.
const MOST: f64 = 1.10;
const LEAST: f64 = 0.98;

type Row = (&'static str, &'static [&'static str]);

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

const ROWS: &[Row] = &[
    ("llama", &[]),
    ("one row, eight runs", &["train.micro_batch=1", "train.micro_batches=8", "train.reduction_runs=8"]),
    ("grouped heads", &["model.kv_heads=2"]),
    ("bf16", &["train.precision=bf16"]),
    ("fp16", &["train.precision=fp16", "train.sequence=32", "model.vocab=300"]),
    ("full", &["train.checkpointing=full"]),
    ("attention again", &["train.checkpointing=attention"]),
    ("ffn again", &["train.checkpointing=ffn"]),
    ("dropout", &["train.dropout=0.1", "train.attention_dropout=0.1", "model.kv_heads=2"]),
    ("muon", &["train.optimizer=muon", "train.sequence=16"]),
    ("gpt", &GPT),
    ("post norms", &["model.norm_placement=post"]),
    ("groups", &["model.layer_groups=1"]),
    ("wide, short", &WIDE),
    ("wide, short, tied", &[WIDE[0], WIDE[1], WIDE[2], "model.tied_embeddings=true"]),
    ("wide, short, bf16", &[WIDE[0], WIDE[1], WIDE[2], "train.precision=bf16"]),
    ("wide, short, muon", &[WIDE[0], WIDE[1], WIDE[2], "train.optimizer=muon"]),
    ("window", &["model.attention={kind: window, window: 24}"]),
    ("longformer", &["model.attention={kind: longformer, window: 12, global: 3}"]),
    (
        "own projections",
        &["model.attention={kind: longformer, window: 12, global: 3, projections: true}", ENCODER],
    ),
    ("bigbird", &["model.attention={kind: bigbird, block: 8}", ENCODER]),
    ("linear", &["model.attention={kind: linear}", "model.kv_heads=2"]),
    ("decay", &["model.attention={kind: linear, decay: true}", "model.positions=none"]),
    ("compressed", &["model.attention={kind: compressed, window: 20, block: 8}"]),
    ("latent", &["model.attention={kind: latent, rank: 48, rope_dim: 8}"]),
    ("alibi", &["model.positions=alibi"]),
    ("masked", &[ENCODER, "model.activation=gelu"]),
    ("albert", &[ENCODER, "model.embedding_dim=32", "model.embedding_norm=true", "model.layer_groups=1"]),
    ("sinusoids", &["model.positions=sinusoidal", "model.embedding_norm=true"]),
    ("t5", &T5),
    ("t5, bf16, full", &[T5[0], T5[1], T5[2], T5[3], "train.precision=bf16", "train.checkpointing=full"]),
    ("four shards", &["train.tensor_shards=4"]),
    ("four shards, split", &["train.tensor_shards=4", "layout.sequence_parallel=true"]),
    ("chunks", &["layout.schedule=interleaved", "layout.chunks=3"]),
    ("zb-h1", &["layout.schedule=zb-h1"]),
    ("gpipe", &["layout.schedule=gpipe", "train.micro_batches=4"]),
    ("narrow ffn", &["model.ffn=32"]),
];

/// Layouts: pipeline, tensor and data ranks.
const LAYOUTS: &[(&str, (u32, u32, u32), &[&str])] = &[
    ("pp2", (2, 1, 1), &["train.micro_batches=4"]),
    ("tp2", (1, 2, 1), &[]),
    ("tp2, split", (1, 2, 1), &["layout.sequence_parallel=true"]),
    ("dp2", (1, 1, 2), &["train.micro_batches=4"]),
    ("dp2, ZeRO", (1, 1, 2), &["train.micro_batches=4", "layout.zero=1", "train.optimizer=muon"]),
    ("pp2, buddies, tied", (2, 1, 1), &["recovery.buddy=true", "model.tied_embeddings=true"]),
];

/// What takes longer than a test may: the sizes that people train.
const LARGE: &[Row] = &[
    (
        "README",
        &["model={layers: 8, dim: 512, heads: 8, kv_heads: 4, ffn: 1408, vocab: 8192}", "train.sequence=256"],
    ),
    (
        "README, bf16",
        &[
            "model={layers: 8, dim: 512, heads: 8, kv_heads: 4, ffn: 1408, vocab: 8192}",
            "train.sequence=256",
            "train.precision=bf16",
        ],
    ),
    (
        "6 x 256",
        &[
            "model={layers: 6, dim: 256, heads: 4, vocab: 4096}",
            "train.sequence=256",
            "train.micro_batches=8",
        ],
    ),
    (
        "2 x 256, vocabulary 32000",
        &["model={layers: 2, dim: 256, heads: 4, vocab: 32000}", "train.sequence=64"],
    ),
    (
        "2 x 512, vocabulary 32000",
        &["model={layers: 2, dim: 512, heads: 8, vocab: 32000}", "train.sequence=64"],
    ),
    ("smollm2", &["model={preset: smollm2-135m}", "train.sequence=64", "train.micro_batch=1"]),
];

struct Silent;

impl Control for Silent {
    fn wish(&self) -> (u64, Step) {
        (1, Step(u64::MAX))
    }

    fn tell(&self, _: Event) {}
}

fn spec(sets: &[&str]) -> Result<JobSpec> {
    let pairs = sets.iter().map(|set| set.split_once('=').context("a set has no `=`"));
    let pairs = pairs.map(|pair| pair.map(|(path, value)| (path.to_owned(), value.to_owned())));
    let sets = pairs.collect::<Result<Vec<_>>>()?;
    parse(&JobText { source: "estimate", text: JOB, sets: &sets, base: Path::new("/") })
        .map_err(|error| anyhow!("{error}"))
}

/// What the plan says and what the tensors of this process took at their peak.
fn measure(sets: &[&str], folder: &Path) -> Result<(Memory, u64)> {
    let spec = spec(sets)?;
    let mut plan = sketch(&spec, 1)?;
    let mut a = plan.assignments.remove(0);
    let directory = tempfile::tempdir_in(folder)?;
    a.data = prepare(directory.path(), &spec)?;
    a.directory = directory.path().to_string_lossy().into_owned();
    memory::install();
    let before = memory::current_bytes();
    let mut engine = Engine::build(a, MemoryStore::default(), "127.0.0.1", "test", &Silent, &mut None)?;
    engine.run(&Silent)?;
    Ok((plan.memory[0], memory::peak_bytes() - before))
}

/// A line of the table, and whether the estimate is off.
fn verdict(name: &str, said: &Memory, measured: u64) -> Option<String> {
    let ratio = said.peak_bytes() as f64 / measured as f64;
    let kib = |bytes: u64| bytes >> 10;
    let line = format!(
        "{name:<28} {:>8} KiB said, {:>8} measured, ratio {ratio:.3} (weights {}, gradients {}, optimizer {}, copies {}, \
         activations {})",
        kib(said.peak_bytes()),
        kib(measured),
        kib(said.parameters_bytes),
        kib(said.gradients_bytes),
        kib(said.optimizer_bytes),
        kib(said.copies_bytes),
        kib(said.activations_bytes),
    );
    println!("{line}");
    (!(LEAST..=MOST).contains(&ratio)).then_some(line)
}

#[test]
fn a_plan_says_what_tensors_take() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let long = std::env::var_os("COXSWAIN_LONG_TESTS").is_some();
    let mut off = Vec::new();
    for (name, sets) in ROWS.iter().chain(LARGE.iter().filter(|_| long)) {
        let (said, measured) = measure(sets, folder.path()).with_context(|| (*name).to_owned())?;
        off.extend(verdict(name, &said, measured));
    }
    ensure!(off.is_empty(), "{} estimates are off:\n{}", off.len(), off.join("\n"));
    Ok(())
}

#[test]
fn a_plan_says_what_the_tensors_of_each_rank_take() -> Result<()> {
    let folder = Folder::new()?;
    std::fs::write(folder.job(), JOB)?;
    let mut off = Vec::new();
    for (name, (pipeline, tensor, data), changes) in LAYOUTS {
        let run = folder.run(name).layout(*pipeline, *tensor, *data);
        let run = changes.iter().fold(run, |run, set| run.set(set));
        run.summary().with_context(|| (*name).to_owned())?;
        let measured = run.logged_by_worker("peak_tensor_bytes")?;
        let layout = [
            format!("layout.pipeline={pipeline}"),
            format!("layout.tensor={tensor}"),
            format!("layout.data={data}"),
        ];
        let sets: Vec<&str> = layout.iter().map(String::as_str).chain(changes.iter().copied()).collect();
        let plan = sketch(&spec(&sets)?, pipeline * tensor * data)?;
        // Workers are as many as ranks, and take them in the order of their names.
        ensure!(measured.len() == plan.memory.len(), "{name}: {} workers", measured.len());
        for (rank, (said, measured)) in plan.memory.iter().zip(&measured).enumerate() {
            off.extend(verdict(&format!("{name}, rank {rank}"), said, *measured));
        }
    }
    ensure!(off.is_empty(), "{} estimates are off:\n{}", off.len(), off.join("\n"));
    Ok(())
}
