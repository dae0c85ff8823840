//! Micro-batches from a job's tokens: which tokens, as a pure function of (seed, step, micro-batch).

use std::path::Path;
use std::sync::Arc;

use coxswain_files::hash::draw;
use coxswain_files::{OpenTokens, Samples, Tokenizer, sample_index};
use coxswain_types::JobSpec;
use coxswain_types::assignment::{PreparedData, TokenSource};
use coxswain_types::job::Lengths;
use coxswain_types::model::Head;
use tch::{Device, Tensor};

use crate::EngineError;
use crate::model::on_device;

mod corrupt;

use corrupt::SpanCorruption;

/// The tokens of a micro-batch.
#[derive(Debug)]
pub struct MicroBatchData {
    /// What the encoder in front of a decoder reads, `[b, s]`.
    pub source_bs: Option<Tensor>,
    /// Inputs of the last stack, `[b, t]`.
    pub ids_bt: Tensor,
    /// Targets, `[n]`; -1 where there is none.
    pub targets_n: Tensor,
    /// How many targets there are.
    pub tokens: u64,
    /// What each target counts in the loss, `[n]`; 1, where there is no list.
    pub weights_n: Option<Tensor>,
    /// The sum of the weights of all targets.
    pub weight: f64,
    /// The document that each token is of, where a token sees its own document only.
    pub documents: Option<Documents>,
    /// How many of each row that an encoder reads are not padding, where some are.
    pub padded: Option<Vec<u32>>,
}

/// The document that each token is of, row by row.
#[derive(Clone, Debug, Default)]
pub struct Documents {
    /// Of the last stack.
    pub own: Vec<Arc<[u32]>>,
    /// Of the encoder in front of it; none where there is no such encoder.
    pub source: Vec<Arc<[u32]>>,
}

impl MicroBatchData {
    /// The same tensors on a device.
    pub fn on(self, device: Device) -> Result<MicroBatchData, EngineError> {
        let there = |x: &Tensor| on_device(x, device);
        Ok(MicroBatchData {
            source_bs: self.source_bs.as_ref().map(there).transpose()?,
            ids_bt: there(&self.ids_bt)?,
            targets_n: there(&self.targets_n)?,
            weights_n: self.weights_n.as_ref().map(there).transpose()?,
            ..self
        })
    }

    /// What the first layer of all reads.
    pub fn first_ids(&self) -> &Tensor {
        self.source_bs.as_ref().unwrap_or(&self.ids_bt)
    }
}

/// What a token is trained to tell.
#[derive(Clone, Debug, PartialEq)]
enum Objective {
    /// The token after it.
    Next,
    /// Itself, where it is hidden (arXiv 1810.04805).
    MaskedLm(Masking),
    /// What was taken out of the text that its encoder reads.
    SpanCorruption(SpanCorruption),
    /// The class of the text, which the first token is asked for.
    Class,
    /// The answer after its prompt.
    Answer,
    /// The answer to what its encoder reads; a decoder's text begins with this token.
    Reply(u32),
}

/// Which tokens are hidden: a function of (seed, sample, place).
#[derive(Clone, Debug, PartialEq)]
struct Masking {
    key: u64,
    rate: f64,
    /// The token that hides others.
    mask: u32,
    /// How many tokens are text.
    text: u32,
    /// Whether each token begins a word, where whole words are hidden.
    words: Option<Vec<bool>>,
}

