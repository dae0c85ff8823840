//! Pieces of work in a row to workers in a row, so that the last one to be done is done as early as can be:
//! layers to stages, and runs of micro-batches to data ranks.

use std::ops::Range;

/// The pieces of each worker: consecutive ones, at least one each. Workers take `slow_percent` of the time that
/// others would for the same; there are at most as many workers as pieces.
///
/// The least latest worker decides; among equals the least sum of squares, which is the most even
/// division; then the larger shares in front.
pub(super) fn divide(costs: &[u64], slow_percent: &[u32]) -> Vec<Range<u32>> {
    let same = |list: &[u64]| list.windows(2).all(|two| two[0] == two[1]);
    let paced = slow_percent.windows(2).all(|two| two[0] == two[1]);
    if paced && same(costs) && costs.first().is_some_and(|cost| *cost > 0) && !slow_percent.is_empty() {
        return even(costs.len() as u32, slow_percent.len() as u32);
    }
    searched(costs, slow_percent)
}

/// Equal pieces to equal workers, without a search: there may be thousands of both.
fn even(pieces: u32, workers: u32) -> Vec<Range<u32>> {
    let (each, more) = (pieces / workers, pieces % workers);
    let bound = |worker: u32| worker * each + worker.min(more);
    (0..workers).map(|worker| bound(worker)..bound(worker + 1)).collect()
}

fn searched(costs: &[u64], slow_percent: &[u32]) -> Vec<Range<u32>> {
    let work = WorkShares::new(costs, slow_percent);
    let latest = work.least_latest();
    let (pieces, workers) = (costs.len(), slow_percent.len());
    // best[start]: the least sum of squares of the pieces from `start` on over the workers that follow, and
    // how many of those the first of them takes. Workers are added from the last one to the first.
    let mut best: Vec<Option<u128>> = (0..=pieces).map(|start| (start == pieces).then_some(0)).collect();
    let mut takes = Vec::with_capacity(workers);
    for worker in (0..workers).rev() {
        let mut next = vec![None; pieces + 1];
        let mut take = vec![0; pieces + 1];
        for start in work.starts(worker) {
            let ends = start + 1..=pieces - (workers - worker - 1);
            for end in ends.take_while(|end| work.time(worker, start, *end) <= latest) {
                let Some(rest) = best[end] else { continue };
                let time = work.time(worker, start, end);
                let squares = time.saturating_mul(time).saturating_add(rest);
                if next[start].is_none_or(|least| squares <= least) {
                    (next[start], take[start]) = (Some(squares), end - start);
                }
            }
        }
        best = next;
        takes.push(take);
    }
    let mut start = 0;
    let range = |take: &Vec<usize>| {
        let end = start + take[start];
        let range = start as u32..end as u32;
        start = end;
        range
    };
    takes.iter().rev().map(range).collect()
}

struct WorkShares<'a> {
    /// What stands before each piece.
    sums: Vec<u128>,
    slow_percent: &'a [u32],
}

impl WorkShares<'_> {
    fn new<'a>(costs: &[u64], slow_percent: &'a [u32]) -> WorkShares<'a> {
        let sums = costs.iter().scan(0_u128, |sum, cost| {
            *sum += u128::from(*cost);
            Some(*sum)
        });
        WorkShares { sums: std::iter::once(0).chain(sums).collect(), slow_percent }
    }

    fn pieces(&self) -> usize {
        self.sums.len() - 1
    }

    /// Where a worker's pieces may begin: those before it have at least one each, and so have those after it.
    fn starts(&self, worker: usize) -> std::ops::RangeInclusive<usize> {
        worker..=(self.pieces() + worker).saturating_sub(self.slow_percent.len())
    }

    fn time(&self, worker: usize, start: usize, end: usize) -> u128 {
        (self.sums[end] - self.sums[start]).saturating_mul(self.slow_percent[worker].into())
    }

    /// When the last worker is done in the best division, by bisection.
    fn least_latest(&self) -> u128 {
        let slowest = self.slow_percent.iter().copied().max().unwrap_or(1);
        let (mut low, mut high) = (0, self.sums[self.pieces()].saturating_mul(slowest.into()));
        while low < high {
            let middle = low + (high - low) / 2;
            if self.works(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        high
    }

    /// Whether all workers can be done by then.
    fn works(&self, latest: u128) -> bool {
        let pieces = self.pieces();
        // The nearest place after each from which the workers that follow can do the rest.
        let mut open: Vec<bool> = (0..=pieces).map(|start| start == pieces).collect();
        for worker in (0..self.slow_percent.len()).rev() {
            let mut nearest = vec![None; pieces + 1];
            for end in (1..=pieces).rev() {
                nearest[end - 1] = if open[end] { Some(end) } else { nearest[end] };
            }
            let mut next = vec![false; pieces + 1];
            for start in self.starts(worker) {
                next[start] = nearest[start].is_some_and(|end| self.time(worker, start, end) <= latest);
            }
            open = next;
        }
        open[0]
    }
}

#[cfg(test)]
mod tests;
