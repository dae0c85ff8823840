//! Texts with parts taken out, and what a decoder shall write of them: pure functions of (seed, sample).

use coxswain_files::hash::{draw, unit};
use coxswain_types::job::{Corruption, Lengths, SPAN_TOKENS, noise};

use super::batch::SampleRow;
use super::objective::TextWindow;

/// How texts are corrupted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct SpanCorruption {
    pub(super) key: u64,
    pub(super) corruption: Corruption,
    /// The share of tokens that is taken out.
    pub(super) share: f64,
    /// The token that stands for others; those below it stand for further spans.
    pub(super) mask: u32,
    pub(super) end_of_text: u32,
    /// What a decoder's text begins with.
    pub(super) start: u32,
    /// How much encoder and decoder take.
    pub(super) lengths: Lengths,
}

/// A sample of an encoder-decoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Corrupted {
    /// What the encoder reads.
    pub(super) source: Vec<i64>,
    /// What the decoder reads: its targets, one later.
    pub(super) ids: Vec<i64>,
    /// What the decoder shall write.
    pub(super) targets: Vec<i64>,
    /// The document of each token that the encoder reads.
    pub(super) source_of: Vec<u32>,
    /// The document of each target.
    pub(super) targets_of: Vec<u32>,
}

impl Corrupted {
    /// Adds what became of a piece of a document.
    fn extend(&mut self, document: u32, (source, targets): (Vec<i64>, Vec<i64>)) {
        self.source.extend(source);
        self.source_of.resize(self.source.len(), document);
        self.targets.extend(targets);
        self.targets_of.resize(self.targets.len(), document);
    }

    /// The decoder reads its targets one later, in each document from its start on.
    fn begin(&mut self, start: u32) {
        let begins = |at: usize| at == 0 || self.targets_of[at] != self.targets_of[at - 1];
        let id = |at| if begins(at) { i64::from(start) } else { self.targets[at - 1] };
        self.ids = (0..self.targets.len()).map(id).collect();
    }
}

/// What of a text is still to be taken out: documents take their share in turn, and what is rounded away in
/// one is taken in a later one.
struct Share {
    len: usize,
    noise: usize,
    spans: usize,
    /// Tokens, taken tokens and spans of the documents so far.
    passed: [usize; 3],
}

impl Share {
    fn of(len: usize, share: f64) -> Share {
        let (noise, spans) = noise(len as u32, share);
        Share { len, noise: noise as usize, spans: spans as usize, passed: [0; 3] }
    }

    /// How many tokens, and in how many spans, are taken out of the next document, of `len` tokens: at least
    /// one token is kept before each span.
    fn next(&mut self, len: usize) -> (usize, usize) {
        let [tokens, taken, spans] = &mut self.passed;
        *tokens += len;
        let noise = (self.noise * *tokens / self.len - *taken).min(len - 1);
        let cuts = (self.spans * *tokens / self.len - *spans).min(noise).min(len - noise);
        let noise = if cuts == 0 { 0 } else { noise };
        *taken += noise;
        *spans += cuts;
        (noise, cuts)
    }
}

/// Draws of a sample, one after another.
struct Draws {
    key: u64,
    next: u64,
}

impl Draws {
    fn below(&mut self, bound: usize) -> usize {
        self.next += 1;
        (draw(self.key, self.next) % bound.max(1) as u64) as usize
    }

    /// `count` of `0..of`, ascending: the front of a shuffled list.
    fn choose(&mut self, count: usize, of: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..of).collect();
        let count = count.min(of);
        for at in 0..count {
            let other = at + self.below(of - at);
            all.swap(at, other);
        }
        all.truncate(count);
        all.sort_unstable();
        all
    }

    /// `total` as a sum of `parts` numbers of 1 or more, all such sums equally likely.
    fn compose(&mut self, total: usize, parts: usize) -> Vec<usize> {
        let cuts = self.choose(parts.saturating_sub(1), total.saturating_sub(1));
        let ends: Vec<usize> = cuts.into_iter().map(|cut| cut + 1).chain([total]).collect();
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts.zip(&ends).map(|(start, end)| end - start).collect()
    }

    /// A number whose mean is [`SPAN_TOKENS`] (Poisson, by Knuth's product of uniform draws).
    fn poisson(&mut self) -> usize {
        let (limit, mut product) = ((-f64::from(SPAN_TOKENS)).exp(), 1.0);
        // More than 63 have no chance worth the name.
        for count in 0..64 {
            self.next += 1;
            product *= unit(draw(self.key, self.next));
            if product <= limit {
                return count;
            }
        }
        64
    }
}

impl SpanCorruption {
    /// The row of a text: what is left of it to read, and what was taken out as targets.
    pub(super) fn row(&self, window: &TextWindow<'_>) -> SampleRow {
        let corrupted = self.corrupt(window.sample, window.text(), &window.documents);
        SampleRow {
            read: Some(corrupted.source.len() as u32),
            own: Some(corrupted.targets_of),
            source_own: Some(corrupted.source_of),
            source: corrupted.source,
            ..SampleRow::of(corrupted.ids, corrupted.targets)
        }
    }

