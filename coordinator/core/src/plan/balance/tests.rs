use std::fmt::Write as _;
use std::path::Path;

use expect_test::expect;

use super::*;
use crate::spec::{JobText, parse};

const JOB: &str = "
name: tiny
model: {layers: 8, dim: 32, heads: 4, vocab: 300}
data: {synthetic: {tokens: 4096}}
train: {steps: 5, sequence: 16, global_micro_batches: 8}
";

fn spec(layout: &str) -> JobSpec {
    let sets = [("layout".to_owned(), layout.to_owned())];
    parse(&JobText { source: "job.yaml", text: JOB, sets: &sets, base: Path::new("/") }).unwrap()
}

#[test]
fn work_goes_to_those_who_keep_up() {
    let custom = "{pipeline: 1, data: 2, schedule: custom, actions: '0F0,0B0,0F1,0B1,0F2,0B2,0F3,0B3'}";
    let rows: &[(&str, &[u32])] = &[
        ("{pipeline: 2}", &[]),
        ("{pipeline: 2}", &[300]),
        ("{pipeline: 2}", &[100, 200]),
        ("{data: 2}", &[]),
        ("{data: 2}", &[300]),
        ("{data: 3}", &[]),
        ("{data: 3}", &[100, 200]),
        ("{pipeline: 2, data: 2}", &[100, 100, 300]),
        ("{pipeline: 2, tensor: 2}", &[100, 250]),
        ("{pipeline: 2, schedule: interleaved}", &[200]),
        (custom, &[300]),
    ];
    let mut print = String::new();
    for (layout, slow) in rows {
        let spec = spec(layout);
        let balance = Balance::new(&spec, slow);
        let lens = |ranges: &[Range<u32>]| {
            ranges.iter().map(|range| range.len().to_string()).collect::<Vec<_>>().join(" ")
        };
        let (even, world) = (Balance::new(&spec, &[]), spec.layout.world() as usize);
        let before = vec![KEEPS_UP; world];
        let gain = rebalance_gain(&spec, &before, slow, slow);
        assert!(balance.slowest(slow) <= even.slowest(slow));
        let layout = &layout[..layout.len().min(40)];
        writeln!(
            print,
            "{layout:<40} {:<15} layers {:<8} runs {:<6} {gain:.2} times as fast",
            format!("{slow:?}"),
            lens(&balance.layers),
            lens(&balance.owned_runs)
        )
        .unwrap();
    }
    expect![[r#"
        {pipeline: 2}                            []              layers 4 4      runs 8      1.00 times as fast
        {pipeline: 2}                            [300]           layers 2 6      runs 8      1.83 times as fast
        {pipeline: 2}                            [100, 200]      layers 6 2      runs 8      1.52 times as fast
        {data: 2}                                []              layers 8        runs 4 4    1.00 times as fast
        {data: 2}                                [300]           layers 8        runs 2 6    2.00 times as fast
        {data: 3}                                []              layers 8        runs 3 3 2  1.00 times as fast
        {data: 3}                                [100, 200]      layers 8        runs 4 1 3  1.50 times as fast
        {pipeline: 2, data: 2}                   [100, 100, 300] layers 2 6      runs 4 4    1.83 times as fast
        {pipeline: 2, tensor: 2}                 [100, 250]      layers 2 6      runs 8      1.52 times as fast
        {pipeline: 2, schedule: interleaved}     [200]           layers 1 3 1 3  runs 8      1.22 times as fast
        {pipeline: 1, data: 2, schedule: custom, [300]           layers 8        runs 4 4    1.00 times as fast
    "#]].assert_eq(&print);
}

#[test]
fn a_plan_that_no_budget_allows_gains_nothing() {
    let mut spec = spec("{pipeline: 2}");
    assert!(rebalance_gain(&spec, &[], &[300, 100], &[300, 100]) > 1.2);
    let kept =
        super::super::sketch(&spec, 2).unwrap().memory().iter().map(|m| m.tensor_bytes()).max().unwrap();
    spec.train.recompute = coxswain_types::job::RecomputePolicy::Budget { bytes: kept };
    assert_eq!(rebalance_gain(&spec, &[], &[300, 100], &[300, 100]), 1.0);
}

#[test]
fn a_spare_in_the_place_of_a_slow_worker_is_a_gain() {
    let spec = spec("{pipeline: 2}");
    let gain = rebalance_gain(&spec, &[], &[300, 100], &[100, 100]);
    assert!((2.0..=3.0).contains(&gain), "{gain}");
    // And one that keeps up again gets its share back.
    assert!(rebalance_gain(&spec, &[300, 100], &[100, 100], &[100, 100]) > 1.2);
    assert_eq!(rebalance_gain(&spec, &[], &[], &[]), 1.0);
}
