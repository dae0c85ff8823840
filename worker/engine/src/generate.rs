//! What trained models do beside training. Text from a checkpoint: the prompt at once, then token by token with cached keys and values. All ranks
//! of a layout do the same, each with its part of the model ([`rank`]), and all know every token. Classes and
//! embeddings of texts: [`classify`].

use std::ops::ControlFlow;

use coxswain_comm::Links;
use coxswain_files::hash::draw;
use coxswain_files::prepare::TOKENIZER;
use coxswain_files::{Checkpoint, StoreFolder, TextStream, Tokenizer};
use coxswain_types::Assignment;
use coxswain_types::assignment::PreparedData;
use coxswain_types::framing::Framing;
use coxswain_types::job::ModelSpec;
use coxswain_types::model::Architecture;
use tch::{Kind, Tensor};

use crate::EngineError;
use crate::checkpoint::load_weights;

mod classify;
mod rank;

pub use classify::{Classifier, Told};
use rank::Rank;

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
    rank: Rank,
    model: ModelSpec,
    framing: Framing,
    tokenizer: Tokenizer,
}

/// Tokens that are written where their number is not given.
const TOKENS: u32 = 100;

/// The most tokens that a model reads at once: as many as it has positions, or as whoever made it says.
fn most_tokens(model: &ModelSpec, framing: &Framing) -> Option<u32> {
    model.positions.longest().into_iter().chain(framing.longest).min()
}

impl Generator {
    /// Loads the weights of a checkpoint and the tokenizer of its run: all of them, or a rank's part.
    pub fn load(
        run: &StoreFolder,
        folder: &StoreFolder,
        place: Option<(&Assignment, Links)>,
    ) -> Result<Generator, EngineError> {
        let checkpoint = Checkpoint::open(folder, None)?;
        checkpoint.verify()?;
        checkpoint.expect_model()?;
        let spec = &checkpoint.manifest().spec;
        let (model, seed) = (spec.model.clone(), spec.train.seed);
        if model.architecture == Architecture::Encoder {
            return Err(EngineError::Other(
                "only a decoder writes; this checkpoint is of an encoder".to_owned(),
            ));
        }
        let tokenizer = tokenizer_of(run, &checkpoint.manifest().data)?.for_prompts();
        let (rank, parameters) = match place {
            None => Rank::alone(&model, seed)?,
            Some((assignment, links)) => Rank::of(assignment, links)?,
        };
        load_weights(&checkpoint, &parameters)?;
        let framing = checkpoint.manifest().data.framing.clone();
        Ok(Generator { rank, model, framing, tokenizer })
    }

    /// Writes up to `count` tokens after `prompt`, handing each piece of text to `show` as soon as it is whole,
    /// until `show` of any rank breaks off; without a count some 100, or as many as the model has positions for.
    /// More than there are positions for are refused before the first is written.
    pub fn generate(
        &self,
        prompt: &str,
        count: Option<u32>,
        sampling: &Sampling,
        mut show: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        let mut ids = self.prompt(prompt)?;
        let mut memory = None;
        if self.model.encoder_layers > 0 {
            self.room(ids.len())?;
            memory = tch::no_grad(|| self.rank.encode(&ids))?;
            ids = self.framing.decoder_begin().iter().copied().map(i64::from).collect();
        }
        let room = self.room(ids.len())?;
        let count = count.unwrap_or(TOKENS.min(room));
        if count > room {
            return Err(EngineError::Other(format!(
                "{count} tokens after the {} that are there are more than the model has positions for; ask for \
                 at most {room} (--tokens)",
                ids.len()
            )));
        }
        let mut caches = self.rank.caches();
        let mut text = Text { generator: self, stream: TextStream::new(&self.tokenizer) };
        let mut position = 0;
        let mut ended = ControlFlow::Continue(());
        for index in 0..u64::from(count) {
            let logits = tch::no_grad(|| self.rank.decode(&ids, memory.take(), position, &mut caches))?;
            position += ids.len() as i64;
            let chosen = logits.map(|logits| choose(&logits, sampling, index)).transpose()?;
            let id = self.rank.agree(chosen, ended)?;
            let Some(id) = id.filter(|id| !self.framing.stops_at(*id)) else { break };
            ids = vec![i64::from(id)];
            let piece = text.push(id);
            if !piece.is_empty() {
                ended = show(&piece);
            }
        }
        Ok(())
    }
}

