//! Attention over lists of tiles, with and without a bias by distance, against dense float64 formulas.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::sync::Arc;

use coxswain_native::attention::{BlockList, Options, ProbabilityDropout, Visible, attention};
use coxswain_types::mask::{Blocks, Mask};
use coxswain_types::model::Attention;
use tch::{Device, Kind, Tensor};

mod support;
use support::{bits, close, randn, reference, seed};

const SCALE: f64 = 0.3;

/// What is seen, `[b, h, t, s]`, as numbers to add to scores.
fn hidden(masks: &[Mask], heads: u32, queries: u32, keys: u32) -> Tensor {
    let mut values = Vec::new();
    for mask in masks {
        for head in 0..heads {
            for i in keys - queries..keys {
                let add = |j| if mask.sees(head, i, j) { 0.0 } else { f64::NEG_INFINITY };
                values.extend((0..keys).map(add));
            }
        }
    }
    Tensor::from_slice(&values).view([masks.len() as i64, heads.into(), queries.into(), keys.into()])
}

/// `softmax(q k^T SCALE + bias + hidden) v`; rows that see nothing give zero.
fn dense(i: &[Tensor], hidden: &Tensor) -> Tensor {
    let (heads, groups) = (i[0].size()[2], i[1].size()[2]);
    let wide = |x: &Tensor| x.repeat_interleave_self_int(heads / groups, 2, None).transpose(1, 2);
    let q = i[0].transpose(1, 2);
    let (queries, keys) = (q.size()[2], i[1].size()[1]);
    let mut scores = q.matmul(&wide(&i[1]).transpose(2, 3)) * SCALE;
    if let Some(bias_hr) = i.get(3) {
        let at = |x: i64| Tensor::arange(x, (Kind::Int64, Device::Cpu));
        let distance = at(keys).unsqueeze(0) - at(queries).unsqueeze(1) + (queries - 1);
        scores += bias_hr.index_select(1, &distance.flatten(0, 1)).view([1, heads, queries, keys]);
    }
    let blind = hidden.isinf().all_dim(3, true);
    let p = (scores + hidden.masked_fill(&blind, 0.0)).softmax(3, Kind::Double);
    p.masked_fill(&blind, 0.0).matmul(&wide(&i[2])).transpose(1, 2)
}

/// Masks of all forms, one of them for a row of the batch each.
fn forms(tokens: u32) -> Vec<(&'static str, Vec<Mask>)> {
    // A short sequence has no blocks of BigBird.
    let form = |form: Attention, causal| vec![form.mask(causal, 1, 7, tokens).unwrap_or(Mask::All)];
    let longformer = Attention::Longformer { window: 12, global: 5, projections: false };
    let bigbird = Attention::BigBird { block: 16, window: 3, global: 1, last: 0, random: 2 };
    let within = |part: u32| {
        let of: Arc<[u32]> = (0..tokens).map(|at| at / part).collect();
        Mask::Documents { queries: of.clone(), keys: of }
    };
    // The second row's last document is padding that sees nothing at all.
    let padded = Mask::And(vec![Mask::Causal, within(40), Mask::Keys(0..tokens / 2)]);
    vec![
        ("causal", vec![Mask::Causal]),
        ("window", form(Attention::Window { window: 30 }, true)),
        ("window both", form(Attention::Window { window: 30 }, false)),
        ("longformer", form(longformer, false)),
        ("longformer causal", form(longformer, true)),
        ("bigbird", form(bigbird, false)),
        ("bigbird causal", form(bigbird, true)),
        ("documents", vec![within(100), padded]),
    ]
}

#[test]
fn every_mask_agrees_with_float64_both_ways_with_and_without_a_bias() {
    seed(5);
    for tokens in [1_u32, 127, 129, 300] {
        for (name, masks) in forms(tokens) {
            for (queries, biased) in [(tokens, false), (tokens, true), (tokens.div_ceil(3), true)] {
                let (t, s) = (i64::from(queries), i64::from(tokens));
                let leaf = |shape: &[i64]| randn(shape).set_requires_grad(true);
                let (q, k, v) = (leaf(&[2, t, 4, 24]), leaf(&[2, s, 2, 24]), leaf(&[2, s, 2, 24]));
                let (bias, dy) = (leaf(&[4, s + t - 1]), randn(&[2, t, 4, 24]));
                let list =
                    BlockList::new(&Blocks::of(&masks, 0..4, tokens - queries..tokens, tokens)).unwrap();
                let visible = Visible::Blocks(&list);
                let bias_hr = biased.then_some(&bias);
                let options = Options { visible, scale: SCALE, bias_hr, dropout: None };
                let y = attention(&q, &k, &v, &options).unwrap();
                let mut inputs = vec![&q, &k, &v];
                inputs.extend(biased.then_some(&bias));
                let hidden = hidden(&masks, 4, queries, tokens);
                let (want, grads) = reference(&inputs, &dy, |i| dense(i, &hidden));
                let what = |part: &str| format!("{name}, {queries} of {tokens}: {part}");
                close(&what("y"), &y, &want, 1e-5);
                let own = Tensor::run_backward(&[(y * &dy).sum(Kind::Float)], &inputs, false, false);
                for ((part, own), grad) in ["dq", "dk", "dv", "dbias"].iter().zip(&own).zip(&grads) {
                    // A lone key has the whole weight, and gradients of scores are zero but for rounding.
                    close(&what(part), own, grad, if tokens == 1 { 1e-3 } else { 2e-5 });
                }
            }
        }
    }
}

