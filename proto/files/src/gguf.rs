//! Models in GGUF files: a decoder of LLaMA's kind, its quantized numbers as f32s, and its tokenizer.
//!
//! - `header`: what a file says of itself, with limits on everything.
//! - `blocks`: quantized numbers.
//! - `tokens`: the tokenizer as a `tokenizer.json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use coxswain_types::model::{ModelSpec, NormSpec, Positions, RopeScaling};
use coxswain_types::params::{Parameter, parameter_table};

mod blocks;
mod header;
#[cfg(test)]
mod tests;
mod tokens;

use header::{Header, TensorInfo};

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file could not be read.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file says what cannot be.
    #[error("{path} is damaged: {what}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it says.
        what: String,
    },
    /// The file holds a model that this program does not know.
    #[error("{path}: {what}", path = path.display())]
    Unknown {
        /// The file.
        path: PathBuf,
        /// What it holds.
        what: String,
    },
}

/// An open file.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    file: File,
    header: Header,
    model: ModelSpec,
    parameters: BTreeMap<String, (Parameter, String)>,
}

impl Gguf {
    /// Reads the header of a file, and checks that every parameter is there in its shape.
    ///
    /// # Errors
    /// [`GgufError`], naming the key or the tensor.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let header =
            Header::read(&file, bytes).map_err(|what| GgufError::Damaged { path: path.to_owned(), what })?;
        let unknown = |what: String| GgufError::Unknown { path: path.to_owned(), what };
        let model = model(&header).map_err(unknown)?;
        let mut parameters = BTreeMap::new();
        for parameter in parameter_table(&model) {
            let name = theirs(&parameter.name)
                .ok_or_else(|| unknown(format!("there is no place for {}", parameter.name)))?;
            let wanted: Vec<u64> = parameter.shape.iter().rev().copied().collect();
            match header.tensors.get(&name) {
                Some(tensor) if tensor.dims == wanted => {}
                Some(tensor) => {
                    return Err(unknown(format!(
                        "{name} has the sizes {:?}, wanted {wanted:?}",
                        tensor.dims
                    )));
                }
                None => return Err(unknown(format!("{name} is not there"))),
            }
            parameters.insert(parameter.name.clone(), (parameter, name));
        }
        Ok(Gguf { path: path.to_owned(), file, header, model, parameters })
    }

    /// The model.
    pub fn model(&self) -> &ModelSpec {
        &self.model
    }

    /// The numbers, row by row, of the slab `offset..offset + len` along `dim` of a parameter, by its name
    /// here; only the rows that it needs are read.
    ///
    /// # Errors
    /// [`GgufError`] for what is not there and what cannot be read.
    pub fn read(&self, name: &str, dim: u8, offset: u64, len: u64) -> Result<Vec<f32>, GgufError> {
        let missing = || GgufError::Unknown {
            path: self.path.clone(),
            what: format!("there is no slab {offset}+{len} along {dim} of {name}"),
        };
        let (parameter, theirs) = self.parameters.get(name).ok_or_else(missing)?;
        let tensor = self.header.tensors.get(theirs).ok_or_else(missing)?;
        let size = parameter.shape.get(usize::from(dim)).copied().unwrap_or(0);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(missing());
        }
        if parameter.shape.len() == 1 {
            let all = self.row(tensor, 0, parameter.shape[0])?;
            return Ok(all[offset as usize..(offset + len) as usize].to_vec());
        }
        let (rows, cols) = (parameter.shape[0], parameter.shape[1]);
        let wanted = if dim == 0 { offset..offset + len } else { 0..rows };
        let mut values = Vec::new();
        for row in wanted {
            let row = self.row(tensor, self.stored_row(name, row), cols)?;
            match dim {
                0 => values.extend(row),
                _ => values.extend(&row[offset as usize..(offset + len) as usize]),
            }
        }
        Ok(values)
    }

    /// Where a row of ours lies. Queries and keys are rotated in neighbouring pairs there, and in halves
    /// here: row `2 i + s` of a head there is row `s k/2 + i` here.
    fn stored_row(&self, name: &str, row: u64) -> u64 {
        if !name.contains("q_proj") && !name.contains("k_proj") {
            return row;
        }
        let head = u64::from(self.model.head_dim);
        let (first, within) = (row / head * head, row % head);
        first + 2 * (within % (head / 2)) + within / (head / 2)
    }

    fn row(&self, tensor: &TensorInfo, row: u64, cols: u64) -> Result<Vec<f32>, GgufError> {
        let bytes = tensor.format.bytes(cols);
        let mut stored = vec![0; bytes as usize];
        let from = self.header.data_start + tensor.offset + row * bytes;
        let io = |source| GgufError::Io { path: self.path.clone(), source };
        self.file.read_exact_at(&mut stored, from).map_err(io)?;
        Ok(tensor.format.floats(&stored))
    }

    /// The tokenizer as a `tokenizer.json`.
    ///
    /// # Errors
    /// [`GgufError::Unknown`] for tokenizers of other kinds.
    pub fn tokenizer_json(&self) -> Result<String, GgufError> {
        tokens::json(&self.header.meta).map_err(|what| GgufError::Unknown { path: self.path.clone(), what })
    }

    /// The token that ends a text.
    pub fn end_of_text(&self) -> Option<u32> {
        let named = |text: &str| tokens::id_of(&self.header.meta, text);
        named("<|endoftext|>").or_else(|| self.header.meta.count("tokenizer.ggml.eos_token_id"))
    }
}

