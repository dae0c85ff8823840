//! Raw structs to a [`JobSpec`]: defaults, limits, and what the numbers must be to each other. All
//! faults are gathered, so that one round of corrections is enough.

use std::path::{Component, Path, PathBuf};

use coxswain_types::JobSpec;
use coxswain_types::job::{
    CheckpointSpec, Checkpointing, DataSpec, Layout, ModelSpec, OptimizerSpec, TrainSpec,
};

use super::error::KeyPath;
use super::limits::{self, Limit};
use super::raw::{Paths, RawCheckpoint, RawData, RawJob, RawLayout, RawModel, RawTrain};

/// The faults found so far.
#[derive(Default)]
struct Faults(Vec<(KeyPath, String)>);

impl Faults {
    fn add(&mut self, path: impl Into<KeyPath>, message: String) {
        self.0.push((path.into(), message));
    }

    /// Checks a count; says whether later rules may rely on it.
    fn count(&mut self, path: &str, found: impl Into<u64>, limit: &Limit) -> bool {
        let found = found.into();
        let Limit { least, most, reason } = *limit;
        let fits = (least..=most).contains(&found);
        if found < least {
            self.add(path, format!("found {found}; must be {least} or more"));
        } else if !fits {
            self.add(path, format!("found {found}; must be {most} or less ({reason})"));
        }
        fits
    }

    /// Checks a number against a rule that is false for NaN.
    fn number(&mut self, path: &str, found: f64, rule: impl Fn(f64) -> bool, must: &str) -> bool {
        let fits = found.is_finite() && rule(found);
        if !fits {
            self.add(path, format!("found {found:?}; must be {must}"));
        }
        fits
    }
}

/// Makes the job, or tells everything that is wrong with it.
pub(super) fn check(raw: RawJob, base: &Path) -> Result<JobSpec, Vec<(KeyPath, String)>> {
    let mut faults = Faults::default();
    check_name(&raw.name, &mut faults);
    let model = model(&raw.model, &mut faults);
    let train = train(&raw.train, &mut faults);
    let data = data(raw.data, base, &model, &train, &mut faults);
    let layout = layout(raw.layout.as_ref(), &model, &train, &mut faults);
    let checkpoint = checkpoint(raw.checkpoint.as_ref(), &mut faults);
    match data {
        Some(data) if faults.0.is_empty() => {
            Ok(JobSpec { name: raw.name, model, data, train, layout, checkpoint })
        }
        _ => Err(faults.0),
    }
}

fn check_name(name: &str, faults: &mut Faults) {
    let first = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let rest = |c: char| first(c) || matches!(c, '.' | '_' | '-');
    if name.len() > limits::NAME_LEN || !name.starts_with(first) || !name.chars().all(rest) {
        let most = limits::NAME_LEN;
        let must = "of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or a digit";
        faults.add("name", format!("found `{name}`; must be 1 to {most} {must}: it names folders"));
    }
}

fn model(raw: &RawModel, faults: &mut Faults) -> ModelSpec {
    let ffn = || u64::from(raw.dim).saturating_mul(8).div_ceil(3 * 64).saturating_mul(64);
    let model = ModelSpec {
        layers: raw.layers,
        dim: raw.dim,
        heads: raw.heads,
        kv_heads: raw.kv_heads.unwrap_or(raw.heads),
        ffn: raw.ffn.unwrap_or_else(|| u32::try_from(ffn()).unwrap_or(u32::MAX)),
        vocab: raw.vocab,
        rope_theta: raw.rope_theta.unwrap_or(10_000.0),
        norm_eps: raw.norm_eps.unwrap_or(1e-5),
    };
    faults.count("model.layers", model.layers, &limits::LAYERS);
    let dim = faults.count("model.dim", model.dim, &limits::DIM);
    let heads = faults.count("model.heads", model.heads, &limits::DIM);
    if dim && heads {
        check_heads(&model, faults);
    }
    if raw.kv_heads.is_some() && faults.count("model.kv_heads", model.kv_heads, &limits::DIM) && heads {
        check_kv_heads(&model, faults);
    }
    if raw.ffn.is_some() {
        faults.count("model.ffn", model.ffn, &limits::FFN);
    }
    faults.count("model.vocab", model.vocab, &limits::VOCAB);
    faults.number("model.rope_theta", model.rope_theta, |x| x > 1.0, "a number above 1");
    faults.number("model.norm_eps", model.norm_eps, |x| x > 0.0 && x < 1.0, "a number above 0 and below 1");
    model
}

