//! Counter-based dropout: the hash by simple statistics, the operation by its mask.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use coxswain_native::ops;
use coxswain_native::random::{TokenWindow, draw32, dropout, keep_mask};
use tch::{Device, Kind, Tensor};

const KEYS: [u64; 4] = [0, 1, 1 << 32, 0x0123_4567_89ab_cdef];

fn ramp(shape: &[i64], kind: Kind) -> Tensor {
    let count: i64 = shape.iter().product();
    (Tensor::arange(count, (Kind::Float, Device::Cpu)) / 64.0 + 1.0).view(shape).to_kind(kind)
}

fn floats(x: &Tensor) -> Vec<f32> {
    Vec::<f32>::try_from(x.to_kind(Kind::Float).flatten(0, -1)).unwrap()
}

/// How far, in standard deviations, `hits` of `draws` lie from a fair coin's half.
fn coin(hits: u32, draws: u32) -> f64 {
    let draws = f64::from(draws);
    (f64::from(hits) - draws / 2.0).abs() / (draws / 4.0).sqrt()
}

#[test]
fn the_vector_code_draws_what_the_scalar_function_says() {
    for key in KEYS {
        // Starts before, at and after the border where the index's upper half changes.
        for first in [0, 5, (1 << 32) - 700, 1 << 32, (7 << 32) - 1, u64::MAX - 2000] {
            for rate in [0.0, 0.1, 0.5, 0.9] {
                let mask = Vec::<bool>::try_from(keep_mask(key, rate, first, 1500).unwrap()).unwrap();
                let threshold = (rate * 4_294_967_296.0).round() as u32;
                let want: Vec<bool> = (first..first + 1500).map(|i| draw32(key, i) >= threshold).collect();
                assert!(mask == want, "key {key}, first {first}, rate {rate}");
            }
        }
    }
}

#[test]
fn bits_are_uniform_and_neighbours_of_index_and_key_are_independent() {
    const DRAWS: u32 = 1 << 16;
    for key in KEYS {
        for first in [0u64, 1 << 40] {
            let draws = |key: u64, by: u64| (0..u64::from(DRAWS)).map(move |i| draw32(key, first + i * by));
            // Each bit is a fair coin, also along the powers of two that are strides of tensors.
            for by in [1, 64, 4096, 1 << 20] {
                for bit in 0..32 {
                    let ones = draws(key, by).map(|x| x >> bit & 1).sum();
                    assert!(coin(ones, DRAWS) < 5.0, "bit {bit} of key {key} by {by}: {ones} ones");
                }
            }
            // The upper byte, which decides at any usual rate: chi-squared with 255 degrees of freedom,
            // deviation 22.6.
            let mut counts = [0f64; 256];
            draws(key, 1).for_each(|x| counts[(x >> 24) as usize] += 1.0);
            let chi: f64 = counts.iter().map(|n| (n - 256.0).powi(2) / 256.0).sum();
            assert!((120.0..390.0).contains(&chi), "key {key}: chi-squared {chi}");
            // Neighbours: each bit of the exclusive or is a fair coin too.
            for (what, other_key, ahead) in
                [("index", key, 1), ("row", key, 512), ("key", key + 1, 0), ("key half", key ^ 1 << 32, 0)]
            {
                for bit in 0..32 {
                    let differ = (0..u64::from(DRAWS))
                        .map(|i| (draw32(key, first + i) ^ draw32(other_key, first + i + ahead)) >> bit & 1)
                        .sum();
                    assert!(coin(differ, DRAWS) < 5.0, "{what} of {key}, bit {bit}: {differ} differ");
                }
            }
        }
    }
}

#[test]
fn kept_values_are_scaled_and_backward_draws_the_same_mask() {
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        for rate in [0.1, 0.5] {
            let x = ramp(&[3, 37, 70], kind).set_requires_grad(true);
            let y = dropout(&x, 42, rate, TokenWindow { first: 0, tokens: 37 }).unwrap();
            let keep = keep_mask(42, rate, 0, x.numel() as i64).unwrap().view([3, 37, 70]);
            let want = (x.to_kind(Kind::Float) * (1.0 / (1.0 - rate)) * &keep).to_kind(kind);
            let (got, want) = (floats(&y.detach()), floats(&want.detach()));
            assert!(got == want, "{kind:?} at {rate}");
            let dropped = got.iter().filter(|x| **x == 0.0).count() as f64 / got.len() as f64;
            assert!((dropped - rate).abs() < 0.03, "{dropped} dropped at {rate}");
            let dy = ramp(&[3, 37, 70], kind);
            let dx = ops::grad(&y, &dy, &x).unwrap();
            let want = (dy.to_kind(Kind::Float) * (1.0 / (1.0 - rate)) * &keep).to_kind(kind);
            assert!(floats(&dx) == floats(&want), "gradient of {kind:?} at {rate}");
        }
    }
}

#[test]
fn any_split_of_the_sequence_and_any_layout_in_memory_gives_the_same_bits() {
    let x = ramp(&[3, 40, 33], Kind::Float);
    let whole = dropout(&x, 7, 0.3, TokenWindow { first: 0, tokens: 40 }).unwrap();
    for cuts in [vec![0, 40], vec![0, 10, 20, 30, 40], vec![0, 1, 39, 40]] {
        let parts: Vec<Tensor> = cuts
            .windows(2)
            .map(|c| {
                dropout(&x.narrow(1, c[0], c[1] - c[0]), 7, 0.3, TokenWindow { first: c[0], tokens: 40 })
                    .unwrap()
            })
            .collect();
        assert!(floats(&Tensor::cat(&parts, 1)) == floats(&whole), "cuts {cuts:?}");
    }
    let turned = x.transpose(1, 2).contiguous().transpose(1, 2);
    assert!(
        floats(&dropout(&turned, 7, 0.3, TokenWindow { first: 0, tokens: 40 }).unwrap()) == floats(&whole)
    );
    let other = dropout(&x, 8, 0.3, TokenWindow { first: 0, tokens: 40 }).unwrap();
    assert!(floats(&other) != floats(&whole), "another key, another mask");
}

#[test]
fn a_rate_of_zero_is_the_tensor_itself_and_bad_arguments_are_told() {
    let x = ramp(&[1, 4, 2], Kind::Float);
    let y = dropout(&x, 1, 0.0, TokenWindow { first: 0, tokens: 4 }).unwrap();
    assert_eq!(y.data_ptr(), x.data_ptr());
    let here = TokenWindow { first: 0, tokens: 4 };
    for (x, rate, place, want) in [
        (&x, 1.0, here, "at least 0 and below 1, not 1"),
        (&x, -0.1, here, "at least 0 and below 1"),
        (&x, f64::NAN, here, "at least 0 and below 1"),
        (&x, 0.1, TokenWindow { first: 1, tokens: 4 }, "tokens 1..5 of 4"),
        (&x, 0.1, TokenWindow { first: -1, tokens: 4 }, "tokens -1..3 of 4"),
        (&x.view([4, 2]), 0.1, here, "takes [b, t, d], not [4, 2]"),
        (&x.to_kind(Kind::Double), 0.1, here, "not Double"),
    ] {
        let error = dropout(x, 1, rate, place).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    assert!(keep_mask(1, 0.5, 0, -1).is_err());
}

#[test]
fn the_same_bits_on_one_and_two_threads() {
    let bits = |threads| {
        tch::set_num_threads(threads);
        floats(
            &dropout(&ramp(&[5, 99, 511], Kind::Float), 3, 0.2, TokenWindow { first: 0, tokens: 99 })
                .unwrap(),
        )
    };
    assert!(bits(1) == bits(2));
}
