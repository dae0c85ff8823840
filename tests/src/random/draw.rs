//! Values of a random job. They fit each other for the most part; the checks say which do not.

use coxswain_files::hash::draw;

use super::Set;

/// Ranks run as threads of one process.
const RANKS_MAX: u32 = 8;

/// Choices that depend on a seed alone.
struct Draws {
    seed: u64,
    made: u64,
    sets: Vec<Set>,
}

impl Draws {
    fn bits(&mut self) -> u64 {
        self.made += 1;
        draw(self.seed, self.made)
    }

    fn percent(&mut self, share: u64) -> bool {
        self.bits() % 100 < share
    }

    /// A number from `least` to `most`.
    fn number(&mut self, least: u32, most: u32) -> u32 {
        least + (self.bits() % u64::from(most - least + 1)) as u32
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[(self.bits() % choices.len() as u64) as usize]
    }

    fn set(&mut self, path: &str, value: impl std::fmt::Display) {
        self.sets.push((path.to_owned(), value.to_string()));
    }

    /// One of these values at a path, for so many jobs of a hundred.
    fn maybe(&mut self, share: u64, path: &str, choices: &[&str]) {
        if self.percent(share) {
            let value = self.of(choices);
            self.set(path, value);
        }
    }
}

/// What later choices depend on.
struct Shape {
    architecture: &'static str,
    encoder_layers: u32,
    layers: u32,
    heads: u32,
    sequence: u32,
    pooled: bool,
}

/// The values of a seed's job.
pub(super) fn sets(seed: u64) -> Vec<Set> {
    let mut draws = Draws { seed, made: 0, sets: Vec::new() };
    let sequence = if draws.percent(15) { draws.number(120, 200) } else { draws.number(1, 24) };
    // Often a multiple, for split sequences.
    let sequence = if draws.percent(60) { sequence.next_multiple_of(8) } else { sequence };
    let shape = model(&mut draws, sequence);
    data(&mut draws, &shape);
    let micro_batches = train(&mut draws, &shape);
    layout(&mut draws, &shape, micro_batches);
    draws.sets
}

fn model(draws: &mut Draws, sequence: u32) -> Shape {
    let architecture = draws.of(&["decoder", "decoder", "encoder", "encoder-decoder"]);
    let layers = draws.number(1, 4);
    let heads: u32 = draws.of(&[1, 2, 3, 4, 4, 4, 6, 8, 8]);
    let head_dim = draws.of(&[1, 2, 4, 4, 6, 8, 10]);
    draws.set("model.architecture", architecture);
    draws.set("model.layers", layers);
    let two = architecture == "encoder-decoder";
    let encoder_layers = if two { draws.number(1, 3) } else { 0 };
    if two {
        draws.set("model.encoder_layers", encoder_layers);
    }
    draws.set("model.heads", heads);
    if draws.percent(25) {
        draws.set("model.head_dim", head_dim);
        let dim = draws.number(1, 40);
        draws.set("model.dim", dim);
    } else {
        draws.set("model.dim", heads * head_dim);
    }
    if draws.percent(50) {
        let divisors: Vec<u32> = (1..=heads).filter(|n| heads.is_multiple_of(*n)).collect();
        let kv_heads = draws.of(&divisors);
        draws.set("model.kv_heads", kv_heads);
    }
    if draws.percent(60) {
        let ffn = draws.number(1, 80);
        let ffn = if draws.percent(60) { ffn.next_multiple_of(8) } else { ffn };
        draws.set("model.ffn", ffn);
    }
    let vocab = draws.number(270, 330);
    draws.set("model.vocab", vocab);
    positions(draws, sequence);
    draws.maybe(50, "model.norm", &["rms", "layer"]);
    draws.maybe(40, "model.norm_placement", &["pre", "post"]);
    draws.maybe(20, "model.norm_eps", &["1e-12", "1e-6", "0.01"]);
    draws.maybe(
        70,
        "model.activation",
        &["relu", "gelu", "gelu-tanh", "silu", "swiglu", "geglu", "geglu-tanh"],
    );
    draws.maybe(50, "model.biases", &["true", "[qkv]", "[out]", "[ffn]", "[qkv, out]", "[qkv, ffn]"]);
    attention(draws, sequence, head_dim);
    draws.maybe(15, "model.attention_scale", &["0.1", "0.5", "1.0"]);
    draws.maybe(20, "model.embedding_dim", &["2", "7", "8", "24"]);
    draws.maybe(25, "model.token_types", &["1", "2", "3", "9"]);
    draws.maybe(25, "model.embedding_norm", &["true"]);
    draws.maybe(20, "model.embedding_scaled", &["true"]);
    let pooled = architecture == "encoder" && draws.percent(35);
    if pooled {
        draws.set("model.head", "pooled");
        draws.maybe(100, "model.classes", &["2", "3", "17"]);
    } else if architecture == "encoder" {
        draws.maybe(50, "model.head_activation", &["relu", "gelu", "gelu-tanh", "silu"]);
    }
    draws.maybe(20, "model.logit_scale", &["0.25", "2.0"]);
    draws.maybe(40, "model.tied_embeddings", &["true"]);
    if draws.percent(25) {
        let groups = draws.number(1, layers);
        draws.set("model.layer_groups", groups);
    }
    let latent = draws.sets.iter().any(|(path, value)| path == "model.attention.kind" && value == "latent");
    if !latent {
        draws.maybe(20, "model.qk_norm", &["true"]);
    }
    Shape { architecture, encoder_layers, layers, heads, sequence, pooled }
}

