//! Texts with parts taken out, and what a decoder shall write of them: pure functions of (seed, sample).

use coxswain_files::hash::draw;
use coxswain_types::job::{Corruption, SPAN_TOKENS, noise};

/// How texts are corrupted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mending {
    pub(super) key: u64,
    pub(super) corruption: Corruption,
    /// The share of tokens that is taken out.
    pub(super) share: f64,
    /// The token that stands for others; those below it stand for further spans.
    pub(super) mask: u32,
    pub(super) end_of_text: u32,
    /// What a decoder's text begins with.
    pub(super) start: u32,
}

/// A sample of an encoder-decoder.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Mended {
    /// What the encoder reads.
    pub(super) source: Vec<i64>,
    /// What the decoder reads: its targets, one later.
    pub(super) ids: Vec<i64>,
    /// What the decoder shall write.
    pub(super) targets: Vec<i64>,
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
            product *= (draw(self.key, self.next) >> 11) as f64 / (1_u64 << 53) as f64;
            if product <= limit {
                return count;
            }
        }
        64
    }
}

impl Mending {
    /// The sample of a text. One of fewer than two tokens has nothing to be taken out, and no targets.
    pub(super) fn corrupt(&self, sample: u64, tokens: &[i64]) -> Mended {
        if tokens.len() < 2 {
            let source = tokens.iter().copied().chain([i64::from(self.end_of_text)]).collect();
            return Mended { source, ..Mended::default() };
        }
        let mut draws = Draws { key: draw(self.key, sample), next: 0 };
        let (source, targets) = match self.corruption {
            Corruption::Spans => self.spans(&mut draws, tokens),
            Corruption::Infilling => self.infilling(&mut draws, tokens),
        };
        let ids = std::iter::once(i64::from(self.start)).chain(targets.iter().copied());
        Mended { ids: ids.take(targets.len()).collect(), source, targets }
    }

    /// Kept tokens and spans take turns, kept ones first (arXiv 1910.10683, 3.1.4).
    fn spans(&self, draws: &mut Draws, tokens: &[i64]) -> (Vec<i64>, Vec<i64>) {
        let (noise, spans) = noise(tokens.len() as u32, self.share);
        let (noise, spans) = (noise as usize, spans as usize);
        let (taken, kept) = (draws.compose(noise, spans), draws.compose(tokens.len() - noise, spans));
        let (mut source, mut targets, mut at) = (Vec::new(), Vec::new(), 0);
        for (span, (taken, kept)) in taken.into_iter().zip(kept).enumerate() {
            let stands = i64::from(self.mask) - span as i64;
            source.extend(&tokens[at..at + kept]);
            source.push(stands);
            targets.push(stands);
            targets.extend(&tokens[at + kept..at + kept + taken]);
            at += kept + taken;
        }
        source.push(i64::from(self.end_of_text));
        targets.push(i64::from(self.end_of_text));
        (source, targets)
    }

    /// Spans of Poisson lengths, each in another gap between kept tokens, for one token each (arXiv
    /// 1910.13461, 2.2). The source is at most as long as the text.
    fn infilling(&self, draws: &mut Draws, tokens: &[i64]) -> (Vec<i64>, Vec<i64>) {
        let (noise, _) = noise(tokens.len() as u32, self.share);
        let (mut left, mut lengths) = (noise as usize, Vec::new());
        while left > 0 && lengths.len() < noise as usize {
            let length = draws.poisson().min(left);
            left -= length;
            lengths.push(length);
        }
        let kept = tokens.len() - (noise as usize - left);
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

    fn mending(corruption: Corruption, share: f64) -> Mending {
        Mending { key: 7, corruption, share, mask: 999, end_of_text: 0, start: 0 }
    }

    /// The text again, from what the encoder reads and what the decoder writes.
    fn mend(mended: &Mended) -> Vec<i64> {
        let mut text = Vec::new();
        for id in &mended.source {
            if *id < 900 {
                text.push(*id);
                continue;
            }
            let at = mended.targets.iter().position(|target| target == id).unwrap();
            text.extend(mended.targets[at + 1..].iter().take_while(|id| **id < 900 && **id != 0));
        }
        text
    }

    #[test]
    fn spans_put_back_give_the_text() {
        let end = 0;
        for (len, share) in [(2, 0.15), (3, 0.5), (20, 0.15), (568, 0.15), (100, 0.5), (100, 0.9)] {
            let text: Vec<i64> = (0..len).map(|i| 1 + i * 7 % 800).collect();
            for sample in 0..20 {
                let mended = mending(Corruption::Spans, share).corrupt(sample, &text);
                let whole = mend(&mended);
                assert_eq!(whole[..text.len()], text, "{len} {share} {sample}");
                let (noise, spans) = noise(len as u32, share);
                let lengths =
                    [len as usize - noise as usize + spans as usize + 1, (noise + spans) as usize + 1];
                assert_eq!([mended.source.len(), mended.targets.len()], lengths);
                assert_eq!(
                    (mended.ids[0], &mended.ids[1..]),
                    (end, &mended.targets[..mended.targets.len() - 1])
                );
            }
        }
        let text: Vec<i64> = (1..100).collect();
        let spans = mending(Corruption::Spans, 0.15);
        assert_ne!(spans.corrupt(1, &text), spans.corrupt(2, &text));
        assert_eq!(spans.corrupt(1, &text), spans.corrupt(1, &text));
    }

    #[test]
    fn infilling_keeps_the_share_it_should_in_order() {
        let text: Vec<i64> = (1..=400).collect();
        let (mut kept, mut masks) = (0, 0);
        for sample in 0..200 {
            let mended = mending(Corruption::Infilling, 0.3).corrupt(sample, &text);
            assert!(mended.source.len() <= text.len() && mended.targets == text);
            let rest: Vec<i64> = mended.source.iter().copied().filter(|id| *id != 999).collect();
            assert!(rest.is_sorted());
            kept += rest.len();
            masks += mended.source.len() - rest.len();
        }
        assert_eq!(kept, 200 * 280);
        // 120 tokens in spans of 3, the last one cut.
        assert!((200 * 38..200 * 44).contains(&masks), "{masks}");
    }
}
