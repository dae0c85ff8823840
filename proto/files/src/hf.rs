//! Models in Hugging Face's form: a folder with `config.json` and safetensors files, whose names and
//! layouts are each family's own.
//!
//! Reading and writing go by slabs of single parameters, so no process holds a model. The tokenizer is a
//! file of its own, which is copied by whoever imports ([`crate::tokenizer`]).
//!
//! - `config`: the model that a configuration describes, and back.
//! - `export`: a folder that the `transformers` library loads; `said`: what it says beside the weights.
//! - `framing`: the tokens around a text.
//! - `names`: where each parameter of ours lies.
//! - `store`: tensors in files, by ranges of bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use coxswain_types::model::ModelSpec;
use coxswain_types::params::{Parameter, parameter_table};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

mod config;
mod export;
mod family;
mod framing;
mod names;
mod said;
pub(crate) mod store;
#[cfg(test)]
mod tests;

pub use export::{ReadSlab, export};
use family::Family;
use framing::{Beside, beside};
pub use framing::{framing, unread};
use names::{Other, TensorSource, aliases, other, source};
pub use said::{Form, Said, form};
use store::{MatrixBlock, TensorStore, read_limited};

const CONFIG: &str = "config.json";
/// What a folder has whose weights are changes to another model's.
const ADAPTER: &str = "adapter_config.json";

/// Numbers of a tensor that are in memory at a time while it is compared.
const CHUNK_NUMBERS: u64 = 1 << 22;

/// Why a model cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum HfError {
    /// A file could not be read or written.
    #[error("{path}: {cause}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// A file contradicts itself.
    #[error("{path} is damaged: {what}", path = path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it says.
        what: String,
    },
    /// The configuration describes no model that this program knows.
    #[error("config.json: {0}")]
    Config(String),
    /// No family of models has all that a model has.
    #[error("no known family can say this model; the nearest, {nearest}, differs in {wrong}")]
    NoFamily {
        /// The one that is nearest.
        nearest: &'static str,
        /// What it cannot say.
        wrong: String,
    },
    /// A tensor is missing, too many, or not as the configuration says.
    #[error("{0}")]
    Tensor(String),
    /// The files contradict each other about tokens.
    #[error("{0}")]
    Framing(String),
    /// The values to be written could not be read.
    #[error(transparent)]
    Values(#[from] crate::CheckpointError),
}

impl HfError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> HfError {
        let path = path.to_owned();
        move |cause| HfError::Io { path, cause }
    }

    fn damaged(path: &Path, what: impl ToString) -> HfError {
        HfError::Damaged { path: path.to_owned(), what: what.to_string() }
    }
}

/// What an imported model had that ours does not say; with it an export gives back what was imported.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The configuration.
    pub config: Map<String, Value>,
    /// The type of each tensor.
    pub dtypes: BTreeMap<String, String>,
    /// Tensors that were not read.
    pub unused: Vec<String>,
    /// The files that say something of its tokens, but for `config.json` and `tokenizer.json`, by their names.
    #[serde(default)]
    pub beside: Beside,
    /// The digest of its `tokenizer.json`.
    #[serde(default)]
    pub tokenizer: Option<String>,
}

impl Kept {
    /// The names of the classes, in the order of their numbers; none, where they have no names but their numbers.
    pub fn class_names(&self) -> Vec<String> {
        let names = config::class_names(&self.config);
        let plain = names.iter().enumerate().all(|(at, name)| *name == format!("LABEL_{at}"));
        if plain { Vec::new() } else { names }
    }
}

/// A model in a folder.
#[derive(Debug)]
pub struct HfModel {
    family: Family,
    model: ModelSpec,
    store: TensorStore,
    sources: BTreeMap<String, (Parameter, TensorSource)>,
    kept: Kept,
}

