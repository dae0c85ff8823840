//! Text from a checkpoint, in one process: the prompt at once, then token by token with cached
//! keys and values.

use std::path::Path;

use coxswain_comm::{Axis, Links};
use coxswain_files::hash::draw;
use coxswain_files::{Checkpoint, Tokenizer};
use coxswain_types::params::{ParameterRow, parameter_table};
use tch::{Kind, Tensor};

use crate::EngineError;
use crate::checkpoint::load_weights;
use crate::model::{Cache, Parameters, Rotary, Shape, Stage};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f64,
    /// Only the likeliest tokens are drawn from; 0 for all.
    pub top_k: u32,
    /// The same seed draws the same text.
    pub seed: u64,
}

/// A model that writes.
pub struct Generator {
    stage: Stage,
    model: coxswain_types::job::ModelSpec,
    tokenizer: Tokenizer,
}

impl Generator {
    /// Loads the weights of a checkpoint and the tokenizer of its run.
    pub fn load(directory: &Path, folder: &Path) -> Result<Generator, EngineError> {
        let checkpoint = Checkpoint::open(folder, None)?;
        checkpoint.verify()?;
        let model = checkpoint.manifest().spec.model.clone();
        let path = directory.join(coxswain_files::prepare::TOKENIZER);
        let tokenizer = Tokenizer::load(&path)?;
        let digest = coxswain_files::atomic::digest_bytes(&tokenizer.to_bytes());
        match &checkpoint.manifest().data.tokenizer_digest {
            Some(wanted) if *wanted == digest => {}
            wanted => {
                return Err(EngineError::Other(format!(
                    "{} is not the tokenizer that the checkpoint was trained with (digest {digest}, wanted {})",
                    path.display(),
                    wanted.as_deref().unwrap_or("none: its tokens were synthetic")
                )));
            }
        }
        let parameters = Parameters::allocate(&whole_rows(&model))?;
        load_weights(&checkpoint, &parameters)?;
        let shape = Shape { embedding: true, layers: 0..model.layers, head: true };
        let stage = Stage::build(&shape, &model, &parameters, Links::alone().group(&[0], Axis::Tensor)?)?;
        Ok(Generator { stage, model, tokenizer })
    }

    /// Writes up to `count` tokens after `prompt`, handing each piece of text to `show` as soon as
    /// it is whole. Returns the text without the prompt.
    pub fn generate(
        &self,
        prompt: &str,
        count: u32,
        sampling: &Sampling,
        mut show: impl FnMut(&str),
    ) -> Result<String, EngineError> {
        let mut ids: Vec<i64> = self.tokenizer.encode(prompt).into_iter().map(i64::from).collect();
        if ids.is_empty() {
            ids.push(i64::from(coxswain_files::tokenizer::END_OF_TEXT_ID));
        }
        let mut caches: Vec<Cache> = (0..self.model.layers).map(|_| Cache::default()).collect();
        let (mut written, mut shown) = (Vec::<u32>::new(), 0);
        let mut text = String::new();
        let mut position = 0;
        for index in 0..u64::from(count) {
            let logits = tch::no_grad(|| self.next_logits(&ids, position, &mut caches))?;
            position += ids.len() as i64;
            let id = choose(&logits, sampling, index)?;
            if id == coxswain_files::tokenizer::END_OF_TEXT_ID {
                break;
            }
            written.push(id);
            ids = vec![i64::from(id)];
            text = self.tokenizer.decode(&written);
            // A character may end in the middle of a token; what is cut shows as U+FFFD.
            let whole = text.trim_end_matches('\u{fffd}').len();
            if whole > shown && text.is_char_boundary(shown) {
                show(&text[shown..whole]);
                shown = whole;
            }
        }
        Ok(text)
    }

    /// The logits `[v]` after the last of `ids`, which stand at `position` and on.
    fn next_logits(&self, ids: &[i64], position: i64, caches: &mut [Cache]) -> Result<Tensor, EngineError> {
        let (Some(table), Some(head)) = (&self.stage.embedding, &self.stage.head) else {
            return Err(EngineError::Other("generation needs the whole model".to_owned()));
        };
        let ids_bt = Tensor::from_slice(ids).f_view([1, -1])?;
        let x_btd = self.stage.embed(table, &ids_bt)?;
        let rotary = Rotary::new(&self.model, position, ids.len() as i64)?;
        let x_btd = self.stage.forward_layers(x_btd, &rotary, caches)?;
        let last = x_btd.f_narrow(1, ids.len() as i64 - 1, 1)?;
        Ok(head.logits(&last)?.f_view([-1])?)
    }
}

/// Draws a token: temperature, the top k, then the inverse of the cumulative distribution.
fn choose(logits: &Tensor, sampling: &Sampling, index: u64) -> Result<u32, EngineError> {
    if sampling.temperature <= 0.0 {
        return Ok(logits.f_argmax(None, false)?.f_int64_value(&[])? as u32);
    }
    let vocab = logits.size()[0];
    let k = if sampling.top_k == 0 { vocab } else { i64::from(sampling.top_k).min(vocab) };
    let (values, tokens) = logits.f_to_kind(Kind::Double)?.f_topk(k, -1, true, true)?;
    let scaled = values.f_div_scalar(sampling.temperature)?;
    let weights = Vec::<f64>::try_from(&scaled.f_softmax(-1, Kind::Double)?)?;
    if weights.iter().any(|weight| !weight.is_finite()) {
        return Err(EngineError::Other(
            "the model's logits are not finite; its training has gone bad".to_owned(),
        ));
    }
    let tokens = Vec::<i64>::try_from(&tokens)?;
    let point = draw(sampling.seed, index) as f64 / u64::MAX as f64;
    let mut sum = 0.0;
    let at = weights.iter().position(|weight| {
        sum += weight;
        sum >= point
    });
    // Rounding may leave the sum a little below one.
    Ok(tokens[at.unwrap_or(tokens.len() - 1)] as u32)
}

/// The rows of a rank that holds the whole model.
fn whole_rows(model: &coxswain_types::job::ModelSpec) -> Vec<ParameterRow> {
    parameter_table(model)
        .into_iter()
        .map(|parameter| ParameterRow {
            dim: 0,
            offset: 0,
            len: parameter.shape[0],
            name: parameter.name,
            shape: parameter.shape,
            place: parameter.place,
            decay: parameter.decay,
            init: parameter.init,
            replicas: Vec::new(),
            norm_slot: None,
            saves: false,
        })
        .collect()
}
