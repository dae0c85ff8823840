//! Attention with dropout of probabilities against dense float64 formulas, forward and backward.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use coxswain_native::TorchError;
use coxswain_native::attention::{self, Options, ProbabilityDropout, Visible};
use coxswain_native::ops;
use coxswain_native::random::keep_mask;
use tch::{Device, Kind, Tensor};

/// With the usual scale and no bias.
fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    causal: bool,
    dropout: Option<ProbabilityDropout>,
) -> Result<Tensor, TorchError> {
    let scale = q.size().last().map_or(1.0, |dim| (*dim as f64).powf(-0.5));
    let visible = if causal { Visible::Causal } else { Visible::All };
    attention::attention(q, k, v, &Options { visible, scale, bias_hr: None, dropout })
}

const KEY: u64 = 0xfeed_0042_0000_0007;

/// Normal numbers, other ones for each seed: libtorch's generator is shared by all tests.
fn randn(shape: &[i64], seed: u64) -> Tensor {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64 + 0.5) / f64::from(1u32 << 31)
    };
    let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
    let values: Vec<f32> = (0..shape.iter().product::<i64>()).map(|_| normal() as f32).collect();
    Tensor::from_slice(&values).view(shape)
}

#[derive(Clone, Copy, Debug)]
struct Case {
    /// b, t, s, h, g, k.
    shape: [i64; 6],
    causal: bool,
    rate: f64,
    kind: Kind,
}

impl Case {
    fn new(shape: [i64; 6], causal: bool, rate: f64) -> Case {
        Case { shape, causal, rate, kind: Kind::Float }
    }

    fn dropout(&self) -> Option<ProbabilityDropout> {
        let heads = self.shape[3];
        (self.rate > 0.0).then_some(ProbabilityDropout { key: KEY, rate: self.rate, first_head: 0, heads })
    }

    /// q, k, v and the output's gradient; q and k around `shift_q` and `shift_k`.
    fn inputs(&self, shift_q: f64, shift_k: f64) -> [Tensor; 4] {
        let [b, t, s, h, g, k] = self.shape;
        let leaf = |x: Tensor| x.to_kind(self.kind).detach().set_requires_grad(true);
        [
            leaf(randn(&[b, t, h, k], 1) + shift_q),
            leaf(randn(&[b, s, g, k], 2) + shift_k),
            leaf(randn(&[b, s, g, k], 3)),
            randn(&[b, t, h, k], 4).to_kind(self.kind),
        ]
    }

    fn run(&self, [q, k, v, _]: &[Tensor; 4]) -> Tensor {
        attention(q, k, v, self.causal, self.dropout()).unwrap()
    }

    /// Output, dq, dk, dv by the shim.
    fn ours(&self, inputs: &[Tensor; 4]) -> [Tensor; 4] {
        let grads = Tensor::run_backward(
            &[(self.run(inputs) * &inputs[3]).sum(Kind::Float)],
            &inputs[..3],
            false,
            false,
        );
        let [dq, dk, dv] = grads.try_into().unwrap();
        [self.run(inputs).detach(), dq, dk, dv]
    }

    /// The same in float64, all scores at once.
    fn dense(&self, inputs: &[Tensor; 4]) -> [Tensor; 4] {
        let [b, t, s, h, g, k] = self.shape;
        let x: Vec<Tensor> =
            inputs.iter().map(|x| x.detach().to_kind(Kind::Double).set_requires_grad(true)).collect();
        let heads = |x: &Tensor| x.transpose(1, 2).repeat_interleave_self_int(h / g, 1, None);
        let (q, keys, v) = (x[0].transpose(1, 2), heads(&x[1]), heads(&x[2]));
        let mut scores = q.matmul(&keys.transpose(-1, -2)) / (k as f64).sqrt();
        if self.causal {
            let hidden = Tensor::ones([t, s], (Kind::Bool, Device::Cpu)).tril(s - t).logical_not();
            scores = scores.masked_fill(&hidden, f64::NEG_INFINITY);
        }
        // The softmax of a row that sees nothing is 0 / 0 here, and zero by contract.
        let mut p = scores.softmax(-1, Kind::Double);
        if self.causal && t > s {
            let blind = Tensor::arange(t, (Kind::Int64, Device::Cpu)).lt(t - s).view([t, 1]);
            p = scores.masked_fill(&blind, 0.0).softmax(-1, Kind::Double).masked_fill(&blind, 0.0);
        }
        if self.rate > 0.0 {
            p = p * keep_mask(KEY, self.rate, 0, b * h * t * s).unwrap().view([b, h, t, s])
                / (1.0 - self.rate);
        }
        let y = p.matmul(&v).transpose(1, 2);
        let grads = Tensor::run_backward(&[(&y * &x[3]).sum(Kind::Double)], &x[..3], false, false);
        let [dq, dk, dv] = grads.try_into().unwrap();
        [y.detach(), dq, dk, dv]
    }

