//! The shim's functions against plain float64 formulas, forward and backward.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use coxswain_native::net::{Group, Op};
use coxswain_native::ops::{self, AdamW, Gate, NormUse, Update, WgradQueue};
use tch::{Device, Kind, Tensor};

mod support;
use support::{F32, close, randn, reference, seed, slot_like};

#[test]
fn linear_returns_the_input_gradient_and_defers_the_weight_gradient() {
    let (x, w, dy) = (randn(&[2, 5, 16]).set_requires_grad(true), randn(&[24, 16]), randn(&[2, 5, 24]));
    let (slot, dw) = slot_like(&w);
    let wgrad_queue = WgradQueue::new();
    let y = ops::linear(&x, &w, &slot, &wgrad_queue).unwrap();
    let dx = ops::grad(&y, &dy, &x).unwrap();
    assert!(slot.is_fresh(), "the weight gradient waits in the queue");
    wgrad_queue.flush().unwrap();
    let (y64, grads) = reference(&[&x, &w], &dy, |i| i[0].matmul(&i[1].tr()));
    close("y", &y, &y64, 1e-5);
    close("dx", &dx, &grads[0], 1e-5);
    close("dw", &dw, &grads[1], 1e-5);

    // A second micro-batch adds.
    let y = ops::linear(&x, &w, &slot, &wgrad_queue).unwrap();
    drop(ops::grad(&y, &dy, &x).unwrap());
    wgrad_queue.flush().unwrap();
    close("2 dw", &dw, &(2.0 * &grads[1]), 1e-5);
}

#[test]
fn rms_norm_rope_and_swiglu_agree_with_float64() {
    // 70 is not a multiple of the kernels' 32 lanes.
    let (x, w, dy) = (randn(&[3, 7, 70]).set_requires_grad(true), randn(&[70]), randn(&[3, 7, 70]));
    let (slot, dw) = slot_like(&w);
    let wgrad_queue = WgradQueue::new();
    let y =
        ops::rms_norm(&x, &w, 1e-5, &[NormUse { slot: &slot, first: 0, tokens: 7 }], &wgrad_queue).unwrap();
    let dx = ops::grad(&y, &dy, &x).unwrap();
    wgrad_queue.flush().unwrap();
    let (y64, grads) = reference(&[&x, &w], &dy, |i| {
        let mean = (&i[0] * &i[0]).mean_dim([-1i64].as_slice(), true, Kind::Double);
        &i[0] / (mean + 1e-5).sqrt() * &i[1]
    });
    close("norm", &y, &y64, 1e-5);
    close("norm dx", &dx, &grads[0], 1e-5);
    close("norm dw", &dw, &grads[1], 1e-5);

    let (q, dq) = (randn(&[2, 5, 3, 8]).set_requires_grad(true), randn(&[2, 5, 3, 8]));
    let angle = randn(&[5, 4]);
    let (cos, sin) = (angle.cos(), angle.sin());
    let y = ops::rope(&q, &cos, &sin).unwrap();
    let dx = ops::grad(&y, &dq, &q).unwrap();
    let table = |t: &Tensor| t.to_kind(Kind::Double).view([1, 5, 1, 4]);
    let (y64, grads) = reference(&[&q], &dq, |i| {
        let halves = i[0].chunk(2, -1);
        let (a, b) = (&halves[0], &halves[1]);
        Tensor::cat(&[a * table(&cos) - b * table(&sin), b * table(&cos) + a * table(&sin)], -1)
    });
    close("rope", &y, &y64, 1e-6);
    close("rope dx", &dx, &grads[0], 1e-6);

    // The grid reaches where exponentials underflow and overflow.
    let a = Tensor::linspace(-120, 120, 1001, F32).set_requires_grad(true);
    let (b, dy) = (randn(&[1001]), randn(&[1001]));
    let y = ops::gated(&a, &b, Gate::Swiglu).unwrap();
    let da = ops::grad(&y, &dy, &a).unwrap();
    let (y64, grads) = reference(&[&a, &b], &dy, |i| i[0].silu() * &i[1]);
    close("swiglu", &y, &y64, 1e-6);
    close("swiglu da", &da, &grads[0], 1e-6);
}

