//! Linear attention against its quadratic form in float64, forward and backward.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use coxswain_native::linear_attention::{LinearState, linear_attention};
use tch::{Device, Kind, Tensor};

mod support;
use support::{F32, bits, close, randn, reference, seed, uniform};

/// What log decays are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Decay {
    None,
    /// Half-lives of a few tokens to many.
    Mild,
    /// Every token forgets all before it.
    Strong,
    /// Some tokens forget all, some nothing.
    Mixed,
}
use Decay::{Mild, Mixed, Strong};

#[derive(Clone, Copy, Debug)]
struct Case {
    /// b, t, s, h, g, k.
    shape: [i64; 6],
    causal: bool,
    decay: Decay,
    kind: Kind,
    /// Added to queries and keys.
    shift: f64,
}

impl Case {
    fn causal(shape: [i64; 5], decay: Decay) -> Case {
        let [b, t, h, g, k] = shape;
        Case { shape: [b, t, t, h, g, k], causal: true, decay, kind: Kind::Float, shift: 0.0 }
    }

    fn bidirectional(shape: [i64; 6]) -> Case {
        Case { shape, causal: false, decay: Decay::None, kind: Kind::Float, shift: 0.0 }
    }

    /// q, k, v and, where there are, log decays, which want gradients; and the output's gradient.
    fn inputs(&self) -> (Vec<Tensor>, Tensor) {
        let [b, t, s, h, g, k] = self.shape;
        let of_kind = |x: Tensor| x.to_kind(self.kind);
        let mut inputs = vec![
            of_kind(randn(&[b, t, h, k]) + self.shift),
            of_kind(randn(&[b, s, g, k]) + self.shift),
            of_kind(randn(&[b, s, g, k])),
        ];
        inputs.extend(log_decays(&[b, t, h], self.decay));
        let dy = of_kind(randn(&[b, t, h, k]));
        (inputs.into_iter().map(|x| x.set_requires_grad(true)).collect(), dy)
    }

    fn run(&self, inputs: &[Tensor]) -> (Tensor, Option<LinearState>) {
        linear_attention(&inputs[0], &inputs[1], &inputs[2], inputs.get(3), self.causal, None).unwrap()
    }

    /// The output and the gradients of all inputs.
    fn ours(&self, inputs: &[Tensor], dy: &Tensor) -> Vec<Tensor> {
        let (y, state) = self.run(inputs);
        assert_eq!(state.is_some(), self.causal);
        let grads = Tensor::run_backward(&[(&y * dy).sum(Kind::Float)], inputs, false, false);
        std::iter::once(y.detach()).chain(grads).collect()
    }

    /// All pairs of queries and keys at once.
    fn quadratic(&self, x: &[Tensor]) -> Tensor {
        let [_, t, _, h, g, _] = self.shape;
        let heads = |x: &Tensor| x.transpose(1, 2).repeat_interleave_self_int(h / g, 1, None);
        let (q, k, v) = (x[0].transpose(1, 2).elu() + 1.0, heads(&x[1]).elu() + 1.0, heads(&x[2]));
        let mut weights = q.matmul(&k.transpose(-1, -2));
        if let Some(log_decay) = x.get(3) {
            let sums = log_decay.transpose(1, 2).cumsum(-1, Kind::Double);
            let later = Tensor::ones([t, t], (Kind::Bool, Device::Cpu)).triu(1);
            let since = (sums.unsqueeze(-1) - sums.unsqueeze(-2)).masked_fill(&later, f64::NEG_INFINITY);
            weights *= since.exp();
        } else if self.causal {
            weights = weights.tril(0);
        }
        let sums = weights.sum_dim_intlist([-1i64].as_slice(), true, Kind::Double).clamp_min(1e-6);
        (weights.matmul(&v) / sums).transpose(1, 2)
    }

