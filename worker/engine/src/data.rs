//! Micro-batches from a job's tokens: which tokens, as a pure function of (seed, step, micro-batch).
//!
//! - [`Tokens`]: the files, and which windows of them a micro-batch reads.
//! - [`objective`]: what each objective makes of a window, one row; [`masking`] and [`corrupt`] for two of them.
//! - [`batch`]: a micro-batch from its rows.

use std::sync::Arc;

use coxswain_files::prepare::TOKENIZER;
use coxswain_files::{OpenTokens, Samples, StoreFolder, Tokenizer, sample_index};
use coxswain_types::JobSpec;
use coxswain_types::assignment::{PreparedData, TokenSource};
use coxswain_types::job::Lengths;
use tch::{Device, Tensor};

use crate::EngineError;
use crate::model::on_device;

mod batch;
mod corrupt;
mod masking;
mod objective;

use batch::{MicroBatchRows, RowLengths};
use objective::{Objective, TextWindow};

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

/// Where a row's tokens stand in a file.
#[derive(Clone, Copy, Debug)]
struct RowPlace {
    /// Which sample it is, for draws.
    sample: u64,
    /// Its first token.
    start: u64,
    /// How many tokens it has, each with one after it.
    targets: usize,
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
    /// What documents end with, where a token sees its own document only.
    separated_by: Option<u32>,
}

impl Tokens {
    /// Opens the files and checks that they are those of the assignment: the tokenizer whole, and tokens when they
    /// are first read.
    pub fn open(run: &StoreFolder, data: &PreparedData, spec: &JobSpec) -> Result<Tokens, EngineError> {
        let train = &spec.train;
        if let Some(wanted) = &data.tokenizer_digest {
            let path = run.place(TOKENIZER);
            let found =
                run.digest(TOKENIZER).map_err(|cause| EngineError::File { path: path.clone(), cause })?;
            if found != *wanted {
                return Err(EngineError::Other(format!(
                    "{} has digest {found} where the job was prepared with {wanted}; every worker must see the \
                     run's own folder",
                    path.display()
                )));
            }
        }
        let open = |source: &TokenSource| OpenTokens::open(run, source);
        let lengths = Lengths::of(&spec.model, train);
        let words = (train.whole_words && data.tokenizer_digest.is_some()).then(|| {
            let tokenizer = Tokenizer::load(run, TOKENIZER)?;
            Ok::<_, EngineError>(tokenizer.word_starts())
        });
        let words = words.transpose()?;
        let tokens = Tokens {
            train: open(&data.train)?,
            samples: Samples::new(data.train.tokens(), lengths.window, train.seed),
            validation: data.validation.clone().map(|file| open(&file.into())).transpose()?,
            lengths,
            rows: train.micro_batch_size,
            micro_batches: train.global_micro_batches,
            objective: Objective::of(spec, &data.framing, words),
            separated_by: train.separate_documents.then_some(data.framing.end),
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
            let targets = self.lengths.window as usize;
            Some(RowPlace { sample, start: self.samples.start(sample), targets })
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
            .ok_or_else(|| EngineError::Other("the validation text is missing".to_owned()))?;
        let first = (round * u64::from(self.micro_batches) + u64::from(micro_batch)) * u64::from(self.rows);
        let windows = (first..first + u64::from(self.rows)).map(|window| {
            let start = window * u64::from(self.lengths.window);
            let targets = (tokens.len() - 1).saturating_sub(start).min(self.lengths.window.into());
            // Samples of training count up from 0, windows of the validation text down from the end.
            (targets > 0).then_some(RowPlace { sample: !window, start, targets: targets as usize })
        });
        self.read(tokens, windows)
    }

    /// Reads the rows at these places.
    fn read(
        &self,
        from: &OpenTokens,
        places: impl Iterator<Item = Option<RowPlace>>,
    ) -> Result<MicroBatchData, EngineError> {
        let [source, ids] = [self.lengths.source, self.lengths.target].map(|n| n as usize);
        let targets = self.objective.targets(ids);
        let mut rows = MicroBatchRows::new(RowLengths { ids, targets, source });
        for place in places {
            let mut tokens = vec![0; place.map_or(0, |place| place.targets + 1)];
            if let Some(place) = place {
                from.read(place.start, &mut tokens)?;
            }
            let sample = place.map_or(0, |place| place.sample);
            rows.push(self.objective.row(&TextWindow::new(sample, &tokens, self.separated_by)));
        }
        rows.finish(self.separated_by.is_some())
    }
}
