//! Numbers for tests, and comparisons with float64.
#![allow(dead_code, unreachable_pub, reason = "each test binary compiles this file and uses a part of it")]

use coxswain_native::ops::Slot;
use tch::{Device, Kind, Tensor};

pub const F32: (Kind, Device) = (Kind::Float, Device::Cpu);

thread_local! {
    /// Each test runs on its own thread and sees its own sequence: libtorch's generator is shared
    /// by all of them, so the numbers of one test would depend on the others.
    static STATE: std::cell::Cell<u64> = const { std::cell::Cell::new(1) };
}

pub fn uniform() -> f64 {
    let state = STATE.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    STATE.set(state);
    ((state >> 33) as f64 + 0.5) / f64::from(1u32 << 31)
}

pub fn randn(shape: &[i64]) -> Tensor {
    let normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    let values: Vec<f32> = (0..shape.iter().product::<i64>()).map(|_| normal() as f32).collect();
    Tensor::from_slice(&values).view(shape)
}

pub fn close(what: &str, got: &Tensor, want: &Tensor, bound: f64) {
    assert_eq!(got.size(), want.size(), "{what}");
    let want = want.to_kind(Kind::Double);
    let scale = want.abs().max().double_value(&[]).max(1e-2);
    let error = (got.to_kind(Kind::Double) - want).abs().max().double_value(&[]) / scale;
    assert!(error < bound, "{what}: off by {error:e} of the largest value, bound {bound:e}");
}

/// Value and gradients of `f` in float64 by tch's own autograd, for the output gradient `dy`.
pub fn reference(inputs: &[&Tensor], dy: &Tensor, f: impl Fn(&[Tensor]) -> Tensor) -> (Tensor, Vec<Tensor>) {
    let inputs: Vec<_> =
        inputs.iter().map(|x| x.to_kind(Kind::Double).detach().set_requires_grad(true)).collect();
    let y = f(&inputs);
    let weighted = (&y * dy.to_kind(Kind::Double)).sum(Kind::Double);
    let grads = Tensor::run_backward(&[weighted], &inputs, false, false);
    (y.detach(), grads)
}

pub fn slot_like(w: &Tensor) -> (Slot, Tensor) {
    let grad = Tensor::full(w.size(), f64::NAN, F32);
    let slot = Slot::new();
    slot.set(&grad);
    (slot, grad)
}

/// Starts the thread's sequence anew.
pub fn seed(state: u64) {
    STATE.set(state);
}

/// The bits of a tensor of any floating type, exactly.
pub fn bits(x: &Tensor) -> Vec<u64> {
    let values = Vec::<f64>::try_from(&x.to_kind(Kind::Double).flatten(0, -1)).unwrap();
    values.into_iter().map(f64::to_bits).collect()
}