impl HfModel {
    /// Reads the configuration and the headers of a folder, and checks that every parameter is there in its
    /// shape and that nothing is there which counts and is not read.
    ///
    /// # Errors
    /// [`HfError`], naming the key or the tensor.
    pub fn open(folder: &Path) -> Result<HfModel, HfError> {
        refuse_adapter(folder)?;
        let path = folder.join(CONFIG);
        let text = read_limited(&path)?;
        let config: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|e| HfError::damaged(&path, e))?;
        let (family, mut model) = config::read(&config)?;
        let store = TensorStore::open(folder)?;
        if family == Family::T5 && has_own_head(&model, &store)? {
            model.tied_embeddings = false;
        }
        let mut sources = BTreeMap::new();
        for parameter in parameter_table(&model) {
            let mut source = source_of(family, &model, &parameter)?;
            source.tensor = found(family, &source.tensor, |name| store.shape(name).is_some())?;
            let wanted = their_shape(&parameter, &source);
            match store.shape(&source.tensor) {
                Some(found) if found == wanted => {}
                found => {
                    let found =
                        found.map_or("is not there".to_owned(), |shape| format!("has shape {shape:?}"));
                    let name = &source.tensor;
                    return Err(HfError::Tensor(format!("`{name}` {found}; config.json says {wanted:?}")));
                }
            }
            sources.insert(parameter.name.clone(), (parameter, source));
        }
        let dtypes = store.names().filter_map(|name| Some((name.to_owned(), store.dtype(name)?))).collect();
        let kept = Kept { config, dtypes, beside: beside(folder)?, ..Kept::default() };
        let mut opened = HfModel { family, model, store, sources, kept };
        opened.kept.unused = opened.others()?;
        Ok(opened)
    }

    /// The model.
    pub fn model(&self) -> &ModelSpec {
        &self.model
    }

    /// What an export needs to give back what was imported.
    pub fn kept(&self) -> &Kept {
        &self.kept
    }

    /// The numbers, row by row, of the slab `offset..offset + len` along `dim` of a parameter, by its name
    /// here; only their bytes are read.
    ///
    /// # Errors
    /// [`HfError`] for what is not there and what cannot be read.
    pub fn read(&self, name: &str, dim: u8, offset: u64, len: u64) -> Result<Vec<f32>, HfError> {
        let missing = || HfError::Tensor(format!("there is no slab {offset}+{len} along {dim} of {name}"));
        let (parameter, source) = self.sources.get(name).ok_or_else(missing)?;
        let size = parameter.shape.get(usize::from(dim)).copied().unwrap_or(0);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(missing());
        }
        let (rows, cols) = match (parameter.shape.as_slice(), dim) {
            ([_], 0) => ((offset, offset + len), (0, 1)),
            ([_, cols], 0) => ((offset, offset + len), (0, *cols)),
            ([rows, _], 1) => ((0, *rows), (offset, offset + len)),
            _ => return Err(missing()),
        };
        // Of a fused map the rows of ours follow those of the parts before it.
        let skip = source.part.0 * parameter.shape[0];
        let rows = (rows.0 + skip, rows.1 + skip);
        if !source.transposed {
            return self.store.read(&source.tensor, MatrixBlock { rows, cols });
        }
        let theirs = self.store.read(&source.tensor, MatrixBlock { rows: cols, cols: rows })?;
        Ok(transposed(&theirs, (cols.1 - cols.0) as usize, (rows.1 - rows.0) as usize))
    }

    /// Checks the tensors that no parameter lies in; returns those that are not read.
    fn others(&self) -> Result<Vec<String>, HfError> {
        let read: BTreeSet<&str> = self.sources.values().map(|(_, source)| source.tensor.as_str()).collect();
        let mut unused = Vec::new();
        for name in self.store.names().filter(|name| !read.contains(name)) {
            match other(self.family, &self.model, name) {
                Some(Other::Copy(of)) => self.expect_copy(name, of)?,
                Some(Other::Zeros) => self.expect_zeros(name)?,
                Some(Other::Buffer) => {}
                Some(Other::Unused) => unused.push(name.to_owned()),
                None => {
                    let what = format!(
                        "`{name}` is there, and this program knows no use of it in a model of this config.json; \
                         see whether model_type and architectures are the file's"
                    );
                    return Err(HfError::Tensor(what));
                }
            }
        }
        Ok(unused)
    }

    fn expect_copy(&self, name: &str, of: &str) -> Result<(), HfError> {
        let differs = || {
            HfError::Tensor(format!(
                "`{name}` is not the same as the tensor that config.json ties it to ({of})"
            ))
        };
        let (parameter, _) = self.sources.get(of).ok_or_else(differs)?;
        if self.store.shape(name) != Some(&parameter.shape) {
            return Err(differs());
        }
        let rows = parameter.shape[0];
        let cols = parameter.elements() / rows.max(1);
        for (first, count) in chunks(rows, cols) {
            let theirs = MatrixBlock { rows: (first, first + count), cols: (0, cols) };
            let (one, other) = (self.read(of, 0, first, count)?, self.store.read(name, theirs)?);
            if one.iter().map(|x| x.to_bits()).ne(other.iter().map(|x| x.to_bits())) {
                return Err(differs());
            }
        }
        Ok(())
    }

    fn expect_zeros(&self, name: &str) -> Result<(), HfError> {
        let shape = self.store.shape(name).unwrap_or_default();
        let (rows, cols) = match *shape {
            [rows] => (rows, 1),
            [rows, cols] => (rows, cols),
            _ => (0, 0),
        };
        let values = self.store.read(name, MatrixBlock { rows: (0, rows), cols: (0, cols) })?;
        if values.iter().any(|x| *x != 0.0) {
            return Err(HfError::Tensor(format!("`{name}` is not zero, and no model here adds it")));
        }
        Ok(())
    }
}

