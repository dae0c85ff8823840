//! From a job's text to its token files, once: `DIR/data/` then holds `tokenizer.json`,
//! `train.tokens`, and of the validation text `validation.tokens` and `validation.txt`. Synthetic tokens
//! ([`crate::source`]) have no file.
//!
//! `prepared.json` is written last and says what all this was made from. A second call with the
//! same inputs finds it, checks the files by their digests, and makes nothing anew. With the [`Digests`] of the
//! first call it hashes no text or token file that still looks the same.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use coxswain_types::JobSpec;
use coxswain_types::assignment::{self, PreparedData, SyntheticTokens, TokenSource};
use coxswain_types::framing::Framing;
use coxswain_types::job::{Corruption, DataSpec, Lengths, reserved_tokens};
use coxswain_types::model::{Architecture, Head};
use serde::{Deserialize, Serialize};

use crate::atomic::digest_bytes;
use crate::digests::Digests;
use crate::progress::{PreparationPhase, PreparationProgress, Stopped, Watch};
use crate::store::StoreFolder;
use crate::tokenizer::{END_OF_TEXT_ID, TokenizerError};
use crate::tokens::{OpenTokenFile, TokensError, list_of};

/// The tokenizer, below the run's folder.
pub const TOKENIZER: &str = "data/tokenizer.json";
/// The tokens to train on, below the run's folder.
pub const TRAIN: &str = "data/train.tokens";
/// The validation tokens, below the run's folder.
pub const VALIDATION: &str = "data/validation.tokens";
/// The validation text, below the run's folder.
pub const VALIDATION_TEXT: &str = "data/validation.txt";
/// What all of this was made from, below the run's folder.
pub const PREPARED: &str = "data/prepared.json";

mod lines;
mod passes;
mod read;
mod split;
mod start;
mod texts;

use lines::Lines;
use passes::{How, ScannedTexts};
use start::Start;
pub use texts::{Looked, TextFault, look};

/// Grows when the same inputs come to give other tokens.
const RECIPE: u32 = 6;

/// The most bytes of `prepared.json`: with 1024 texts, each with a digest, it takes less than 100 KiB.
const MAX_PREPARED_BYTES: u64 = 4 << 20;

/// What can be wrong with a job's data.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A file is not text that can be read.
    #[error("{key}: {path} {fault}", path = path.display())]
    Text {
        /// The key that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: TextFault,
    },
    /// There is no text to train on.
    #[error("{key}: no file is named; name at least one")]
    NoFile {
        /// The key that names none.
        key: &'static str,
    },
    /// There is more text than can be prepared.
    #[error("{key}: more than {most} bytes of text; give fewer or smaller files")]
    TooMuchText {
        /// The key that names it.
        key: &'static str,
        /// The most that is read.
        most: u64,
    },
    /// The caller stopped the work.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// There are too few tokens for one sample.
    #[error(
        "the text to train on makes {}, and one sample takes {needed} (train.sequence and the \
         target of its last token); give more text or lower train.sequence",
        counted(*.tokens)
    )]
    TooFewTokens {
        /// Tokens that there are.
        tokens: u64,
        /// Tokens that one sample takes.
        needed: u64,
    },
    /// Nothing is left to measure on.
    #[error(
        "the validation text makes {}, and a loss takes at least 2; raise data.validation, \
         or set it to 0 for no validation split",
        counted(*.tokens)
    )]
    ValidationTooSmall {
        /// Tokens that there are.
        tokens: u64,
    },
    /// A line is not a sample.
    #[error("{path}, line {line}: {what}", path = path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1 on.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
    /// The weights to start from do not fit.
    #[error("train.start_from: {0}")]
    Start(String),
    /// The tokenizer could not be made or written.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// A token file could not be written.
    #[error(transparent)]
    Tokens(#[from] TokensError),
    /// The text is another one than a checkpoint was trained on.
    #[error(
        "the text or the vocabulary is not what the checkpoint in {dir} was trained on, and its tokens would \
         mean other words; bring the text back, or go on with its weights in another folder, by train.start_from",
        dir = dir.display()
    )]
    Changed {
        /// The run's folder.
        dir: PathBuf,
    },
    /// A file could not be written.
    #[error("{path} cannot be written: {cause}", path = path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

