use coxswain_types::model::{Activation, Architecture, Attention};

use super::*;

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
    // A window that is wider than the sequence costs as much as all of it.
    assert_eq!(at(Attention::Window { window: 4096 }, 64), at(Attention::Full, 64));
}

#[test]
fn stages_are_cut_through_both_stacks() {
    let mut model = llama();
    (model.architecture, model.encoder_layers) = (Architecture::EncoderDecoder, 8);
    for stages in [1, 2, 3, 5, 16] {
        let cut = partition(&model, Lengths { window: 64, source: 0, target: 64 }, &vec![100; stages]);
        assert_eq!((cut.len(), cut[0].start, cut[cut.len() - 1].end), (stages, 0, 16));
        assert!(cut.windows(2).all(|pair| pair[0].end == pair[1].start) && cut.iter().all(|c| !c.is_empty()));
    }
    // A decoder's layers cost more: the encoder alone is less than half of the work.
    assert!(partition(&model, Lengths { window: 64, source: 0, target: 64 }, &[100, 100])[0].end > 8);
}