impl Masking {
    /// What stands at the places of a sample, and what is asked there: of the chosen tokens, eight of
    /// ten are hidden, one is replaced by any, one stays. At least one is chosen.
    fn hide(&self, sample: u64, tokens: &[i64]) -> (Vec<i64>, Vec<i64>) {
        let key = draw(self.key, sample);
        let unit = |bits: u64| (bits >> 11) as f64 / (1_u64 << 53) as f64;
        // The first token of each place's word, whose draw is that of all its tokens.
        let begins =
            |id: i64| self.words.as_ref().is_none_or(|of| of.get(id as usize).is_none_or(|begins| *begins));
        let mut first = 0;
        let firsts: Vec<usize> = (0..tokens.len())
            .map(|at| {
                first = if begins(tokens[at]) { at } else { first };
                first
            })
            .collect();
        let mut chosen: Vec<usize> =
            (0..tokens.len()).filter(|at| unit(draw(key, firsts[*at] as u64)) < self.rate).collect();
        if chosen.is_empty() && !tokens.is_empty() {
            let one = firsts[(draw(key, u64::MAX) % tokens.len() as u64) as usize];
            chosen = (0..tokens.len()).filter(|at| firsts[*at] == one).collect();
        }
        let (mut ids, mut targets) = (tokens.to_vec(), vec![-1; tokens.len()]);
        for at in chosen {
            targets[at] = tokens[at];
            let bits = draw(draw(key, at as u64), 1);
            ids[at] = match bits % 10 {
                0 => tokens[at],
                1 => (draw(bits, 2) % u64::from(self.text.max(1))) as i64,
                _ => i64::from(self.mask),
            };
        }
        (ids, targets)
    }
}

/// The tokens of a job.
#[derive(Debug)]
pub struct Tokens {
    train: OpenTokens,
    samples: Samples,
    validation: Option<OpenTokens>,
    lengths: Lengths,
    rows: u32,
    micro_batches: u32,
    objective: Objective,
    separate: bool,
    end_of_text: u32,
}

impl Tokens {
    /// Opens the files and checks that they are those of the assignment: the tokenizer whole, and tokens when they
    /// are first read.
    pub fn open(directory: &Path, data: &PreparedData, spec: &JobSpec) -> Result<Tokens, EngineError> {
        let train = &spec.train;
        if let Some(wanted) = &data.tokenizer_digest {
            let path = directory.join(coxswain_files::prepare::TOKENIZER);
            let found = coxswain_files::atomic::digest_file(&path)
                .map_err(|cause| EngineError::File { path: path.clone(), cause })?;
            if found != *wanted {
                return Err(EngineError::Other(format!(
                    "{} has digest {found} where the job was prepared with {wanted}; every worker must see the \
                     run's own folder",
                    path.display()
                )));
            }
        }
        let open = |source: &TokenSource| OpenTokens::open(directory, source);
        let lengths = Lengths::of(&spec.model, train);
        let (vocab, framing) = (spec.model.vocab, &data.framing);
        let end_of_text = framing.end;
        let mask = framing.sentinels.map_or(vocab - 1, |sentinels| sentinels.first);
        let start = framing.decoder_begin().first().copied().unwrap_or(end_of_text);
        let words = (train.whole_words && data.tokenizer_digest.is_some()).then(|| {
            let tokenizer = Tokenizer::load(&directory.join(coxswain_files::prepare::TOKENIZER))?;
            Ok::<_, EngineError>(tokenizer.word_starts())
        });
        let words = words.transpose()?;
        // A draw apart from those of samples, dropout and initial values.
        let key = draw(train.seed, u64::from(b'm'));
        let tokens = Tokens {
            train: open(&data.train)?,
            samples: Samples::new(data.train.tokens(), lengths.window, train.seed),
            validation: data.validation.clone().map(|file| open(&file.into())).transpose()?,
            lengths,
            rows: train.micro_batch_size,
            micro_batches: train.global_micro_batches,
            objective: match spec.model.head {
                _ if train.pairs && lengths.source > 0 => Objective::Reply(start),
                _ if train.pairs => Objective::Answer,
                _ if lengths.source > 0 => Objective::SpanCorruption(SpanCorruption {
                    key,
                    corruption: train.corruption,
                    share: train.mask_rate,
                    mask,
                    end_of_text,
                    start,
                    lengths,
                }),
                Head::MaskedLm { .. } => {
                    // Of a vocabulary of our own all tokens but the last are text.
                    let text = if mask == vocab - 1 { mask } else { vocab };
                    Objective::MaskedLm(Masking { key, rate: train.mask_rate, mask, text, words })
                }
                Head::Lm => Objective::Next,
                Head::Pooled { .. } => Objective::Class,
            },
            separate: train.separate_documents,
            end_of_text,
        };
        if tokens.samples.windows() == 0 {
            return Err(EngineError::Other(format!(
                "the job has {} tokens to train on, fewer than one sample of {} and its last target",
                data.train.tokens(),
                lengths.window
            )));
        }
        Ok(tokens)
    }

