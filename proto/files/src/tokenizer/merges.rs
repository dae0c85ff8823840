//! Learning the merges of a byte-level BPE from words and how often each occurs.
//!
//! The merges are those of the `tokenizers` library, which the tests hold this to. The library edits whole words,
//! so that a word of n letters costs n² steps, and a text without blanks is one word. Here symbols are a linked
//! list and every pair knows its places, so that a merge costs what it changes; and a caller can stop between
//! two merges.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::mem::take;

use super::TokenizerError;
use coxswain_types::hash::mix;

/// Two tokens that stand side by side.
type Pair = (u32, u32);

/// No place.
const NONE: u32 = u32::MAX;

/// What was learned.
#[derive(Debug, PartialEq)]
pub(super) struct Learned {
    /// The spelling of each token, by id, in letters that stand for bytes.
    pub(super) tokens: Vec<String>,
    /// The pairs that become one token, in the order in which they do.
    pub(super) merges: Vec<Pair>,
}

/// A pair that may become a token. The most frequent is the greatest, and of equals the one of smaller ids.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct MergeCandidate {
    count: i64,
    pair: Reverse<Pair>,
    /// Where its left symbol stands, or stood.
    places: Vec<u32>,
}

/// All pairs that may become a token.
#[derive(Default)]
struct Candidates {
    several: BinaryHeap<MergeCandidate>,
    /// Those that occur once, with their place. Of a text without blanks these are millions, and most are never looked
    /// at.
    once: BinaryHeap<(Reverse<Pair>, u32)>,
}

impl Candidates {
    fn push(&mut self, candidate: MergeCandidate) {
        match candidate {
            MergeCandidate { count: 1, pair, places } if places.len() == 1 => {
                self.once.extend(places.first().map(|place| (pair, *place)));
            }
            candidate => self.several.push(candidate),
        }
    }

    /// The greatest.
    fn pop(&mut self) -> Option<MergeCandidate> {
        let once = |(pair, place)| MergeCandidate { count: 1, pair, places: vec![place] };
        match (self.several.peek(), self.once.peek().copied().map(once)) {
            (Some(several), Some(one)) if *several < one => {
                self.once.pop();
                Some(one)
            }
            (None, Some(one)) => {
                self.once.pop();
                Some(one)
            }
            _ => self.several.pop(),
        }
    }
}

/// Merges the most frequent pair of `words` into a new token, until there are `vocab` tokens or no pair is left that
/// occurs `least` times. The vocabulary starts with `tokens`, which have every letter. `merged` hears of the number of
/// tokens after each merge.
pub(super) fn learn(
    words: HashMap<Box<str>, u64>,
    mut tokens: Vec<String>,
    (vocab, least): (usize, u64),
    mut merged: impl FnMut(usize) -> Result<(), TokenizerError>,
) -> Result<Learned, TokenizerError> {
    let mut ids: HashMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
    let mut symbols = Symbols::of(words, &ids)?;
    let mut pairs = PairCounts::default();
    for place in 0..symbols.token.len() as u32 {
        if let Some(pair) = symbols.pair(place) {
            pairs.add(pair, symbols.weight(place), place);
        }
    }
    let mut candidates = Candidates::default();
    pairs.hand_over(&mut candidates);
    let least = i64::try_from(least.max(1)).unwrap_or(i64::MAX);
    let mut merges = Vec::new();
    while tokens.len() < vocab {
        let Some(MergeCandidate { count, pair: Reverse(pair), places }) = candidates.pop() else { break };
        let now = pairs.count(pair);
        if now != count {
            candidates.push(MergeCandidate { count: now, pair: Reverse(pair), places });
            continue;
        }
        if count < least {
            break;
        }
        let spelling = format!("{}{}", tokens[pair.0 as usize], tokens[pair.1 as usize]);
        let token = *ids.entry(spelling).or_insert_with_key(|spelling| {
            tokens.push(spelling.clone());
            tokens.len() as u32 - 1
        });
        merges.push(pair);
        symbols.merge(pair, places, token, &mut pairs);
        pairs.hand_over(&mut candidates);
        merged(tokens.len())?;
    }
    Ok(Learned { tokens, merges })
}

