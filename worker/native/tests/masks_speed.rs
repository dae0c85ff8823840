//! Time of a window against that of full attention, forward and backward. It prints a table.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::io::Write;
use std::time::Instant;

use coxswain_native::attention::{BlockList, Options, Visible, attention};
use coxswain_native::ops;
use coxswain_types::mask::Blocks;
use coxswain_types::model::Attention;
use tch::{Kind, Tensor};

mod support;
use support::randn;

const HEADS: i64 = 2;

/// Seconds of a forward and a backward pass of `attend` over `tokens`.
fn seconds(tokens: u32, attend: &dyn Fn([&Tensor; 3]) -> Tensor) -> f64 {
    let leaf = || randn(&[1, tokens.into(), HEADS, 64]).set_requires_grad(true);
    let (q, k, v) = (leaf(), leaf(), leaf());
    let once = || {
        let start = Instant::now();
        let y = attend([&q, &k, &v]);
        drop(Tensor::run_backward(&[y.sum(Kind::Float)], &[&q, &k, &v], false, false));
        start.elapsed().as_secs_f64()
    };
    // The first pass asks the system for memory, which a training keeps.
    once();
    once().min(once())
}

fn full(tokens: u32, causal: bool) -> f64 {
    seconds(tokens, &|[q, k, v]| ops::attention(q, k, v, causal).unwrap())
}

/// With the mask of `form`.
fn listed(tokens: u32, form: Attention, causal: bool) -> f64 {
    let mask = form.mask(causal, 0, 1, tokens).unwrap();
    seconds(tokens, &|[q, k, v]| {
        let blocks = Blocks::of(std::slice::from_ref(&mask), 0..HEADS as u32, 0..tokens, tokens);
        let list = BlockList::new(&blocks).unwrap();
        let options = Options { visible: Visible::Blocks(&list), scale: 0.125, bias_hr: None, dropout: None };
        attention(q, k, v, &options).unwrap()
    })
}

const WINDOW: Attention = Attention::Window { window: 512 };

/// A masked dense product, or a loop over tiles that are hidden, would take sixteen times as long for four
/// times the tokens, and as long as full attention.
#[test]
fn time_grows_with_the_length_and_a_window_is_several_times_faster_than_full_attention() {
    coxswain_native::memory::install();
    let forms = [
        ("window 512", WINDOW, true, 8.0),
        (
            "longformer 512, 16",
            Attention::Longformer { window: 512, global: 16, projections: false },
            true,
            8.0,
        ),
        (
            "bigbird 64 x (3, 2, 3)",
            Attention::BigBird { block: 64, window: 3, global: 2, last: 0, random: 3 },
            true,
            8.0,
        ),
        // In an encoder a window of 512 has half on each side.
        ("window 512, encoder", Attention::Window { window: 256 }, false, 16.0),
    ];
    let in_full = [false, true].map(|causal| full(16_384, causal));
    for (name, form, causal, faster) in forms {
        let [at_8k, at_16k, at_32k] = [8192, 16_384, 32_768].map(|tokens| listed(tokens, form, causal));
        let full = in_full[usize::from(causal)];
        // A closed terminal does not fail the test.
        let _ = writeln!(
            std::io::stderr(),
            "{name:<24} {at_8k:.3} s at 8k, {at_16k:.3} s at 16k, {at_32k:.3} s at 32k; in full {full:.3} s at 16k: {:.1}",
            full / at_16k
        );
        assert!(full > faster * at_16k, "{name} at 16k: {full} s in full, {at_16k} s");
        assert!(at_32k < 8.0 * at_8k, "{name}: {at_8k} s at 8k, {at_32k} s at 32k");
    }
}