    /// A micro-batch of the step that follows `step0` finished ones.
    pub fn train(&self, step0: u64, micro_batch: u32) -> Result<MicroBatchData, EngineError> {
        let rows = (0..self.rows).map(|row| {
            let sample = sample_index(step0, micro_batch, row, self.micro_batches, self.rows);
            Some((sample, self.samples.start(sample), self.lengths.window as usize))
        });
        self.read(&self.train, rows)
    }

    /// Rounds of `micro_batches` micro-batches that cover the validation text.
    pub fn validation_rounds(&self) -> u64 {
        let round = u64::from(self.micro_batches) * u64::from(self.rows);
        self.validation_windows().div_ceil(round)
    }

    fn validation_windows(&self) -> u64 {
        let tokens = self.validation.as_ref().map_or(0, OpenTokens::len);
        tokens.saturating_sub(1).div_ceil(self.lengths.window.into())
    }

    /// A micro-batch of a round over the validation text: consecutive windows, the last one short,
    /// rows past the end empty.
    pub fn validation(&self, round: u64, micro_batch: u32) -> Result<MicroBatchData, EngineError> {
        let tokens = self
            .validation
            .as_ref()
            .ok_or_else(|| EngineError::Other("there is no validation text".to_owned()))?;
        let first = (round * u64::from(self.micro_batches) + u64::from(micro_batch)) * u64::from(self.rows);
        let windows = (first..first + u64::from(self.rows)).map(|window| {
            let start = window * u64::from(self.lengths.window);
            let targets = (tokens.len() - 1).saturating_sub(start).min(self.lengths.window.into());
            // Samples of training count up from 0, windows of the validation text down from the end.
            (targets > 0).then_some((!window, start, targets as usize))
        });
        self.read(tokens, windows)
    }

    /// Reads rows of `(sample, start, number of targets)`; a row of `None` has no targets at all.
    fn read(
        &self,
        from: &OpenTokens,
        rows: impl Iterator<Item = Option<(u64, u64, usize)>>,
    ) -> Result<MicroBatchData, EngineError> {
        let [source_len, sequence] = [self.lengths.source, self.lengths.target].map(|n| n as usize);
        let (mut ids, mut targets, mut documents) = (Vec::new(), Vec::new(), Documents::default());
        let (mut source, mut counts) = (Vec::new(), Vec::new());
        // In thousandths, so that their sum is exact.
        let mut weights = Vec::<u32>::new();
        for row in rows {
            let mut window = vec![0; row.map_or(0, |(_, _, len)| len + 1)];
            if let Some((_, start, _)) = row {
                from.read(start, &mut window)?;
            }
            let (sample, len) = row.map_or((0, 0), |(sample, _, len)| (sample, len));
            let of =
                if self.separate { documents_of(&window[..len], self.end_of_text) } else { vec![0; len] };
            let (row_ids, row_targets) = match &self.objective {
                Objective::Next => (window[..len].to_vec(), window.get(1..).unwrap_or_default().to_vec()),
                Objective::MaskedLm(masking) => {
                    counts.push(len as u32);
                    masking.hide(sample, &window[..len])
                }
                Objective::Class => {
                    let (weight, class, text) = labelled(&window[..len]);
                    counts.push(text.len() as u32);
                    weights.push(weight);
                    targets.push(class);
                    pad(&mut ids, text.to_vec(), sequence, 0);
                    continue;
                }
                Objective::Answer => {
                    let (weight, row_ids, row_targets) = answered(&window[..len]);
                    weights.resize(weights.len() + sequence, weight);
                    (row_ids, row_targets)
                }
                Objective::Reply(start) => {
                    let (weight, prompt, answer) = replied(&window[..len], source_len);
                    weights.resize(weights.len() + sequence, weight);
                    counts.push(prompt.len() as u32);
                    pad(&mut source, prompt.to_vec(), source_len, 0);
                    let begun = std::iter::once(i64::from(*start)).chain(answer.iter().copied());
                    (begun.take(answer.len()).collect(), answer.to_vec())
                }
                Objective::SpanCorruption(spans) => {
                    let corrupted = spans.corrupt(sample, &window[..len], &of);
                    counts.push(corrupted.source.len() as u32);
                    documents.own.push(padded_of(corrupted.targets_of, sequence, PADDED_TARGETS));
                    documents.source.push(padded_of(corrupted.source_of, source_len, PADDED_SOURCE));
                    pad(&mut source, corrupted.source, source_len, 0);
                    (corrupted.ids, corrupted.targets)
                }
            };
            if source_len == 0 {
                documents.own.push(padded_of(of, sequence, PADDED_SOURCE));
            }
            pad(&mut ids, row_ids, sequence, 0);
            pad(&mut targets, row_targets, sequence, -1);
        }
        let tokens = targets.iter().filter(|target| **target >= 0).count() as u64;
        let counted = targets.iter().zip(&weights).filter(|(target, _)| **target >= 0);
        let thousandths: u64 = counted.map(|(_, weight)| u64::from(*weight)).sum();
        let each: Vec<f32> = weights.iter().map(|weight| (f64::from(*weight) / 1e3) as f32).collect();
        let ids_bt = Tensor::from_slice(&ids).f_view([-1, sequence as i64])?;
        let read = if source_len > 0 { source_len } else { sequence };
        let padded = counts.iter().any(|count| *count as usize != read);
        let source = || Tensor::from_slice(&source).f_view([-1, source_len as i64]);
        Ok(MicroBatchData {
            source_bs: (source_len > 0).then(source).transpose()?,
            ids_bt,
            targets_n: Tensor::from_slice(&targets),
            tokens,
            weights_n: (!each.is_empty()).then(|| Tensor::from_slice(&each)),
            weight: if each.is_empty() { tokens as f64 } else { thousandths as f64 / 1e3 },
            documents: self.separate.then_some(documents),
            padded: padded.then_some(counts),
        })
    }
}