/// The tokenizer of a run, which must be the one that its checkpoint was trained with.
fn tokenizer_of(run: &StoreFolder, data: &PreparedData) -> Result<Tokenizer, EngineError> {
    let tokenizer = Tokenizer::load(run, TOKENIZER)?;
    let digest = coxswain_files::atomic::digest_bytes(&tokenizer.to_bytes());
    match &data.tokenizer_digest {
        Some(wanted) if *wanted == digest => Ok(tokenizer),
        wanted => Err(EngineError::Other(format!(
            "{} is not the tokenizer that the checkpoint was trained with (digest {digest}, wanted {})",
            run.place(TOKENIZER).display(),
            wanted.as_deref().unwrap_or("none: its tokens were synthetic")
        ))),
    }
}

/// What stands in a prompt, and in text, for what was taken out.
const MASK: &str = "<mask>";

impl Generator {
    /// The tokens of a prompt in its frame; of an encoder-decoder, with the tokens that stand for what it shall
    /// write. What a decoder goes on with is not closed.
    fn prompt(&self, prompt: &str) -> Result<Vec<i64>, EngineError> {
        let framing = &self.framing;
        let mut ids = match self.model.encoder_layers {
            0 => [&framing.begin[..], &self.tokenizer.encode(prompt)?].concat(),
            _ => framing.whole(&self.masked(prompt)?, None),
        };
        if ids.is_empty() {
            ids.push(framing.end);
        }
        Ok(ids.into_iter().map(i64::from).collect())
    }

    /// The tokens of a text in which [`MASK`] stands for what is missing.
    fn masked(&self, text: &str) -> Result<Vec<u32>, EngineError> {
        let sentinel = |index: usize| {
            let of = self.framing.sentinels.and_then(|sentinels| sentinels.at(index as u32));
            of.ok_or_else(|| {
                let there = self.framing.sentinels.map_or(0, |sentinels| sentinels.count);
                EngineError::Other(format!("the model has {there} tokens to stand for `{MASK}`; use fewer"))
            })
        };
        let mut parts = text.split(MASK);
        let first = parts.next().unwrap_or_default();
        if !self.tokenizer.is_own() {
            // By its spelling, since a tokenizer may treat the text around a token as it likes.
            let mut spelled = first.to_owned();
            for (at, part) in parts.enumerate() {
                spelled.push_str(&self.tokenizer.spelling(sentinel(at)?).unwrap_or_default());
                spelled.push_str(part);
            }
            return Ok(self.tokenizer.encode(&spelled)?);
        }
        let mut ids = self.tokenizer.encode(first)?;
        for (at, part) in parts.enumerate() {
            ids.push(sentinel(at)?);
            ids.extend(self.tokenizer.encode(part)?);
        }
        Ok(ids)
    }

    /// How many tokens can follow so many: the last one that is written has no position yet.
    fn room(&self, tokens: usize) -> Result<u32, EngineError> {
        let Some(most) = most_tokens(&self.model, &self.framing) else { return Ok(u32::MAX) };
        let left = u32::try_from(tokens).ok().and_then(|tokens| most.checked_sub(tokens));
        let left = left.ok_or_else(|| {
            EngineError::Other(format!(
                "the prompt has {tokens} tokens, and the model reads at most {most}; shorten it"
            ))
        })?;
        Ok(left + 1)
    }
}

/// The text of tokens that come one by one; those that stand for others show as in a prompt.
struct Text<'a> {
    generator: &'a Generator,
    stream: TextStream<'a>,
}

