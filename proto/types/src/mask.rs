//! Which keys a query sees: one algebra of masks, exact for each pair, and as the list of tiles that a
//! kernel visits.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::hash::{GOLDEN, mix};

mod blocks;
#[cfg(test)]
mod tests;

pub use blocks::{Blocks, Pattern, TILE};

/// Which keys a query sees.
#[derive(Clone, Debug, PartialEq)]
pub enum Mask {
    /// All.
    All,
    /// Those up to itself.
    Causal,
    /// Those at most so far before it and so far after it.
    Window {
        /// How far before.
        before: u32,
        /// How far after.
        after: u32,
    },
    /// Those of its block and of so many blocks on either side.
    BlockWindow {
        /// Tokens in a block.
        block: u32,
        /// How many blocks on either side.
        each: u32,
    },
    /// Those at these places, whatever the query: global tokens, or what is not padding.
    Keys(Range<u32>),
    /// All, for the queries at these places.
    Queries(Range<u32>),
    /// Blocks that are drawn for each row of blocks.
    RandomBlocks(RandomBlocks),
    /// Those of its own document.
    Documents {
        /// For each place of the queries' sequence, its document's number.
        queries: Arc<[u32]>,
        /// The same of the keys' sequence; another one where a decoder sees what its encoder has read.
        keys: Arc<[u32]>,
    },
    /// Those at hand of a sequence that is in part kept as summaries.
    Compressed(Compressed),
    /// What all of these let it see.
    And(Vec<Mask>),
    /// What any of these lets it see.
    Or(Vec<Mask>),
}

/// Blocks drawn at random of those that a row does not see already (arXiv 2007.14062): a function of (seed,
/// layer, head, row of blocks) alone, so every layout draws the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomBlocks {
    /// The seed of the job.
    pub seed: u64,
    /// The layer.
    pub layer: u32,
    /// Tokens in a block.
    pub block: u32,
    /// Blocks drawn for a row; all that are left, where there are fewer.
    pub per_row: u32,
    /// Blocks of the sequence.
    pub blocks: u32,
    /// Blocks at the start that every row sees, and that see all.
    pub first: u32,
    /// Blocks at the end that every row sees, and that see all; none where `causal`.
    pub last: u32,
    /// Blocks on either side of its own that a row sees.
    pub each: u32,
    /// Whether none after the row's own are drawn.
    pub causal: bool,
}

/// A causal window over keys, before which stand summaries of finished blocks: each token is seen once,
/// by itself or in the summary of its block. The keys are first all summaries, then tokens one by one;
/// a query stands where its own key does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// At least so many tokens, the query's own included, are seen one by one.
    pub window: u32,
    /// Tokens of a summary.
    pub block: u32,
    /// Summaries in front.
    pub summaries: u32,
    /// The place in the sequence of the first key that is a token.
    pub start: u32,
}

impl Compressed {
    /// The first token that the one at `place` of the sequence sees by itself: where the block begins that
    /// holds the first one of its window.
    pub fn exact(&self, place: u32) -> u32 {
        place.saturating_add(1).saturating_sub(self.window) / self.block * self.block
    }

    /// What of the summaries and of the tokens a query sees.
    fn seen(&self, query: u32) -> (Range<u32>, Range<u32>) {
        let exact = self.exact((query + self.start).saturating_sub(self.summaries));
        let first = (self.summaries + exact).saturating_sub(self.start).max(self.summaries);
        (0..self.summaries.min(exact / self.block), first..query.saturating_add(1))
    }
}

impl RandomBlocks {
    /// The blocks that `row` does not see without a draw: those before its window, and those after it.
    fn unseen(&self, row: u32) -> [Range<u32>; 2] {
        let end = if self.causal { row } else { self.blocks.saturating_sub(self.last) };
        let last = !self.causal && row >= end && row < self.blocks;
        if row < self.first || last {
            return [0..0, 0..0];
        }
        let before = self.first..row.saturating_sub(self.each).min(end).max(self.first);
        let after = row.saturating_add(self.each).saturating_add(1).max(self.first);
        [before, after..end.max(after)]
    }

