//! Loops of the shim are shared by the threads of libtorch's pool, and their bits are those of one thread.
//!
//! Products of whole matrices are libtorch's and do depend on the number, which a job therefore fixes.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use coxswain_native::attention::{self, BlockList, Options, ProbabilityDropout, Visible};
use coxswain_native::linear_attention::linear_attention;
use coxswain_native::net::Group;
use coxswain_native::ops::{self, Gate, NormUse, Unary, WgradQueue};
use coxswain_native::random::{TokenWindow, dropout};
use coxswain_types::mask::Blocks;
use coxswain_types::model::Attention;
use tch::{Device, Kind, Tensor};

mod support;
use support::{bits, randn, seed, slot_like};

/// A leaf of the type. The sizes below are odd, so that threads begin in the middle of vectors.
fn leaf(shape: &[i64], kind: Kind) -> Tensor {
    randn(shape).to_kind(kind).detach().set_requires_grad(true)
}

/// Output and gradients of `f`, for an output gradient of its own.
fn both(inputs: &[&Tensor], f: impl Fn() -> Tensor) -> Vec<Tensor> {
    let y = f();
    let dy = randn(&y.size()).to_kind(y.kind());
    let mut all = Tensor::run_backward(&[(&y * dy).sum(y.kind())], inputs, false, false);
    all.push(y.detach());
    all
}

/// What is run twice.
type Part = fn(Kind) -> Vec<Tensor>;

fn rows(kind: Kind) -> Vec<Tensor> {
    let (wgrad_queue, x) = (WgradQueue::new(), leaf(&[3, 67, 333], kind));
    let (w, b) = (randn(&[333]), randn(&[333]));
    let [(w_slot, dw), (b_slot, db)] = [&w, &b].map(slot_like);
    let [w_use, b_use] = [&w_slot, &b_slot].map(|slot| [NormUse { slot, first: 0, tokens: 67 }]);
    let mut all = both(&[&x], || ops::layer_norm(&x, &w, &b, 1e-5, &w_use, &b_use, &wgrad_queue).unwrap());
    wgrad_queue.flush().unwrap();
    all.extend([dw.copy(), db.copy()]);
    w_slot.set(&dw);
    b_slot.set(&db);
    all.extend(both(&[&x], || ops::rms_norm(&x, &w, 1e-5, &w_use, &wgrad_queue).unwrap()));
    all.extend(both(&[&x], || ops::add_bias(&x, &b, &b_use, &wgrad_queue).unwrap()));
    wgrad_queue.flush().unwrap();
    all.extend([dw, db]);
    all
}

fn elements(kind: Kind) -> Vec<Tensor> {
    let (a, b) = (leaf(&[5, 41, 997], kind), leaf(&[5, 41, 997], kind));
    let mut all = both(&[&a], || ops::activate(&a, Unary::Gelu).unwrap());
    all.extend(both(&[&a, &b], || ops::gated(&a, &b, Gate::Swiglu).unwrap()));
    all.extend(both(&[&a], || dropout(&a, 7, 0.3, TokenWindow { first: 3, tokens: 50 }).unwrap()));
    let (x, angle) = (leaf(&[3, 67, 5, 22], kind), randn(&[67, 11]));
    all.extend(both(&[&x], || ops::rope(&x, &angle.cos(), &angle.sin()).unwrap()));
    all
}

fn loss(kind: Kind) -> Vec<Tensor> {
    let alone = Group::new(None, &[0], 0, 0).unwrap();
    let logits = leaf(&[131, 515], kind);
    let targets = Tensor::from_slice(&(0..131).map(|n| n * 4 % 517 - 1).collect::<Vec<i64>>());
    let value = ops::cross_entropy(vec![&logits * 1.0], &targets, None, &[0], &alone).unwrap();
    let one = Tensor::ones([], (Kind::Double, Device::Cpu));
    vec![ops::grad(&value, &one, &logits).unwrap(), value.detach()]
}

fn mixes(kind: Kind) -> Vec<Tensor> {
    let of = |heads| leaf(&[2, 301, heads, 20], kind);
    let (q, k, v, decay) = (of(6), of(3), of(3), randn(&[2, 301, 6]).abs() * -0.1);
    let decay = decay.set_requires_grad(true);
    let bias = randn(&[6, 601]).set_requires_grad(true);
    let mask = Attention::BigBird { block: 16, window: 3, global: 1, last: 0, random: 2 }
        .mask(false, 0, 1, 301)
        .unwrap();
    let list = BlockList::new(&Blocks::of(&[mask], 0..6, 0..301, 301)).unwrap();
    let drop = ProbabilityDropout { key: 9, rate: 0.2, first_head: 0, heads: 6 };
    let mut all = Vec::new();
    for (visible, bias_hr, dropout) in [
        (Visible::Causal, None, None),
        (Visible::Causal, None, Some(drop)),
        (Visible::Blocks(&list), Some(&bias), None),
    ] {
        let options = Options { visible, scale: 0.2, bias_hr, dropout };
        let inputs: Vec<&Tensor> = [&q, &k, &v].into_iter().chain(bias_hr).collect();
        all.extend(both(&inputs, || attention::attention(&q, &k, &v, &options).unwrap()));
    }
    all.extend(both(&[&q, &k, &v, &decay], || {
        linear_attention(&q, &k, &v, Some(&decay), true, None).unwrap().0
    }));
    all
}

#[test]
fn bits_are_those_of_one_thread() {
    let parts: [(&str, Part); 4] = [("rows", rows), ("elements", elements), ("loss", loss), ("mixes", mixes)];
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        for (name, part) in parts {
            let run = |threads: i32| {
                tch::set_num_threads(threads);
                seed(5);
                let mut all = part(kind);
                let norm = ops::sum_squares(&randn(&[3, 70_001])).unwrap();
                all.push(Tensor::from(norm));
                all.iter().map(bits).collect::<Vec<_>>()
            };
            let one = run(1);
            for threads in [2, 3, 5] {
                for (at, (got, want)) in run(threads).iter().zip(&one).enumerate() {
                    assert!(got == want, "result {at} of {name} in {kind:?} with {threads} threads");
                }
            }
        }
    }
}