fn positions(draws: &mut Draws, sequence: u32) {
    let name = draws.of(&["rope", "rope", "learned", "sinusoidal", "alibi", "relative", "none"]);
    draws.set("model.positions", name);
    match name {
        "rope" => {
            draws.maybe(20, "model.rope_theta", &["1.5", "100.0", "500000.0"]);
            if draws.percent(30) {
                rope_scaling(draws);
            }
        }
        "learned" => {
            let max = sequence + draws.of(&[0, 0, 1, 30]);
            draws.set("model.max_positions", max);
            draws.maybe(40, "model.position_offset", &["1", "2", "5"]);
        }
        "relative" => {
            draws.maybe(60, "model.relative_buckets", &["4", "8", "16", "64"]);
            draws.maybe(60, "model.relative_max_distance", &["3", "9", "20", "40"]);
        }
        _ => {}
    }
}

fn rope_scaling(draws: &mut Draws) {
    let kind = draws.of(&["linear", "llama3", "yarn"]);
    draws.set("model.rope_scaling.kind", kind);
    draws.maybe(100, "model.rope_scaling.factor", &["1.0", "2.0", "8.0"]);
    if kind != "linear" {
        draws.maybe(100, "model.rope_scaling.original", &["5", "16", "64"]);
    }
    let (lower, upper) = if kind == "yarn" { ("beta_slow", "beta_fast") } else { ("low", "high") };
    if kind != "linear" {
        draws.maybe(50, &format!("model.rope_scaling.{lower}"), &["0.5", "2.0"]);
        draws.maybe(50, &format!("model.rope_scaling.{upper}"), &["9.0", "40.0"]);
    }
}

fn attention(draws: &mut Draws, sequence: u32, head_dim: u32) {
    if draws.percent(30) {
        return;
    }
    let kinds =
        ["full", "window", "longformer", "longformer", "bigbird", "linear", "compressed", "latent", "latent"];
    let kind = draws.of(&kinds);
    // Also longer than the sequence.
    let window = draws.number(1, 2 * sequence);
    let few = draws.number(1, 12);
    let some = draws.number(0, 5);
    let flag = draws.percent(50);
    let mut set = |key: &str, value: u32| draws.set(&format!("model.attention.{key}"), value);
    match kind {
        "window" => set("window", window),
        "longformer" => {
            set("window", few);
            set("global", some);
            draws.set("model.attention.projections", flag);
        }
        "bigbird" => {
            let (near, last, random) = (2 * draws.number(0, 3) + 1, draws.number(0, 2), draws.number(0, 4));
            let block = draws.of(&[1, 2, few, 64, 300]);
            let numbers =
                [("block", block), ("window", near), ("global", some), ("last", last), ("random", random)];
            for (key, value) in numbers {
                draws.maybe(85, &format!("model.attention.{key}"), &[&value.to_string()]);
            }
        }
        "linear" => draws.set("model.attention.decay", flag),
        "compressed" => {
            set("window", window);
            set("block", few);
        }
        "latent" => {
            let (rank, rotated) = (draws.number(1, 20), 2 * draws.number(1, (head_dim / 2).max(1)));
            draws.set("model.attention.rank", rank);
            draws.set("model.attention.rope_dim", rotated.min(head_dim.saturating_sub(1) / 2 * 2).max(2));
        }
        _ => {}
    }
    draws.set("model.attention.kind", kind);
}