    /// The blocks of a row, in the order in which they are drawn.
    pub fn drawn(&self, head: u32, row: u32) -> Vec<u32> {
        let [before, after] = self.unseen(row);
        let among = before.len() as u32 + after.len() as u32;
        if among <= self.per_row {
            return before.chain(after).collect();
        }
        let key =
            [self.layer, head, row].into_iter().fold(self.seed, |key, part| mixed(key, u64::from(part)));
        let mut drawn = Vec::new();
        // A draw that comes again is drawn anew; the bound is never near, for each block comes up in so many
        // draws.
        for attempt in 0..u64::from(among) * 64 {
            if drawn.len() as u32 == self.per_row {
                break;
            }
            let at = (mixed(key, attempt) % u64::from(among)) as u32;
            let here = before.len() as u32;
            let block = if at < here { before.start + at } else { after.start + at - here };
            if !drawn.contains(&block) {
                drawn.push(block);
            }
        }
        drawn
    }
}

/// 64 bits from two numbers.
fn mixed(key: u64, value: u64) -> u64 {
    mix(key ^ value.wrapping_add(1).wrapping_mul(GOLDEN))
}

/// What a rectangle of pairs shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    None,
    Some,
    All,
}

impl Seen {
    fn of(none: bool, all: bool) -> Seen {
        match (none, all) {
            (true, _) => Seen::None,
            (_, true) => Seen::All,
            _ => Seen::Some,
        }
    }
}

impl Mask {
    /// Whether `query` sees `key`, in a head.
    pub fn sees(&self, head: u32, query: u32, key: u32) -> bool {
        match self {
            Mask::All => true,
            Mask::Causal => key <= query,
            Mask::Window { before, after } => {
                key.saturating_add(*before) >= query && key <= query.saturating_add(*after)
            }
            Mask::BlockWindow { block, each } => (query / block).abs_diff(key / block) <= *each,
            Mask::Keys(places) => places.contains(&key),
            Mask::Queries(places) => places.contains(&query),
            Mask::RandomBlocks(random) => {
                random.drawn(head, query / random.block).contains(&(key / random.block))
            }
            Mask::Documents { queries, keys } => document(queries, query) == document(keys, key),
            Mask::Compressed(compressed) => {
                let (summaries, tokens) = compressed.seen(query);
                summaries.contains(&key) || tokens.contains(&key)
            }
            Mask::And(masks) => masks.iter().all(|mask| mask.sees(head, query, key)),
            Mask::Or(masks) => masks.iter().any(|mask| mask.sees(head, query, key)),
        }
    }

    /// Which of at most 128 keys `query` sees: a bit for each.
    fn row(&self, head: u32, query: u32, keys: &Range<u32>) -> u128 {
        match self {
            Mask::All => range(0, u32::MAX, keys),
            Mask::Causal => range(0, query.saturating_add(1), keys),
            Mask::Window { before, after } => {
                range(query.saturating_sub(*before), query.saturating_add(*after).saturating_add(1), keys)
            }
            Mask::BlockWindow { block, each } => {
                let own = query / block;
                let end = own.saturating_add(*each).saturating_add(1).saturating_mul(*block);
                range(own.saturating_sub(*each) * block, end, keys)
            }
            Mask::Keys(places) => range(places.start, places.end, keys),
            Mask::Queries(places) => {
                if places.contains(&query) {
                    range(0, u32::MAX, keys)
                } else {
                    0
                }
            }
            Mask::RandomBlocks(random) => {
                let drawn = random.drawn(head, query / random.block);
                let bits = |at: u32| {
                    let start = at.saturating_mul(random.block);
                    range(start, start.saturating_add(random.block), keys)
                };
                drawn.into_iter().fold(0, |all, at| all | bits(at))
            }
            Mask::Documents { queries, keys: of } => {
                let own = document(queries, query);
                let seen = keys.clone().enumerate().filter(|(_, key)| document(of, *key) == own);
                seen.fold(0, |bits, (at, _)| bits | 1 << at)
            }
            Mask::Compressed(compressed) => {
                let (summaries, tokens) = compressed.seen(query);
                range(summaries.start, summaries.end, keys) | range(tokens.start, tokens.end, keys)
            }
            Mask::And(masks) => {
                masks.iter().fold(range(0, u32::MAX, keys), |bits, mask| bits & mask.row(head, query, keys))
            }
            Mask::Or(masks) => masks.iter().fold(0, |bits, mask| bits | mask.row(head, query, keys)),
        }
    }