impl Text<'_> {
    /// What `id` makes whole.
    fn push(&mut self, id: u32) -> String {
        let Generator { model, framing, tokenizer, .. } = self.generator;
        let sentinels = framing.sentinels.filter(|_| model.encoder_layers > 0);
        if !sentinels.is_some_and(|sentinels| sentinels.contains(id)) {
            return self.stream.push(id);
        }
        // A character does not go on behind it.
        self.stream = TextStream::new(tokenizer);
        MASK.to_owned()
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

#[cfg(test)]
mod tests {
    use super::*;
    use coxswain_types::model::{Attention, NormSpec, Positions};

    use super::rank::tests::random as rank;
    use crate::model::Cache;

    /// The logits after `ids`, handed in by pieces of these lengths.
    fn logits(rank: &Rank, ids: &[i64], pieces: &[usize]) -> Vec<f32> {
        written(rank, ids, pieces).0
    }

    /// And the bytes of the caches after them.
    fn written(rank: &Rank, ids: &[i64], pieces: &[usize]) -> (Vec<f32>, u64) {
        let mut caches = rank.caches();
        let read: Vec<i64> = (0..17).map(|i| i * 7 % 99).collect();
        let mut memory = tch::no_grad(|| rank.encode(&read)).unwrap();
        let mut at = 0;
        let mut last = None;
        for &piece in pieces {
            let part = &ids[at..at + piece];
            last = tch::no_grad(|| rank.decode(part, memory.take(), at as i64, &mut caches)).unwrap();
            at += piece;
        }
        (Vec::try_from(&last.unwrap()).unwrap(), caches.iter().map(Cache::held_bytes).sum())
    }

    #[test]
    fn cached_tokens_give_the_logits_of_the_whole_text() {
        for (tied_embeddings, layer_groups) in [(false, 3), (true, 3), (true, 1)] {
            let plain = ModelSpec::llama(3, 48, 6, 2, 64, 99);
            let model = ModelSpec { tied_embeddings, layer_groups, ..plain };
            expect_cached_equals_whole(&model);
        }
        let plain = || ModelSpec::llama(3, 48, 6, 2, 64, 99);
        let forms = [
            Attention::Window { window: 6 },
            Attention::Longformer { window: 6, global: 2, projections: false },
            Attention::BigBird { block: 4, window: 3, global: 1, last: 0, random: 1 },
            Attention::Linear { decay: false },
            Attention::Linear { decay: true },
            Attention::Compressed { window: 6, block: 4 },
            Attention::Compressed { window: 1, block: 1 },
        ];
        for attention in forms {
            expect_cached_equals_whole(&ModelSpec { attention, ..plain() });
        }
        expect_cached_equals_whole(&ModelSpec { positions: Positions::Alibi, ..plain() });
        let window = Attention::Window { window: 6 };
        expect_cached_equals_whole(&ModelSpec { attention: window, positions: RELATIVE, ..plain() });
        expect_cached_equals_whole(&latent());
        let normed = |model: ModelSpec| ModelSpec { norm: NormSpec { qk_norm: true, ..model.norm }, ..model };
        expect_cached_equals_whole(&normed(plain()));
        expect_cached_equals_whole(&normed(ModelSpec { attention: window, ..plain() }));
        // An encoder in front.
        let both = ModelSpec { architecture: Architecture::EncoderDecoder, encoder_layers: 2, ..plain() };
        for positions in [RELATIVE, Positions::Learned { max: 40, offset: 0 }] {
            expect_cached_equals_whole(&ModelSpec { positions, ..both.clone() });
        }
        expect_cached_equals_whole(&ModelSpec { attention: Attention::Linear { decay: false }, ..both });
    }

    const RELATIVE: Positions = Positions::RelativeBias { buckets: 8, max_distance: 16 };

    fn latent() -> ModelSpec {
        let attention = Attention::Latent { rank: 10, rope_dim: 4 };
        ModelSpec { attention, ..ModelSpec::llama(3, 48, 6, 6, 64, 99) }
    }

    fn expect_cached_equals_whole(model: &ModelSpec) {
        let rank = rank(model);
        let ids: Vec<i64> = (0..31).map(|i| i * 31 % 99).collect();
        let whole = logits(&rank, &ids, &[31]);
        let size = whole.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
        let off = |other: &[f32]| whole.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        for pieces in [[&[5][..], &[1; 26]].concat(), vec![3, 20, 1, 7]] {
            let error = off(&logits(&rank, &ids, &pieces));
            // Products of one row and of many round differently, and by how much depends on the processor:
            // 2.5e-5 is the most that was seen.
            assert!(error < 3e-5 * size, "{model:?} by {pieces:?} is off by {error} of {size}");
        }
        // A cache that is ignored would show.
        let other = logits(&rank, &ids[28..], &[3]);
        assert!(off(&other) > 1e-3 * size, "{model:?}");
    }

    /// A shard answers zeros for the rows of others, so nothing else would tell.
    #[test]
    fn ids_and_positions_outside_of_the_tables_are_refused() {
        let model = ModelSpec {
            positions: Positions::Learned { max: 40, offset: 2 },
            ..ModelSpec::llama(1, 48, 6, 6, 64, 99)
        };
        let rank = rank(&model);
        let decode = |ids: &[i64], at| tch::no_grad(|| rank.decode(ids, None, at, &mut rank.caches()));
        assert!(decode(&[98, 0], 38).is_ok());
        for (ids, at, told) in [
            ([98, 99], 0, "a token has the number 99, and the model has those from 0 to 98"),
            ([-1, 0], 0, "a token has the number -1"),
            ([5, 6], 39, "a position has the number 40, and the model has those from 0 to 39"),
        ] {
            let error = decode(&ids, at).unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    /// Bytes of the caches after 96 tokens; a full cache has keys and values of every token. What forms say of
    /// themselves is what their caches take.
    #[test]
    fn caches_are_as_small_as_stated() {
        let held = |model: &ModelSpec| {
            let ids: Vec<i64> = (0..96).map(|i| i * 31 % 99).collect();
            let taken = written(&rank(model), &ids, &[[40].as_slice(), &[1; 56]].concat()).1;
            assert_eq!(taken, model.cache_bytes(96, 4), "{model:?}");
            taken
        };
        let plain = ModelSpec::llama(2, 48, 6, 6, 64, 99);
        let with = |attention| held(&ModelSpec { attention, ..plain.clone() });
        let of_tokens = |tokens: u64| 2 * tokens * 2 * 48 * 4;
        let full = held(&plain);
        assert_eq!(full, of_tokens(96));
        // The window's older tokens are gone; the next token brings its own.
        assert_eq!(with(Attention::Window { window: 12 }), of_tokens(11));
        // Twelve tokens of the window and the rest of a block; a summary for each block before them.
        assert_eq!(with(Attention::Compressed { window: 12, block: 12 }), of_tokens(12 + 7));
        // The latent and the rotated key instead of a key and a value for each of six heads.
        let attention = Attention::Latent { rank: 10, rope_dim: 4 };
        assert_eq!(with(attention), full * 14 / 96);
        // Sums of 8 by 8, and of 8, for each head, after any number of tokens.
        assert_eq!(with(Attention::Linear { decay: true }), 2 * 6 * (8 * 8 + 8) * 4);
        let grouped = ModelSpec { kv_heads: 2, ..plain.clone() };
        assert_eq!(held(&grouped), of_tokens(96) / 3);
        held(&ModelSpec { attention: Attention::Linear { decay: false }, ..grouped.clone() });
        held(&ModelSpec { attention: Attention::Compressed { window: 7, block: 4 }, ..grouped });
    }

    #[test]
    fn drawing_follows_the_seed_and_refuses_what_is_not_finite() {
        let logits = Tensor::from_slice(&[0.0_f32, 5.0, 1.0, 4.0]);
        let sampling = |temperature, top_k, seed| Sampling { temperature, top_k, seed };
        assert_eq!(choose(&logits, &sampling(0.0, 0, 1), 0).unwrap(), 1);
        assert_eq!(choose(&logits, &sampling(1.0, 1, 9), 3).unwrap(), 1);
        let drawn: Vec<u32> = (0..200).map(|i| choose(&logits, &sampling(1.0, 2, 7), i).unwrap()).collect();
        assert!(drawn.iter().all(|id| [1, 3].contains(id)));
        let often = drawn.iter().filter(|id| **id == 1).count();
        assert!((120..180).contains(&often), "e/(1+e) of 200 is 146, not {often}");
        let broken = Tensor::from_slice(&[0.0_f32, f32::NAN]);
        assert!(choose(&broken, &sampling(1.0, 0, 1), 0).is_err());
    }
}