fn data(draws: &mut Draws, shape: &Shape) {
    let kind = match shape.architecture {
        _ if shape.pooled => "labelled",
        "encoder" => draws.of(&["text", "text", "synthetic"]),
        _ => draws.of(&["text", "text", "pairs", "synthetic"]),
    };
    if kind == "synthetic" {
        draws.maybe(100, "data.synthetic.tokens", &["1500", "4096"]);
        if draws.percent(30) {
            let vocab = draws.number(1, 60);
            draws.set("model.vocab", vocab);
        }
        return;
    }
    draws.set("data.synthetic", "null");
    draws.maybe(60, "data.validation", &["0", "0.02", "0.3"]);
    let path = format!("data.{kind}");
    if kind == "text" {
        draws.maybe(100, &path, &["a.txt", "[a.txt, b.txt]"]);
        draws.maybe(30, "train.separate_documents", &["true"]);
        draws.maybe(40, "train.whole_words", &["true"]);
        draws.maybe(50, "train.corruption", &["spans", "infilling"]);
        return;
    }
    let weighted = draws.percent(40);
    let file = if weighted { format!("{kind}-weights.tsv") } else { format!("{kind}.tsv") };
    draws.set(&path, file);
    if weighted {
        draws.set("data.weights", true);
    }
    if kind == "labelled" {
        // The lines are of the classes `0` and `1`, which are names here.
        draws.maybe(40, "data.classes", &["['1', '0']", "['1', 'x', '0']"]);
    }
}

/// Micro-batches of a step.
fn train(draws: &mut Draws, shape: &Shape) -> u32 {
    let micro_batches = draws.number(1, 6);
    draws.set("train.sequence", shape.sequence);
    draws.maybe(70, "train.micro_batch_size", &["1", "2", "3"]);
    draws.set("train.global_micro_batches", micro_batches);
    draws.maybe(60, "train.seed", &["0", "2", "77", "18446744073709551615"]);
    if draws.percent(15) {
        draws.set("train.reduction", "fast");
    } else if draws.percent(50) {
        let runs = draws.number(1, micro_batches);
        draws.set("train.gradient_groups", runs);
    }
    let precision = draws.of(&["fp32", "fp32", "fp32", "bf16", "fp16"]);
    draws.set("train.precision", precision);
    if precision == "fp16" {
        draws.maybe(80, "train.initial_loss_scale", &["1", "256", "1024", "16777216"]);
        draws.maybe(30, "train.loss_scale_growth_steps", &["1", "2"]);
    }
    draws.maybe(20, "train.non_finite_max", &["3", "5"]);
    draws.maybe(15, "train.threads", &["2", "3"]);
    draws.maybe(40, "train.dropout", &["0.1", "0.5", "0.9"]);
    draws.maybe(35, "train.attention_dropout", &["0.1", "0.7"]);
    draws.maybe(
        60,
        "train.recompute",
        &["full", "attention", "ffn", "none", "{budget: 700KiB}", "{budget: 1MiB}"],
    );
    if draws.percent(40) {
        draws.set("train.optimizer", "muon");
        draws.maybe(40, "train.momentum", &["0", "0.5", "0.99"]);
    }
    draws.maybe(50, "train.learning_rate", &["1e-5", "0.001", "0.01"]);
    draws.maybe(20, "train.min_learning_rate", &["0", "1e-6"]);
    draws.maybe(50, "train.learning_rate_schedule", &["cosine", "linear", "wsd", "constant"]);
    draws.maybe(20, "train.decay_steps", &["0", "1", "2"]);
    draws.maybe(40, "train.warmup_steps", &["0", "1", "2"]);
    draws.maybe(25, "train.betas", &["[0.0, 0.0]", "[0.8, 0.999]"]);
    draws.maybe(20, "train.eps", &["1e-12", "0.001"]);
    draws.maybe(30, "train.weight_decay", &["0", "1.0"]);
    draws.maybe(40, "train.clip_norm", &["0", "0.01", "100.0"]);
    draws.maybe(40, "train.validate_every", &["1", "2", "3"]);
    draws.maybe(25, "train.parameter_norms", &["true"]);
    draws.maybe(40, "train.mask_rate", &["0.02", "0.15", "0.5", "0.97"]);
    draws.maybe(20, "checkpoint.every", &["1", "2"]);
    draws.maybe(10, "checkpoint.every_minutes", &["0", "1"]);
    draws.maybe(15, "checkpoint.keep", &["1"]);
    draws.maybe(15, "priority", &["-3", "9"]);
    micro_batches
}