    /// The sample of a text, whose tokens are of these documents. One of fewer than two tokens has nothing to be
    /// taken out, and no targets. Where documents of a few tokens leave too much to be read, the last tokens
    /// are left out.
    pub(super) fn corrupt(&self, sample: u64, tokens: &[i64], documents: &[u32]) -> Corrupted {
        let fits = |corrupted: &Corrupted| {
            corrupted.source.len() <= self.lengths.source as usize
                && corrupted.targets.len() <= self.lengths.target as usize
        };
        let whole = (2..=tokens.len()).rev().map(|len| self.attempt(sample, &tokens[..len], documents));
        whole.into_iter().find(fits).unwrap_or_else(|| {
            let source = tokens.iter().copied().take(1).chain([i64::from(self.end_of_text)]).collect();
            let mut corrupted = Corrupted::default();
            corrupted.extend(0, (source, Vec::new()));
            corrupted
        })
    }

    fn attempt(&self, sample: u64, tokens: &[i64], documents: &[u32]) -> Corrupted {
        let mut draws = Draws { key: draw(self.key, sample), next: 0 };
        let mut share = Share::of(tokens.len(), self.share);
        let (mut corrupted, mut at, mut stands) = (Corrupted::default(), 0, i64::from(self.mask));
        for piece in documents[..tokens.len()].chunk_by(|one, other| one == other) {
            let (text, last) = (&tokens[at..at + piece.len()], at + piece.len() == tokens.len());
            let (noise, spans) = share.next(text.len());
            let made = match self.corruption {
                Corruption::Spans => self.spans(&mut draws, text, (noise, spans), &mut stands, last),
                Corruption::Infilling => self.infilling(&mut draws, text, noise),
            };
            corrupted.extend(piece[0], made);
            at += piece.len();
        }
        corrupted.begin(self.start);
        corrupted
    }

    /// Kept tokens and spans take turns, kept ones first (arXiv 1910.10683, 3.1.4). What stands for a span
    /// counts down over the whole text, whose last piece ends with the end of text.
    fn spans(
        &self,
        draws: &mut Draws,
        tokens: &[i64],
        (noise, spans): (usize, usize),
        stands: &mut i64,
        last: bool,
    ) -> (Vec<i64>, Vec<i64>) {
        let (mut source, mut targets, mut at) = (Vec::new(), Vec::new(), 0);
        if spans > 0 {
            let (taken, kept) = (draws.compose(noise, spans), draws.compose(tokens.len() - noise, spans));
            for (taken, kept) in taken.into_iter().zip(kept) {
                source.extend(&tokens[at..at + kept]);
                source.push(*stands);
                targets.push(*stands);
                targets.extend(&tokens[at + kept..at + kept + taken]);
                at += kept + taken;
                *stands -= 1;
            }
        }
        source.extend(&tokens[at..]);
        if last {
            source.push(i64::from(self.end_of_text));
            targets.push(i64::from(self.end_of_text));
        }
        (source, targets)
    }

