use super::*;
use crate::model::Attention;

fn blocks(mask: &Mask, tokens: u32) -> Blocks {
    Blocks::of(std::slice::from_ref(mask), 0..1, 0..tokens, tokens)
}

fn pairs(mask: &Mask, tokens: u32) -> u64 {
    blocks(mask, tokens).pairs(0)
}

#[test]
fn pairs_are_those_of_the_closed_forms() {
    let window = |window, causal| Attention::Window { window }.mask(causal, 0, 1, 0).unwrap();
    assert_eq!(pairs(&window(128, true), 1024), 122_944);
    assert_eq!(pairs(&window(512, true), 4096), 1_966_336);
    assert_eq!(pairs(&Mask::Causal, 300), 300 * 301 / 2);
    assert_eq!(pairs(&Mask::All, 300), 300 * 300);
    let longformer = |window, global, causal| {
        Attention::Longformer { window, global, projections: false }.mask(causal, 0, 1, 0).unwrap()
    };
    for (tokens, near, global, expected) in [(16, 2, 1, 100), (64, 8, 2, 1234), (128, 16, 4, 4828)] {
        assert_eq!(pairs(&longformer(near, global, false), tokens), expected);
    }
    for (tokens, near, global, expected) in [(16, 4, 2, 81), (64, 8, 4, 702), (256, 32, 8, 9460)] {
        assert_eq!(pairs(&longformer(near, global, true), tokens), expected);
    }
    for (count, seen) in [(8, 34), (16, 74), (64, 314)] {
        let form = |last| Attention::BigBird { block: 16, window: 3, global: 1, last, random: 0 };
        let mask = form(0).mask(false, 0, 1, count * 16).unwrap();
        assert_eq!(pairs(&mask, count * 16), seen * 256, "{count} blocks");
        // The last block's row and column, less what is seen already: the corners and the window.
        let mask = form(1).mask(false, 0, 1, count * 16).unwrap();
        assert_eq!(pairs(&mask, count * 16), (seen + 2 * count as u64 - 6) * 256, "{count} blocks");
    }
}

/// Masks of all kinds, over sequences whose lengths are not multiples of a tile.
fn kinds(tokens: u32) -> Vec<Mask> {
    let documents: Arc<[u32]> = (0..tokens).map(|at| at / 50).collect();
    let others: Arc<[u32]> = (0..tokens).map(|at| (at + 20) / 30).collect();
    let of = |queries: &Arc<[u32]>| Mask::Documents { queries: queries.clone(), keys: documents.clone() };
    let padded = Mask::And(vec![Mask::Keys(0..tokens * 2 / 3), of(&documents)]);
    let across = of(&others);
    let forms = [
        Attention::Window { window: 20 },
        Attention::Longformer { window: 9, global: 3, projections: false },
        Attention::BigBird { block: 16, window: 3, global: 1, last: 0, random: 2 },
        Attention::BigBird { block: 16, window: 1, global: 1, last: 2, random: 1 },
    ];
    let forms = forms
        .into_iter()
        .flat_map(|form| [true, false].map(|causal| form.mask(causal, 3, 7, tokens)))
        .flatten();
    let plain = [Mask::All, Mask::Causal, across, padded.clone(), Mask::And(vec![padded, Mask::Causal])];
    let compressed = [(40, 16, 3, 16), (9, 8, 10, 80), (1, 1, 0, 0), (130, 16, 7, 0)]
        .map(|(window, block, summaries, start)| Compressed { window, block, summaries, start })
        .map(Mask::Compressed);
    plain.into_iter().chain(forms).chain(compressed).collect()
}

