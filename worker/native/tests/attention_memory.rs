//! Memory of attention with dropout: a process of its own, for the bytes of other tests would count.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use coxswain_native::attention::{Options, ProbabilityDropout, Visible, attention};
use coxswain_native::{memory, ops};
use tch::{Device, Kind, Tensor};

#[test]
fn memory_grows_linearly_with_length() {
    memory::install();
    tch::set_num_threads(2);
    let peak = |t: i64| {
        let ones = |heads: i64| Tensor::ones([1, t, heads, 32], (Kind::Float, Device::Cpu));
        let (q, k, v, dy) = (ones(4).set_requires_grad(true), ones(2), ones(2), ones(4));
        let dropout = ProbabilityDropout { key: 9, rate: 0.1, first_head: 0, heads: 4 };
        let (visible, dropout) = (Visible::Causal, Some(dropout));
        let options = Options { visible, scale: 0.2, bias_hr: None, dropout };
        let before = memory::current_bytes();
        memory::reset_peak();
        let y = attention(&q, &k, &v, &options).unwrap();
        drop(ops::grad(&y, &dy, &q).unwrap());
        (memory::peak_bytes() - before) as f64
    };
    let (short, long) = (peak(1024), peak(4096));
    assert!(long < 4.1 * short, "4 times the length took {} times the bytes", long / short);
    let scores = 4096.0 * 4096.0 * 4.0;
    assert!(long < scores / 2.0, "{long} bytes, where one matrix of scores takes {scores}");
    // The output and dq of 2 MiB each; parts of dk and dv for each head, and their sums; scratch.
    assert!(long < 20.0 * f64::from(1 << 20), "{long} bytes");
}