/// All words, one after the other, as lists of symbols. A symbol keeps the place of its first letter.
struct Symbols {
    /// The token at each place; [`NONE`] where a symbol to the left has taken it in.
    token: Vec<u32>,
    previous: Vec<u32>,
    next: Vec<u32>,
    /// The word that each place belongs to.
    word: Vec<u32>,
    /// How often each word occurs.
    weights: Vec<i64>,
}

impl Symbols {
    fn of(words: HashMap<Box<str>, u64>, ids: &HashMap<String, u32>) -> Result<Symbols, TokenizerError> {
        let letters: usize = words.keys().map(|word| word.chars().count()).sum();
        if letters >= NONE as usize {
            let what = format!("its different words have {letters} bytes together, and {NONE} are too many");
            return Err(TokenizerError::Training(what));
        }
        let list = || Vec::with_capacity(letters);
        let (mut token, mut previous, mut next, mut word_of) = (list(), list(), list(), list());
        let mut weights = Vec::with_capacity(words.len());
        let mut buffer = [0; 4];
        for (word, count) in words {
            let first = token.len() as u32;
            for letter in word.chars() {
                let letter: &str = letter.encode_utf8(&mut buffer);
                let id = ids
                    .get(letter)
                    .ok_or_else(|| TokenizerError::Training(format!("`{letter}` stands for no byte")))?;
                let place = token.len() as u32;
                token.push(*id);
                previous.push(if place == first { NONE } else { place - 1 });
                next.push(place + 1);
                word_of.push(weights.len() as u32);
            }
            if let Some(last) = next.last_mut().filter(|_| !word.is_empty()) {
                *last = NONE;
            }
            weights.push(i64::try_from(count).unwrap_or(i64::MAX));
        }
        Ok(Symbols { token, previous, next, word: word_of, weights })
    }

    /// The symbol at `place` with the one after it.
    fn pair(&self, place: u32) -> Option<Pair> {
        let next = *self.next.get(place as usize)?;
        Some((self.token[place as usize], *self.token.get(next as usize)?))
    }

    fn weight(&self, place: u32) -> i64 {
        self.weights[self.word[place as usize] as usize]
    }

    /// Puts `token` where `pair` stands, from left to right.
    fn merge(&mut self, pair: Pair, mut places: Vec<u32>, token: u32, pairs: &mut PairCounts) {
        places.sort_unstable();
        for place in places {
            // What stood there may have become part of another token since.
            if self.pair(place) != Some(pair) {
                continue;
            }
            let (at, weight) = (place as usize, self.weight(place));
            let (before, second) = (self.previous[at], self.next[at]);
            let after = self.next[second as usize];
            if before != NONE {
                let left = self.token[before as usize];
                pairs.subtract((left, pair.0), weight);
                pairs.add((left, token), weight, before);
            }
            if after != NONE {
                let right = self.token[after as usize];
                pairs.subtract((pair.1, right), weight);
                pairs.add((token, right), weight, place);
                self.previous[after as usize] = place;
            }
            self.token[at] = token;
            self.next[at] = after;
            self.token[second as usize] = NONE;
        }
    }
}

/// How often each pair occurs, and where those stand that are new since the last [`PairCounts::hand_over`].
#[derive(Default)]
struct PairCounts {
    counts: HashMap<Pair, i64, BuildHasherDefault<PairHasher>>,
    places: HashMap<Pair, Vec<u32>, BuildHasherDefault<PairHasher>>,
}

impl PairCounts {
    fn count(&self, pair: Pair) -> i64 {
        self.counts.get(&pair).copied().unwrap_or(0)
    }

    fn add(&mut self, pair: Pair, weight: i64, place: u32) {
        let count = self.counts.entry(pair).or_default();
        *count = count.saturating_add(weight);
        self.places.entry(pair).or_default().push(place);
    }

