//! A mask as lists of tiles.

use std::ops::Range;

use super::{Known, Mask, Seen};

/// Queries and keys on a side of a tile.
pub const TILE: u32 = 128;

/// The tiles that are visited, for some queries and keys.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Blocks {
    /// Number of queries.
    pub queries: u32,
    /// Number of keys.
    pub keys: u32,
    /// Number of heads.
    pub heads: u32,
    /// The lists that differ.
    pub patterns: Vec<Pattern>,
    /// Which list is whose: for each row of the batch (or once for all rows), each head.
    pub pattern_of: Vec<u32>,
    /// The pairs of tiles that are seen in part: for each query, a bit for each key.
    pub bits: Vec<Box<[u128]>>,
}

/// The tiles of a head.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pattern {
    /// For each tile of queries where its tiles begin in `tiles`, and where the last one's end.
    pub first: Vec<u32>,
    /// The tiles of keys, in ascending order, and which of [`Blocks::bits`] they show; all, where `None`.
    pub tiles: Vec<(u32, Option<u32>)>,
}

impl Blocks {
    /// The tiles of `heads`, of the queries at these places among `keys` tokens. One mask is for all rows of
    /// a batch; else there is one for each.
    pub fn of(masks: &[Mask], heads: Range<u32>, queries: Range<u32>, keys: u32) -> Blocks {
        let mut blocks = Blocks {
            queries: queries.end - queries.start,
            keys,
            heads: heads.end - heads.start,
            ..Blocks::default()
        };
        let mut known = Known::new();
        for mask in masks {
            let by_head = mask.by_head();
            for head in heads.clone() {
                if by_head || head == heads.start {
                    let pattern = blocks.pattern(mask, head, queries.start, &mut known);
                    blocks.patterns.push(pattern);
                }
                blocks.pattern_of.push(blocks.patterns.len() as u32 - 1);
            }
        }
        blocks
    }

    fn pattern(&mut self, mask: &Mask, head: u32, before: u32, known: &mut Known) -> Pattern {
        let tiles =
            |count: u32| (0..count.div_ceil(TILE)).map(move |at| at * TILE..count.min((at + 1) * TILE));
        let mut pattern = Pattern { first: vec![0], tiles: Vec::new() };
        for rows in tiles(self.queries) {
            let rows = rows.start + before..rows.end + before;
            for (at, cols) in (0..).zip(tiles(self.keys)) {
                let shown = match mask.tile(head, &rows, &cols) {
                    Seen::None => continue,
                    Seen::All => None,
                    Seen::Some => match bits(mask, head, &rows, &cols) {
                        Bits::None => continue,
                        Bits::All => None,
                        Bits::Some(bits) => Some(*known.entry(bits).or_insert_with_key(|bits| {
                            self.bits.push(bits.clone());
                            self.bits.len() as u32 - 1
                        })),
                    },
                };
                pattern.tiles.push((at, shown));
            }
            pattern.first.push(pattern.tiles.len() as u32);
        }
        pattern
    }

    /// How many tiles a kernel visits, over all heads, for one row of the batch.
    pub fn visited(&self) -> u64 {
        let rows = self.pattern_of.len() as u64 / u64::from(self.heads.max(1));
        let tiles = self.pattern_of.iter().map(|of| self.patterns[*of as usize].tiles.len() as u64);
        tiles.sum::<u64>() / rows.max(1)
    }

    /// How many pairs of a query and a key are seen, in a list.
    pub fn pairs(&self, pattern: usize) -> u64 {
        let side = |at: u32, count: u32| u64::from(count.min((at + 1) * TILE) - at * TILE);
        let rows = self.patterns[pattern].first.windows(2).enumerate();
        rows.flat_map(|(row, ends)| {
            let tiles = &self.patterns[pattern].tiles[ends[0] as usize..ends[1] as usize];
            tiles.iter().map(move |(col, shown)| match shown {
                None => side(row as u32, self.queries) * side(*col, self.keys),
                Some(bits) => self.bits[*bits as usize].iter().map(|row| u64::from(row.count_ones())).sum(),
            })
        })
        .sum()
    }
}

enum Bits {
    None,
    All,
    Some(Box<[u128]>),
}

fn bits(mask: &Mask, head: u32, rows: &Range<u32>, cols: &Range<u32>) -> Bits {
    let bits: Box<[u128]> = rows.clone().map(|query| mask.row(head, query, cols)).collect();
    let all = cols.end - cols.start;
    if bits.iter().all(|row| *row == 0) {
        Bits::None
    } else if bits.iter().all(|row| row.count_ones() == all) {
        Bits::All
    } else {
        Bits::Some(bits)
    }
}
