//! Memory of attention: a process of its own and one test, for the bytes of others would count.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use coxswain_native::attention::{BlockList, Options, ProbabilityDropout, Visible, attention};
use coxswain_native::{memory, ops};
use coxswain_types::mask::Blocks;
use coxswain_types::model::Attention;
use tch::{Device, Kind, Tensor};

fn ones(t: i64, heads: i64) -> Tensor {
    Tensor::ones([1, t, heads, 32], (Kind::Float, Device::Cpu))
}

/// The most bytes that a forward and its backward take, beside what is there before.
fn peak(q: &Tensor, dy: &Tensor, attend: impl FnOnce() -> Tensor) -> f64 {
    let before = memory::current_bytes();
    memory::reset_peak();
    let y = attend();
    drop(ops::grad(&y, dy, q).unwrap());
    (memory::peak_bytes() - before) as f64
}

fn fused(t: i64) -> f64 {
    let (q, k, v, dy) = (ones(t, 4).set_requires_grad(true), ones(t, 4), ones(t, 4), ones(t, 4));
    peak(&q, &dy, || ops::attention(&q, &k, &v, true).unwrap())
}

fn dropped(t: i64) -> f64 {
    let (q, k, v, dy) = (ones(t, 4).set_requires_grad(true), ones(t, 2), ones(t, 2), ones(t, 4));
    let dropout = Some(ProbabilityDropout { key: 9, rate: 0.1, first_head: 0, heads: 4 });
    let options = Options { visible: Visible::Causal, scale: 0.2, bias_hr: None, dropout };
    peak(&q, &dy, || attention(&q, &k, &v, &options).unwrap())
}

fn window(t: i64) -> f64 {
    let (q, k, v, dy) = (ones(t, 2).set_requires_grad(true), ones(t, 2), ones(t, 2), ones(t, 2));
    let tokens = u32::try_from(t).unwrap();
    let mask = Attention::Window { window: 256 }.mask(false, 0, 1, tokens).unwrap();
    let list = BlockList::new(&Blocks::of(&[mask], 0..2, 0..tokens, tokens)).unwrap();
    let options = Options { visible: Visible::Blocks(&list), scale: 0.3, bias_hr: None, dropout: None };
    peak(&q, &dy, || attention(&q, &k, &v, &options).unwrap())
}

#[test]
fn memory_grows_linearly_with_length() {
    memory::install();
    tch::set_num_threads(2);
    for (name, bytes) in [("dropout", dropped as fn(i64) -> f64), ("window", window)] {
        let (short, long) = (bytes(1024), bytes(4096));
        assert!(long < 4.1 * short, "{name}: 4 times the length took {} times the bytes", long / short);
        let scores = 4096.0 * 4096.0 * 4.0;
        assert!(long < scores / 2.0, "{name}: {long} bytes, where one matrix of scores takes {scores}");
        // The output and dq of 2 MiB each; parts of dk and dv for each head, and their sums; scratch.
        assert!(long < 20.0 * f64::from(1 << 20), "{name}: {long} bytes");
    }
    let (short, long) = (fused(1024), fused(8192));
    assert!(long < 10.0 * short, "fused: 8 times the length took {} times the bytes", long / short);
    assert!(long < 8192.0 * 8192.0 * 4.0, "a matrix of scores was held: {long} bytes");
}
