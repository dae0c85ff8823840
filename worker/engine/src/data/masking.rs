//! Masked-language-model samples: which tokens of a text are hidden and asked for.

use coxswain_files::hash::{draw, unit};

use super::batch::SampleRow;
use super::objective::TextWindow;

/// Which tokens are hidden: a function of (seed, sample, place).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Masking {
    pub(super) key: u64,
    /// The share of tokens that is asked for.
    pub(super) rate: f64,
    /// The token that hides others.
    pub(super) mask: u32,
    /// How many tokens are text.
    pub(super) text: u32,
    /// Whether each token begins a word, where whole words are hidden.
    pub(super) words: Option<Vec<bool>>,
}

impl Masking {
    /// The row of a text: itself with tokens hidden, and those as targets.
    pub(super) fn row(&self, window: &TextWindow<'_>) -> SampleRow {
        let (ids, targets) = self.hide(window.sample, window.text());
        SampleRow {
            read: Some(ids.len() as u32),
            own: Some(window.documents.clone()),
            ..SampleRow::of(ids, targets)
        }
    }

    /// What stands at the places of a sample, and what is asked there: of the chosen tokens, eight of
    /// ten are hidden, one is replaced by any, one stays. At least one is chosen.
    fn hide(&self, sample: u64, tokens: &[i64]) -> (Vec<i64>, Vec<i64>) {
        let key = draw(self.key, sample);
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
}
