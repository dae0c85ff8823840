use super::*;
use crate::model::ModelSpec;

fn model(layers: u32, dim: u32, heads: u32, kv_heads: u32, ffn: u32, vocab: u32) -> ModelSpec {
    ModelSpec::llama(layers, dim, heads, kv_heads, ffn, vocab)
}

#[test]
fn parameter_counts_are_the_published_ones() {
    for (name, model, count) in [
        ("Llama-2 7B", model(32, 4096, 32, 32, 11008, 32000), 6_738_415_616_u64),
        ("Llama-2 13B", model(40, 5120, 40, 40, 13824, 32000), 13_015_864_320),
        ("Llama-3 8B", model(32, 4096, 32, 8, 14336, 128_256), 8_030_261_248),
    ] {
        let sum: u64 = parameter_table(&model).iter().map(Parameter::elements).sum();
        assert_eq!(sum, count, "{name}");
    }
}

#[test]
fn the_different_slices_of_a_parameter_cover_it_once() {
    let table = parameter_table(&model(2, 64, 8, 2, 96, 515));
    for tensor in [1, 2, 4, 8] {
        for parameter in &table {
            let mut end = 0;
            let mut seen = 0;
            for index in 0..tensor {
                let slice = slice_of(parameter, index, tensor);
                assert!(slice.holders.contains(&index));
                if slice.holders.start == index {
                    assert_eq!((slice.ordinal, slice.offset), (seen, end), "{}", parameter.name);
                    end += slice.len;
                    seen += 1;
                }
            }
            let dim = slice_of(parameter, 0, tensor).dim;
            assert_eq!(end, parameter.shape[usize::from(dim)]);
            assert_eq!(seen, parameter.slices(tensor));
        }
    }
}

/// All heads of a layer share the weights of their norm, so each tensor rank has all of them.
#[test]
fn norms_of_heads_are_one_vector_that_every_shard_uses() {
    let mut model = model(1, 64, 8, 2, 96, 512);
    model.norm.qk_norm = true;
    let table = parameter_table(&model);
    let norms: Vec<_> = table.iter().filter(|p| p.name.contains("self_attn") && p.shape == [8]).collect();
    let names: Vec<_> = norms.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names, ["model.layers.0.self_attn.q_norm.weight", "model.layers.0.self_attn.k_norm.weight"]);
    for norm in norms {
        let slice = slice_of(norm, 3, 4);
        assert_eq!((slice.offset, slice.len, slice.holders, norm.decay), (0, 8, 0..4, false));
    }
}

#[test]
fn key_and_value_heads_fewer_than_ranks_are_replicated() {
    let table = parameter_table(&model(1, 64, 8, 2, 96, 512));
    let k = table.iter().find(|p| p.name.ends_with("k_proj.weight")).unwrap();
    let slice = slice_of(k, 3, 4);
    assert_eq!((slice.offset, slice.len, slice.holders), (8, 8, 2..4));
}