#[test]
fn cross_entropy_counts_no_ignored_row_and_survives_scores_far_below_zero() {
    let alone = Group::new(None, &[0], 0, 0).unwrap();
    for shift in [0.0, -1e4, 1e4] {
        let logits = randn(&[6, 50]) * 3.0 + shift;
        let targets = Tensor::from_slice(&[3i64, 49, -1, 0, 7, 7]);
        let leaf = logits.copy().set_requires_grad(true);
        let loss = ops::cross_entropy(vec![&leaf * 1.0], &targets, None, &[0], &alone).unwrap();
        let one = Tensor::ones([], (Kind::Double, Device::Cpu));
        let dx = ops::grad(&loss, &one, &leaf).unwrap();
        let (loss64, grads) = reference(&[&logits], &one, |i| {
            i[0].cross_entropy_loss(&targets, None::<Tensor>, tch::Reduction::Sum, -1, 0.0)
        });
        close("loss", &loss, &loss64, 1e-6);
        close("dlogits", &dx, &grads[0], 1e-5);
        assert_eq!(dx.get(2).abs().max().double_value(&[]), 0.0);
    }
    // By weights: each row's loss and gradient that many times.
    let (leaf, targets) =
        (randn(&[5, 50]).set_requires_grad(true), Tensor::from_slice(&[3i64, 49, -1, 0, 7]));
    let weights = Tensor::from_slice(&[1.0_f32, 0.25, 3.0, 2.5, 1e-3]);
    let loss = ops::cross_entropy(vec![&leaf * 1.0], &targets, Some(&weights), &[0], &alone).unwrap();
    let one = Tensor::ones([], (Kind::Double, Device::Cpu));
    let dx = ops::grad(&loss, &one, &leaf).unwrap();
    let (loss64, grads) = reference(&[&leaf], &one, |i| {
        let each = i[0].cross_entropy_loss(&targets, None::<Tensor>, tch::Reduction::None, -1, 0.0);
        (each * weights.to_kind(Kind::Double)).sum(Kind::Double)
    });
    close("weighted loss", &loss, &loss64, 1e-6);
    close("weighted dlogits", &dx, &grads[0], 1e-5);
    assert_eq!(dx.get(2).abs().max().double_value(&[]), 0.0);
    let few =
        ops::cross_entropy(vec![randn(&[5, 50])], &targets, Some(&randn(&[4])), &[0], &alone).unwrap_err();
    assert!(few.to_string().contains("weights [4] for targets [5]"), "{few}");
    // Uniform logits over 50,257 tokens: ln V.
    let loss = ops::cross_entropy(
        vec![Tensor::zeros([1, 50257], F32)],
        &Tensor::from_slice(&[5i64]),
        None,
        &[0],
        &alone,
    );
    assert!((loss.unwrap().double_value(&[]) - 10.824905).abs() < 1e-5);
}

#[test]
fn the_embedding_adds_repeated_tokens_and_leaves_other_ranks_rows_alone() {
    let w = randn(&[10, 4]);
    let ids = Tensor::from_slice(&[12i64, 3, 12, 19, 20]);
    let y = ops::embed(&ids, &w, 10, Kind::Float).unwrap();
    close("row", &y.get(0), &w.get(2), 1e-9);
    assert_eq!(y.get(1).abs().max().double_value(&[]), 0.0);
    assert_eq!(y.get(4).abs().max().double_value(&[]), 0.0);
    let (slot, dw) = slot_like(&w);
    let dy = randn(&[5, 4]);
    ops::embed_grad(&ids, &dy, &slot, 10).unwrap();
    close("dw[2]", &dw.get(2), &(dy.get(0) + dy.get(2)), 1e-6);
    close("dw[9]", &dw.get(9), &dy.get(3), 1e-6);
    assert_eq!(dw.get(0).abs().max().double_value(&[]), 0.0);
}

fn attention_f64(i: &[Tensor]) -> Tensor {
    let groups = i[0].size()[2] / i[1].size()[2];
    let heads = |x: &Tensor| x.transpose(1, 2).repeat_interleave_self_int(groups, 1, None);
    let (q, k, v) = (i[0].transpose(1, 2), heads(&i[1]), heads(&i[2]));
    let (t, s) = (q.size()[2], k.size()[2]);
    let mask = Tensor::ones([t, s], (Kind::Bool, Device::Cpu)).tril(0).logical_not();
    let scores = q.matmul(&k.transpose(-1, -2)) / (q.size()[3] as f64).sqrt();
    let p = scores.masked_fill(&mask, f64::NEG_INFINITY).softmax(-1, Kind::Double);
    p.matmul(&v).transpose(1, 2)
}

#[test]
fn flash_attention_agrees_with_float64_at_odd_lengths_and_low_scores() {
    // At scale 30 scores reach the thousands and lose that much of their last place to fp32.
    for (t, heads, groups, scale, bound) in
        [(1, 2, 2, 1.0, 2e-5), (17, 4, 2, 1.0, 2e-5), (129, 6, 1, 1.0, 2e-5), (65, 2, 2, 30.0, 5e-3)]
    {
        let q = (randn(&[2, t, heads, 16]) * scale).set_requires_grad(true);
        let (k, v) = (randn(&[2, t, groups, 16]) * -scale, randn(&[2, t, groups, 16]));
        let (k, v) = (k.set_requires_grad(true), v.set_requires_grad(true));
        let dy = randn(&[2, t, heads, 16]);
        let y = ops::attention(&q, &k, &v, true).unwrap();
        let (y64, grads) = reference(&[&q, &k, &v], &dy, attention_f64);
        close("out", &y, &y64, bound);
        for (name, x, want) in [("dq", &q, &grads[0]), ("dk", &k, &grads[1]), ("dv", &v, &grads[2])] {
            let y = ops::attention(&q, &k, &v, true).unwrap();
            close(name, &ops::grad(&y, &dy, x).unwrap(), want, bound);
        }
    }
}

