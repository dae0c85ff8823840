//! A folder in Hugging Face's form: config.json, safetensors files and a tokenizer.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coxswain_files::hf::{self, HfModel, Kept};
use coxswain_files::{Tokenizer, regular};
use coxswain_types::framing::Framing;
use coxswain_types::job::ModelSpec;
use coxswain_types::params::Parameter;

use super::ForeignModel;

/// The largest `tokenizer.json` that is copied: that of a million tokens takes less.
const MAX_TOKENIZER_BYTES: u64 = 1 << 28;

pub(super) struct HfFolder {
    path: PathBuf,
    model: HfModel,
}

impl HfFolder {
    pub(super) fn open(path: &Path) -> Result<HfFolder> {
        let model = HfModel::open(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(HfFolder { path: path.to_owned(), model })
    }
}

impl ForeignModel for HfFolder {
    fn model(&self) -> &ModelSpec {
        self.model.model()
    }

    fn read(&self, parameter: &Parameter) -> Result<Vec<f32>> {
        Ok(self.model.read(&parameter.name, 0, 0, parameter.shape[0])?)
    }

    fn tokenizer(&self) -> Result<Option<Vec<u8>>> {
        let file = self.path.join("tokenizer.json");
        if !file.exists() {
            return Ok(None);
        }
        let bytes = regular::read(&file, MAX_TOKENIZER_BYTES);
        bytes.map(Some).with_context(|| format!("reading {}", file.display()))
    }

    fn framing(&self, tokenizer: Option<&Tokenizer>) -> Result<Framing> {
        Ok(hf::framing(&self.path, &self.model.kept().config, self.model.model(), tokenizer)?)
    }

    fn class_names(&self) -> Vec<String> {
        self.model.kept().class_names()
    }

    fn kept(&self) -> Option<&Kept> {
        Some(self.model.kept())
    }

    fn left_out(&self) -> Result<Vec<String>> {
        let unused = self.model.kept().unused.iter();
        let unused = unused.map(|name| format!("{name} is not used by this model and was left out"));
        let options = hf::unread(&self.path)?;
        let options = options.into_iter().map(|option| {
            format!("generation_config.json has {option}; pass it to `coxswain generate` as an option")
        });
        Ok(unused.chain(options).collect())
    }
}
