//! A job's texts as they are told before a run: that they are there, and how often they are read.

use coxswain_core::code::ErrorCode;
use coxswain_files::prepare::{Looked, PrepareError, look};
use coxswain_types::JobSpec;
use coxswain_types::job::{DataSpec, Lengths};

use crate::refusal::JobRefusal;

/// What a job does with its texts; `None` where it has none.
pub(crate) fn texts(spec: &JobSpec) -> Result<Option<TextEpochs>, JobRefusal> {
    let looked = look(&spec.data).map_err(|error| {
        let code = match error {
            PrepareError::NoFile { .. } => ErrorCode::TextsMissing,
            PrepareError::TooMuchText { .. } => ErrorCode::TextsTooLarge,
            _ => ErrorCode::TextUnreadable,
        };
        JobRefusal::new(code, error.to_string())
    })?;
    Ok(looked.map(|looked| TextEpochs::of(spec, looked)))
}

/// How often a job reads its texts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct TextEpochs {
    looked: Looked,
    /// Samples that training has to take from: an estimate.
    samples: f64,
    /// Tokens of the text: an estimate; `None` where each line is a sample.
    tokens: Option<f64>,
    /// Samples that training takes.
    taken: f64,
}

impl TextEpochs {
    fn of(spec: &JobSpec, looked: Looked) -> TextEpochs {
        let (DataSpec::Text { validation, .. }
        | DataSpec::Labelled { validation, .. }
        | DataSpec::Pairs { validation, .. }) = &spec.data
        else {
            return TextEpochs { looked, samples: 0.0, tokens: None, taken: 0.0 };
        };
        let kept = 1.0 - validation;
        let train = &spec.train;
        let of_step = f64::from(train.global_micro_batches) * f64::from(train.micro_batch_size);
        let tokens = matches!(spec.data, DataSpec::Text { .. })
            .then(|| looked.bytes as f64 / bytes_per_token(spec.model.vocab));
        let samples = match tokens {
            Some(tokens) => tokens * kept / f64::from(Lengths::of(&spec.model, train).window.max(1)),
            None => looked.lines as f64 * kept,
        };
        TextEpochs { looked, samples, tokens, taken: train.steps as f64 * of_step }
    }

    fn passes(&self) -> f64 {
        self.taken / self.samples.max(1.0)
    }

    /// For programs.
    pub(crate) fn to_json(self) -> serde_json::Value {
        serde_json::json!({
            "files": self.looked.files,
            "bytes": self.looked.bytes,
            "estimated_tokens": self.tokens.map(f64::round),
            "estimated_passes": (self.passes() * 100.0).round() / 100.0,
        })
    }
}

impl std::fmt::Display for TextEpochs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Looked { files, bytes, lines } = self.looked;
        let noun = if files == 1 { "file" } else { "files" };
        let what = match self.tokens {
            Some(tokens) => format!("about {} tokens", rounded(tokens)),
            None => format!("about {} lines", rounded(lines as f64)),
        };
        let passes = match self.passes() {
            passes if passes < 0.95 => format!("{:.0} % of the text once", (passes * 100.0).max(1.0)),
            passes if passes < 9.5 => format!("the text {passes:.1} times"),
            passes => format!("the text {passes:.0} times"),
        };
        write!(
            f,
            "{files} {noun} of {:.1} MB, {what} (estimated): training reads {passes}",
            bytes as f64 / 1e6
        )
    }
}

/// How many bytes of text a token stands for, more or less, by a vocabulary that was trained on prose: 1 byte of 256
/// tokens, 3.2 of 8,000, 4.1 of 32,000.
fn bytes_per_token(vocab: u32) -> f64 {
    1.0 + 0.45 * (f64::from(vocab.max(256)).log2() - 8.0)
}

/// Rounds to two significant digits, since it is an estimate.
fn rounded(x: f64) -> String {
    let unit = 10f64.powf((x.max(1.0).log10().floor() - 1.0).max(0.0));
    let digits = ((x / unit).round() * unit).to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_has_two_digits() {
        for (x, expected) in
            [(0.0, "0"), (7.4, "7"), (38_765.0, "39,000"), (1_234_567.0, "1,200,000"), (99.6, "100")]
        {
            assert_eq!(rounded(x), expected);
        }
    }

    #[test]
    fn passes_are_told_in_words() {
        let looked = Looked { files: 1, bytes: 152_089, lines: 3000 };
        let texts = |samples, tokens, taken| TextEpochs { looked, samples, tokens, taken }.to_string();
        assert_eq!(
            texts(300.0, Some(38_765.0), 32_000.0),
            "1 file of 0.2 MB, about 39,000 tokens (estimated): training reads the text 107 times"
        );
        assert_eq!(
            texts(3000.0, None, 4500.0),
            "1 file of 0.2 MB, about 3,000 lines (estimated): training reads the text 1.5 times"
        );
        assert!(texts(1000.0, Some(1e6), 40.0).ends_with("training reads 4 % of the text once"));
    }
}
