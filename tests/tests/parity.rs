//! The same losses and gradients as the reference implementations, in one process and cut along the
//! pipeline and tensor axes.
//!
//! `tests/parity/make.py` made the fixtures with the `transformers` library: random weights, tokens, the
//! summed loss, and the gradient of every parameter.
#![allow(clippy::print_stdout, reason = "what was measured")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use coxswain_comm::MemoryStore;
use coxswain_engine::data::MicroBatchData;
use coxswain_tests::threads::{assignments_of, on_threads, step_from};
use coxswain_types::Assignment;
use coxswain_types::params::parameter_table;
use tch::{Kind, Tensor};

#[path = "parity/exports.rs"]
mod exports;

/// Relative, as sums of fp32 in another order differ.
const LOSS_TOLERANCE: f64 = 1e-6;
/// Of the largest gradient of a parameter.
const GRADIENT_TOLERANCE: f64 = 1e-4;

const JOB: &str = "
name: parity
model: {layers: 2, dim: 16, heads: 4, ffn: 24, vocab: 48}
data: {synthetic: {tokens: 4096}}
train: {steps: 1, sequence: 12, micro_batch_size: 2, threads: 1, tensor_shards: 2}
";

const GPT2: &str = "{layers: 2, dim: 16, heads: 4, ffn: 24, vocab: 48, positions: learned, max_positions: 32, \
                    norm: layer, activation: gelu-tanh, biases: true, tied_embeddings: true}";
const BERT: &str = "architecture: encoder, layers: 2, dim: 16, heads: 4, ffn: 24, vocab: 48, positions: learned, \
                    max_positions: 32, norm: layer, norm_placement: post, norm_eps: 1e-12, biases: true, \
                    embedding_norm: true, tied_embeddings: true";
const LLAMA: &str = "layers: 2, dim: 16, heads: 4, kv_heads: 2, ffn: 24, vocab: 48";

const BOTH: &str = "architecture: encoder-decoder, layers: 2, dim: 16, heads: 4, ffn: 24, vocab: 48, \
                    tied_embeddings: true";
const T5: &str = "positions: relative, relative_buckets: 8, relative_max_distance: 16, norm_eps: 1.0e-6, \
                  activation: relu, attention_scale: 1, logit_scale: 0.25";
const BART: &str = "positions: learned, max_positions: 32, position_offset: 2, norm: layer, norm_placement: post, \
                    activation: gelu, biases: true, embedding_norm: true";

struct Fixture(BTreeMap<String, Tensor>);

impl Fixture {
    fn open(name: &str) -> Result<Fixture> {
        // `cargo xtask parity` makes them anew, in a folder of its own.
        let folder = std::env::var_os("COXSWAIN_PARITY").map(PathBuf::from);
        let folder = folder.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("parity"));
        let path = folder.join(format!("{name}.safetensors"));
        let tensors = Tensor::read_safetensors(&path).with_context(|| path.display().to_string())?;
        Ok(Fixture(tensors.into_iter().collect()))
    }

    fn get(&self, name: &str) -> Result<&Tensor> {
        self.0.get(name).with_context(|| format!("the fixture has no {name}"))
    }
}

/// A slice of a parameter: its name, dim and offset, and its gradient.
type Slice = (String, i64, i64, Vec<i64>, Vec<f32>);

/// The summed loss, where this rank has it, and the gradients of its slices.
fn rank(a: &Assignment, store: MemoryStore, name: &str) -> Result<(f64, Vec<Slice>)> {
    tch::set_num_threads(1);
    let fixture = Fixture::open(name)?;
    let (ids, targets) = (fixture.get("ids")?, fixture.get("targets")?.flatten(0, 1));
    let fetch = |_| {
        let tokens = targets.numel() as u64;
        let (ids_bt, targets_n) = (ids.shallow_clone(), targets.shallow_clone());
        let source_bs = fixture.0.get("source").map(Tensor::shallow_clone);
        let (weights_n, weight) = (None, tokens as f64);
        Ok(MicroBatchData {
            source_bs,
            ids_bt,
            targets_n,
            tokens,
            weights_n,
            weight,
            documents: None,
            padded: None,
        })
    };
    let stepped = step_from(a, store, &fetch, &|row| {
        let whole = fixture.get(&format!("w/{}", row.name))?;
        let shape: Vec<i64> = row.shape.iter().map(|&n| n as i64).collect();
        ensure!(whole.size() == shape, "{} is {:?} there, {shape:?} here", row.name, whole.size());
        Ok(whole.narrow(i64::from(row.dim), row.offset as i64, row.len as i64).contiguous())
    })?;
    let mut slices = Vec::new();
    for (at, bucket) in stepped.parameters.buckets().iter().enumerate() {
        for param in bucket.params.iter().filter(|param| param.home) {
            let row = &param.row;
            let grad = param.view_of(stepped.reduction.total(at)?)?.contiguous();
            let values = Vec::<f32>::try_from(&grad.flatten(0, -1))?;
            slices.push((row.name.clone(), row.dim.into(), row.offset as i64, grad.size(), values));
        }
    }
    Ok((stepped.losses.iter().map(|loss| loss.loss).sum(), slices))
}

