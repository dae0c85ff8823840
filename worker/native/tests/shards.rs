//! Norms with several uses, and logical shards on one rank. Several ranks are in coxswain-comm's tests.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use coxswain_native::net::Group;
use coxswain_native::ops::{self, NormUse, Slot, WgradQueue};
use tch::{Device, Kind, Tensor};

mod support;
use support::{bits, close, randn, slot_like};

#[test]
fn a_norm_sums_its_weight_gradient_for_each_use_apart() {
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        let (x, w) = (randn(&[3, 8, 70]).to_kind(kind).set_requires_grad(true), randn(&[70]));
        let dy = randn(&[3, 8, 70]).to_kind(kind);
        let wgrad_queue = WgradQueue::new();
        let run = |x: &Tensor, dy: &Tensor, ranges: &[(i64, i64)]| -> (Tensor, Tensor, Vec<Tensor>) {
            let slots: Vec<(Slot, Tensor)> = ranges.iter().map(|_| slot_like(&w)).collect();
            let uses: Vec<_> = ranges
                .iter()
                .zip(&slots)
                .map(|(&(first, tokens), (slot, _))| NormUse { slot, first, tokens })
                .collect();
            let y = ops::rms_norm(x, &w, 1e-5, &uses, &wgrad_queue).unwrap();
            let dx = ops::grad(&y, dy, x).unwrap();
            wgrad_queue.flush().unwrap();
            (y, dx, slots.into_iter().map(|(_, grad)| grad).collect())
        };
        let (y, dx, whole) = run(&x, &dy, &[(0, 8)]);
        let ranges = [(0, 2), (2, 1), (3, 3), (6, 2)];
        let (split_y, split_dx, parts) = run(&x, &dy, &ranges);
        assert_eq!((bits(&split_y), bits(&split_dx)), (bits(&y), bits(&dx)), "{kind:?}");
        let sum = parts.iter().fold(w.zeros_like(), |sum, part| sum + part);
        close("sum of the uses", &sum, &whole[0], 1e-5);
        for ((first, tokens), part) in ranges.into_iter().zip(&parts) {
            let cut = |x: &Tensor| x.detach().narrow(1, first, tokens).contiguous();
            let (_, _, alone) = run(&cut(&x).set_requires_grad(true), &cut(&dy), &[(0, tokens)]);
            assert_eq!(bits(part), bits(&alone[0]), "{kind:?} tokens {first}..{}", first + tokens);
        }
    }
}

#[test]
fn one_rank_adds_its_shards_in_the_tree() {
    let alone = Group::new(None, &[0], 0, 0).unwrap();
    let wgrad_queue = WgradQueue::new();
    // Sums of these depend on the order: 1e8 swallows small numbers that come after it.
    let values = [1e8, 1.0, -1e8, 3.25, 5.0, -2.5];
    for (count, want) in [
        (1, 1e8),
        (2, 1e8 + 1.0),
        (3, (1e8_f32 + 1.0) + -1e8),
        (4, (1e8_f32 + 1.0) + (-1e8 + 3.25)),
        (6, ((1e8_f32 + 1.0) + (-1e8 + 3.25)) + (5.0 + -2.5)),
    ] {
        for sequence_parallel in [false, true] {
            let part = |i: usize| Tensor::full([2, 4, 3], values[i], (Kind::Float, Device::Cpu));
            let x = part(0).set_requires_grad(true);
            let copies = ops::copy_to_shards(&x, &alone, &wgrad_queue, count, sequence_parallel).unwrap();
            assert_eq!(copies.len(), count);
            // The gradient of shard i is `values[i]`, and so is its part of the sum.
            let parts: Vec<_> = copies.iter().enumerate().map(|(i, copy)| copy / 1e8 * part(i)).collect();
            let sum = ops::reduce_from_shards(&parts, &alone, sequence_parallel).unwrap();
            assert_eq!(sum.double_value(&[0, 0, 0]), f64::from(want), "{count} shards");
            let dx = ops::grad(&sum, &Tensor::full([2, 4, 3], 1e8, (Kind::Float, Device::Cpu)), &x).unwrap();
            assert_eq!(dx.double_value(&[1, 3, 2]), f64::from(want), "{count} shards");
        }
    }
}

#[test]
fn a_shard_without_uses_has_no_gradient() {
    let alone = Group::new(None, &[0], 0, 0).unwrap();
    let x = randn(&[1, 2, 3]).set_requires_grad(true);
    let copies = ops::copy_to_shards(&x, &alone, &WgradQueue::new(), 4, false).unwrap();
    let dx = ops::grad(&(&copies[2] * 3.0), &x.ones_like().detach(), &x).unwrap();
    assert_eq!(dx, x.full_like(3.0).detach());
}
