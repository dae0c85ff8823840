//! Every operation in low precision against float64: one rounding of the result and no more.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use coxswain_native::net::Group;
use coxswain_native::ops::{self, Gate, NormUse, WgradQueue};
use tch::{Device, Kind, Tensor};

mod support;
use support::{F32, bits, close, randn, reference, slot_like};

/// Element types, and the largest relative error of rounding to them.
const KINDS: [(Kind, f64); 3] =
    [(Kind::Float, 1e-6), (Kind::BFloat16, 1.0 / 256.0), (Kind::Half, 1.0 / 2048.0)];

fn sample(shape: &[i64], kind: Kind) -> Tensor {
    randn(shape).to_kind(kind)
}

fn leaf(shape: &[i64], kind: Kind) -> Tensor {
    sample(shape, kind).set_requires_grad(true)
}

/// Each value is the wanted one rounded once: the fp32 arithmetic before it may add a little.
fn rounded_once(what: &str, got: &Tensor, want: &Tensor, (kind, unit): (Kind, f64)) {
    assert_eq!(got.kind(), kind, "{what}");
    assert_eq!(got.size(), want.size(), "{what}");
    let want = want.to_kind(Kind::Double);
    let allowed = want.abs() * (unit * 1.01) + want.abs().max() * 2e-6;
    let excess = ((got.to_kind(Kind::Double) - &want).abs() - allowed).max().double_value(&[]);
    assert!(excess <= 0.0, "{what} {kind:?}: {excess:e} more than one rounding");
}

#[test]
fn linear_and_its_fp32_weight_gradient() {
    for (kind, unit) in KINDS {
        let (x, w, dy) = (leaf(&[2, 5, 48], kind), sample(&[24, 48], kind), sample(&[2, 5, 24], kind));
        let (slot, dw) = slot_like(&w);
        let wgrad_queue = WgradQueue::new();
        let (y64, grads) = reference(&[&x, &w], &dy, |i| i[0].matmul(&i[1].tr()));
        for round in 1..=3 {
            let y = ops::linear(&x, &w, &slot, &wgrad_queue).unwrap();
            let dx = ops::grad(&y, &dy, &x).unwrap();
            wgrad_queue.flush().unwrap();
            // A product may round a partial sum on its way.
            close("y", &y, &y64, 2.0 * unit);
            close("dx", &dx, &grads[0], 2.0 * unit);
            assert_eq!((y.kind(), dx.kind(), dw.kind()), (kind, kind, Kind::Float));
            close("dw", &dw, &(f64::from(round) * &grads[1]), 2.0 * unit);
        }
        // Three equal parts add up in fp32: in bf16 the third would be rounded away in places.
        let (once, part) = slot_like(&w);
        drop(ops::grad(&ops::linear(&x, &w, &once, &wgrad_queue).unwrap(), &dy, &x).unwrap());
        wgrad_queue.flush().unwrap();
        assert_eq!(bits(&dw), bits(&((&part + &part) + &part)), "{kind:?}");
    }
}

#[test]
fn rms_norm_rope_and_swiglu() {
    for row in KINDS {
        let kind = row.0;
        // 70 is not a multiple of the kernels' 32 lanes.
        let (x, w, dy) = (leaf(&[3, 8, 70], kind), randn(&[70]), sample(&[3, 8, 70], kind));
        let (slot, dw) = slot_like(&w);
        let wgrad_queue = WgradQueue::new();
        let y = ops::rms_norm(&x, &w, 1e-5, &[NormUse { slot: &slot, first: 0, tokens: 8 }], &wgrad_queue)
            .unwrap();
        let dx = ops::grad(&y, &dy, &x).unwrap();
        wgrad_queue.flush().unwrap();
        let (y64, grads) = reference(&[&x, &w], &dy, |i| {
            let mean = (&i[0] * &i[0]).mean_dim([-1i64].as_slice(), true, Kind::Double);
            &i[0] / (mean + 1e-5).sqrt() * &i[1]
        });
        rounded_once("norm", &y, &y64, row);
        rounded_once("norm dx", &dx, &grads[0], row);
        close("norm dw", &dw, &grads[1], 1e-5);

        let (q, dq) = (leaf(&[2, 5, 3, 38], kind), sample(&[2, 5, 3, 38], kind));
        let angle = randn(&[5, 19]);
        let (cos, sin) = (angle.cos(), angle.sin());
        let y = ops::rope(&q, &cos, &sin).unwrap();
        let dx = ops::grad(&y, &dq, &q).unwrap();
        let table = |t: &Tensor| t.to_kind(Kind::Double).view([1, 5, 1, 19]);
        let (y64, grads) = reference(&[&q], &dq, |i| {
            let halves = i[0].chunk(2, -1);
            let (a, b) = (&halves[0], &halves[1]);
            Tensor::cat(&[a * table(&cos) - b * table(&sin), b * table(&cos) + a * table(&sin)], -1)
        });
        rounded_once("rope", &y, &y64, row);
        rounded_once("rope dx", &dx, &grads[0], row);

        // The grid reaches where exponentials underflow and overflow.
        let a = Tensor::linspace(-120, 120, 1001, F32).to_kind(kind).set_requires_grad(true);
        let (b, dy) = (leaf(&[1001], kind), sample(&[1001], kind));
        let (y64, grads) = reference(&[&a, &b], &dy, |i| i[0].silu() * &i[1]);
        for (name, input, want) in [("da", &a, &grads[0]), ("db", &b, &grads[1])] {
            let y = ops::gated(&a, &b, Gate::Swiglu).unwrap();
            rounded_once("swiglu", &y, &y64, row);
            rounded_once(name, &ops::grad(&y, &dy, input).unwrap(), want, row);
        }
    }
}