    /// What a rectangle shows, which is not empty. `Some` may still turn out to be none or all.
    fn tile(&self, head: u32, rows: &Range<u32>, cols: &Range<u32>) -> Seen {
        let (top, bottom, left, right) = (rows.start, rows.end - 1, cols.start, cols.end - 1);
        let window = |before: u32, after: u32, [top, bottom, left, right]: [u32; 4]| {
            let none = right.saturating_add(before) < top || left > bottom.saturating_add(after);
            let all = left.saturating_add(before) >= bottom && right <= top.saturating_add(after);
            Seen::of(none, all)
        };
        match self {
            Mask::All => Seen::All,
            Mask::Causal => Seen::of(left > bottom, right <= top),
            Mask::Window { before, after } => window(*before, *after, [top, bottom, left, right]),
            Mask::BlockWindow { block, each } => {
                window(*each, *each, [top / block, bottom / block, left / block, right / block])
            }
            Mask::Keys(places) => Seen::of(
                right < places.start || left >= places.end,
                left >= places.start && right < places.end,
            ),
            Mask::Queries(places) => Seen::of(
                bottom < places.start || top >= places.end,
                top >= places.start && bottom < places.end,
            ),
            Mask::RandomBlocks(random) => {
                let blocks = left / random.block..=right / random.block;
                let mut rows = top / random.block..=bottom / random.block;
                let any = rows.any(|row| random.drawn(head, row).iter().any(|at| blocks.contains(at)));
                Seen::of(!any, false)
            }
            Mask::Documents { queries, keys } => {
                let span = |of: &[u32], range: &Range<u32>| {
                    let mut all = range.clone().map(|at| document(of, at));
                    let first = all.next().unwrap_or(0);
                    all.fold((first, first), |(least, most), at| (least.min(at), most.max(at)))
                };
                let ((least, most), (first, last)) = (span(queries, rows), span(keys, cols));
                Seen::of(most < first || last < least, least == last && most == first)
            }
            Mask::Compressed(compressed) => {
                // Both ends of what a query sees only move on from one query to the next.
                let ((few, early), (many, late)) = (compressed.seen(top), compressed.seen(bottom));
                let outside = |range: &Range<u32>| right < range.start || left >= range.end;
                let inside = |range: Range<u32>| range.contains(&left) && range.contains(&right);
                let none = outside(&many) && outside(&(early.start..late.end));
                Seen::of(none, inside(few) || inside(late.start..early.end))
            }
            Mask::And(masks) => {
                let seen = masks.iter().map(|mask| mask.tile(head, rows, cols));
                let (least, all) = seen.fold((false, true), |(none, all), seen| {
                    (none || seen == Seen::None, all && seen == Seen::All)
                });
                Seen::of(least, all)
            }
            Mask::Or(masks) => {
                let seen = masks.iter().map(|mask| mask.tile(head, rows, cols));
                let (none, all) = seen.fold((true, false), |(none, all), seen| {
                    (none && seen == Seen::None, all || seen == Seen::All)
                });
                Seen::of(none, all)
            }
        }
    }

    /// Whether heads see different keys.
    fn by_head(&self) -> bool {
        match self {
            Mask::RandomBlocks(_) => true,
            Mask::And(masks) | Mask::Or(masks) => masks.iter().any(Mask::by_head),
            _ => false,
        }
    }
}

/// A bit for each of the keys that lies in `start..end`.
fn range(start: u32, end: u32, keys: &Range<u32>) -> u128 {
    let (first, last) = (start.clamp(keys.start, keys.end), end.clamp(keys.start, keys.end));
    if first >= last {
        return 0;
    }
    let ones = u128::MAX >> (128 - (last - first));
    ones << (first - keys.start)
}

/// The document at a place; what lies past the end is the last one's.
fn document(of: &[u32], at: u32) -> u32 {
    of.get(at as usize).or(of.last()).copied().unwrap_or(0)
}

/// Lists of tiles that are known already, so that equal ones are kept once.
type Known = HashMap<Box<[u128]>, u32>;