/// The name of a parameter there.
fn theirs(ours: &str) -> Option<String> {
    match ours {
        "model.embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "model.norm.weight" => return Some("output_norm.weight".to_owned()),
        "lm_head.weight" => return Some("output.weight".to_owned()),
        _ => {}
    }
    let (layer, part) = ours.strip_prefix("model.layers.")?.split_once('.')?;
    let part = match part.strip_suffix(".weight")? {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return None,
    };
    Some(format!("blk.{layer}.{part}.weight"))
}

fn model(header: &Header) -> Result<ModelSpec, String> {
    let meta = &header.meta;
    let architecture = meta.text("general.architecture").unwrap_or_default();
    if architecture != "llama" {
        return Err(format!("it holds a model of the kind `{architecture}`; `llama` can be read"));
    }
    let need = |key: &str| {
        let count = meta.count(&format!("llama.{key}")).filter(|n| *n > 0);
        count.ok_or_else(|| format!("llama.{key} is missing"))
    };
    let (dim, heads) = (need("embedding_length")?, need("attention.head_count")?);
    let kv_heads = meta.count("llama.attention.head_count_kv").unwrap_or(heads);
    let head_dim = meta.count("llama.attention.key_length").unwrap_or(dim / heads);
    if meta.count("llama.rope.dimension_count").is_some_and(|rotated| rotated != head_dim) {
        return Err("only a part of each head is rotated".to_owned());
    }
    if meta.text("llama.rope.scaling.type").is_some_and(|kind| kind != "none")
        || header.tensors.contains_key("rope_freqs.weight")
    {
        return Err(
            "its rotary positions are scaled, which cannot be read from GGUF; take its Hugging Face form"
                .to_owned(),
        );
    }
    let vocab = header.tensors.get("token_embd.weight").and_then(|tensor| tensor.dims.get(1).copied());
    let vocab = vocab.and_then(|n| u32::try_from(n).ok()).ok_or("token_embd.weight is not there")?;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || head_dim == 0 || head_dim % 2 == 1 {
        return Err(format!(
            "{heads} heads, {kv_heads} key/value heads of width {head_dim} make no attention"
        ));
    }
    let plain =
        ModelSpec::llama(need("block_count")?, dim, heads, kv_heads, need("feed_forward_length")?, vocab);
    let theta = meta.number("llama.rope.freq_base").unwrap_or(1e4);
    Ok(ModelSpec {
        head_dim,
        attention_scale: f64::from(head_dim).powf(-0.5),
        positions: Positions::Rope { theta, scaling: RopeScaling::None },
        norm: NormSpec {
            eps: meta.number("llama.attention.layer_norm_rms_epsilon").unwrap_or(1e-5),
            ..plain.norm
        },
        tied_embeddings: !header.tensors.contains_key("output.weight"),
        ..plain
    })
}