#[test]
fn rounding_to_bf16_is_to_the_nearest_even_and_keeps_nan_and_infinity() {
    // The norm of ones is one, so that y is w, rounded.
    let values = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1.0 - 1.0 / 256.0, 3.0e38, f64::NAN, f64::INFINITY];
    let w = Tensor::from_slice(&values.map(|value| value as f32));
    let x = Tensor::ones([1, 1, 6], F32).to_kind(Kind::BFloat16);
    let (slot, _) = slot_like(&w);
    let uses = [NormUse { slot: &slot, first: 0, tokens: 1 }];
    let y = ops::rms_norm(&x, &w, 0.0, &uses, &WgradQueue::new()).unwrap().view([6]).to_kind(Kind::Float);
    let want = w.to_kind(Kind::BFloat16).to_kind(Kind::Float);
    for i in 0..6 {
        let (got, want) = (y.double_value(&[i]), want.double_value(&[i]));
        assert!(got == want || (got.is_nan() && want.is_nan()), "{i}: {got} for {want}");
    }
}

#[test]
fn the_embedding_in_low_precision() {
    let w = randn(&[10, 7]);
    let ids = Tensor::from_slice(&[12i64, 3, 12, 19, 20]);
    for (kind, _) in KINDS {
        let y = ops::embed(&ids, &w, 10, kind).unwrap();
        assert_eq!(y.kind(), kind);
        assert_eq!(bits(&y.get(0)), bits(&w.get(2).to_kind(kind)));
        assert_eq!(y.get(1).abs().max().double_value(&[]), 0.0);
        let low = ops::embed(&ids, &w.to_kind(kind), 10, kind).unwrap();
        assert_eq!(bits(&low), bits(&y), "a table in low precision");

        let (slot, dw) = slot_like(&w);
        let dy = sample(&[5, 7], kind);
        for _ in 0..2 {
            ops::embed_grad(&ids, &dy, &slot, 10).unwrap();
        }
        let row = |at: i64| dy.get(at).to_kind(Kind::Float);
        assert_eq!(bits(&dw.get(2)), bits(&(((row(0) + row(2)) + row(0)) + row(2))), "{kind:?}");
        assert_eq!(dw.get(0).abs().max().double_value(&[]), 0.0);
    }
}

fn loss_and_gradient(logits: &Tensor, targets: &Tensor, scale: f64) -> (f64, Tensor) {
    let alone = Group::new(None, &[0], 0, 0).unwrap();
    let leaf = logits.copy().set_requires_grad(true);
    let loss = ops::cross_entropy(vec![&leaf * 1.0], targets, None, &[0], &alone).unwrap();
    let upstream = Tensor::full([], scale, (Kind::Double, Device::Cpu));
    let dx = ops::grad(&loss, &upstream, &leaf).unwrap();
    (loss.double_value(&[]), dx)
}

#[test]
fn cross_entropy_in_low_precision_and_under_a_loss_scale() {
    let targets = Tensor::from_slice(&[3i64, 49, -1, 0, 7, 7]);
    for row in KINDS {
        for shift in [0.0, -1e3, 1e3] {
            let logits = (randn(&[6, 50]) * 3.0 + shift).to_kind(row.0);
            let one = Tensor::ones([], (Kind::Double, Device::Cpu));
            let (loss64, grads) = reference(&[&logits], &one, |i| {
                i[0].cross_entropy_loss(&targets, None::<Tensor>, tch::Reduction::Sum, -1, 0.0)
            });
            let (loss, dx) = loss_and_gradient(&logits, &targets, 1.0);
            assert!((loss / loss64.double_value(&[]) - 1.0).abs() < 1e-6, "{row:?}: {loss}");
            rounded_once("dlogits", &dx, &grads[0], row);
            assert_eq!(dx.get(2).abs().max().double_value(&[]), 0.0);

            let (_, by_256) = loss_and_gradient(&logits, &targets, 256.0);
            rounded_once("256 dlogits", &by_256, &(&grads[0] * 256.0), row);
            // Fp16 has no room for this scale, nor for the smallest gradients without one.
            if row.0 != Kind::Half {
                let (_, scaled) = loss_and_gradient(&logits, &targets, 65536.0);
                assert_eq!(bits(&scaled), bits(&(dx * 65536.0)), "{row:?}");
            }
        }
    }
}
