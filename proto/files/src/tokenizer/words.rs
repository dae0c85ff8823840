//! The words of texts, and how often each occurs, in bounded memory.
//!
//! Natural texts have ever more different words, so the rarest are forgotten when there are too many: lossy
//! counting (Manku and Motwani, 2002). Which are depends on the texts and their order alone: the words of one
//! piece after the other are added up, in the order of the text, whatever threads counted them.

use std::collections::{BTreeMap, HashMap};

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer as _};

use super::TokenizerError;
use super::pieces::{Cutter, TextCut};
use super::threads::{Batch, Threads};
use crate::progress::{PreparationPhase, PreparationProgress, Watch};

/// Tokens are learned from words of at most this many bytes; longer ones are cut. It bounds the length of a
/// token, and so of `tokenizer.json`, where a text is one letter a million times.
pub(super) const MAX_WORD_BYTES: usize = 1 << 10;

/// The memory that words may take while tokens are learned from them, as [`cost_bytes`] estimates it: a third of a
/// million words of a natural language. The whole preparation then takes less than 300 MiB, whatever the text.
const MAX_BYTES: usize = 208 << 20;

/// What a word takes: a place in the map, and its own allocation.
const WORD_BYTES: usize = 80;

/// What each byte of a word takes while tokens are learned ([`super::merges`]), where hardly a pair of letters comes
/// twice: its symbol, and the count and the place of its pair. In a natural language it is half as much.
const LETTER_BYTES: usize = 64;

/// Words and how often each occurs.
type Counts = HashMap<Box<str>, u64>;

/// The words of texts, in letters that stand for bytes.
#[derive(Debug)]
pub(crate) struct WordCounts {
    pub(super) counts: Counts,
    /// How much a word may have occurred more often than its count says.
    short_by: u64,
    bytes: usize,
    most_bytes: usize,
}

impl WordCounts {
    fn at_most(most_bytes: usize) -> WordCounts {
        WordCounts { counts: HashMap::new(), short_by: 0, bytes: 0, most_bytes }
    }

    /// By how much the count of a word may be too low; 0 where all words were counted.
    pub(crate) fn short_by(&self) -> u64 {
        self.short_by
    }

    /// Adds the words of the next piece.
    fn add(&mut self, piece: &Counts) {
        for (word, count) in piece {
            if let Some(sum) = self.counts.get_mut(word) {
                *sum += count;
                continue;
            }
            self.bytes += cost_bytes(word);
            // A copy: the piece's own lies among what a thread has freed, and would keep that memory in use.
            self.counts.insert(word.clone(), *count);
        }
        if self.bytes > self.most_bytes {
            self.forget();
        }
    }

    /// Forgets the rarest words, until a quarter of the memory is free.
    fn forget(&mut self) {
        let mut by_count: BTreeMap<u64, usize> = BTreeMap::new();
        for (word, count) in &self.counts {
            *by_count.entry(*count).or_default() += cost_bytes(word);
        }
        let mut rarest = 0;
        for (count, bytes) in by_count {
            if self.bytes <= self.most_bytes / 4 * 3 {
                break;
            }
            self.bytes -= bytes;
            rarest = count;
        }
        self.counts.retain(|_, count| *count > rarest);
        self.short_by = self.short_by.saturating_add(rarest);
    }
}

fn cost_bytes(word: &str) -> usize {
    WORD_BYTES + LETTER_BYTES * word.len()
}

/// Counts the words of texts that come bit by bit.
pub(crate) struct Counter<'a> {
    words: WordCounts,
    cutter: Cutter,
    batch: Batch<String>,
    threads: Threads,
    /// Bytes of text that were counted, and that there are.
    done: u64,
    total: u64,
    watch: Watch<'a>,
}