    fn check(&self, bound: f64) {
        let (inputs, dy) = self.inputs();
        let ours = self.ours(&inputs, &dy);
        let (y, grads) = reference(&inputs.iter().collect::<Vec<_>>(), &dy, |x| self.quadratic(x));
        let wanted: Vec<Tensor> = std::iter::once(y).chain(grads).collect();
        assert_eq!(ours.len(), wanted.len());
        // Of one key, or of one that is not forgotten, the mean is its value: gradients of query and key
        // cancel to nothing, and are held to the size of the values.
        let [_, _, keys, .., width] = self.shape;
        let cancels = keys == 1 || width == 1 || self.decay == Strong;
        let bound = if cancels { 100.0 * bound } else { bound };
        for (name, (got, want)) in ["y", "dq", "dk", "dv", "dlog_decay"].iter().zip(ours.iter().zip(&wanted))
        {
            close(&format!("{name} of {self:?}"), got, want, bound);
            let kind = if *name == "dlog_decay" { Kind::Float } else { self.kind };
            assert_eq!(got.kind(), kind, "{name} of {self:?}");
        }
    }
}

fn log_decays(shape: &[i64], decay: Decay) -> Option<Tensor> {
    let one = || match decay {
        Decay::None | Mild => -(uniform().powi(3)),
        Strong => -30.0,
        Mixed => [0.0, -1e-3, -1.0, -30.0][(uniform() * 4.0) as usize],
    };
    let values: Vec<f32> = (0..shape.iter().product::<i64>()).map(|_| one() as f32).collect();
    (decay != Decay::None).then(|| Tensor::from_slice(&values).view(shape))
}

fn all_bits(tensors: &[Tensor]) -> Vec<Vec<u64>> {
    tensors.iter().map(bits).collect()
}

#[test]
fn causal_agrees_with_float64_at_odd_lengths_with_grouped_heads_and_decays() {
    for shape in [
        [1, 1, 1, 1, 16],
        [2, 1, 4, 2, 5],
        [2, 63, 2, 2, 8],
        [1, 64, 2, 1, 16],
        [2, 65, 4, 2, 15],
        [1, 127, 3, 3, 33],
        [2, 129, 4, 2, 16],
        [1, 300, 2, 1, 64],
        [1, 300, 6, 2, 1],
        [1, 200, 2, 2, 128],
    ] {
        for decay in [Decay::None, Mild, Strong, Mixed] {
            Case::causal(shape, decay).check(1e-5);
        }
    }
}

#[test]
fn bidirectional_agrees_with_float64_for_any_two_lengths() {
    for shape in [
        [1, 1, 1, 1, 1, 16],
        [2, 7, 129, 4, 2, 5],
        [1, 127, 127, 3, 3, 33],
        [2, 300, 64, 2, 1, 64],
        [1, 129, 300, 2, 2, 15],
        [1, 65, 1, 4, 1, 8],
    ] {
        Case::bidirectional(shape).check(1e-5);
    }
}

#[test]
fn low_precisions_are_rounded_at_the_ends_only() {
    for (kind, bound) in [(Kind::BFloat16, 1e-2), (Kind::Half, 2e-3)] {
        for decay in [Decay::None, Mild, Mixed] {
            Case { kind, ..Case::causal([2, 300, 4, 2, 32], decay) }.check(bound);
        }
        Case { kind, ..Case::bidirectional([1, 129, 300, 4, 2, 32]) }.check(bound);
    }
}

/// Features of numbers far below zero are tiny, those of others large.
#[test]
fn features_of_any_size_are_finite() {
    for shift in [-6.0, 50.0] {
        for decay in [Decay::None, Mild] {
            Case { shift, ..Case::causal([1, 129, 2, 1, 16], decay) }.check(2e-5);
        }
    }
    // Sums of weights that are below what is divided by; all gradients but those are as they should be.
    Case { shift: -12.0, ..Case::causal([1, 129, 2, 1, 16], Mild) }.check(2e-5);
    // No feature is left in fp32: all is zero, and nothing is not a number.
    let case = Case { shift: -200.0, ..Case::causal([1, 70, 2, 1, 16], Mixed) };
    let (inputs, dy) = case.inputs();
    for x in case.ours(&inputs, &dy) {
        assert!(bits(&x).iter().all(|x| f64::from_bits(*x) == 0.0), "{case:?}");
    }
}

/// Tokens that forget all before them: every output is the value of its own token.
#[test]
fn decays_without_bound_forget_all() {
    let case = Case::causal([1, 200, 2, 2, 16], Strong);
    let (mut inputs, dy) = case.inputs();
    let mut runs = Vec::new();
    for log_decay in [-200.0, -1e30, f64::NEG_INFINITY] {
        inputs[3] = Tensor::full([1, 200, 2], log_decay, F32).set_requires_grad(true);
        let ours = case.ours(&inputs, &dy);
        close("y", &ours[0], &inputs[2].detach(), 1e-6);
        assert!(bits(&ours[4]).iter().all(|x| f64::from_bits(*x) == 0.0), "gradients of {log_decay}");
        runs.push(all_bits(&ours));
    }
    assert!(runs[0] == runs[1] && runs[0] == runs[2]);
}