    fn subtract(&mut self, pair: Pair, weight: i64) {
        let Entry::Occupied(mut count) = self.counts.entry(pair) else { return };
        *count.get_mut() = count.get().saturating_sub(weight);
        if *count.get() == 0 {
            count.remove();
        }
    }

    fn hand_over(&mut self, candidates: &mut Candidates) {
        for (pair, places) in take(&mut self.places) {
            let count = self.count(pair);
            if count > 0 {
                candidates.push(MergeCandidate { count, pair: Reverse(pair), places });
            }
        }
    }
}

/// Ids need no defence against chosen keys, and a text without blanks has a look-up for each of its bytes.
#[derive(Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn finish(&self) -> u64 {
        mix(self.0)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, half: u32) {
        self.0 = self.0.rotate_left(32) ^ u64::from(half);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokenizers::models::bpe::{BPE, BpeTrainer};
    use tokenizers::{Model, Trainer};

    use super::*;
    use crate::progress::Stopped;

    const LETTERS: [&str; 4] = ["a", "b", "c", "d"];

    fn learned(words: &HashMap<String, u64>, vocab: usize, least: u64) -> Learned {
        let letters = LETTERS.map(str::to_owned).to_vec();
        let words = words.iter().map(|(word, count)| (word.as_str().into(), *count)).collect();
        learn(words, letters, (vocab, least), |_| Ok(())).unwrap()
    }

    /// What the library learns: its tokens by id, and its merges.
    fn library(words: &HashMap<String, u64>, vocab: usize, least: u64) -> Learned {
        let mut trainer = BpeTrainer::builder()
            .vocab_size(vocab)
            .min_frequency(least)
            .show_progress(false)
            .initial_alphabet(LETTERS.iter().flat_map(|letter| letter.chars()).collect())
            .build();
        let each = words.iter().flat_map(|(word, count)| vec![word.clone(); *count as usize]);
        trainer.feed(each.collect::<Vec<_>>().iter(), |word| Ok(vec![word.to_owned()])).unwrap();
        let mut model = BPE::default();
        trainer.train(&mut model).unwrap();
        let tokens = (0..model.get_vocab_size() as u32).map(|id| model.id_to_token(id).unwrap()).collect();
        let json: serde_json::Value = serde_json::to_value(&model).unwrap();
        let id = |token: &serde_json::Value| model.token_to_id(token.as_str().unwrap()).unwrap();
        let merges = json["merges"].as_array().unwrap().iter().map(|pair| (id(&pair[0]), id(&pair[1])));
        Learned { tokens, merges: merges.collect() }
    }

    proptest! {
        #[test]
        fn the_merges_are_those_of_the_library(
            words in prop::collection::hash_map("[a-d]{1,12}", 1u64..6, 0..24), vocab in 4usize..40, least in 1u64..4,
        ) {
            prop_assert_eq!(learned(&words, vocab, least), library(&words, vocab, least));
        }
    }

    /// A million letters in one word: the library takes minutes for a tenth of it.
    #[test]
    fn one_long_word_takes_steps_in_proportion() {
        for repeated in [true, false] {
            let letter = |i: u64| LETTERS[if repeated { 0 } else { mix(i) as usize % 4 }];
            let word: String = (0..1 << 20).map(letter).collect();
            let learned = learned(&HashMap::from([(word, 1)]), 1000, 2);
            let merges = if repeated { 19 } else { 996 };
            assert_eq!(learned.merges.len(), merges);
        }
    }

    #[test]
    fn a_caller_ends_it_between_two_merges() {
        let words = HashMap::from([("abababcdcd".into(), 3)]);
        let letters = LETTERS.map(str::to_owned).to_vec();
        let stop = |tokens| if tokens < 6 { Ok(()) } else { Err(Stopped.into()) };
        assert!(matches!(learn(words, letters, (100, 1), stop), Err(TokenizerError::Stopped(Stopped))));
    }
}