    fn check(&self, inputs: &[Tensor; 4], bound: f64) {
        let (ours, dense) = (self.ours(inputs), self.dense(inputs));
        for (name, (got, want)) in ["out", "dq", "dk", "dv"].iter().zip(ours.iter().zip(&dense)) {
            assert_eq!((got.size(), got.kind()), (want.size(), self.kind), "{name} of {self:?}");
            // Gradients that cancel to nothing (one key only) are held to the size of the values, 1.
            let largest = want.abs().max().double_value(&[]).max(0.1);
            let error = (got.to_kind(Kind::Double) - want).abs().max().double_value(&[]) / largest;
            assert!(error < bound, "{name} of {self:?}: off by {error:e}, bound {bound:e}");
        }
    }
}

fn bits(tensors: &[Tensor]) -> Vec<u32> {
    let flat = |x: &Tensor| Vec::<f32>::try_from(x.to_kind(Kind::Float).flatten(0, -1)).unwrap();
    tensors.iter().flat_map(flat).map(f32::to_bits).collect()
}

#[test]
fn agrees_with_float64_at_odd_lengths_with_grouped_heads_and_dropout() {
    let shapes = [
        [1, 1, 1, 1, 1, 16],
        [2, 7, 7, 2, 2, 8],
        [2, 129, 129, 4, 2, 16],
        [1, 200, 200, 2, 1, 64],
        [1, 128, 256, 2, 2, 32],
        [1, 7, 200, 2, 1, 20],
        [2, 1, 129, 4, 4, 5],
        [1, 200, 70, 3, 3, 33],
        [1, 300, 129, 3, 1, 1],
        [1, 130, 600, 6, 3, 128],
    ];
    for shape in shapes {
        for causal in [false, true] {
            for rate in [0.0, 0.1, 0.6] {
                let case = Case::new(shape, causal, rate);
                case.check(&case.inputs(0.0, 0.0), 5e-6);
            }
        }
    }
}

#[test]
fn low_precision_is_within_its_rounding() {
    // Half a unit in the last place of the inputs' type, for the output and for the mean of rows.
    for (kind, bound) in [(Kind::BFloat16, 1.2e-2), (Kind::Half, 1.5e-3)] {
        for shape in [[2, 129, 129, 4, 2, 16], [1, 7, 200, 2, 2, 64], [1, 200, 200, 2, 2, 33]] {
            for rate in [0.0, 0.3] {
                let case = Case { kind, ..Case::new(shape, true, rate) };
                case.check(&case.inputs(0.0, 0.0), bound);
            }
        }
    }
}

#[test]
fn scores_of_a_thousand_above_and_below_zero_are_exact_to_their_rounding() {
    // q about 16 and k about +-16 at dim 16: products about +-1000, which fp32 holds to 6e-5.
    for sign in [1.0, -1.0] {
        for causal in [false, true] {
            let case = Case::new([1, 150, 150, 2, 2, 16], causal, 0.2);
            let inputs = case.inputs(16.0, sign * 16.0);
            let score = (inputs[0].mean(Kind::Double) * inputs[1].mean(Kind::Double) * 4.0).double_value(&[]);
            assert!((score * sign - 1024.0).abs() < 60.0, "mean score {score}");
            case.check(&inputs, 5e-3);
        }
    }
}

#[test]
fn a_query_that_sees_no_key_gives_zero_and_no_gradient() {
    let case = Case::new([1, 200, 50, 1, 1, 8], true, 0.5);
    let [out, dq, _, _] = case.ours(&case.inputs(0.0, 0.0));
    for x in [out, dq] {
        assert_eq!(x.narrow(1, 0, 150).abs().max().double_value(&[]), 0.0);
        assert!(x.narrow(1, 150, 50).abs().max().double_value(&[]) > 0.0);
    }
    // No keys at all.
    let case = Case::new([1, 3, 0, 1, 1, 8], false, 0.0);
    assert_eq!(case.ours(&case.inputs(0.0, 0.0))[0].abs().max().double_value(&[]), 0.0);
}