fn check_heads(model: &ModelSpec, faults: &mut Faults) {
    let (dim, heads) = (model.dim, model.heads);
    let head_dims_even = |heads: u32| dim.is_multiple_of(heads) && (dim / heads).is_multiple_of(2);
    if head_dims_even(heads) {
        return;
    }
    let such_as = |heads: Option<u32>| heads.map_or(String::new(), |heads| format!(", such as {heads}"));
    let nearest = (1..=dim).filter(|&n| head_dims_even(n)).min_by_key(|n| (n.abs_diff(heads), *n));
    let nearest = such_as(nearest);
    if dim.is_multiple_of(heads) {
        let width = dim / heads;
        let must = "must leave heads of even width, because RoPE rotates pairs";
        let found = format!("found {heads}, which makes heads of width {width}");
        faults.add("model.heads", format!("{found}; {must}{nearest}"));
    } else {
        faults.add("model.heads", format!("found {heads}; must divide model.dim ({dim}){nearest}"));
    }
}

fn check_kv_heads(model: &ModelSpec, faults: &mut Faults) {
    let (heads, found) = (model.heads, model.kv_heads);
    if heads.is_multiple_of(found) {
        return;
    }
    let nearest = (1..=heads).filter(|n| heads.is_multiple_of(*n)).min_by_key(|n| (n.abs_diff(found), *n));
    let such_as = nearest.map_or(String::new(), |n| format!(", such as {n}"));
    let why = "each is shared by equally many query heads";
    faults.add("model.kv_heads", format!("found {found}; must divide model.heads ({heads}): {why}{such_as}"));
}

fn train(raw: &RawTrain, faults: &mut Faults) -> TrainSpec {
    let micro_batches = raw.micro_batches.unwrap_or(1);
    let train = TrainSpec {
        steps: raw.steps,
        seed: raw.seed.unwrap_or(1),
        sequence: raw.sequence,
        micro_batch: raw.micro_batch.unwrap_or(1),
        micro_batches,
        reduction_runs: raw.reduction_runs.unwrap_or(micro_batches.min(8)),
        threads: raw.threads,
        checkpointing: raw.checkpointing.unwrap_or(Checkpointing::None),
        optimizer: optimizer(raw, faults),
        evaluate_every: raw.evaluate_every.unwrap_or(0),
    };
    faults.count("train.steps", train.steps, &limits::STEPS);
    let sequence = faults.count("train.sequence", train.sequence, &limits::SEQUENCE);
    let micro_batch = faults.count("train.micro_batch", train.micro_batch, &limits::MICRO_BATCH);
    let tokens = u64::from(train.sequence) * u64::from(train.micro_batch);
    if sequence && micro_batch && tokens > limits::MICRO_BATCH_TOKENS {
        let most = limits::MICRO_BATCH_TOKENS / u64::from(train.sequence);
        let message = format!(
            "found {}; with a train.sequence of {} must be {most} or less (at most {} tokens at once; more \
             belong into more micro-batches)",
            train.micro_batch,
            train.sequence,
            limits::MICRO_BATCH_TOKENS
        );
        faults.add("train.micro_batch", message);
    }
    let runs_known = faults.count("train.micro_batches", micro_batches, &limits::MICRO_BATCHES);
    if runs_known && !(1..=micro_batches).contains(&train.reduction_runs) {
        let found = train.reduction_runs;
        let why = "a run holds at least one micro-batch";
        faults.add(
            "train.reduction_runs",
            format!("found {found}; must be 1 to train.micro_batches ({micro_batches}): {why}"),
        );
    }
    if let Some(threads) = train.threads {
        faults.count("train.threads", threads, &limits::THREADS);
    }
    train
}