#[test]
fn norms_and_adamw_do_not_depend_on_where_a_tensor_is_cut() {
    let x = randn(&[3 * 65536 + 1000]);
    let want = (x.to_kind(Kind::Double) * x.to_kind(Kind::Double)).sum(Kind::Double).double_value(&[]);
    let norm = ops::sum_squares(&x).unwrap();
    assert!((norm / want - 1.0).abs() < 1e-12);
    // Cut at a border of its blocks, as ZeRO does, a tensor has the same blocks.
    let cut = 2 * ops::NORM_BLOCK as i64;
    let mut blocks = ops::sum_squares_blocks(&[x.narrow(0, 0, cut)]).unwrap();
    blocks.extend(ops::sum_squares_blocks(&[x.narrow(0, cut, 65536 + 1000)]).unwrap());
    assert_eq!(blocks.len(), 4);
    assert_eq!(ops::tree_sum(&blocks).to_bits(), norm.to_bits());
    // The sum depends on the order, so an equal one shows the tree.
    for (values, want) in [
        (vec![], 0.0),
        (vec![1e16, 1.0, -1e16], 0.0),
        (vec![1.0, 1e16, -1e16, 3.0], (1.0 + 1e16) + (-1e16 + 3.0)),
        (vec![1e16, 1.0, 1.0, 1e16, -2e16], ((1e16 + 1.0) + (1.0 + 1e16)) - 2e16),
    ] {
        assert_eq!(ops::tree_sum(&values), want, "{values:?}");
    }

    let run = |cuts: &[i64]| {
        seed(7);
        let n = 20_001;
        let state: Vec<Tensor> = (0..3).map(|_| Tensor::zeros([n], F32)).collect();
        for step in 1..=20 {
            let grad = randn(&[n]);
            let mut start = 0;
            for end in cuts.iter().copied().chain([n]) {
                let part = |t: &Tensor| t.narrow(0, start, end - start);
                let (p, g, m, v) = (part(&state[0]), part(&grad), part(&state[1]), part(&state[2]));
                let numbers = AdamW {
                    step,
                    learning_rate: 1e-2,
                    beta1: 0.9,
                    beta2: 0.95,
                    weight_decay: 0.1,
                    eps: 1e-8,
                    divisor: 3.0,
                };
                ops::adamw(&[Update { param: &p, grad: &g, exp_avg: &m, exp_avg_sq: &v }], &numbers).unwrap();
                start = end;
            }
        }
        Vec::<f32>::try_from(&state[0]).unwrap()
    };
    let whole = run(&[]);
    assert_eq!(run(&[64, 6400, 19_968]), whole, "cuts at multiples of 64");
    assert_ne!(run(&[7, 1003]), whole, "an odd cut shows: the comparison can fail");
}

#[test]
fn a_group_of_one_is_a_group_and_errors_say_what_happened() {
    let alone = Group::new(None, &[0], 0, 0).unwrap();
    let x = randn(&[4]);
    assert_eq!(alone.reduce(&x, Op::Sum).unwrap(), x);
    assert!(Group::new(None, &[0, 1], 0, 0).is_err());
    let error = ops::rope(&randn(&[1, 2, 1, 4]), &randn(&[3, 2]), &randn(&[3, 2])).unwrap_err();
    assert!(error.to_string().contains("rope tables are [3, 2]"), "{error}");
    let wgrad_queue = WgradQueue::new();
    let (slot, _) = slot_like(&x);
    let uses = |first, tokens| {
        [NormUse { slot: &slot, first: 0, tokens: 1 }, NormUse { slot: &slot, first, tokens }]
    };
    for (uses, want) in [
        (uses(2, 2), "a use from token 2 of 2 tokens where one from token 1 follows"),
        (uses(1, 1), "uses for 2 tokens of 4"),
        (uses(1, 4), "uses for 5 tokens of 4"),
    ] {
        let error = ops::rms_norm(&randn(&[1, 4, 4]), &x, 1e-5, &uses, &wgrad_queue).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
    let error = ops::linear(&randn(&[2, 4]), &randn(&[3, 4]).to_kind(Kind::BFloat16), &slot, &wgrad_queue)
        .unwrap_err();
    assert!(
        error.to_string().contains("linear has x [2, 4] of Float for weights [3, 4] of BFloat16"),
        "{error}"
    );
    let error = ops::copy_to_shards(&x, &alone, &wgrad_queue, 0, false).unwrap_err();
    assert!(error.to_string().contains("one logical shard at least"), "{error}");
    let error = ops::cross_entropy(vec![randn(&[1, 4])], &Tensor::from_slice(&[0i64]), None, &[0, 4], &alone)
        .unwrap_err();
    assert!(error.to_string().contains("2 first columns for 1 shards"), "{error}");
    let error = ops::embed(&Tensor::from_slice(&[0i64]), &randn(&[2, 2]), 0, Kind::Double).unwrap_err();
    assert!(error.to_string().contains("not Double"), "{error}");
    let error = ops::grad(&x, &x, &x).unwrap_err();
    assert!(!error.to_string().is_empty() && !error.to_string().contains('\n'), "{error}");
}
