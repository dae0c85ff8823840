//! The order of samples: which tokens the n-th sample holds, a pure function of the seed.
//!
//! Training tokens are cut into windows. Each epoch uses every window exactly once, in an order of
//! its own; no order is ever stored, so any sample of any epoch is found at once and a resumed run
//! goes on where it was, in any layout.

use crate::hash::draw;

/// Rounds of the Feistel network. Four make a good pseudo-random permutation where halves are
/// large; two more cost nothing here and serve small ones.
const ROUNDS: u64 = 6;

/// The order in which windows of the training tokens are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Samples {
    windows: u64,
    sequence: u64,
    seed: u64,
}

impl Samples {
    /// The order for a file of `tokens` tokens that is cut into windows of `sequence` tokens.
    ///
    /// Window `w` covers the tokens `w * sequence ..= w * sequence + sequence`: the last of them is
    /// the target of the one before, and the first input of the next window.
    pub fn new(tokens: u64, sequence: u32, seed: u64) -> Samples {
        let sequence = u64::from(sequence.max(1));
        Samples { windows: tokens.saturating_sub(1) / sequence, sequence, seed }
    }

    /// Number of windows, and so of samples in an epoch; 0 where there are too few tokens for one.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// The offset of the first token of the `sample`-th sample ever drawn. Where there is no window
    /// at all this is 0, and reading there says how many tokens are missing.
    pub fn start(&self, sample: u64) -> u64 {
        if self.windows == 0 {
            return 0;
        }
        let (epoch, place) = (sample / self.windows, sample % self.windows);
        permute(draw(self.seed, epoch), self.windows, place) * self.sequence
    }
}

/// The number of a sample among all that are ever drawn: `row` of `micro_batch` of the step that
/// follows `step0` finished ones. It is the same in every layout.
pub fn sample_index(step0: u64, micro_batch: u32, row: u32, micro_batches: u32, rows: u32) -> u64 {
    let before = step0.wrapping_mul(u64::from(micro_batches)).wrapping_add(u64::from(micro_batch));
    before.wrapping_mul(u64::from(rows)).wrapping_add(u64::from(row))
}

/// The image of `place` under a permutation of `0..count` that is named by `key`.
///
/// A balanced Feistel network permutes the next power of four; places that it sends out of range
/// are sent on until they are in range (cycle walking). As the network is a permutation the walk
/// comes back, and as less than three quarters of its range are out of ours it takes few steps.
fn permute(key: u64, count: u64, place: u64) -> u64 {
    let bits = 64 - (count - 1).leading_zeros();
    let half = bits.div_ceil(2);
    let mut at = place;
    loop {
        at = feistel(key, half, at);
        if at < count {
            return at;
        }
    }
}

/// One pass of the network over numbers of `2 * half` bits.
fn feistel(key: u64, half: u32, x: u64) -> u64 {
    let mask = (1u64 << half) - 1;
    let (mut left, mut right) = (x >> half & mask, x & mask);
    for round in 0..ROUNDS {
        (left, right) = (right, left ^ (draw(key ^ round, right) & mask));
    }
    left << half | right
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn epoch(samples: &Samples, number: u64) -> Vec<u64> {
        let windows = samples.windows();
        (number * windows..(number + 1) * windows).map(|s| samples.start(s)).collect()
    }

    #[test]
    fn each_epoch_uses_every_window_once_in_an_order_of_its_own() {
        for windows in (1..=70).chain([255, 256, 257, 1000, 4097]) {
            let samples = Samples::new(windows * 8 + 1, 8, 7);
            assert_eq!(samples.windows(), windows);
            for number in [0, 1, 2, 1_000_000] {
                let mut starts = epoch(&samples, number);
                starts.sort_unstable();
                let all: Vec<u64> = (0..windows).map(|w| w * 8).collect();
                assert_eq!(starts, all, "{windows} windows, epoch {number}");
            }
            if windows > 8 {
                assert_ne!(epoch(&samples, 0), epoch(&samples, 1));
                assert_ne!(epoch(&samples, 0), epoch(&Samples { seed: 8, ..samples }, 0));
            }
        }
    }

    #[test]
    fn an_order_looks_random() {
        // Of a random permutation, half of the steps ascend, and one place stays on average.
        let order = epoch(&Samples::new(10_001, 1, 42), 0);
        let ascents = order.windows(2).filter(|pair| pair[0] < pair[1]).count();
        assert!((4_800..5_200).contains(&ascents), "{ascents}");
        let fixed = order.iter().enumerate().filter(|&(i, &start)| i as u64 == start).count();
        assert!(fixed < 8, "{fixed}");
    }

    #[test]
    fn the_order_is_pinned() {
        // A change of this order would silently change every resumed run.
        assert_eq!(epoch(&Samples::new(13, 1, 1), 0), [6, 8, 5, 0, 9, 4, 1, 11, 10, 7, 3, 2]);
    }

    #[test]
    fn windows_share_one_token_and_never_pass_the_end() {
        for (tokens, sequence, windows) in
            [(0, 4, 0), (4, 4, 0), (5, 4, 1), (8, 4, 1), (9, 4, 2), (10, 4, 2), (7, 0, 6)]
        {
            assert_eq!(Samples::new(tokens, sequence, 0).windows(), windows, "{tokens} tokens");
        }
        assert_eq!(Samples::new(3, 8, 0).start(5), 0);
    }

    #[test]
    fn samples_are_numbered_by_step_then_micro_batch_then_row() {
        let numbers: Vec<u64> = (0..2)
            .flat_map(|step| {
                (0..3).flat_map(move |m| (0..2).map(move |row| sample_index(step, m, row, 3, 2)))
            })
            .collect();
        assert_eq!(numbers, (0..12).collect::<Vec<_>>());
        assert_eq!(sample_index(1 << 40, 1, 1, 4, 2), (1 << 43) + 3);
    }

    proptest! {
        #[test]
        fn large_files_stay_in_range(tokens in 2u64..=u64::MAX, sequence in 1u32.., sample: u64, seed: u64) {
            let samples = Samples::new(tokens, sequence, seed);
            if samples.windows() > 0 {
                let start = samples.start(sample);
                prop_assert!(start <= tokens - 1 - u64::from(sequence));
            }
        }
    }
}
