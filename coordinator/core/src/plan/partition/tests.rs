use coxswain_types::model::{Activation, Architecture};

use super::*;

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
        let found = counts(&even(layer, head, layers), stages);
        assert_eq!(found, expected, "{layers} layers, head {head}, {stages} stages");
    }
}

fn stage_costs(costs: &[u64], counts: &[usize]) -> Vec<u128> {
    let mut rest = costs;
    let take = |count: &usize| {
        let (stage, after) = rest.split_at(*count);
        rest = after;
        stage.iter().map(|cost| u128::from(*cost)).sum()
    };
    counts.iter().map(take).collect()
}

#[test]
fn no_other_partition_is_better() {
    let rank = |costs: &[u64], counts: &[usize]| {
        let stages = stage_costs(costs, counts);
        (stages.iter().copied().max().unwrap(), stages.iter().map(|cost| cost * cost).sum::<u128>())
    };
    let mut rows: Vec<Vec<u64>> = Vec::new();
    for layers in 1..=9 {
        rows.extend([0, 1, 3, 7, 20].map(|head| even(3, head, layers)));
        // An encoder, a dearer decoder, and the head.
        let mixed = (0..layers).map(|layer| if layer < layers / 2 { 3 } else { 5 });
        rows.push(mixed.enumerate().map(|(i, cost)| if i + 1 == layers { cost + 4 } else { cost }).collect());
    }
    for costs in rows {
        for stages in 1..=costs.len() {
            let found = counts(&costs, stages);
            assert_eq!((found.len(), found.iter().sum::<usize>()), (stages, costs.len()));
            assert!(found.iter().all(|n| *n >= 1));
            let every = every_split(costs.len(), stages);
            let least = every.iter().map(|counts| rank(&costs, counts)).min().unwrap();
            assert_eq!(rank(&costs, &found), least, "{costs:?} in {stages}");
        }
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
        let found = counts(&costs, stages);
        assert_eq!((found.len(), found.iter().sum::<usize>()), (stages, 2048));
    }
}

fn llama() -> ModelSpec {
    ModelSpec::llama(8, 64, 8, 4, 96, 515)
}

/// What a layer costs, each row against a plain decoder's layer.
#[test]
fn a_layer_costs_what_it_multiplies() {
    let (dim, kv, ffn, sequence) = (64, 32, 96, 128_u64);
    let cost = |change: fn(&mut ModelSpec), layer| {
        let mut model = llama();
        change(&mut model);
        layer_cost(&model, layer, 128, 128)
    };
    let rest = 2 * (2 * dim * dim + 2 * dim * kv);
    let plain = rest + 2 * 3 * dim * ffn + 2 * sequence * dim;
    assert_eq!(cost(|_| (), 0), plain);
    assert_eq!(cost(|model| model.activation = Activation::Gelu, 0), plain - 2 * dim * ffn);
    assert_eq!(cost(|model| model.architecture = Architecture::Encoder, 0), plain + 2 * sequence * dim);
    let two = |model: &mut ModelSpec| {
        (model.architecture, model.encoder_layers) = (Architecture::EncoderDecoder, 8);
    };
    assert_eq!(cost(two, 7), plain + 2 * sequence * dim);
    assert_eq!(cost(two, 8), plain + rest + 4 * sequence * dim);
    let window = |model: &mut ModelSpec| model.attention = Attention::Window { window: 16 };
    assert_eq!(cost(window, 0), plain - 2 * sequence * dim + 4 * 16 * dim);
}

#[test]
fn bounded_attention_costs_the_same_at_any_length() {
    let at = |attention, sequence| {
        let mut model = llama();
        model.attention = attention;
        layer_cost(&model, 0, sequence, 0)
    };
    for attention in [
        Attention::Window { window: 64 },
        Attention::Longformer { window: 64, global: 2, projections: false },
        Attention::BigBird { block: 16, window: 3, global: 1, last: 0, random: 2 },
        Attention::Linear { decay: false },
    ] {
        assert_eq!(at(attention, 2048), at(attention, 32_768), "{attention:?}");
        assert!(at(attention, 2048) < at(Attention::Full, 2048), "{attention:?}");
    }
    // A window that is wider than the sequence is no dearer than all of it.
    assert_eq!(at(Attention::Window { window: 4096 }, 64), at(Attention::Full, 64));
}

#[test]
fn stages_are_cut_through_both_stacks() {
    let mut model = llama();
    (model.architecture, model.encoder_layers) = (Architecture::EncoderDecoder, 8);
    for stages in [1, 2, 3, 5, 16] {
        let cut = partition(&model, Lengths { window: 64, source: 0, target: 64 }, stages);
        assert_eq!((cut.len(), cut[0].start, cut[cut.len() - 1].end), (stages as usize, 0, 16));
        assert!(cut.windows(2).all(|pair| pair[0].end == pair[1].start) && cut.iter().all(|c| !c.is_empty()));
    }
    // A decoder's layers cost more: the encoder alone is less than half of the work.
    assert!(partition(&model, Lengths { window: 64, source: 0, target: 64 }, 2)[0].end > 8);
}