#[test]
fn a_prompt_then_single_tokens_equal_the_whole() {
    for (decay, shape) in [
        (Decay::None, [2, 200, 4, 2, 16]),
        (Mild, [1, 200, 2, 1, 64]),
        (Mixed, [2, 131, 4, 4, 5]),
        (Strong, [1, 70, 2, 2, 33]),
    ] {
        let case = Case::causal(shape, decay);
        let [b, t, h, _, k] = shape;
        let (inputs, _) = case.inputs();
        let _no_gradients = tch::no_grad_guard();
        let (whole, end) = case.run(&inputs);
        let held_bytes = (b * h * (k * k + k) * 4) as u64;
        assert_eq!(end.unwrap().held_bytes(), held_bytes);
        // Two parts of a prompt, then token by token over the edge of a chunk.
        let mut state: Option<LinearState> = None;
        let mut parts = Vec::new();
        let mut first = 0;
        for tokens in [37, 20].into_iter().chain(std::iter::repeat_n(1, t as usize - 57)) {
            let part: Vec<Tensor> = inputs.iter().map(|x| x.narrow(1, first, tokens)).collect();
            let (y, next) =
                linear_attention(&part[0], &part[1], &part[2], part.get(3), true, state.as_ref()).unwrap();
            assert_eq!(next.as_ref().unwrap().held_bytes(), held_bytes);
            state = next;
            parts.push(y);
            first += tokens;
        }
        close(&format!("{case:?}"), &Tensor::cat(&parts, 1), &whole, 1e-5);
    }
}

/// A state goes on as it was: a call does not write to what it was given.
#[test]
fn a_state_can_be_gone_on_from_twice() {
    let case = Case::causal([1, 40, 2, 1, 16], Mild);
    let _no_gradients = tch::no_grad_guard();
    let (x, _) = case.inputs();
    let (_, state) = case.run(&x);
    let again = || linear_attention(&x[0], &x[1], &x[2], x.get(3), true, state.as_ref()).unwrap().0;
    assert_eq!(bits(&again()), bits(&again()));
}

#[test]
fn bits_do_not_depend_on_threads() {
    let cases = [
        Case::causal([2, 300, 6, 3, 33], Mixed),
        Case::causal([1, 129, 4, 4, 64], Decay::None),
        Case { kind: Kind::BFloat16, ..Case::causal([2, 200, 4, 2, 16], Mild) },
        Case::bidirectional([2, 129, 300, 4, 2, 15]),
    ];
    for case in cases {
        let runs = [1, 2].map(|threads| {
            tch::set_num_threads(threads);
            seed(7);
            let (inputs, dy) = case.inputs();
            all_bits(&case.ours(&inputs, &dy))
        });
        assert!(runs[0] == runs[1], "{case:?}");
    }
}

