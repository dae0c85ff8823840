//! Micro-batches from token files: which tokens, as a pure function of (seed, step, micro-batch).

use std::path::Path;

use coxswain_files::{Samples, TokenFile, sample_index};
use coxswain_types::assignment::{self, PreparedData};
use coxswain_types::job::TrainSpec;
use tch::Tensor;

use crate::EngineError;

/// The tokens of a micro-batch.
#[derive(Debug)]
pub struct MicroBatchData {
    /// Inputs, `[b, t]`.
    pub ids_bt: Tensor,
    /// Targets, `[n]`; -1 where there is none.
    pub targets_n: Tensor,
    /// How many targets there are.
    pub tokens: u64,
}

/// The tokens of a job.
#[derive(Debug)]
pub struct Tokens {
    train: TokenFile,
    samples: Samples,
    held_out: Option<TokenFile>,
    sequence: usize,
    rows: u32,
    micro_batches: u32,
}

impl Tokens {
    /// Opens the files and checks that they are those of the assignment.
    pub fn open(directory: &Path, data: &PreparedData, train: &TrainSpec) -> Result<Tokens, EngineError> {
        if let Some(wanted) = &data.tokenizer_digest {
            let path = directory.join(coxswain_files::prepare::TOKENIZER);
            let found = coxswain_files::atomic::digest_file(&path)
                .map_err(|source| EngineError::File { path: path.clone(), source })?;
            if found != *wanted {
                return Err(EngineError::Other(format!(
                    "{} has digest {found} where the job was prepared with {wanted}; every worker must see the \
                     run's own folder",
                    path.display()
                )));
            }
        }
        let open = |file: &assignment::TokenFile| TokenFile::open(directory, file);
        let tokens = Tokens {
            train: open(&data.train)?,
            samples: Samples::new(data.train.tokens, train.sequence, train.seed),
            held_out: data.held_out.as_ref().map(open).transpose()?,
            sequence: train.sequence as usize,
            rows: train.micro_batch,
            micro_batches: train.micro_batches,
        };
        if tokens.samples.windows() == 0 {
            return Err(EngineError::Other(format!(
                "{} has {} tokens, fewer than one sample of {} and its last target",
                data.train.path, data.train.tokens, train.sequence
            )));
        }
        Ok(tokens)
    }

    /// A micro-batch of the step that follows `step0` finished ones.
    pub fn train(&self, step0: u64, micro_batch: u32) -> Result<MicroBatchData, EngineError> {
        let starts = (0..self.rows).map(|row| {
            let sample = sample_index(step0, micro_batch, row, self.micro_batches, self.rows);
            Some((self.samples.start(sample), self.sequence))
        });
        read(&self.train, starts, self.sequence)
    }

    /// Rounds of `micro_batches` micro-batches that cover the held-out text.
    pub fn held_out_rounds(&self) -> u64 {
        let round = u64::from(self.micro_batches) * u64::from(self.rows);
        self.held_out_windows().div_ceil(round)
    }

    fn held_out_windows(&self) -> u64 {
        let tokens = self.held_out.as_ref().map_or(0, TokenFile::len);
        tokens.saturating_sub(1).div_ceil(self.sequence as u64)
    }

    /// A micro-batch of a round over the held-out text: consecutive windows, the last one short,
    /// rows past the end empty.
    pub fn held_out(&self, round: u64, micro_batch: u32) -> Result<MicroBatchData, EngineError> {
        let file = self
            .held_out
            .as_ref()
            .ok_or_else(|| EngineError::Other("there is no held-out text".to_owned()))?;
        let first = (round * u64::from(self.micro_batches) + u64::from(micro_batch)) * u64::from(self.rows);
        let windows = (first..first + u64::from(self.rows)).map(|window| {
            let start = window * self.sequence as u64;
            let targets = (file.len() - 1).saturating_sub(start).min(self.sequence as u64);
            (targets > 0).then_some((start, targets as usize))
        });
        read(file, windows, self.sequence)
    }
}

/// Reads rows of `(start, number of targets)`; a row of `None` has no targets at all.
fn read(
    file: &TokenFile,
    rows: impl Iterator<Item = Option<(u64, usize)>>,
    sequence: usize,
) -> Result<MicroBatchData, EngineError> {
    let (mut ids, mut targets, mut count) = (Vec::new(), Vec::new(), 0);
    for row in rows {
        let mut window = vec![0; row.map_or(0, |(_, len)| len + 1)];
        if let Some((start, len)) = row {
            file.read(start, &mut window)?;
            count += len as u64;
        }
        let len = window.len().saturating_sub(1);
        ids.extend(window.iter().take(len).copied().chain(std::iter::repeat_n(0, sequence - len)));
        targets.extend(window.iter().skip(1).copied().chain(std::iter::repeat_n(-1, sequence - len)));
    }
    let ids_bt = Tensor::from_slice(&ids).f_view([-1, sequence as i64])?;
    Ok(MicroBatchData { ids_bt, targets_n: Tensor::from_slice(&targets), tokens: count })
}
