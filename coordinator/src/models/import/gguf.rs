//! A GGUF file, which has its tokenizer within.

use std::path::Path;

use anyhow::Result;
use coxswain_files::Tokenizer;
use coxswain_files::gguf::Gguf;
use coxswain_types::framing::Framing;
use coxswain_types::job::ModelSpec;
use coxswain_types::params::Parameter;

use super::ForeignModel;

pub(super) struct GgufFile(Gguf);

impl GgufFile {
    pub(super) fn open(path: &Path) -> Result<GgufFile> {
        Ok(GgufFile(Gguf::open(path)?))
    }
}

impl ForeignModel for GgufFile {
    fn model(&self) -> &ModelSpec {
        self.0.model()
    }

    fn read(&self, parameter: &Parameter) -> Result<Vec<f32>> {
        Ok(self.0.read(&parameter.name, 0, 0, parameter.shape[0])?)
    }

    fn tokenizer(&self) -> Result<Option<Vec<u8>>> {
        Ok(Some(self.0.tokenizer_json().as_bytes().to_vec()))
    }

    fn framing(&self, _: Option<&Tokenizer>) -> Result<Framing> {
        Ok(self.0.framing().clone())
    }
}