fn optimizer(raw: &RawTrain, faults: &mut Faults) -> OptimizerSpec {
    let learning_rate = raw.learning_rate.unwrap_or(3e-4);
    let [beta1, beta2] = raw.betas.unwrap_or([0.9, 0.95]);
    let optimizer = OptimizerSpec {
        learning_rate,
        min_learning_rate: raw.min_learning_rate.unwrap_or(learning_rate / 10.0),
        warmup_steps: raw.warmup_steps.unwrap_or((raw.steps / 10).min(100)),
        beta1,
        beta2,
        eps: raw.eps.unwrap_or(1e-8),
        weight_decay: raw.weight_decay.unwrap_or(0.1),
        clip_norm: raw.clip_norm.unwrap_or(1.0),
    };
    if faults.number("train.learning_rate", learning_rate, |x| x > 0.0, "a finite number above 0") {
        let must = format!("0 or more and at most train.learning_rate ({learning_rate:?})");
        let fits = |x| x >= 0.0 && x <= learning_rate;
        faults.number("train.min_learning_rate", optimizer.min_learning_rate, fits, &must);
    }
    if optimizer.warmup_steps > raw.steps {
        let found = optimizer.warmup_steps;
        faults
            .add("train.warmup_steps", format!("found {found}; must be at most train.steps ({})", raw.steps));
    }
    for (i, beta) in [beta1, beta2].into_iter().enumerate() {
        if !(0.0..1.0).contains(&beta) {
            faults.add(
                KeyPath::from("train.betas").index(i),
                format!("found {beta:?}; must be 0 or more and below 1"),
            );
        }
    }
    faults.number("train.eps", optimizer.eps, |x| x > 0.0, "a finite number above 0");
    faults.number("train.weight_decay", optimizer.weight_decay, |x| x >= 0.0, "a finite number, 0 or more");
    let clip = "a finite number, 0 or more (0 clips nothing)";
    faults.number("train.clip_norm", optimizer.clip_norm, |x| x >= 0.0, clip);
    optimizer
}

fn data(
    raw: RawData,
    base: &Path,
    model: &ModelSpec,
    train: &TrainSpec,
    faults: &mut Faults,
) -> Option<DataSpec> {
    let held_out = raw.held_out;
    let data = match (raw.text, raw.synthetic) {
        (Some(paths), None) => Some(text(paths, held_out.unwrap_or(0.05), base, model, faults)),
        (None, Some(synthetic)) => {
            if held_out.is_some() {
                faults
                    .add("data.held_out", "goes with data.text only; random tokens hold out nothing".into());
            }
            let enough = u64::from(train.sequence) + 1;
            if faults.count("data.synthetic.tokens", synthetic.tokens, &limits::SYNTHETIC_TOKENS)
                && synthetic.tokens < enough
            {
                let found = synthetic.tokens;
                let why = "a sample and the token after it";
                faults.add(
                    "data.synthetic.tokens",
                    format!("found {found}; must be at least train.sequence + 1 ({enough}): {why}"),
                );
            }
            Some(DataSpec::Synthetic { tokens: synthetic.tokens })
        }
        (Some(_), Some(_)) => {
            faults.add("data", "found both text and synthetic; must have one of them".to_owned());
            None
        }
        (None, None) => {
            faults.add("data", "found neither text nor synthetic; must have one of them".to_owned());
            None
        }
    };
    let nothing_held_out = match &data {
        Some(DataSpec::Text { held_out, .. }) => *held_out == 0.0,
        Some(DataSpec::Synthetic { .. }) => true,
        None => false,
    };
    if nothing_held_out && train.evaluate_every > 0 {
        let found = train.evaluate_every;
        faults.add(
            "train.evaluate_every",
            format!("found {found}; must be 0 where no text is held out: there is nothing to evaluate on"),
        );
    }
    data
}

fn text(paths: Paths, held_out: f64, base: &Path, model: &ModelSpec, faults: &mut Faults) -> DataSpec {
    let least = limits::TEXT_VOCAB;
    if (1..least).contains(&model.vocab) {
        let found = model.vocab;
        let why = "256 bytes and the end-of-text token";
        faults.add("model.vocab", format!("found {found}; with data.text must be {least} or more ({why})"));
    }
    let must = "0 or more and below 0.5 (the share at the end of each file)";
    faults.number("data.held_out", held_out, |x| (0.0..0.5).contains(&x), must);
    let (paths, listed) = match paths {
        Paths::One(path) => (vec![path], false),
        Paths::Many(paths) => (paths, true),
    };
    let most = limits::TEXT_FILES;
    if paths.is_empty() || paths.len() > most {
        faults.add("data.text", format!("found a list of {}; must name 1 to {most} files", paths.len()));
    }
    let mut files = Vec::new();
    for (i, path) in paths.iter().enumerate() {
        let at = KeyPath::from("data.text");
        let at = if listed { at.index(i) } else { at };
        if path.is_empty() {
            faults.add(at, "found an empty path; must name a file".to_owned());
            continue;
        }
        match absolute(base, path) {
            Some(file) => files.push(file),
            None => faults.add(at, format!("`{path}` lies in {}, which is no UTF-8 path", base.display())),
        }
    }
    DataSpec::Text { files, held_out }
}