/// The model of a fixture, and what its job has beside: a path and a value each.
fn model_of(name: &str) -> (String, Vec<(&'static str, &'static str)>) {
    let llama = |more: &str| format!("{{{LLAMA}, {more}}}");
    let bert = |more: &str| format!("{{{BERT}, {more}}}");
    // Under infilling a decoder's sequence is as long as its encoder's, as in the fixtures.
    let infilling = vec![("train.corruption", "infilling")];
    let model = match name {
        "gpt2" => GPT2.to_owned(),
        "llama3" => llama("rope_scaling: {kind: llama3, factor: 8, low: 1, high: 4, original: 32}"),
        "yarn" => llama("rope_scaling: {kind: yarn, factor: 4, original: 32}"),
        "mistral" => llama("attention: {kind: window, window: 5}"),
        "qwen2" => llama("biases: [qkv], tied_embeddings: true"),
        "qwen3" => llama("head_dim: 8, qk_norm: true, norm_eps: 1.0e-6"),
        "bert" => bert("activation: gelu, token_types: 2"),
        "roberta" => bert("activation: relu, head_activation: gelu, token_types: 1, position_offset: 2"),
        // Two groups do not divide three layers.
        "albert" => bert("activation: gelu-tanh, token_types: 2, embedding_dim: 8, layer_groups: 2")
            .replace("layers: 2", "layers: 3"),
        "big_bird" => bert("activation: gelu-tanh, token_types: 2"),
        "longformer" => bert(
            "activation: gelu, token_types: 1, position_offset: 2, \
             attention: {kind: longformer, window: 2, global: 1, projections: true}",
        ),
        "bert_classes" => {
            let model = bert("activation: gelu, token_types: 2, head: pooled, classes: 3");
            // Neither is read: the fixture has the weights and the tokens.
            let given = vec![("data", "{labelled: lines.tsv}"), ("train.start_from", "elsewhere")];
            return (model.replace(", tied_embeddings: true", ""), given);
        }
        "t5" => return (format!("{{{BOTH}, {T5}}}"), infilling),
        _ => return (format!("{{{BOTH}, {BART}}}"), infilling),
    };
    (model, Vec::new())
}

/// The assignments of such a model in a layout.
fn assignments(
    (model, more): (&str, &[(&'static str, &'static str)]),
    pipeline: u32,
    tensor: u32,
) -> Result<Vec<Assignment>> {
    let layout = format!("{{pipeline: {pipeline}, tensor: {tensor}}}");
    let sets = [("model", model), ("layout", &layout)].into_iter().chain(more.iter().copied());
    let sets: Vec<_> = sets.map(|(path, value)| (path.to_owned(), value.to_owned())).collect();
    assignments_of(JOB, &sets)
}

fn hold(name: &str) -> Result<()> {
    let (model, more) = model_of(name);
    let fixture = Fixture::open(name)?;
    for (pipeline, tensor) in [(1, 1), (2, 2)] {
        let assignments = assignments((&model, &more), pipeline, tensor).context(name.to_owned())?;
        let table = parameter_table(&assignments[0].spec.model);
        let ours: Vec<_> = table.iter().map(|parameter| format!("w/{}", parameter.name)).collect();
        let theirs: Vec<_> = fixture.0.keys().filter(|key| key.starts_with("w/")).collect();
        let strange = theirs.iter().find(|theirs| !ours.contains(theirs));
        ensure!(strange.is_none(), "{name}: {strange:?} is not a parameter here");

        let ranks = on_threads(&assignments, |a, store| rank(a, store, name)).context(name.to_owned())?;
        // Tensor ranks of the last stage have the same loss each.
        let loss = ranks.iter().map(|(loss, _)| *loss).fold(0.0, f64::max);
        let wanted = fixture.get("loss")?.double_value(&[]);
        let error = (loss / wanted - 1.0).abs();
        println!("{name:<8} pp{pipeline} tp{tensor}: loss {loss:.6}, off by {error:.1e}");
        ensure!(error < LOSS_TOLERANCE, "{name}: loss {loss}, wanted {wanted}");
        // The gradient of a bias of keys is zero but for rounding: softmax does not see it.
        let gradients = fixture.0.iter().filter(|(key, _)| key.starts_with("g/"));
        let largest = gradients.map(|(_, grad)| grad.abs().max().double_value(&[])).fold(0.0, f64::max);
        let mut worst = (0.0_f64, String::new());
        for (parameter, dim, offset, shape, values) in ranks.iter().flat_map(|(_, slices)| slices) {
            let whole = fixture.get(&format!("g/{parameter}"))?.to_kind(Kind::Double);
            let wanted = whole.narrow(*dim, *offset, shape[*dim as usize]);
            let found = Tensor::from_slice(values).to_kind(Kind::Double).view(shape.as_slice());
            let error = (found - wanted).abs().max().double_value(&[])
                / whole.abs().max().double_value(&[]).max(1e-3 * largest);
            if error > worst.0 || error.is_nan() {
                worst = (error, parameter.clone());
            }
        }
        println!("{name:<8} pp{pipeline} tp{tensor}: gradients off by {:.1e} ({})", worst.0, worst.1);
        ensure!(worst.0 < GRADIENT_TOLERANCE, "{name}: the gradient of {} is off by {:e}", worst.1, worst.0);
    }
    Ok(())
}

fn hold_all(names: &[&str]) -> Result<()> {
    names.iter().try_for_each(|name| hold(name))
}

#[test]
fn decoders() -> Result<()> {
    hold_all(&["gpt2", "llama3", "yarn", "mistral", "qwen2", "qwen3"])
}

#[test]
fn encoders() -> Result<()> {
    hold_all(&["bert", "roberta", "albert", "big_bird", "longformer"])
}

#[test]
fn classes() -> Result<()> {
    hold("bert_classes")
}

#[test]
fn encoder_decoders() -> Result<()> {
    hold_all(&["t5", "bart"])
}
