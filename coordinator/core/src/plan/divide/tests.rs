use super::*;

const KEEPS_UP: u32 = 100;

/// How many pieces each worker gets.
fn counts(costs: &[u64], slow_percent: &[u32]) -> Vec<usize> {
    divide(costs, slow_percent).iter().map(ExactSizeIterator::len).collect()
}

fn alike(workers: usize) -> Vec<u32> {
    vec![KEEPS_UP; workers]
}

/// Layers that cost the same, and a head behind the last one.
fn even(layer: u64, head: u64, layers: usize) -> Vec<u64> {
    let mut costs = vec![layer; layers];
    costs[layers - 1] += head;
    costs
}

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
        let found = counts(&even(layer, head, layers), &alike(stages));
        assert_eq!(found, expected, "{layers} layers, head {head}, {stages} stages");
    }
}

fn times(costs: &[u64], counts: &[usize], slow_percent: &[u32]) -> Vec<u128> {
    let mut rest = costs;
    let take = |(count, slow): (&usize, &u32)| {
        let (own, after) = rest.split_at(*count);
        rest = after;
        own.iter().map(|cost| u128::from(*cost)).sum::<u128>() * u128::from(*slow)
    };
    counts.iter().zip(slow_percent).map(take).collect()
}

#[test]
fn no_other_division_is_better() {
    let rank = |costs: &[u64], counts: &[usize], slow: &[u32]| {
        let times = times(costs, counts, slow);
        (times.iter().copied().max().unwrap(), times.iter().map(|time| time * time).sum::<u128>())
    };
    let mut rows: Vec<Vec<u64>> = Vec::new();
    for pieces in 1..=9 {
        rows.extend([0, 1, 3, 7, 20].map(|head| even(3, head, pieces)));
        // An encoder, a dearer decoder, and the head.
        let mixed = (0..pieces).map(|piece| if piece < pieces / 2 { 3 } else { 5 });
        rows.push(mixed.enumerate().map(|(i, cost)| if i + 1 == pieces { cost + 4 } else { cost }).collect());
    }
    for costs in rows {
        for workers in 1..=costs.len() {
            // All alike; one that is slow, at either end or within; each slower than the one before.
            let slow = |at: usize, by: u32| {
                (0..workers).map(|worker| if worker == at { by } else { KEEPS_UP }).collect::<Vec<_>>()
            };
            let steps = (0..workers as u32).map(|worker| KEEPS_UP + 75 * worker).collect();
            for slow in [alike(workers), slow(0, 175), slow(workers / 2, 300), slow(workers - 1, 900), steps]
            {
                let found = counts(&costs, &slow);
                assert_eq!((found.len(), found.iter().sum::<usize>()), (workers, costs.len()));
                assert!(found.iter().all(|n| *n >= 1));
                let every = every_split(costs.len(), workers);
                let least = every.iter().map(|counts| rank(&costs, counts, &slow)).min().unwrap();
                assert_eq!(rank(&costs, &found, &slow), least, "{costs:?} over {slow:?}");
            }
        }
    }
}

#[test]
fn a_slow_worker_gets_less() {
    for (costs, slow, expected) in [
        (even(1, 0, 9), vec![200, 100], vec![3, 6]),
        (even(1, 0, 9), vec![100, 200], vec![6, 3]),
        (even(1, 0, 8), vec![100, 300, 100, 100], vec![3, 1, 2, 2]),
        // Even the least that it can have is too much: the others' shares no longer matter, and are even.
        (even(1, 0, 6), vec![100, 900, 100], vec![3, 1, 2]),
    ] {
        assert_eq!(counts(&costs, &slow), expected, "{slow:?}");
    }
}

fn every_split(layers: usize, stages: usize) -> Vec<Vec<usize>> {
    if stages == 1 {
        return vec![vec![layers]];
    }
    (1..=layers + 1 - stages)
        .flat_map(|first| {
            every_split(layers - first, stages - 1).into_iter().map(move |rest| [vec![first], rest].concat())
        })
        .collect()
}

#[test]
fn the_largest_models_are_cut_at_once() {
    let costs: Vec<u64> = (0..2048).map(|layer| if layer < 1024 { 30 } else { 50 }).collect();
    for stages in [1, 2, 64, 1024, 2048] {
        let found = counts(&costs, &alike(stages));
        assert_eq!((found.len(), found.iter().sum::<usize>()), (stages, 2048));
    }
}

#[test]
fn equal_pieces_are_divided_as_a_search_would() {
    for pieces in 1..=12_usize {
        for workers in 1..=pieces {
            for slow in [100, 150] {
                let (costs, slow) = (vec![7; pieces], vec![slow; workers]);
                assert_eq!(divide(&costs, &slow), searched(&costs, &slow), "{pieces} {workers}");
            }
        }
    }
}