fn layout(draws: &mut Draws, shape: &Shape, micro_batches: u32) {
    let shards: u32 = draws.of(&[0, 1, 2, 2, 4, 4, 8]);
    if shards > 0 {
        draws.set("train.tensor_shards", shards);
    }
    // Two ranks or more along each axis that can have them are rare by chance.
    let least = if draws.percent(20) { 2 } else { 1 };
    let most = if least == 2 { 2 } else { 4 };
    let divisors: Vec<u32> = (1..=most.min(shape.heads))
        .filter(|n| shape.heads.is_multiple_of(*n) && (shards == 0 || shards.is_multiple_of(*n)))
        .collect();
    let tensor = if least == 2 { divisors.last().copied().unwrap_or(1) } else { draws.of(&divisors) };
    let layers = shape.layers + shape.encoder_layers;
    let pipelines = layers.min(most).min(RANKS_MAX / tensor);
    let pipeline = draws.number(least.min(pipelines), pipelines);
    let replicas = micro_batches.min(4).min(RANKS_MAX / (tensor * pipeline));
    let data = draws.number(least.min(replicas), replicas);
    draws.set("layout.pipeline", pipeline);
    draws.set("layout.tensor", tensor);
    draws.set("layout.data", data);
    let schedule = draws.of(&["1f1b", "1f1b", "gpipe", "zb-h1", "interleaved", "custom"]);
    let chunks = draws.number(1, (layers / pipeline).max(1));
    match schedule {
        "custom" if micro_batches.is_multiple_of(data) => {
            let lists = custom(draws, pipeline, chunks, micro_batches / data);
            draws.set("layout.actions", format!("\"{lists}\""));
            draws.set("layout.schedule", schedule);
            if chunks > 1 {
                draws.set("layout.chunks", chunks);
            }
        }
        "custom" => {}
        "interleaved" if layers >= 2 * pipeline => {
            draws.set("layout.schedule", schedule);
            draws.set("layout.chunks", chunks.max(2));
        }
        "interleaved" => {}
        _ => draws.set("layout.schedule", schedule),
    }
    draws.maybe(50, "layout.sequence_parallel", &["true"]);
    draws.maybe(50, "layout.zero", &["1"]);
    draws.maybe(40, "recovery.peer_replica", &["true"]);
    draws.maybe(15, "recovery.on_loss", &["wait", "shrink", "fail"]);
    draws.maybe(15, "recovery.rebalance", &["true"]);
}

/// All forwards, then all backwards, of which some stages split theirs.
fn custom(draws: &mut Draws, pipeline: u32, chunks: u32, micro_batches: u32) -> String {
    let of = |stage: u32, kind: char| (0..micro_batches).map(move |at| format!("{stage}{kind}{at}"));
    let mut lines = Vec::new();
    for rank in 0..pipeline {
        let stages: Vec<u32> = (0..chunks).map(|chunk| chunk * pipeline + rank).collect();
        let mut list: Vec<String> = stages.iter().flat_map(|stage| of(*stage, 'F')).collect();
        for &stage in stages.iter().rev() {
            if draws.percent(50) {
                list.extend(of(stage, 'I').chain(of(stage, 'W')));
            } else {
                list.extend(of(stage, 'B'));
            }
        }
        lines.push(list.join(","));
    }
    lines.join("\\n")
}