/// The name that a tensor has among those that `has` knows; its usual one where there is none.
fn found(family: Family, name: &str, has: impl Fn(&str) -> bool) -> Result<String, HfError> {
    let mut names = aliases(family, name).into_iter().filter(|alias| has(alias));
    match (names.next(), names.next()) {
        (None, _) => Ok(name.to_owned()),
        (Some(found), None) => Ok(found),
        (Some(one), Some(other)) => {
            let what =
                format!("`{one}` and `{other}` are names of one tensor, and both are there; remove one");
            Err(HfError::Tensor(what))
        }
    }
}

/// Refuses a folder whose weights are changes to another model's.
fn refuse_adapter(folder: &Path) -> Result<(), HfError> {
    let path = folder.join(ADAPTER);
    if !path.is_file() {
        return Ok(());
    }
    let config: Value = serde_json::from_slice(&read_limited(&path)?).unwrap_or_default();
    let base = config.get("base_model_name_or_path").and_then(Value::as_str).unwrap_or("another model");
    Err(HfError::Config(format!(
        "{ADAPTER} is there: the folder holds an adapter of {base}; merge it into that model (peft's \
         merge_and_unload), save the result, and import that"
    )))
}

/// Whether a T5 has an output head of its own where its configuration ties it: the library saves T5 1.1 so, and
/// takes the tensors for what they are. Its first version scales its outputs and is always tied.
fn has_own_head(model: &ModelSpec, store: &TensorStore) -> Result<bool, HfError> {
    let (head, table) = ("lm_head.weight", "shared.weight");
    let Some(&[rows, cols]) = store.shape(head).filter(|shape| store.shape(table) == Some(*shape)) else {
        return Ok(false);
    };
    if !model.tied_embeddings || model.logit_scale != 1.0 {
        return Ok(false);
    }
    for (first, count) in chunks(rows, cols) {
        let block = MatrixBlock { rows: (first, first + count), cols: (0, cols) };
        let (one, other) = (store.read(head, block)?, store.read(table, block)?);
        if one.iter().map(|x| x.to_bits()).ne(other.iter().map(|x| x.to_bits())) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Rows of a tensor, so many at a time.
fn chunks(rows: u64, cols: u64) -> impl Iterator<Item = (u64, u64)> {
    let step = (CHUNK_NUMBERS / cols.max(1)).max(1);
    (0..rows.div_ceil(step)).map(move |at| (at * step, step.min(rows - at * step)))
}

fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| x[row * cols + col])).collect()
}

fn source_of(family: Family, model: &ModelSpec, parameter: &Parameter) -> Result<TensorSource, HfError> {
    let what = || HfError::Config(format!("its family has no place for {}", parameter.name));
    source(family, model, &parameter.name).ok_or_else(what)
}

/// The shape of the tensor that a parameter lies in.
fn their_shape(parameter: &Parameter, source: &TensorSource) -> Vec<u64> {
    let mut shape = parameter.shape.clone();
    shape[0] *= source.part.1;
    if source.transposed {
        shape.reverse();
    }
    shape
}
