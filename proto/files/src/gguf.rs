//! Models in GGUF files: a decoder of LLaMA's kind, its quantized numbers as f32s, and its tokenizer.
//!
//! Every key of a file is followed or known to change no number, and every tensor is read; what is not is an
//! error that names it.
//!
//! - `architecture`: the model that the keys and tensors describe.
//! - `header`: what a file says of itself, with limits on everything.
//! - `blocks`: quantized numbers.
//! - `tokens`: the tokenizer as a `tokenizer.json`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use coxswain_types::framing::Framing;
use coxswain_types::model::ModelSpec;
use coxswain_types::params::{Parameter, parameter_table};

use crate::regular;

mod architecture;
mod blocks;
mod header;
#[cfg(test)]
mod tests;
mod tokens;

use architecture::{GgufArchitecture, theirs};
use header::{GgufHeader, TensorInfo};

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file could not be read.
    #[error("{path}: {cause}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The file contradicts itself.
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
    data: Data,
    /// Whether rows of queries and keys lie in neighbouring pairs.
    paired: bool,
    model: ModelSpec,
    parameters: BTreeMap<String, (Parameter, TensorInfo)>,
    tokenizer_json: String,
    framing: Framing,
}

/// The numbers of a file.
#[derive(Debug)]
struct Data {
    path: PathBuf,
    file: File,
    /// Where they begin.
    start: u64,
}

impl Data {
    fn row(&self, tensor: &TensorInfo, row: u64, cols: u64) -> Result<Vec<f32>, GgufError> {
        let bytes = tensor.format.bytes(cols);
        let mut stored = vec![0; bytes as usize];
        let from = self.start + tensor.offset + row * bytes;
        let io = |cause| GgufError::Io { path: self.path.clone(), cause };
        self.file.read_exact_at(&mut stored, from).map_err(io)?;
        Ok(tensor.format.floats(&stored))
    }
}

/// Keys that say nothing about numbers: of whom a model is, how it was quantized, how a chat is written.
fn changes_nothing(key: &str) -> bool {
    let prefixes = ["general.", "quantize.", "tokenizer.chat_template", "tokenizer.ggml.fim_", "split."];
    let keys = ["tokenizer.huggingface.json", "tokenizer.ggml.token_type_count"];
    prefixes.iter().any(|prefix| key.starts_with(prefix))
        || keys.contains(&key)
        || key.ends_with(".rope.scaling.finetuned")
}

/// The most factors of rotary frequencies: half of the widest head.
const MAX_FREQUENCIES: u64 = 1 << 15;

impl Gguf {
    /// Reads the header of a file, and checks that every parameter is there in its shape, and that nothing else
    /// is there.
    ///
    /// # Errors
    /// [`GgufError`], naming the key or the tensor.
    pub fn open(path: &Path) -> Result<Gguf, GgufError> {
        let io = |cause| GgufError::Io { path: path.to_owned(), cause };
        let (file, metadata) = regular::open(path).map_err(io)?;
        let GgufHeader { meta, mut tensors, data_start } = GgufHeader::read(&file, metadata.len())
            .map_err(|what| GgufError::Damaged { path: path.to_owned(), what })?;
        let data = Data { path: path.to_owned(), file, start: data_start };
        let unknown = |what: String| GgufError::Unknown { path: path.to_owned(), what };
        let frequencies = match tensors.remove("rope_freqs.weight") {
            None => None,
            Some(tensor) => {
                let factors = tensor.dims.iter().product();
                if factors > MAX_FREQUENCIES {
                    return Err(unknown(format!("rope_freqs.weight has {factors} numbers")));
                }
                Some(data.row(&tensor, 0, factors)?)
            }
        };
        let GgufArchitecture { model, paired, longest } =
            GgufArchitecture::read(&meta, &tensors, frequencies.as_deref()).map_err(unknown)?;
        let words = tokens::read(&meta, model.vocab, longest).map_err(unknown)?;
        if let Some(key) = meta.unread().into_iter().find(|key| !changes_nothing(key)) {
            return Err(unknown(format!("unsupported key {key}")));
        }
        let mut parameters = BTreeMap::new();
        for parameter in parameter_table(&model) {
            let name = theirs(&parameter.name)
                .ok_or_else(|| unknown(format!("no GGUF tensor for {}", parameter.name)))?;
            let wanted: Vec<u64> = parameter.shape.iter().rev().copied().collect();
            match tensors.remove(&name) {
                Some(tensor) if tensor.dims == wanted => {
                    parameters.insert(parameter.name.clone(), (parameter, tensor));
                }
                Some(tensor) => {
                    return Err(unknown(format!(
                        "{name} has the sizes {:?}, wanted {wanted:?}",
                        tensor.dims
                    )));
                }
                None => return Err(unknown(format!("{name} is not there"))),
            }
        }
        if let Some(name) = tensors.keys().next() {
            return Err(unknown(format!("unexpected tensor {name}")));
        }
        let (tokenizer_json, framing) = words;
        Ok(Gguf { data, paired, model, parameters, tokenizer_json, framing })
    }

    /// The model.
    pub fn model(&self) -> &ModelSpec {
        &self.model
    }

    /// The tokenizer as a `tokenizer.json`.
    pub fn tokenizer_json(&self) -> &str {
        &self.tokenizer_json
    }

    /// How the model frames a text.
    pub fn framing(&self) -> &Framing {
        &self.framing
    }

    /// The numbers, row by row, of the slab `offset..offset + len` along `dim` of a parameter, by its name
    /// here; only the rows that it needs are read.
    ///
    /// # Errors
    /// [`GgufError`] for what is not there and what cannot be read.
    pub fn read(&self, name: &str, dim: u8, offset: u64, len: u64) -> Result<Vec<f32>, GgufError> {
        let missing = || GgufError::Unknown {
            path: self.data.path.clone(),
            what: format!("there is no slab {offset}+{len} along {dim} of {name}"),
        };
        let (parameter, tensor) = self.parameters.get(name).ok_or_else(missing)?;
        let size = parameter.shape.get(usize::from(dim)).copied().unwrap_or(0);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(missing());
        }
        if parameter.shape.len() == 1 {
            let all = self.data.row(tensor, 0, parameter.shape[0])?;
            return Ok((offset..offset + len).map(|row| all[self.stored_row(name, row) as usize]).collect());
        }
        let (rows, cols) = (parameter.shape[0], parameter.shape[1]);
        let wanted = if dim == 0 { offset..offset + len } else { 0..rows };
        let mut values = Vec::new();
        for row in wanted {
            let row = self.data.row(tensor, self.stored_row(name, row), cols)?;
            match dim {
                0 => values.extend(row),
                _ => values.extend(&row[offset as usize..(offset + len) as usize]),
            }
        }
        Ok(values)
    }

    /// Where a row of ours lies. Queries and keys may be rotated in neighbouring pairs there, and are in halves
    /// here: row `2 i + s` of a head there is row `s k/2 + i` here.
    fn stored_row(&self, name: &str, row: u64) -> u64 {
        if !self.paired || !(name.contains("q_proj") || name.contains("k_proj")) {
            return row;
        }
        let head = u64::from(self.model.head_dim);
        let (first, within) = (row / head * head, row % head);
        first + 2 * (within % (head / 2)) + within / (head / 2)
    }
}