/// `path` from `base`, without `.` steps. `..` stays: what it means depends on links, which only a
/// file system knows.
fn absolute(base: &Path, path: &str) -> Option<String> {
    let joined = base.join(path);
    let plain: PathBuf = joined.components().filter(|part| *part != Component::CurDir).collect();
    plain.into_os_string().into_string().ok()
}

fn layout(raw: Option<&RawLayout>, model: &ModelSpec, train: &TrainSpec, faults: &mut Faults) -> Layout {
    let value = |pick: fn(&RawLayout) -> Option<u32>| raw.and_then(pick).unwrap_or(1);
    let layout =
        Layout { pipeline: value(|l| l.pipeline), tensor: value(|l| l.tensor), data: value(|l| l.data) };
    let Layout { pipeline, tensor, data } = layout;
    let pipeline_fits = faults.count("layout.pipeline", pipeline, &limits::WORLD);
    let tensor_fits = faults.count("layout.tensor", tensor, &limits::WORLD);
    let data_fits = faults.count("layout.data", data, &limits::WORLD);
    let workers = [pipeline, tensor, data].iter().fold(1_u64, |n, &m| n.saturating_mul(u64::from(m)));
    if pipeline_fits && tensor_fits && data_fits && workers > limits::WORLD.most {
        let Limit { most, reason, .. } = limits::WORLD;
        let product = format!("pipeline {pipeline} x tensor {tensor} x data {data}");
        faults
            .add("layout", format!("needs {workers} workers ({product}); must be {most} or less ({reason})"));
    }
    if pipeline_fits && model.layers > 0 && pipeline > model.layers {
        let layers = model.layers;
        let message = format!(
            "found {pipeline}, more stages than layers; must be at most model.layers ({layers}): each stage \
             holds at least one"
        );
        faults.add("layout.pipeline", message);
    }
    if tensor_fits {
        check_tensor(tensor, model, faults);
    }
    if data_fits && train.micro_batches > 0 && train.reduction_runs > 0 {
        check_data(data, train, faults);
    }
    layout
}

fn check_tensor(tensor: u32, model: &ModelSpec, faults: &mut Faults) {
    let ModelSpec { heads, kv_heads, ffn, vocab, .. } = *model;
    let mut refuse = |must: String| faults.add("layout.tensor", format!("found {tensor}; {must}"));
    if heads > 0 && !heads.is_multiple_of(tensor) {
        let why = "a head is never split, and every rank has as many";
        refuse(format!("must divide model.heads ({heads}): {why}"));
    } else if heads > 0 && kv_heads > 0 {
        // Where tensor ranks are more than key/value heads, each head is held by equally many ranks.
        if !kv_heads.is_multiple_of(tensor) && !tensor.is_multiple_of(kv_heads) {
            let must = format!("must divide model.kv_heads ({kv_heads}) or be a multiple of it");
            refuse(format!("{must}: ranks hold equally many, or share one"));
        }
    }
    if ffn > 0 && tensor > ffn {
        refuse(format!("must be at most model.ffn ({ffn}): each rank holds at least one column"));
    }
    if vocab > 0 && tensor > vocab {
        refuse(format!("must be at most model.vocab ({vocab}): each rank holds at least one token"));
    }
}

fn check_data(data: u32, train: &TrainSpec, faults: &mut Faults) {
    let (micro_batches, runs) = (train.micro_batches, train.reduction_runs);
    if data > micro_batches {
        let why = "each data rank needs at least one micro-batch of the step";
        let must = format!("must be at most train.micro_batches ({micro_batches}): {why}");
        faults.add("layout.data", format!("found {data}, more data ranks than micro-batches; {must}"));
    } else if data > runs {
        let why = "a data rank owns whole runs";
        let must = format!("must be at most train.reduction_runs ({runs}): {why}");
        let hint = format!("train.reduction_runs may be raised to {micro_batches}");
        faults.add("layout.data", format!("found {data}; {must} ({hint})"));
    }
}

fn checkpoint(raw: Option<&RawCheckpoint>, faults: &mut Faults) -> CheckpointSpec {
    let checkpoint = CheckpointSpec {
        every: raw.and_then(|c| c.every).unwrap_or(0),
        keep: raw.and_then(|c| c.keep).unwrap_or(2),
    };
    faults.count("checkpoint.keep", checkpoint.keep, &limits::KEEP);
    checkpoint
}