/// Adds a row of `len`, filled up with `with`.
fn pad(rows: &mut Vec<i64>, row: Vec<i64>, len: usize, with: i64) {
    let end = rows.len() + len;
    rows.extend(row);
    rows.resize(end, with);
}

/// The weight, inputs and targets of a row of pairs that stand one after the other: a token of the prompt is
/// asked for nothing but the answer's first.
fn answered(row: &[i64]) -> (u32, Vec<i64>, Vec<i64>) {
    let [weight, prompt, answer, tokens @ ..] = row else { return (0, Vec::new(), Vec::new()) };
    let all = &tokens[..((prompt + answer) as usize).min(tokens.len())];
    let targets = all.iter().enumerate().skip(1);
    let targets = targets.map(|(at, id)| if at as i64 >= *prompt { *id } else { -1 }).collect();
    (*weight as u32, all[..all.len().saturating_sub(1)].to_vec(), targets)
}

/// The weight, the prompt and the answer of a row of pairs that stand apart.
fn replied(row: &[i64], field: usize) -> (u32, &[i64], &[i64]) {
    let [weight, prompt, answer, tokens @ ..] = row else { return (0, &[], &[]) };
    let (one, other) = tokens.split_at(field.min(tokens.len()));
    (*weight as u32, &one[..(*prompt as usize).min(one.len())], &other[..(*answer as usize).min(other.len())])
}

/// The weight and the class of a row of a labelled file, and its tokens; none of an empty row.
fn labelled(row: &[i64]) -> (u32, i64, &[i64]) {
    match row {
        [weight, class, len, tokens @ ..] => {
            (*weight as u32, *class, &tokens[..(*len as usize).min(tokens.len())])
        }
        _ => (0, -1, &[]),
    }
}

/// What padding is of; that of an encoder's and of a decoder's row do not see each other.
const PADDED_SOURCE: u32 = u32::MAX;
const PADDED_TARGETS: u32 = u32::MAX - 1;

