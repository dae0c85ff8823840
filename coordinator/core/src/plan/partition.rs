//! Layers to stages: consecutive ones, so that the most expensive stage is as cheap as can be. The
//! pipeline moves at that stage's pace, and the head weighs as much as several layers of a small
//! model.

use std::ops::Range;

use coxswain_types::job::ModelSpec;

/// Forward FLOPs for each token of a layer and of the head; a backward costs twice as much of both.
/// The embedding is a look-up and costs nothing here.
#[derive(Clone, Copy, Debug)]
struct Cost {
    layer: u64,
    head: u64,
}

impl Cost {
    fn of(model: &ModelSpec, sequence: u32) -> Cost {
        let [dim, ffn, vocab, sequence] = [model.dim, model.ffn, model.vocab, sequence].map(u64::from);
        let kv = u64::from(model.kv_heads) * u64::from(model.head_dim());
        // Two FLOPs for each weight: q and o, k and v, gate and up and down.
        let weights = 2 * (2 * dim * dim + 2 * dim * kv + 3 * dim * ffn);
        // Scores and their product with the values, half of which the causal mask leaves out.
        let attention = 2 * sequence * dim;
        Cost { layer: weights + attention, head: 2 * dim * vocab }
    }

    fn stage(&self, layers: usize, last: bool) -> u128 {
        u128::from(self.layer) * layers as u128 + if last { u128::from(self.head) } else { 0 }
    }
}

/// The layers of each of `stages` stages, at least one each; `stages` is at most `model.layers`.
pub(super) fn partition(model: &ModelSpec, sequence: u32, stages: u32) -> Vec<Range<u32>> {
    let counts = counts(Cost::of(model, sequence), model.layers as usize, stages as usize);
    let mut next = 0;
    counts
        .into_iter()
        .map(|count| {
            let first = next;
            next += count as u32;
            first..next
        })
        .collect()
}

/// The number of layers of each stage. Layers cost the same, so only the last stage's share is a
/// choice: the stages before it share the rest evenly, the larger shares in front. The least dearest
/// stage decides; among equals the least sum of squares, which is the most even partition; then the
/// smallest last stage.
fn counts(cost: Cost, layers: usize, stages: usize) -> Vec<usize> {
    let front = stages - 1;
    let with_last = |last: usize| {
        let rest = layers - last;
        let share = |i: usize| rest / front + usize::from(i < rest % front);
        (0..front).map(share).chain([last]).collect::<Vec<_>>()
    };
    let rank = |counts: &Vec<usize>| {
        let costs = counts.iter().enumerate().map(|(i, count)| cost.stage(*count, i == front));
        let squares = costs.clone().map(|cost| cost * cost);
        (costs.max(), squares.fold(0, u128::saturating_add))
    };
    let choices = if front == 0 { layers..=layers } else { 1..=layers - front };
    choices.map(with_last).min_by_key(rank).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dearest_stage_is_as_cheap_as_can_be_then_the_rest_is_even() {
        for (layer, head, layers, stages, expected) in [
            (1, 0, 8, 1, vec![8]),
            (1, 0, 8, 2, vec![4, 4]),
            (1, 0, 7, 2, vec![4, 3]),
            (1, 0, 10, 4, vec![3, 3, 2, 2]),
            (1, 1, 7, 2, vec![4, 3]),
            (1, 2, 8, 2, vec![5, 3]),
            // The head alone outweighs all layers: one layer has to stay with it.
            (1, 100, 6, 3, vec![3, 2, 1]),
            (1, 5, 4, 4, vec![1, 1, 1, 1]),
        ] {
            let found = counts(Cost { layer, head }, layers, stages);
            assert_eq!(found, expected, "{layers} layers, head {head}, {stages} stages");
        }
    }

    #[test]
    fn no_other_partition_has_a_cheaper_dearest_stage() {
        for head in [0, 1, 3, 7, 20] {
            let cost = Cost { layer: 3, head };
            for layers in 1..=9_usize {
                for stages in 1..=layers {
                    let dearest = |counts: &[usize]| {
                        let costs = counts.iter().enumerate().map(|(i, n)| cost.stage(*n, i + 1 == stages));
                        costs.max().unwrap()
                    };
                    let found = counts(cost, layers, stages);
                    assert_eq!(found.iter().sum::<usize>(), layers);
                    assert!(found.iter().all(|n| *n >= 1));
                    let least = every_split(layers, stages).iter().map(|c| dearest(c)).min().unwrap();
                    assert_eq!(dearest(&found), least, "{layers} {stages} {head}");
                }
            }
        }
    }

    fn every_split(layers: usize, stages: usize) -> Vec<Vec<usize>> {
        if stages == 1 {
            return vec![vec![layers]];
        }
        (1..=layers + 1 - stages)
            .flat_map(|first| {
                every_split(layers - first, stages - 1)
                    .into_iter()
                    .map(move |rest| [vec![first], rest].concat())
            })
            .collect()
    }
}
