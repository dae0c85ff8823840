//! Time and memory of linear attention: a process of its own, for those of other tests would count.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::time::Instant;

use coxswain_native::linear_attention::linear_attention;
use coxswain_native::{memory, ops};
use tch::{Kind, Tensor};

mod support;
use support::randn;

const HEADS: i64 = 4;
const SHORTEST: i64 = 8192;

/// The least seconds of several runs, and the most bytes, of a forward and a backward pass.
fn cost(q: &Tensor, k: &Tensor, v: &Tensor, forward: &dyn Fn() -> Tensor) -> (f64, f64) {
    let run = || {
        let before = memory::current_bytes();
        memory::reset_peak();
        let start = Instant::now();
        drop(Tensor::run_backward(&[forward().sum(Kind::Float)], &[q, k, v], false, false));
        (start.elapsed().as_secs_f64(), (memory::peak_bytes() - before) as f64)
    };
    (0..5).map(|_| run()).reduce(|a, b| (a.0.min(b.0), a.1.max(b.1))).unwrap()
}

#[test]
fn time_and_memory_grow_linearly_with_length() {
    memory::install();
    tch::set_num_threads(2);
    // Already the shortest is more than caches hold, so that all lengths are measured at the same memory.
    let rows: Vec<_> = [SHORTEST, 2 * SHORTEST, 4 * SHORTEST]
        .into_iter()
        .map(|tokens| {
            let leaf = || randn(&[1, tokens, HEADS, 64]).set_requires_grad(true);
            let (q, k, v) = (leaf(), leaf(), leaf());
            let log_decay = (randn(&[1, tokens, HEADS]).abs() * -0.1).set_requires_grad(true);
            let linear = |decay: Option<&Tensor>, causal: bool| {
                let (q, k, v, decay) = (&q, &k, &v, decay.map(Tensor::shallow_clone));
                cost(q, k, v, &move || linear_attention(q, k, v, decay.as_ref(), causal, None).unwrap().0)
            };
            let causal = linear(None, true);
            let decayed = linear(Some(&log_decay), true);
            let bidirectional = linear(None, false);
            // Four times the tokens take it sixteen times as long, which needs no measurement.
            let exact = match tokens {
                SHORTEST => cost(&q, &k, &v, &|| ops::attention(&q, &k, &v, true).unwrap()),
                _ => (f64::NAN, f64::NAN),
            };
            println!(
                "{tokens:>6} tokens: causal {:.4} s, decayed {:.4} s, bidirectional {:.4} s, exact {:.4} s; {:.1} MB",
                causal.0,
                decayed.0,
                bidirectional.0,
                exact.0,
                causal.1 / 1e6,
            );
            [causal, decayed, bidirectional, exact]
        })
        .collect();
    for form in 0..3 {
        let (short, long) = (rows[0][form], rows[2][form]);
        assert!(
            long.0 < 7.0 * short.0,
            "form {form}: 4 times the tokens took {} times as long",
            long.0 / short.0
        );
        assert!(
            long.1 < 4.2 * short.1,
            "form {form}: 4 times the tokens took {} times the bytes",
            long.1 / short.1
        );
        let exact = rows[0][3];
        assert!(short.0 < exact.0, "form {form} took {} s, exact attention {} s", short.0, exact.0);
    }
    // Output, dq, dk and dv of 8 MiB each, what autograd holds besides, and a state every 64 tokens.
    assert!(rows[0][0].1 < 60e6, "{} bytes", rows[0][0].1);
}