#[test]
fn tiles_that_are_not_listed_are_not_looked_at() {
    // One NaN among the keys or values of a visited tile would be in every sum.
    seed(6);
    let mask = Attention::Window { window: 64 }.mask(true, 0, 1, 1024).unwrap();
    let blocks = Blocks::of(std::slice::from_ref(&mask), 0..2, 0..1024, 1024);
    assert_eq!(blocks.visited(), 2 * (8 + 7));
    let list = BlockList::new(&blocks).unwrap();
    let (q, k, v) = (randn(&[1, 1024, 2, 16]), randn(&[1, 1024, 2, 16]), randn(&[1, 1024, 2, 16]));
    for x in [&k, &v] {
        drop(x.narrow(1, 0, 128).fill_(f64::NAN));
    }
    let visible = Visible::Blocks(&list);
    let options = Options { visible, scale: SCALE, bias_hr: None, dropout: None };
    let y = attention(&q, &k, &v, &options).unwrap();
    let finite = |from: i64, len: i64| y.narrow(1, from, len).isfinite().all().int64_value(&[]) == 1;
    assert!(!finite(0, 256) && finite(256, 768));
}

#[test]
fn scores_far_below_zero_are_exact_and_low_precisions_come_near() {
    seed(7);
    let (_, masks) = forms(200).remove(3);
    let list = BlockList::new(&Blocks::of(&masks, 0..2, 0..200, 200)).unwrap();
    let options = Options { visible: Visible::Blocks(&list), scale: SCALE, bias_hr: None, dropout: None };
    let hidden = hidden(&masks, 2, 200, 200);
    let (q, k, v) = (randn(&[1, 200, 2, 16]) + 30.0, randn(&[1, 200, 2, 16]) - 30.0, randn(&[1, 200, 2, 16]));
    let dy = randn(&[1, 200, 2, 16]);
    let (want, _) = reference(&[&q, &k, &v], &dy, |i| dense(i, &hidden));
    close("far below zero", &attention(&q, &k, &v, &options).unwrap(), &want, 1e-3);
    for (kind, bound) in [(Kind::BFloat16, 2e-2), (Kind::Half, 2e-3)] {
        let low = |x: &Tensor| x.to_kind(kind);
        let (q, k) = (low(&(&q - 30.0)), low(&(&k + 30.0)));
        let (want, _) = reference(&[&q, &k, &low(&v)], &dy, |i| dense(i, &hidden));
        close("low", &attention(&q, &k, &low(&v), &options).unwrap(), &want, bound);
    }
}

#[test]
fn bits_depend_on_neither_threads_nor_other_heads() {
    let run = |threads: i32, heads: std::ops::Range<u32>| {
        tch::set_num_threads(threads);
        seed(8);
        let leaf = |shape: &[i64]| {
            let part = randn(shape).narrow(2, heads.start.into(), (heads.end - heads.start).into());
            part.contiguous().detach().set_requires_grad(true)
        };
        let (q, k, v) = (leaf(&[2, 300, 4, 24]), leaf(&[2, 300, 4, 24]), leaf(&[2, 300, 4, 24]));
        let form = Attention::BigBird { block: 16, window: 3, global: 1, last: 0, random: 2 };
        let mask = form.mask(false, 1, 7, 300).unwrap();
        let list = BlockList::new(&Blocks::of(&[mask], heads.clone(), 0..300, 300)).unwrap();
        let dropout = ProbabilityDropout { key: 3, rate: 0.2, first_head: heads.start.into(), heads: 4 };
        let visible = Visible::Blocks(&list);
        let options = Options { visible, scale: SCALE, bias_hr: None, dropout: Some(dropout) };
        let y = attention(&q, &k, &v, &options).unwrap();
        let mut all = Tensor::run_backward(&[y.sum(Kind::Float)], &[&q, &k, &v], true, false);
        all.push(y.detach());
        all.iter().map(|x| x.narrow(2, -1, 1).contiguous()).flat_map(|x| bits(&x)).collect::<Vec<_>>()
    };
    let all = run(2, 0..4);
    assert_eq!(all, run(1, 0..4));
    assert_eq!(all, run(2, 2..4));
}
