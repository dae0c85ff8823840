//! LayerNorm, biases, activations and columns of tables against float64, forward and backward.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use coxswain_native::ops::{self, Gate, NormUse, Slot, Unary, WgradQueue};
use tch::{Kind, Tensor};

mod support;
use support::{F32, bits, close, randn, reference, seed, slot_like};

/// Two uses of 7 tokens.
fn uses<'a>(slots: [&'a Slot; 2]) -> [NormUse<'a>; 2] {
    [NormUse { slot: slots[0], first: 0, tokens: 3 }, NormUse { slot: slots[1], first: 3, tokens: 4 }]
}

#[test]
fn layer_norm_and_bias_agree_with_float64_and_each_use_has_a_sum_of_its_own() {
    seed(1);
    for (kind, bound) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2), (Kind::Half, 2e-3)] {
        let x = (randn(&[3, 7, 70]) * 2.0 + 1.0).to_kind(kind).detach().set_requires_grad(true);
        let (w, b, dy) = (randn(&[70]), randn(&[70]), randn(&[3, 7, 70]).to_kind(kind));
        let [(s0, w0), (s1, w1), (s2, b0), (s3, b1)] = [&w, &w, &b, &b].map(slot_like);
        let wgrad_queue = WgradQueue::new();
        let y =
            ops::layer_norm(&x, &w, &b, 1e-5, &uses([&s0, &s1]), &uses([&s2, &s3]), &wgrad_queue).unwrap();
        let dx = ops::grad(&y, &dy, &x).unwrap();
        wgrad_queue.flush().unwrap();
        let norm = |i: &[Tensor]| {
            let centred = &i[0] - i[0].mean_dim([-1i64].as_slice(), true, Kind::Double);
            let variance = (&centred * &centred).mean_dim([-1i64].as_slice(), true, Kind::Double);
            centred / (variance + 1e-5).sqrt() * &i[1] + &i[2]
        };
        let (want, grads) = reference(&[&x, &w, &b], &dy, norm);
        close("y", &y, &want, bound);
        close("dx", &dx, &grads[0], bound);
        close("dw", &(&w0 + &w1), &grads[1], bound);
        close("db", &(&b0 + &b1), &grads[2], bound);
        let first = |x: &Tensor| x.narrow(1, 0, 3).contiguous();
        let (_, grads) = reference(&[&first(&x), &w, &b], &first(&dy), norm);
        close("dw of the first use", &w0, &grads[1], bound);
        close("db of the first use", &b0, &grads[2], bound);

        let [(s0, b0), (s1, b1)] = [&b, &b].map(slot_like);
        let y = ops::add_bias(&x, &b, &uses([&s0, &s1]), &wgrad_queue).unwrap();
        let dx = ops::grad(&y, &dy, &x).unwrap();
        wgrad_queue.flush().unwrap();
        let (want, grads) = reference(&[&x, &b], &dy, |i| &i[0] + &i[1]);
        close("x + b", &y, &want, bound);
        assert_eq!(bits(&dx), bits(&dy));
        close("db", &(&b0 + &b1), &grads[1], bound);
    }
}

#[test]
fn activations_agree_with_float64_far_out_too() {
    seed(2);
    let tanh = |x: &Tensor| x.gelu("tanh");
    type F = fn(&Tensor) -> Tensor;
    let unary: [(Unary, F); 5] = [
        (Unary::Relu, |x| x.relu()),
        (Unary::Gelu, |x| x.gelu("none")),
        (Unary::GeluTanh, tanh),
        (Unary::Silu, |x| x.silu()),
        (Unary::Tanh, |x| x.tanh()),
    ];
    for range in [120.0, 6.0] {
        let x = Tensor::linspace(-range, range, 1000, F32).set_requires_grad(true);
        let (b, dy) = (randn(&[1000]).set_requires_grad(true), randn(&[1000]));
        for (by, want) in unary {
            let y = ops::activate(&x, by).unwrap();
            let dx = ops::grad(&y, &dy, &x).unwrap();
            let (want, grads) = reference(&[&x], &dy, |i| want(&i[0]));
            close(&format!("{by:?}"), &y, &want, 1e-6);
            close(&format!("{by:?} dx"), &dx, &grads[0], 2e-6);
        }
        let gates: [(Gate, F); 3] =
            [(Gate::Swiglu, |x| x.silu()), (Gate::Geglu, |x| x.gelu("none")), (Gate::GegluTanh, tanh)];
        for (by, want) in gates {
            let (want, grads) = reference(&[&x, &b], &dy, |i| want(&i[0]) * &i[1]);
            for (input, grad) in [&x, &b].into_iter().zip(&grads) {
                let y = ops::gated(&x, &b, by).unwrap();
                close(&format!("{by:?}"), &y, &want, 1e-6);
                close(&format!("{by:?} grad"), &ops::grad(&y, &dy, input).unwrap(), grad, 2e-6);
            }
        }
    }
}

#[test]
fn bits_of_an_activation_depend_on_neither_threads_nor_the_place_in_a_vector() {
    let run = |threads, first: i64| {
        tch::set_num_threads(threads);
        seed(3);
        let x = randn(&[100_003]).narrow(0, first, 90_001).contiguous();
        let y = ops::activate(&x, Unary::Gelu).unwrap();
        bits(&y.narrow(0, 10 - first, 80_000))
    };
    assert_eq!(run(1, 0), run(2, 0));
    assert_eq!(run(1, 0), run(2, 7));
}

#[test]
fn columns_of_a_table_file_its_gradient() {
    seed(4);
    let (anchor, table) = (randn(&[2]).set_requires_grad(true), randn(&[5, 3]));
    let rows = Tensor::from_slice(&[4_i64, 0, 4, 2, 2, 2]);
    let (slot, dtable) = slot_like(&table);
    let wgrad_queue = WgradQueue::new();
    let y = ops::table_columns(&anchor, &table, &rows, &slot, &wgrad_queue).unwrap();
    let dy = randn(&[3, 6]);
    let sum = (&y * &dy).sum(Kind::Float) + anchor.sum(Kind::Float);
    let da = ops::grad(&sum, &Tensor::ones([], F32), &anchor).unwrap();
    wgrad_queue.flush().unwrap();
    let (want, grads) = reference(&[&table], &dy, |i| i[0].index_select(0, &rows).tr());
    close("columns", &y, &want, 1e-6);
    close("dtable", &dtable, &grads[0], 1e-6);
    assert_eq!(Vec::<f32>::try_from(&da).unwrap(), [1.0, 1.0]);
}