#[test]
fn tiles_show_what_the_mask_shows_pair_by_pair() {
    for tokens in [1, 127, 129, 300] {
        for mask in kinds(tokens) {
            for queries in [1, tokens.div_ceil(2), tokens] {
                let blocks = Blocks::of(std::slice::from_ref(&mask), 2..4, tokens - queries..tokens, tokens);
                for head in 0..2 {
                    let pattern = &blocks.patterns[blocks.pattern_of[head] as usize];
                    let mut seen = vec![false; (queries * tokens) as usize];
                    for (row, ends) in pattern.first.windows(2).enumerate() {
                        for (col, shown) in &pattern.tiles[ends[0] as usize..ends[1] as usize] {
                            for i in 0..TILE.min(queries - row as u32 * TILE) {
                                for j in 0..TILE.min(tokens - col * TILE) {
                                    let on = shown
                                        .is_none_or(|at| blocks.bits[at as usize][i as usize] >> j & 1 == 1);
                                    seen[((row as u32 * TILE + i) * tokens + col * TILE + j) as usize] = on;
                                }
                            }
                        }
                    }
                    for i in 0..queries {
                        for j in 0..tokens {
                            let wanted = mask.sees(head as u32 + 2, i + tokens - queries, j);
                            assert_eq!(seen[(i * tokens + j) as usize], wanted, "{mask:?} {tokens} {i} {j}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn visited_tiles_grow_with_the_length_and_equal_ones_are_kept_once() {
    let forms = [
        Attention::Window { window: 512 },
        Attention::Longformer { window: 256, global: 16, projections: false },
        Attention::BigBird { block: 64, window: 3, global: 2, last: 0, random: 3 },
    ];
    for form in forms {
        let visited = |tokens| blocks(&form.mask(false, 0, 1, tokens).unwrap(), tokens).visited();
        let (short, long) = (visited(4096), visited(16_384));
        assert!(long < 5 * short, "{form:?}: {short} tiles at 4k, {long} at 16k");
    }
    let window = forms[0].mask(true, 0, 1, 0).unwrap();
    assert_eq!(blocks(&window, 32_768).bits.len(), 2);
}

/// Each row of blocks sees `random` blocks beside those of its window and the global ones, or all that are left.
#[test]
fn random_blocks_are_new_ones() {
    for (count, window, global, last, random) in [
        (16_u32, 3_u32, 1_u32, 1_u32, 2_u32),
        (12, 3, 1, 1, 3),
        (11, 1, 2, 0, 3),
        (40, 5, 2, 2, 3),
        (9, 3, 0, 0, 2),
    ] {
        for causal in [false, true] {
            let form = |random| Attention::BigBird { block: 16, window, global, last, random };
            let seen = |random, head, row: u32| {
                // A length that is short for some random blocks is long without.
                let mask = form(random).mask(causal, 2, 7, count * 16).unwrap();
                let blocks = (0..count).filter(|at| mask.sees(head, row * 16 + 15, at * 16));
                blocks.count() as u32
            };
            let mut pairs = 0;
            for row in 0..count {
                let (without, all) = (seen(0, 1, row), if causal { row + 1 } else { count });
                assert_eq!(seen(random, 1, row), (without + random).min(all), "{count} {causal}: row {row}");
                // Of the last block of a causal row half is seen.
                pairs += u64::from((without + random).min(all)) * 256 - if causal { 120 } else { 0 };
            }
            assert_eq!(pairs_of(form(random), causal, count * 16), pairs, "{count} {causal}");
        }
    }
}

fn pairs_of(form: Attention, causal: bool, tokens: u32) -> u64 {
    let mask = form.mask(causal, 2, 7, tokens).unwrap();
    Blocks::of(std::slice::from_ref(&mask), 1..2, 0..tokens, tokens).pairs(0)
}

/// As in BigBird's own code, where `(5 + 2 * random) * block` tokens are all seen by all.
#[test]
fn an_encoder_sees_all_of_a_sequence_that_is_too_short_for_its_blocks() {
    let form = Attention::BigBird { block: 64, window: 3, global: 1, last: 1, random: 3 };
    let mask = |causal, tokens| form.mask(causal, 0, 1, tokens);
    assert_eq!(mask(false, 704), None);
    assert!(mask(false, 705).is_some() && mask(true, 704).is_some());
}

#[test]
fn random_blocks_are_drawn_once_each_and_differ_by_head_layer_and_row() {
    let random = RandomBlocks {
        seed: 1,
        layer: 2,
        block: 16,
        per_row: 3,
        blocks: 40,
        first: 1,
        last: 1,
        each: 1,
        causal: false,
    };
    let row = |head, row| random.drawn(head, row);
    for at in 0..40_u32 {
        let fresh = |block: &u32| *block > 0 && *block < 39 && block.abs_diff(at) > 1;
        let mut drawn = row(0, at);
        drawn.sort_unstable();
        drawn.dedup();
        assert!(
            drawn.len() == if at % 39 == 0 { 0 } else { 3 } && drawn.iter().all(fresh),
            "{at}: {drawn:?}"
        );
        let causal = RandomBlocks { causal: true, ..random }.drawn(0, at);
        assert!(causal.iter().all(|block| fresh(block) && *block < at), "{at}: {causal:?}");
        assert_eq!(causal.len() as u32, 3.min(at.saturating_sub(2)), "{at}");
    }
    assert_ne!(row(0, 5), row(1, 5));
    assert_ne!(row(0, 5), row(0, 6));
    assert_ne!(row(0, 5), RandomBlocks { layer: 3, ..random }.drawn(0, 5));
    // A change of the draw would silently change every resumed run.
    assert_eq!([row(0, 5), row(3, 9)], [[26, 9, 15], [16, 7, 34]]);
}

/// Tokens that a query sees, one by one or in summaries, are all up to itself, each once.
#[test]
fn compressed_masks_cover_each_token_once() {
    for (window, block, tokens) in [(8, 4, 40_u32), (5, 3, 31), (1, 1, 9), (16, 16, 50), (64, 16, 20)] {
        let all = Compressed { window, block, summaries: 0, start: 0 };
        let summaries = all.exact(tokens - 1) / block;
        let whole = Compressed { summaries, ..all };
        // In generation the tokens before the window of the first query are gone.
        let start = all.exact(tokens / 2);
        for (mask, first) in [(whole, 0), (Compressed { start, ..whole }, tokens / 2)] {
            for place in first..tokens {
                let query = place - mask.start + summaries;
                let sees = |key| Mask::Compressed(mask).sees(0, query, key);
                let in_blocks =
                    (0..summaries).filter(|at| sees(*at)).flat_map(|at| at * block..(at + 1) * block);
                let alone = (mask.start..tokens).filter(|at| sees(at - mask.start + summaries));
                let seen: Vec<u32> = in_blocks.chain(alone).collect();
                assert_eq!(seen, (0..=place).collect::<Vec<_>>(), "{mask:?} at {place}");
            }
        }
    }
}