impl<'a> Counter<'a> {
    /// Counts texts of `total` bytes, and tells `watch` how far it is.
    pub(crate) fn new(total: u64, watch: Watch<'a>) -> Counter<'a> {
        Counter {
            words: WordCounts::at_most(MAX_BYTES),
            cutter: Cutter::new(TextCut::OWN),
            batch: Batch::new(),
            threads: Threads::new(),
            done: 0,
            total,
            watch,
        }
    }

    /// Adds the next bit of a text.
    ///
    /// # Errors
    /// [`TokenizerError::Stopped`] where `watch` asks for the end, and [`TokenizerError::Training`].
    pub(crate) fn push(&mut self, text: &str) -> Result<(), TokenizerError> {
        self.cutter.push(text);
        while let Some(piece) = self.cutter.piece().map(str::to_owned) {
            self.add(piece)?;
        }
        Ok(())
    }

    /// Ends a text: no word reaches from one into the next.
    ///
    /// # Errors
    /// Those of [`Counter::push`].
    pub(crate) fn end_text(&mut self) -> Result<(), TokenizerError> {
        self.cutter.last().map_or(Ok(()), |piece| self.add(piece))
    }

    /// All words.
    ///
    /// # Errors
    /// Those of [`Counter::push`].
    pub(crate) fn finish(mut self) -> Result<WordCounts, TokenizerError> {
        self.run()?;
        Ok(self.words)
    }

    fn add(&mut self, piece: String) -> Result<(), TokenizerError> {
        if self.batch.is_full(piece.len()) {
            self.run()?;
        }
        let bytes = piece.len();
        self.batch.push(piece, bytes);
        Ok(())
    }

    fn run(&mut self) -> Result<(), TokenizerError> {
        (self.watch)(PreparationProgress {
            phase: PreparationPhase::Words,
            done: self.done,
            total: self.total,
        })?;
        let (words, done) = (&mut self.words, &mut self.done);
        self.batch.run(
            &self.threads,
            |piece| words_of(piece),
            |piece, found| {
                *done += piece.len() as u64;
                words.add(&found?);
                Ok(())
            },
        )
    }
}

/// How words are found: by GPT-2's pattern, in letters that stand for bytes.
pub(super) fn byte_level() -> ByteLevel {
    ByteLevel::new(false, false, true)
}

/// The words of a piece.
fn words_of(piece: &str) -> Result<Counts, TokenizerError> {
    let mut split = PreTokenizedString::from(piece);
    byte_level().pre_tokenize(&mut split).map_err(|e| TokenizerError::Training(e.to_string()))?;
    let mut words = Counts::new();
    for (word, _, _) in split.get_splits(OffsetReferential::Original, OffsetType::Byte) {
        for part in parts(word, MAX_WORD_BYTES) {
            match words.get_mut(part) {
                Some(count) => *count += 1,
                None => {
                    words.insert(part.into(), 1);
                }
            }
        }
    }
    Ok(words)
}

/// A word of letters that stand for bytes, cut into parts of at most `most` of them.
fn parts(word: &str, most: usize) -> impl Iterator<Item = &str> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let cut = rest.char_indices().nth(most).map_or(rest.len(), |(at, _)| at);
        let (part, after) = rest.split_at(cut);
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn counts(words: &[(&str, u64)]) -> Counts {
        words.iter().map(|(word, count)| ((*word).into(), *count)).collect()
    }

    #[test]
    fn the_rarest_words_are_forgotten_when_there_are_too_many() {
        // Room for four words of one letter.
        let mut words = WordCounts::at_most(4 * cost_bytes("a"));
        words.add(&counts(&[("a", 9), ("b", 1), ("c", 2), ("d", 1)]));
        assert_eq!((words.counts.len(), words.short_by()), (4, 0));
        // Both of those that occurred once go, and that is enough.
        words.add(&counts(&[("c", 1), ("e", 3)]));
        assert_eq!(words.counts, counts(&[("a", 9), ("c", 3), ("e", 3)]));
        assert_eq!(words.short_by(), 1);
        // What comes again is counted from there on, and what was forgotten adds up.
        words.add(&counts(&[("b", 4), ("f", 4)]));
        assert_eq!(words.counts, counts(&[("a", 9), ("b", 4), ("f", 4)]));
        assert_eq!((words.short_by(), words.bytes), (4, 3 * cost_bytes("a")));
    }

    proptest! {
        /// A word is forgotten only where others are as frequent; no count is off by more than is said.
        #[test]
        fn no_count_is_further_off_than_is_said(
            pieces in prop::collection::vec(prop::collection::hash_map("[a-z]{1,2}", 1u64..5, 0..12), 0..40),
        ) {
            let (mut words, mut all) = (WordCounts::at_most(2000), Counts::new());
            for piece in pieces {
                let piece: Counts = piece.into_iter().map(|(word, count)| (word.into(), count)).collect();
                words.add(&piece);
                piece.iter().for_each(|(word, count)| *all.entry(word.clone()).or_default() += count);
                prop_assert!(words.bytes <= words.most_bytes);
                let bytes: usize = words.counts.keys().map(|word| cost_bytes(word)).sum();
                prop_assert_eq!(bytes, words.bytes);
            }
            for (word, count) in all {
                let found = words.counts.get(&word).copied().unwrap_or(0);
                prop_assert!(found <= count && count - found <= words.short_by(), "{word}: {found} of {count}");
            }
        }
    }
}