/// Heads are cut over tensor shards: some of them alone, here as views, have the same bits.
#[test]
fn heads_and_rows_alone_have_the_bits_that_they_have_among_others() {
    let cases = [
        Case::causal([2, 300, 8, 4, 33], Mixed),
        Case::causal([2, 129, 4, 4, 64], Decay::None),
        Case { kind: Kind::BFloat16, ..Case::causal([2, 200, 8, 4, 16], Mild) },
        Case::bidirectional([2, 129, 300, 8, 4, 16]),
    ];
    for case in cases {
        let [b, _, _, h, g, _] = case.shape;
        let (inputs, dy) = case.inputs();
        let whole = case.ours(&inputs, &dy);
        for row in 0..b {
            for group in 0..g {
                // Keys and values, and with them their gradients, have fewer heads than the others.
                let cut = |x: &Tensor, i: usize, shift: usize| {
                    let each = if i == shift + 1 || i == shift + 2 { 1 } else { h / g };
                    x.detach().narrow(0, row, 1).narrow(2, group * each, each)
                };
                let part: Vec<Tensor> =
                    inputs.iter().enumerate().map(|(i, x)| cut(x, i, 0).set_requires_grad(true)).collect();
                let alone = case.ours(&part, &cut(&dy, 0, 0));
                for (i, (alone, whole)) in alone.iter().zip(&whole).enumerate() {
                    let whole = cut(whole, i, 1);
                    assert!(bits(alone) == bits(&whole), "number {i} of group {group} of {case:?}");
                }
            }
        }
        if case.causal {
            let (_, all) = case.run(&inputs);
            let half: Vec<Tensor> =
                inputs.iter().map(|x| x.narrow(2, x.size()[2] / 2, x.size()[2] / 2)).collect();
            let (_, upper) = case.run(&half);
            // Generation goes on from both with the same bits.
            let _no_gradients = tch::no_grad_guard();
            let next = |x: &[Tensor], state: &LinearState| {
                let x: Vec<Tensor> = x.iter().map(|x| x.narrow(1, 0, 1)).collect();
                linear_attention(&x[0], &x[1], &x[2], x.get(3), true, Some(state)).unwrap().0
            };
            let whole = next(&inputs, &all.unwrap()).narrow(2, h / 2, h / 2);
            assert!(bits(&next(&half, &upper.unwrap())) == bits(&whole), "states of {case:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_told_why() {
    let ones = |shape: &[i64]| Tensor::ones(shape, F32);
    let (q, kv, decay) = (ones(&[2, 5, 4, 8]), ones(&[2, 5, 2, 8]), ones(&[2, 5, 4]) * -1.0);
    let (_, state) = linear_attention(&q, &kv, &kv, None, true, None).unwrap();
    let state = state.as_ref();
    let (wide, leaf) = (ones(&[2, 5, 4, 6]), q.copy().set_requires_grad(true));
    type Row<'a> =
        (&'a Tensor, &'a Tensor, &'a Tensor, Option<&'a Tensor>, bool, Option<&'a LinearState>, &'a str);
    let (odd, short, half) = (ones(&[2, 5, 3, 8]), ones(&[2, 4, 2, 8]), kv.to_kind(Kind::Half));
    let (narrow, above) = (ones(&[2, 5, 2]), ones(&[2, 5, 4]) * 0.5);
    let (double, other) = (q.to_kind(Kind::Double), ones(&[1, 5, 4, 8]));
    let other_kv = ones(&[1, 5, 2, 8]);
    let rows: [Row; 12] = [
        (&q, &kv, &kv, Some(&decay), false, None, "bidirectional; a decay is over the tokens since a key"),
        (&q, &kv, &kv, None, false, state, "bidirectional; a state is of the tokens so far"),
        (&leaf, &kv, &kv, None, true, state, "from a state has no gradients"),
        (&q, &kv, &kv, Some(&above), true, None, "a log decay above 0"),
        (&q, &kv, &kv, Some(&narrow), true, None, "log decays [2, 5, 2] for q [2, 5, 4, 8]"),
        (&q, &kv, &kv, Some(&decay.to_kind(Kind::Half)), true, None, "takes fp32"),
        (&q, &short, &short, None, true, None, "5 queries and 4 keys"),
        (&q, &odd, &odd, None, true, None, "h a multiple of g"),
        (&wide, &kv, &kv, None, true, None, "[2, 5, 4, 6], [2, 5, 2, 8], [2, 5, 2, 8]"),
        (&q, &kv, &half, None, true, None, "keys or values in Half"),
        (&double, &kv, &kv, None, true, None, "takes fp32, bf16 or fp16"),
        (
            &other,
            &other_kv,
            &other_kv,
            None,
            true,
            state,
            "a state [2, 4, 8, 8], [2, 4, 8] for q [1, 5, 4, 8]",
        ),
    ];
    for (q, k, v, decay, causal, state, text) in rows {
        let error = linear_attention(q, k, v, decay, causal, state).err().unwrap().to_string();
        assert!(error.contains(text), "{error:?} has no {text:?}");
    }
    // Without gradients a leaf may go on from a state.
    drop(tch::no_grad(|| linear_attention(&leaf, &kv, &kv, None, true, state)).unwrap());
    let empty = |heads: i64| ones(&[2, 0, heads, 8]).set_requires_grad(true);
    let x = [empty(4), empty(2), empty(2)];
    let (y, _) = linear_attention(&x[0], &x[1], &x[2], None, true, None).unwrap();
    drop(Tensor::run_backward(&[y.sum(Kind::Float)], &x, false, false));
}