    /// Spans of Poisson lengths, each in another gap between kept tokens, for one token each (arXiv
    /// 1910.13461, 2.2). The source is at most as long as the text.
    fn infilling(&self, draws: &mut Draws, tokens: &[i64], noise: usize) -> (Vec<i64>, Vec<i64>) {
        let (mut left, mut lengths) = (noise, Vec::new());
        while left > 0 && lengths.len() < noise {
            let length = draws.poisson().min(left);
            left -= length;
            lengths.push(length);
        }
        let kept = tokens.len() - (noise - left);
        let gaps = draws.choose(lengths.len(), kept + 1);
        // Where there are fewer gaps than spans, the last gap takes what is left.
        if let Some(last) = gaps.len().checked_sub(1) {
            let rest: usize = lengths.drain(last + 1..).sum();
            lengths[last] += rest;
        }
        let (mut source, mut at, mut before) = (Vec::new(), 0, 0);
        for (gap, length) in gaps.into_iter().zip(lengths) {
            source.extend(&tokens[at..at + gap - before]);
            source.push(self.mask.into());
            at += gap - before + length;
            before = gap;
        }
        source.extend(&tokens[at..]);
        (source, tokens.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn corruptor(corruption: Corruption, share: f64) -> SpanCorruption {
        let lengths = Lengths { window: 600, source: 600, target: 600 };
        SpanCorruption { key: 7, corruption, share, mask: 999, end_of_text: 0, start: 0, lengths }
    }

    fn alone(corruptor: &SpanCorruption, sample: u64, text: &[i64]) -> Corrupted {
        corruptor.corrupt(sample, text, &vec![0; text.len()])
    }

    /// The text again, from what the encoder reads and what the decoder writes.
    fn restored(corrupted: &Corrupted) -> Vec<i64> {
        let mut text = Vec::new();
        for id in &corrupted.source {
            if *id < 900 {
                text.push(*id);
                continue;
            }
            let at = corrupted.targets.iter().position(|target| target == id).unwrap();
            text.extend(corrupted.targets[at + 1..].iter().take_while(|id| **id < 900 && **id != 0));
        }
        text
    }

    #[test]
    fn spans_put_back_give_the_text() {
        let end = 0;
        for (len, share) in [(2, 0.15), (3, 0.5), (20, 0.15), (568, 0.15), (100, 0.5), (100, 0.9)] {
            let text: Vec<i64> = (0..len).map(|i| 1 + i * 7 % 800).collect();
            for sample in 0..20 {
                let corrupted = alone(&corruptor(Corruption::Spans, share), sample, &text);
                let whole = restored(&corrupted);
                assert_eq!(whole[..text.len()], text, "{len} {share} {sample}");
                let (noise, spans) = noise(len as u32, share);
                let lengths =
                    [len as usize - noise as usize + spans as usize + 1, (noise + spans) as usize + 1];
                assert_eq!([corrupted.source.len(), corrupted.targets.len()], lengths);
                assert_eq!(
                    (corrupted.ids[0], &corrupted.ids[1..]),
                    (end, &corrupted.targets[..corrupted.targets.len() - 1])
                );
            }
        }
        let text: Vec<i64> = (1..100).collect();
        let spans = corruptor(Corruption::Spans, 0.15);
        assert_ne!(alone(&spans, 1, &text), alone(&spans, 2, &text));
        assert_eq!(alone(&spans, 1, &text), alone(&spans, 1, &text));
    }

    #[test]
    fn infilling_keeps_the_share_it_should_in_order() {
        let text: Vec<i64> = (1..=400).collect();
        let (mut kept, mut masks) = (0, 0);
        for sample in 0..200 {
            let corrupted = alone(&corruptor(Corruption::Infilling, 0.3), sample, &text);
            assert!(corrupted.source.len() <= text.len() && corrupted.targets == text);
            let rest: Vec<i64> = corrupted.source.iter().copied().filter(|id| *id != 999).collect();
            assert!(rest.is_sorted());
            kept += rest.len();
            masks += corrupted.source.len() - rest.len();
        }
        assert_eq!(kept, 200 * 280);
        // 120 tokens in spans of 3, the last one cut.
        assert!((200 * 38..200 * 44).contains(&masks), "{masks}");
    }
    #[test]
    fn documents_are_corrupted_each_by_itself() {
        let lengths = Lengths { window: 300, source: 300, target: 300 };
        for corruption in [Corruption::Spans, Corruption::Infilling] {
            let corruptor = SpanCorruption { lengths, ..corruptor(corruption, 0.3) };
            for sample in 0..40 {
                // Documents of 1 to 60 tokens, which say in their tokens which one they are.
                let lens = [1, 60, 7, 2, 40, 3, 50, 100];
                let documents: Vec<u32> = (0..).zip(lens).flat_map(|(of, len)| vec![of; len]).collect();
                let text: Vec<i64> =
                    documents.iter().map(|of| 100 * i64::from(*of) + 1 + sample as i64).collect();
                let corrupted = corruptor.corrupt(sample, &text, &documents);
                assert!(corrupted.source.len() <= 300 && corrupted.targets.len() <= 300);
                assert_eq!(corrupted.source.len(), corrupted.source_of.len());
                let own = |ids: &[i64], of: &[u32]| {
                    let texts =
                        ids.iter().zip(of).filter(|(id, _)| **id > 0 && **id % 100 < 60 && **id < 800);
                    texts.fold(0, |count, (id, of)| {
                        assert_eq!(*id / 100, i64::from(*of));
                        count + 1
                    })
                };
                let (read, told) = (
                    own(&corrupted.source, &corrupted.source_of),
                    own(&corrupted.targets, &corrupted.targets_of),
                );
                let (noise, spans) = noise(text.len() as u32, 0.3);
                let (whole, taken) = (text.len(), noise as usize);
                match corruption {
                    Corruption::Spans => assert_eq!([read + told, told], [whole, taken]),
                    Corruption::Infilling => assert_eq!([read, told], [whole - taken, whole]),
                }
                let stand: Vec<i64> = corrupted.targets.iter().copied().filter(|id| *id > 900).collect();
                let counted: Vec<i64> = (0..i64::from(spans)).map(|span| 999 - span).collect();
                assert_eq!(stand, if corruption == Corruption::Spans { counted } else { Vec::new() });
                for (at, id) in corrupted.ids.iter().enumerate() {
                    let begins = at == 0 || corrupted.targets_of[at] != corrupted.targets_of[at - 1];
                    assert_eq!(*id, if begins { 0 } else { corrupted.targets[at - 1] });
                }
            }
        }
    }

    #[test]
    fn a_row_of_tiny_documents_still_fits() {
        let lengths = Lengths { window: 40, source: 34, target: 16 };
        let corruptor = SpanCorruption { lengths, ..corruptor(Corruption::Spans, 0.3) };
        let documents: Vec<u32> = (0..40).collect();
        let corrupted = corruptor.corrupt(3, &vec![5; 40], &documents);
        assert_eq!((corrupted.source.len(), corrupted.targets.len()), (34, 1), "33 tokens and an end");
        let few = corruptor.corrupt(3, &[5], &[0]);
        assert_eq!((few.source, few.targets), (vec![5, 0], vec![]));
    }
}