fn counted(tokens: u64) -> String {
    if tokens == 1 { "1 token".to_owned() } else { format!("{tokens} tokens") }
}

/// `prepared.json`.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct PreparedFile {
    recipe: u32,
    inputs: Inputs,
    /// The digest of the validation text; `None` without a validation split.
    validation_text: Option<String>,
    /// By how much the counts of words that the tokenizer was learned from may be too low. They are exact where the
    /// text has no more different words than fit in memory.
    #[serde(default, skip_serializing_if = "is_zero")]
    word_counts_low_by: u64,
    data: PreparedData,
}

/// Whether nothing is to be said.
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What decides the tokens. Texts count by their contents and order, not by where they lie.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Inputs {
    Text {
        digests: Vec<String>,
        validation: f64,
        vocab: u32,
        /// The digest of the tokenizer that is there already.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tokenizer: Option<String>,
        /// What lines are, where each is a sample.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lines: Option<Lines>,
        /// The framing of texts.
        framing: Box<Framing>,
    },
    Synthetic(SyntheticTokens),
}

/// Prepares the data of a job below the run's folder, or finds it prepared. `digests` caches digests
/// across calls for one job; `watch` gets progress and can stop the work.
///
/// A run that goes on from a checkpoint says which tokens are `wanted`: others are refused before anything in
/// the folder changes.
///
/// # Errors
/// [`PrepareError`], naming the file or the number that is wrong.
pub fn prepare(
    run: &StoreFolder,
    spec: &JobSpec,
    wanted: Option<&PreparedData>,
    digests: &Digests,
    watch: Watch<'_>,
) -> Result<PreparedData, PrepareError> {
    // Before anything is read: what is not a regular file may have no end.
    let total = look(&spec.data)?.map_or(0, |looked| looked.bytes);
    let start = Start::of(spec, digests)?;
    let changed = || PrepareError::Changed { dir: run.path() };
    let weights = start.as_ref().map(|start| start.weights.clone());
    let reusable = match stored(run) {
        // The texts are read once, while their tokens are made.
        None => None,
        Some(stored) => {
            let inputs = Inputs::of(spec, start.as_ref(), |file| {
                watch(PreparationProgress { phase: PreparationPhase::Reading, done: 0, total })?;
                texts::digest(&spec.data, file, digests)
            })?;
            if wanted.is_some() && stored.inputs != inputs {
                return Err(changed());
            }
            let intact = is_intact(&stored, run, &inputs, digests) && stored.data.weights == weights;
            intact.then_some(stored)
        }
    };
    let prepared = match reusable {
        Some(prepared) => prepared,
        None => {
            let mut prepared = make(run, spec, start.as_ref(), digests, watch)?;
            prepared.data.weights = weights;
            let json =
                serde_json::to_vec_pretty(&prepared).map_err(|e| write_error(run, PREPARED)(e.into()))?;
            run.put(PREPARED, &json).map_err(write_error(run, PREPARED))?;
            prepared
        }
    };
    if wanted.is_some_and(|wanted| *wanted != prepared.data) {
        return Err(changed());
    }
    check(&prepared.data, Lengths::of(&spec.model, &spec.train).window)?;
    Ok(prepared.data)
}

impl Inputs {
    /// What decides the tokens of a job, with the digest of each text.
    fn of(
        spec: &JobSpec,
        start: Option<&Start>,
        digest: impl FnMut(&String) -> Result<String, PrepareError>,
    ) -> Result<Inputs, PrepareError> {
        let vocab = spec.model.vocab.saturating_sub(reserved_tokens(&spec.model, &spec.train));
        Ok(match &spec.data {
            DataSpec::Text { files, validation }
            | DataSpec::Labelled { files, validation, .. }
            | DataSpec::Pairs { files, validation, .. } => {
                let tokenizer = start.and_then(|start| start.tokenizer.as_ref());
                Inputs::Text {
                    digests: files.iter().map(digest).collect::<Result<_, _>>()?,
                    validation: *validation,
                    vocab,
                    tokenizer: tokenizer.map(|tokenizer| digest_bytes(&tokenizer.to_bytes())),
                    lines: Lines::of(spec),
                    framing: Box::new(framing_of(spec, start)?),
                }
            }
            DataSpec::Synthetic { tokens } => {
                Inputs::Synthetic(SyntheticTokens { tokens: *tokens, seed: spec.train.seed, vocab })
            }
        })
    }
}