#[test]
fn a_nan_is_seen_where_it_is_and_nowhere_else() {
    let case = Case::new([1, 150, 150, 2, 2, 16], true, 0.0);
    let inputs = case.inputs(0.0, 0.0);
    let _ = inputs[0].detach().get(0).get(140).get(1).fill_(f64::NAN);
    let nan = case.run(&inputs).detach().isnan().any_dim(-1, false);
    assert_eq!(nan.to_kind(Kind::Int64).sum(Kind::Int64).int64_value(&[]), 1);
    assert_eq!(nan.int64_value(&[0, 140, 1]), 1);
}

#[test]
fn without_dropout_it_is_the_fused_kernel_within_rounding() {
    let case = Case::new([2, 200, 200, 4, 2, 64], true, 0.0);
    let inputs = case.inputs(0.0, 0.0);
    let fused = ops::attention(&inputs[0], &inputs[1], &inputs[2], true).unwrap();
    let error = (case.run(&inputs) - fused).abs().max().double_value(&[]);
    assert!(error < 5e-6, "{error:e}");
}

#[test]
fn heads_in_two_calls_and_batches_apart_equal_the_whole_bit_for_bit() {
    for (shape, rate) in
        [([2, 150, 150, 4, 2, 24], 0.3), ([3, 33, 140, 8, 8, 16], 0.3), ([2, 9, 9, 2, 2, 64], 0.0)]
    {
        let case = Case::new(shape, true, rate);
        let [b, _, _, h, g, _] = shape;
        let inputs = case.inputs(0.0, 0.0);
        let whole = case.ours(&inputs);
        let halves: Vec<Vec<Tensor>> = (0..2)
            .map(|half| {
                let part = |x: &Tensor, n: i64| x.detach().narrow(2, half * n / 2, n / 2);
                let leaf = |x: &Tensor, n: i64| part(x, n).set_requires_grad(true);
                let (q, k, v) = (leaf(&inputs[0], h), leaf(&inputs[1], g), leaf(&inputs[2], g));
                let dropout =
                    case.dropout().map(|d| ProbabilityDropout { first_head: half * h / 2, heads: h, ..d });
                let y = attention(&q, &k, &v, true, dropout).unwrap();
                let loss = (&y * part(&inputs[3], h)).sum(Kind::Float);
                let mut all = vec![y.detach()];
                all.extend(Tensor::run_backward(&[loss], &[q, k, v], false, false));
                all
            })
            .collect();
        for i in 0..4 {
            let joined = Tensor::cat(&[&halves[0][i], &halves[1][i]], 2);
            assert!(bits(&[joined]) == bits(&[whole[i].shallow_clone()]), "{i} of {shape:?}");
        }
        // The first batch alone: its indices are the same.
        let first: Vec<Tensor> = inputs.iter().map(|x| x.detach().narrow(0, 0, 1)).collect();
        let alone = attention(&first[0], &first[1], &first[2], true, case.dropout()).unwrap();
        assert!(b > 1 && bits(&[alone]) == bits(&[whole[0].narrow(0, 0, 1)]), "{shape:?}");
    }
}

#[test]
fn the_same_bits_on_one_and_two_threads() {
    let bits_on = |threads| {
        tch::set_num_threads(threads);
        let case = Case::new([1, 300, 300, 2, 1, 40], true, 0.2);
        bits(&case.ours(&case.inputs(0.0, 0.0)))
    };
    assert!(bits_on(1) == bits_on(2));
}

#[test]
fn bad_arguments_are_told() {
    let x = |shape: [i64; 4]| randn(&shape, 1);
    let (q, k) = (x([1, 3, 4, 8]), x([1, 3, 2, 8]));
    let heads = |rate, first_head, heads| Some(ProbabilityDropout { key: 1, rate, first_head, heads });
    for (q, k, v, dropout, want) in [
        (&q, &x([1, 3, 3, 8]), &x([1, 3, 3, 8]), None, "h a multiple of g, not [1, 3, 4, 8], [1, 3, 3, 8]"),
        (&q, &k, &x([1, 4, 2, 8]), None, "[1, 4, 2, 8]"),
        (&q, &k, &k.to_kind(Kind::Half), None, "queries in Float and keys or values in Half"),
        (&q.to_kind(Kind::Double), &k, &k, None, "not Double"),
        (&q, &k, &k, heads(1.0, 0, 4), "at least 0 and below 1"),
        (&q, &k, &k, heads(0.1, 1, 4), "heads 1..5 of 4"),
        // Kernels divide by the number of tokens.
        (&x([1, 0, 4, 8]), &k, &k, None, "none empty, not [1, 0, 4, 8]"),
    ] {
        let error = attention(q, k, v, false, dropout).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    let error = ops::attention(&x([1, 0, 4, 8]), &k, &k, false).unwrap_err().to_string();
    assert!(error.contains("not empty, not [1, 0, 4, 8]"), "{error}");
}
