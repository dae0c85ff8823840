//! Exports of a small model of every family, with their tokenizers and losses, for `tests/parity/load.py`: it loads
//! them with the `transformers` library and compares.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use coxswain_files::Tokenizer;
use coxswain_files::hf::{self, HfError, Kept, Said};
use coxswain_files::tokenizer::END_OF_TEXT_ID;
use coxswain_tests::skip;
use coxswain_tests::threads::on_threads;
use coxswain_types::JobSpec;
use coxswain_types::framing::Framing;
use coxswain_types::job::reserved_tokens;
use coxswain_types::model::{Head, ModelSpec};
use coxswain_types::params::parameter_table;
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::{assignments, model_of, rank};

const NAMES: [&str; 14] = [
    "gpt2",
    "llama3",
    "yarn",
    "mistral",
    "qwen2",
    "qwen3",
    "bert",
    "roberta",
    "albert",
    "big_bird",
    "longformer",
    "bert_classes",
    "t5",
    "bart",
];

/// A vocabulary with room for all bytes.
const VOCAB: i64 = 400;
const ROWS: i64 = 2;
const TOKENS: i64 = 12;

const TEXTS: [&str; 5] = [
    "",
    "The boat goes on and on.",
    "  two  blanks\tand\n\nlines\r\n",
    "Größe naïve 你好 🚣!",
    "it is 12345 o'clock, they'll say: and again, and again, and once more, for as long as it takes",
];

#[test]
fn every_family_is_exported() -> Result<()> {
    let Some(folder) = std::env::var_os("COXSWAIN_PARITY") else {
        // It loads what this writes with the transformers library.
        skip::left_to("cargo xtask parity");
        return Ok(());
    };
    let folder = PathBuf::from(folder).join("exports");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    for (seed, name) in (0..).zip(NAMES) {
        export(&folder, name, seed, None).context(name)?;
    }
    // Of an import whose positions were scaled in another way, and said so in a key that stands alone.
    let text = fs::read(folder.join("yarn/config.json"))?;
    let mut config: Map<String, Value> = serde_json::from_slice(&text)?;
    for key in ["rope_scaling", "rope_parameters"] {
        config[key]["original_max_position_embeddings"] = json!(8);
    }
    config.insert("original_max_position_embeddings".to_owned(), json!(8));
    export(&folder, "yarn", 99, Some(&Kept { config, ..Kept::default() }))
}

fn export(folder: &Path, name: &str, seed: i64, kept: Option<&Kept>) -> Result<()> {
    let (model, more) = model_of(name);
    let model = model.replace("vocab: 48", &format!("vocab: {VOCAB}"));
    let assignments = assignments((&model, &more), 1, 1)?;
    let JobSpec { model, train, .. } = &assignments[0].spec;
    let name = if kept.is_some() { format!("{name}, imported") } else { name.to_owned() };
    let tensors = fixture(model, seed);
    let pairs: Vec<_> = tensors.iter().collect();
    Tensor::write_safetensors(&pairs, folder.join(format!("{name}.safetensors")))?;
    let at = format!("exports/{name}");
    let ranks = on_threads(&assignments, |a, store| rank(a, store, &at))?;
    let loss = ranks.iter().map(|(loss, _)| *loss).fold(0.0, f64::max);

    let tokenizer =
        Tokenizer::train(&[&coxswain_tests::text(300)], VOCAB as u32 - reserved_tokens(model, train))?;
    let longest = matches!(model.head, Head::Pooled { .. }).then_some(train.sequence);
    let framing = Framing { longest, ..Framing::own(model, train, END_OF_TEXT_ID) };
    let class_names = ["bad", "fair", "good"].map(str::to_owned);
    let said = Said {
        model,
        framing: &framing,
        tokenizer: Some(&tokenizer),
        class_names: &class_names,
        trained: Some(train.sequence),
        kept,
    };
    let out = folder.join(&name);
    fs::create_dir(&out)?;
    let mut read = |name: &str, dim: u8, offset: u64, len: u64| -> Result<Vec<f32>, HfError> {
        let missing = || HfError::Tensor(format!("the model has no {name}"));
        let whole = tensors.get(&format!("w/{name}")).ok_or_else(missing)?;
        let slab = whole.narrow(i64::from(dim), offset as i64, len as i64).contiguous().flatten(0, -1);
        Vec::try_from(&slab).map_err(|error: tch::TchError| HfError::Tensor(error.to_string()))
    };
    hf::export(&out, &said, u64::MAX, &mut read)?;
    let form = hf::form(model, kept, Some(&framing))?;
    let expected = json!({
        "class": form.class,
        "loss": loss,
        "texts": texts(&out, &tokenizer, &framing)?,
        "decoder_start": (model.encoder_layers > 0).then(|| framing.decoder_begin().first().copied()),
        "classes": matches!(model.head, Head::Pooled { .. }).then_some(class_names),
        "mask": framing.sentinels.map(|sentinels| sentinels.first),
    });
    fs::write(out.join("expected.json"), expected.to_string())?;
    println!("{name:<14} {} with a loss of {loss:.6}", form.class);
    Ok(())
}

/// Random weights and tokens, under the names that fixtures have.
fn fixture(model: &ModelSpec, seed: i64) -> BTreeMap<String, Tensor> {
    tch::manual_seed(seed);
    let options = (Kind::Float, tch::Device::Cpu);
    let weights = parameter_table(model).into_iter().map(|parameter| {
        let shape: Vec<i64> = parameter.shape.iter().map(|&n| n as i64).collect();
        let norm = shape.len() == 1 && parameter.name.ends_with("weight");
        let centre = if norm { 1.0 } else { 0.0 };
        (format!("w/{}", parameter.name), Tensor::randn(shape.as_slice(), options) * 0.2 + centre)
    });
    let mut tensors: BTreeMap<String, Tensor> = weights.collect();
    // Neither padding nor what stands for other tokens.
    let draw = |len: i64| Tensor::randint_low(2, 256, [ROWS, len], (Kind::Int64, tch::Device::Cpu));
    let ids = draw(TOKENS + 1);
    let targets = match model.head {
        Head::Pooled { classes } => ids.narrow(1, TOKENS, 1).remainder(i64::from(classes)),
        Head::Lm | Head::MaskedLm { .. } => ids.narrow(1, 1, TOKENS),
    };
    tensors.insert("ids".to_owned(), ids.narrow(1, 0, TOKENS).contiguous());
    tensors.insert("targets".to_owned(), targets.contiguous());
    if model.encoder_layers > 0 {
        tensors.insert("source".to_owned(), draw(TOKENS));
    }
    tensors
}

/// Texts, their tokens in their frame, and the tokens of the longest one, cut.
fn texts(out: &Path, tokenizer: &Tokenizer, framing: &Framing) -> Result<Value> {
    let words: Value = serde_json::from_slice(&fs::read(out.join("tokenizer_config.json"))?)?;
    let most = words["model_max_length"].as_u64().map(|most| most as u32);
    let mut all = Vec::new();
    for text in TEXTS {
        let ids = tokenizer.encode(text)?;
        let (whole, cut) = (framing.whole(&ids, None), framing.whole(&ids, most));
        let fits = most.map_or(whole.len(), |most| whole.len().min(most as usize));
        ensure!(
            cut.len() == fits,
            "`{text}` is cut to {} tokens, at most {most:?} of {}",
            cut.len(),
            whole.len()
        );
        all.push(json!([text, whole, cut]));
    }
    Ok(all.into())
}