/// The document of each token: one ends with the end of text.
fn documents_of(tokens: &[i64], end_of_text: u32) -> Vec<u32> {
    let mut document = 0;
    let of = tokens.iter().map(|token| {
        let own = document;
        document += u32::from(*token == i64::from(end_of_text));
        own
    });
    of.collect()
}

/// A row of documents, filled up to `len`.
fn padded_of(mut of: Vec<u32>, len: usize, padding: u32) -> Arc<[u32]> {
    of.resize(len, padding);
    of.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masking_hides_the_share_it_should_and_asks_for_what_it_hides() {
        let masking = Masking { key: 7, rate: 0.15, mask: 999, text: 999, words: None };
        let tokens: Vec<i64> = (0..1000).map(|i| i % 500).collect();
        let mut counts = [0_u32; 4];
        for sample in 0..100 {
            let (ids, targets) = masking.hide(sample, &tokens);
            for ((id, target), token) in ids.iter().zip(&targets).zip(&tokens) {
                assert!(*target == -1 && id == token || target == token);
                counts[0] += u32::from(*target >= 0);
                counts[1] += u32::from(*id == 999);
                counts[2] += u32::from(*target >= 0 && id == token);
                counts[3] += u32::from(*target >= 0 && id != token && *id != 999);
            }
        }
        let near = |count: u32, share: f64| (f64::from(count) / (1e5 * share) - 1.0).abs() < 0.06;
        assert!(near(counts[0], 0.15) && near(counts[1], 0.12), "{counts:?}");
        assert!(near(counts[2], 0.015) && near(counts[3], 0.015), "{counts:?}");
        assert_eq!(masking.hide(3, &tokens), masking.hide(3, &tokens));
        assert_ne!(masking.hide(3, &tokens), masking.hide(4, &tokens));
        // A short row is asked for something.
        assert!((0..50).all(|sample| masking.hide(sample, &[5, 6]).1.iter().any(|target| *target >= 0)));
    }

    #[test]
    fn documents_end_with_the_end_of_text() {
        let of = documents_of(&[1, 2, 9, 3, 9, 4], 9);
        assert_eq!(of, [0, 0, 0, 1, 1, 2]);
        assert_eq!(padded_of(of, 8, 7)[5..], [2, 7, 7]);
    }

    #[test]
    fn whole_words_are_hidden_together() {
        // Every third token begins a word.
        let words: Vec<bool> = (0..1000).map(|id| id % 3 == 0).collect();
        let masking = Masking { key: 7, rate: 0.15, mask: 999, text: 999, words: Some(words) };
        let tokens: Vec<i64> = (0..999).collect();
        let mut asked = 0;
        for sample in 0..100 {
            let (_, targets) = masking.hide(sample, &tokens);
            for word in targets.chunks(3) {
                assert!(word.iter().all(|target| (*target >= 0) == (word[0] >= 0)), "{word:?}");
                asked += usize::from(word[0] >= 0);
            }
        }
        assert!((4_500..5_500).contains(&asked), "{asked} of 33300 words, 15 of 100");
        assert_eq!(
            masking.hide(0, &[4, 5, 7]).1,
            [4, 5, 7],
            "a word whose beginning is not there is one too"
        );
    }

    #[test]
    fn answers_alone_are_asked_for() {
        assert_eq!(answered(&[9, 2, 2, 7, 8, 5, 0, 0]), (9, vec![7, 8, 5], vec![-1, 5, 0]));
        assert_eq!(answered(&[]), (0, vec![], vec![]));
        assert_eq!(replied(&[9, 2, 1, 7, 8, 0, 5, 0, 0], 3), (9, [7, 8].as_slice(), [5].as_slice()));
        assert_eq!(replied(&[], 3), (0, [].as_slice(), [].as_slice()));
    }

    #[test]
    fn a_labelled_row_ends_where_it_says() {
        assert_eq!(labelled(&[4, 2, 3, 7, 8, 9, 0, 0]), (4, 2, [7, 8, 9].as_slice()));
        assert_eq!(labelled(&[]), (0, -1, [].as_slice()));
        assert_eq!(labelled(&[4, 1, 9, 7]), (4, 1, [7].as_slice()));
    }
}