/// What an earlier call made, if it can be read.
fn stored(run: &StoreFolder) -> Option<PreparedFile> {
    serde_json::from_slice(&run.read(PREPARED, MAX_PREPARED_BYTES).ok()?).ok()
}

/// Whether there is enough to train on, and to measure on where there is a validation split.
fn check(data: &PreparedData, sequence: u32) -> Result<(), PrepareError> {
    let needed = u64::from(sequence) + 1;
    let tokens = data.train.tokens();
    if tokens < needed {
        return Err(PrepareError::TooFewTokens { tokens, needed });
    }
    match data.validation.as_ref().map(|file| file.tokens) {
        Some(tokens) if tokens < 2 => Err(PrepareError::ValidationTooSmall { tokens }),
        _ => Ok(()),
    }
}

/// Whether what an earlier call made is of the same inputs, and all its files are still the same. What
/// cannot be read is as good as absent: it is made anew.
fn is_intact(prepared: &PreparedFile, run: &StoreFolder, inputs: &Inputs, digests: &Digests) -> bool {
    let same = |path: &str, digest: &str| digests.of(run, path).is_ok_and(|found| found == digest);
    let has = |path: &str, digest: &Option<String>| digest.as_ref().is_none_or(|digest| same(path, digest));
    // The digest of a token file is that of its list of digests.
    let holds = |file: &assignment::TokenFile| {
        let blocks = digests.of_blocks(run, &file.path);
        blocks.is_ok_and(|found| found == file.digest)
            && same(&list_of(&file.path), &file.digest)
            && OpenTokenFile::open(run, file).is_ok()
    };
    let from = match (&prepared.inputs, &prepared.data.train) {
        (Inputs::Synthetic(asked), TokenSource::Synthetic(made)) => asked == made,
        (Inputs::Text { .. }, TokenSource::File(_)) => true,
        _ => false,
    };
    from && prepared.recipe == RECIPE
        && prepared.inputs == *inputs
        && has(TOKENIZER, &prepared.data.tokenizer_digest)
        && has(VALIDATION_TEXT, &prepared.validation_text)
        && token_files(&prepared.data).all(holds)
}

/// The files of the tokens.
fn token_files(data: &PreparedData) -> impl Iterator<Item = &assignment::TokenFile> {
    data.train.file().into_iter().chain(&data.validation)
}

