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

/// Relative, as sums of fp32 in another order differ.
const LOSS_TOLERANCE: f64 = 1e-6;
/// Of the largest gradient of a parameter.
const GRADIENT_TOLERANCE: f64 = 1e-4;

const JOB: &str = "
name: parity
model: {layers: 2, dim: 16, heads: 4, ffn: 24, vocab: 48}
data: {synthetic: {tokens: 4096}}
train: {steps: 1, sequence: 12, micro_batch: 2, threads: 1, tensor_shards: 2}
";

const GPT2: &str = "{layers: 2, dim: 16, heads: 4, ffn: 24, vocab: 48, positions: learned, max_positions: 32, \
                    norm: layer, activation: gelu-tanh, biases: true, tied_embeddings: true}";
const BERT: &str = "architecture: encoder, layers: 2, dim: 16, heads: 4, ffn: 24, vocab: 48, positions: learned, \
                    max_positions: 32, norm: layer, norm_placement: post, norm_eps: 1e-12, biases: true, \
                    embedding_norm: true, tied_embeddings: true";
const LLAMA: &str = "layers: 2, dim: 16, heads: 4, kv_heads: 2, ffn: 24, vocab: 48";

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

fn hold(name: &str, model: &str) -> Result<()> {
    // Under infilling a decoder's sequence is as long as its encoder's, as in the fixtures.
    let mends = model.contains("encoder-decoder");
    hold_with(name, model, if mends { &[("train.corruption", "infilling")] } else { &[] })
}

fn hold_with(name: &str, model: &str, more: &[(&str, &str)]) -> Result<()> {
    let fixture = Fixture::open(name)?;
    for (pipeline, tensor) in [(1, 1), (2, 2)] {
        let sets: Vec<_> =
            [("model", model.to_owned()), ("layout", format!("{{pipeline: {pipeline}, tensor: {tensor}}}"))]
                .map(|(path, value)| (path.to_owned(), value))
                .into();
        let more = more.iter().map(|(path, value)| ((*path).to_owned(), (*value).to_owned()));
        let sets: Vec<_> = sets.into_iter().chain(more).collect();
        let assignments = assignments_of(JOB, &sets).context(name.to_owned())?;
        let table = parameter_table(&assignments[0].spec.model);
        let ours: Vec<_> = table.iter().map(|parameter| format!("w/{}", parameter.name)).collect();
        let theirs: Vec<_> = fixture.0.keys().filter(|key| key.starts_with("w/")).collect();
        let strange = theirs.iter().find(|theirs| !ours.contains(theirs));
        ensure!(strange.is_none(), "{name}: {strange:?} is no parameter here");

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

#[test]
fn decoders() -> Result<()> {
    hold("gpt2", GPT2)?;
    let llama3 = "rope_scaling: {kind: llama3, factor: 8, low: 1, high: 4, original: 32}";
    hold("llama3", &format!("{{{LLAMA}, {llama3}}}"))?;
    hold("yarn", &format!("{{{LLAMA}, rope_scaling: {{kind: yarn, factor: 4, original: 32}}}}"))?;
    hold("mistral", &format!("{{{LLAMA}, attention: {{kind: window, window: 5}}}}"))?;
    hold("qwen2", &format!("{{{LLAMA}, biases: [qkv], tied_embeddings: true}}"))
}

#[test]
fn encoders() -> Result<()> {
    hold("bert", &format!("{{{BERT}, activation: gelu, token_types: 2}}"))?;
    let roberta = "activation: relu, head_activation: gelu, token_types: 1, position_offset: 2";
    hold("roberta", &format!("{{{BERT}, {roberta}}}"))?;
    let three = BERT.replace("layers: 2", "layers: 3");
    let albert = "activation: gelu-tanh, token_types: 2, embedding_dim: 8, layer_groups: 2";
    hold("albert", &format!("{{{three}, {albert}}}"))?;
    hold("big_bird", &format!("{{{BERT}, activation: gelu-tanh, token_types: 2}}"))?;
    let window = "attention: {kind: longformer, window: 2, global: 1, projections: true}";
    hold("longformer", &format!("{{{BERT}, activation: gelu, token_types: 1, position_offset: 2, {window}}}"))
}

#[test]
fn classes() -> Result<()> {
    let classes = "activation: gelu, token_types: 2, head: pooled, classes: 3";
    let bert = BERT.replace(", tied_embeddings: true", "");
    // Neither is read: the fixture has the weights and the tokens.
    let given = [("data", "{labelled: lines.tsv}"), ("train.start_from", "elsewhere")];
    hold_with("bert_classes", &format!("{{{bert}, {classes}}}"), &given)
}

#[test]
fn encoder_decoders() -> Result<()> {
    let both = "architecture: encoder-decoder, layers: 2, dim: 16, heads: 4, ffn: 24, vocab: 48, tied_embeddings: true";
    let t5 = "positions: relative, relative_buckets: 8, relative_max_distance: 16, norm_eps: 1.0e-6, \
              activation: relu, attention_scale: 1, logit_scale: 0.25";
    hold("t5", &format!("{{{both}, {t5}}}"))?;
    let bart = "positions: learned, max_positions: 32, position_offset: 2, norm: layer, norm_placement: post, \
                activation: gelu, biases: true, embedding_norm: true";
    hold("bart", &format!("{{{both}, {bart}}}"))
}
