//! The transformer.

use coxswain_types::job::ModelSpec;

use super::super::limits;
use super::super::raw::RawModel;
use super::Faults;

pub(super) fn model(raw: &RawModel, faults: &mut Faults) -> ModelSpec {
    let ffn = || u64::from(raw.dim).saturating_mul(8).div_ceil(3 * 64).saturating_mul(64);
    let model = ModelSpec {
        layers: raw.layers,
        dim: raw.dim,
        heads: raw.heads,
        kv_heads: raw.kv_heads.unwrap_or(raw.heads),
        ffn: raw.ffn.unwrap_or_else(|| u32::try_from(ffn()).unwrap_or(u32::MAX)),
        vocab: raw.vocab,
        rope_theta: raw.rope_theta.unwrap_or(10_000.0),
        norm_eps: raw.norm_eps.unwrap_or(1e-5),
        tied_embeddings: raw.tied_embeddings.unwrap_or(false),
        layer_groups: raw.layer_groups.unwrap_or(raw.layers),
    };
    let (layers, groups) = (model.layers, model.layer_groups);
    if faults.count("model.layers", layers, &limits::LAYERS) && !(1..=layers).contains(&groups) {
        let why = "a group shares the weights of at least one layer";
        faults.add(
            "model.layer_groups",
            format!("found {groups}; must be 1 to model.layers ({layers}): {why}"),
        );
    }
    let dim = faults.count("model.dim", model.dim, &limits::DIM);
    let heads = faults.count("model.heads", model.heads, &limits::DIM);
    if dim && heads {
        check_heads(&model, faults);
    }
    if raw.kv_heads.is_some() && faults.count("model.kv_heads", model.kv_heads, &limits::DIM) && heads {
        check_kv_heads(&model, faults);
    }
    if raw.ffn.is_some() {
        faults.count("model.ffn", model.ffn, &limits::FFN);
    }
    faults.count("model.vocab", model.vocab, &limits::VOCAB);
    faults.number("model.rope_theta", model.rope_theta, |x| x > 1.0, "a number above 1");
    faults.number("model.norm_eps", model.norm_eps, |x| x > 0.0 && x < 1.0, "a number above 0 and below 1");
    model
}

fn check_heads(model: &ModelSpec, faults: &mut Faults) {
    let (dim, heads) = (model.dim, model.heads);
    let head_dims_even = |heads: u32| dim.is_multiple_of(heads) && (dim / heads).is_multiple_of(2);
    if head_dims_even(heads) {
        return;
    }
    let such_as = |heads: Option<u32>| heads.map_or(String::new(), |heads| format!(", such as {heads}"));
    let nearest = (1..=dim).filter(|&n| head_dims_even(n)).min_by_key(|n| (n.abs_diff(heads), *n));
    let nearest = such_as(nearest);
    if dim.is_multiple_of(heads) {
        let width = dim / heads;
        let must = "must leave heads of even width, because RoPE rotates pairs";
        let found = format!("found {heads}, which makes heads of width {width}");
        faults.add("model.heads", format!("{found}; {must}{nearest}"));
    } else {
        faults.add("model.heads", format!("found {heads}; must divide model.dim ({dim}){nearest}"));
    }
}

fn check_kv_heads(model: &ModelSpec, faults: &mut Faults) {
    let (heads, found) = (model.heads, model.kv_heads);
    if heads.is_multiple_of(found) {
        return;
    }
    let nearest = (1..=heads).filter(|n| heads.is_multiple_of(*n)).min_by_key(|n| (n.abs_diff(found), *n));
    let such_as = nearest.map_or(String::new(), |n| format!(", such as {n}"));
    let why = "each is shared by equally many query heads";
    faults.add("model.kv_heads", format!("found {found}; must divide model.heads ({heads}): {why}{such_as}"));
}