fn make(
    run: &StoreFolder,
    spec: &JobSpec,
    start: Option<&Start>,
    digests: &Digests,
    watch: Watch<'_>,
) -> Result<PreparedFile, PrepareError> {
    let share = validation_share(&spec.data);
    let of_lines = Lines::of(spec);
    let texts = ScannedTexts::look_through(&spec.data, of_lines.as_ref(), share, digests, watch)?;
    // Of what was read: a text may have changed since it was looked at.
    let mut read = texts.digests();
    let inputs = Inputs::of(spec, start, |_| Ok(read.next().unwrap_or_default().to_owned()))?;
    // Whether the folder can be written to is known before minutes are spent on texts.
    drop(run.create(PREPARED).map_err(write_error(run, PREPARED))?);
    // What this run will not have must not lie about from an earlier one.
    let [train_list, validation_list] = [TRAIN, VALIDATION].map(list_of);
    for stale in [PREPARED, TOKENIZER, TRAIN, &train_list, VALIDATION, &validation_list, VALIDATION_TEXT] {
        run.delete(stale).map_err(write_error(run, stale))?;
    }
    let (data, validation_text, word_counts_low_by) = match &inputs {
        Inputs::Text { vocab, lines, framing, .. } => {
            let (tokenizer, low_by) = match start.and_then(|start| start.tokenizer.as_ref()) {
                Some(brought) => (Cow::Borrowed(brought), 0),
                None => texts.learn(*vocab).map(|(learned, low_by)| (Cow::Owned(learned), low_by))?,
            };
            let how = How { tokenizer: &tokenizer, framing, lines: lines.as_ref() };
            let (data, validation_text) = make_text(run, &texts, &how, share > 0.0)?;
            (data, validation_text, low_by)
        }
        Inputs::Synthetic(synthetic) => {
            let framing = framing_of(spec, None)?;
            (PreparedData { framing, ..PreparedData::of_tokens(synthetic.clone()) }, None, 0)
        }
    };
    for file in token_files(&data) {
        digests.wrote_blocks(run, &file.path, &file.digest);
        digests.wrote(run, &list_of(&file.path), &file.digest);
    }
    for (path, digest) in [(TOKENIZER, &data.tokenizer_digest), (VALIDATION_TEXT, &validation_text)] {
        if let Some(digest) = digest {
            digests.wrote(run, path, digest);
        }
    }
    Ok(PreparedFile { recipe: RECIPE, inputs, validation_text, word_counts_low_by, data })
}

/// Makes the files of texts; also returns the digest of the validation text.
fn make_text(
    run: &StoreFolder,
    texts: &ScannedTexts<'_>,
    how: &How<'_>,
    holds_out: bool,
) -> Result<(PreparedData, Option<String>), PrepareError> {
    how.tokenizer.save(run, TOKENIZER)?;
    let made = texts.encode(run, how, holds_out)?;
    let mut data = PreparedData {
        tokenizer_digest: Some(digest_bytes(&how.tokenizer.to_bytes())),
        framing: how.framing.clone(),
        ..PreparedData::of_tokens(made.train)
    };
    let Some((tokens, text)) = made.validation else { return Ok((data, None)) };
    data.validation = Some(tokens);
    data.validation_bytes = text.bytes;
    Ok((data, Some(text.digest)))
}

/// The share of the validation text.
fn validation_share(data: &DataSpec) -> f64 {
    match data {
        DataSpec::Text { validation, .. }
        | DataSpec::Labelled { validation, .. }
        | DataSpec::Pairs { validation, .. } => *validation,
        DataSpec::Synthetic { .. } => 0.0,
    }
}

/// How the job's texts are framed: as the model that it starts from frames them, where that brings a tokenizer
/// from elsewhere.
fn framing_of(spec: &JobSpec, start: Option<&Start>) -> Result<Framing, PrepareError> {
    let brought = start.filter(|start| start.tokenizer.as_ref().is_some_and(|of| !of.is_own()));
    let own = Framing::own(&spec.model, &spec.train, END_OF_TEXT_ID);
    let longest = matches!(spec.model.head, Head::Pooled { .. }).then_some(spec.train.sequence);
    let Some(start) = brought else { return Ok(Framing { longest, ..own }) };
    let framing = start.data.framing.clone();
    let needed = own.sentinels.map_or(0, |sentinels| sentinels.count);
    let there = framing.sentinels.map_or(0, |sentinels| sentinels.count);
    if needed > there {
        let instead = match spec.train.corruption {
            Corruption::Spans if there == 1 && spec.model.architecture == Architecture::EncoderDecoder => {
                "; set train.corruption to infilling"
            }
            _ => "",
        };
        return Err(PrepareError::Start(format!(
            "the job needs {needed} sentinel tokens, and the tokenizer has {there}{instead}"
        )));
    }
    Ok(Framing { longest: longest.or(framing.longest), ..framing })
}

fn write_error(run: &StoreFolder, name: &str) -> impl FnOnce(io::Error) -> PrepareError {
    let path = run.place(name);
    move |cause| PrepareError::Write { path, cause }
}

#[cfg(test)]
mod tests;
