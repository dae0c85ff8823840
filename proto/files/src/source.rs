//! Tokens that are ready to be read, wherever they come from: a file holds them, or each reader computes them.
//!
//! Synthetic tokens are a function of the seed and of their place. No file holds them, so their number costs neither
//! disk nor time, and two readers in any layout get the same ones.

use coxswain_types::assignment::{SyntheticTokens, TokenSource};

use crate::hash::draw_below;
use crate::store::StoreFolder;
use crate::tokens::{OpenTokenFile, TokensError};

/// Sets the stream of synthetic tokens apart from the other uses of the job's seed.
const SYNTHETIC: u64 = 0x7379_6e74_6865_7469;

/// Tokens that are ready to be read.
#[derive(Debug)]
pub enum OpenTokens {
    /// A file holds them.
    File(OpenTokenFile),
    /// They are computed.
    Synthetic(SyntheticTokens),
}

impl OpenTokens {
    /// Opens the tokens of a job, whose files lie below the run's folder.
    ///
    /// # Errors
    /// Those of [`OpenTokenFile::open`].
    pub fn open(run: &StoreFolder, source: &TokenSource) -> Result<OpenTokens, TokensError> {
        Ok(match source {
            TokenSource::File(file) => OpenTokens::File(OpenTokenFile::open(run, file)?),
            TokenSource::Synthetic(synthetic) => OpenTokens::Synthetic(synthetic.clone()),
        })
    }

    /// How many tokens there are.
    pub fn len(&self) -> u64 {
        match self {
            OpenTokens::File(file) => file.len(),
            OpenTokens::Synthetic(synthetic) => synthetic.tokens,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads `out.len()` tokens from token `start` on, as the `i64`s that an embedding takes.
    ///
    /// # Errors
    /// Those of [`OpenTokenFile::read`], and [`TokensError::SyntheticRange`]; `out` is untouched then.
    pub fn read(&self, start: u64, out: &mut [i64]) -> Result<(), TokensError> {
        match self {
            OpenTokens::File(file) => file.read(start, out),
            OpenTokens::Synthetic(synthetic) => compute(synthetic, start, out),
        }
    }
}

fn compute(synthetic: &SyntheticTokens, start: u64, out: &mut [i64]) -> Result<(), TokensError> {
    let &SyntheticTokens { tokens, seed, vocab } = synthetic;
    let len = out.len() as u64;
    if start.checked_add(len).is_none_or(|end| end > tokens) {
        return Err(TokensError::SyntheticRange { start, len, tokens });
    }
    for (place, out) in (start..).zip(out) {
        *out = i64::from(draw_below(seed ^ SYNTHETIC, place, vocab));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tokens::write_tokens;

    fn synthetic(tokens: u64, seed: u64, vocab: u32) -> OpenTokens {
        OpenTokens::Synthetic(SyntheticTokens { tokens, seed, vocab })
    }

    fn read(tokens: &OpenTokens, start: u64, len: usize) -> Result<Vec<i64>, TokensError> {
        let mut out = vec![-7; len];
        let read = tokens.read(start, &mut out);
        assert!(read.is_ok() || out.iter().all(|token| *token == -7), "{out:?}");
        read.map(|()| out)
    }

    #[test]
    fn synthetic_tokens_are_pinned() {
        // A change of them would silently change every run that goes on.
        let rows: [(u64, u64, u32, [i64; 6]); 4] = [
            (0, 0, 300, [86, 103, 258, 278, 87, 22]),
            (1, 0, 300, [252, 87, 60, 53, 245, 195]),
            (42, 4090, 50_257, [17_896, 31_109, 12_423, 2575, 7972, 25_100]),
            (u64::MAX, (1 << 36) - 6, 151_936, [94_997, 35_784, 18_647, 1706, 36_495, 141_448]),
        ];
        for (seed, start, vocab, expected) in rows {
            let found = read(&synthetic(1 << 40, seed, vocab), start, 6).unwrap();
            assert_eq!(found, expected, "seed {seed}, from {start}");
        }
    }

    #[test]
    fn tokens_past_the_end_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = write_tokens(&dir.path().into(), "t", &[1, 2, 3]).unwrap();
        let file = OpenTokens::open(&dir.path().into(), &file.into()).unwrap();
        for (tokens, what) in
            [(file, "t has 3 tokens"), (synthetic(3, 1, 9), "the job has 3 synthetic tokens")]
        {
            assert_eq!((tokens.len(), tokens.is_empty()), (3, false));
            for (start, len, fits) in
                [(0, 3, true), (3, 0, true), (2, 2, false), (4, 0, false), (u64::MAX, 2, false)]
            {
                match read(&tokens, start, len) {
                    Ok(_) => assert!(fits, "{start}+{len} of {tokens:?}"),
                    Err(error) => {
                        let expected = format!("{what}, but {len} from {start} on were asked for");
                        assert!(!fits && error.to_string().ends_with(&expected), "{error}");
                    }
                }
            }
        }
        assert!(synthetic(0, 1, 9).is_empty());
    }

    proptest! {
        #[test]
        fn a_token_depends_on_its_place_alone(seed: u64, vocab in 1u32.., start in 0u64..1 << 40, skip in 0usize..90) {
            let tokens = synthetic(u64::MAX, seed, vocab);
            let all = read(&tokens, start, 100).unwrap();
            let later = read(&tokens, start + skip as u64, 100 - skip).unwrap();
            prop_assert_eq!(&all[skip..], &later[..]);
            prop_assert!(all.iter().all(|token| (0..i64::from(vocab)).contains(token)));
        }
    }
}
