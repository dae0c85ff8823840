mod published;

use std::fmt::Write as _;
use std::path::Path;

use coxswain_types::job::{Block, RecomputePolicy, Reduction, TrainSpec};
use expect_test::expect;

use super::*;
use crate::hardware::devices;
use crate::spec::{JobText, OpenJob, open};

const JOB: &str = "
name: tiny
model: {layers: 4, dim: 512, heads: 8, kv_heads: 4, ffn: 1536, vocab: 3000}
data: {synthetic: {tokens: 1000000}}
train: {steps: 100, sequence: 128, micro_batch_size: 2, global_micro_batches: 4}
layout: auto
";

fn read(text: &str, sets: &[(&str, &str)]) -> OpenJob {
    let sets: Vec<_> = sets.iter().map(|(path, value)| (path.to_string(), value.to_string())).collect();
    open(&JobText { source: "job.yaml", text, sets: &sets, base: Path::new("/") }).unwrap()
}

fn machines(name: &str, workers: u32) -> Machines {
    Machines::of(devices::find(name).unwrap(), workers)
}

fn ask(job: &OpenJob, cluster: &Machines) -> Result<Choice, NoChoice> {
    choose(&LayoutQuestion { spec: &job.spec, open: job.open, cluster, workers: cluster.devices() })
}

/// The least step of all shapes with all settings, each weighed by itself.
fn enumerated(job: &OpenJob, cluster: &Machines) -> Option<f64> {
    let question = LayoutQuestion { spec: &job.spec, open: job.open, cluster, workers: cluster.devices() };
    let limit = weigh::limit(&question);
    let mut best: Option<f64> = None;
    for shape in all(&question) {
        let plain = bound::settings(&question, &shape);
        for zero in [false, true] {
            if !job.open.zero && zero != job.spec.layout.zero {
                continue;
            }
            for recompute in [
                RecomputePolicy::None,
                RecomputePolicy::Full,
                RecomputePolicy::Selective(Block::Attention),
                RecomputePolicy::Selective(Block::Ffn),
                RecomputePolicy::Budget { bytes: limit },
            ] {
                if !job.open.recompute && recompute != job.spec.train.recompute {
                    continue;
                }
                for groups in shape.data..=shape.micro_batches {
                    if !job.open.gradient_groups && groups != job.spec.train.gradient_groups {
                        continue;
                    }
                    let mut settings = Settings { recompute, gradient_groups: groups, ..plain };
                    settings.layout.zero = zero;
                    if let weigh::ShapeVerdict::Fits(weighed) =
                        weigh::one(&question, settings, limit).unwrap()
                    {
                        let step = weighed.prediction.step;
                        best = Some(best.map_or(step, |best: f64| best.min(step)));
                    }
                }
            }
        }
    }
    best
}

/// A name, changes to the job, a device, and workers.
type SearchRow<'a> = (&'a str, &'a [(&'a str, &'a str)], &'a str, u32);

#[test]
fn no_enumerated_layout_is_better_than_the_choice() {
    let tight = |bytes: &'static str| ("layout", bytes);
    let rows: [SearchRow<'_>; 8] = [
        ("four", &[], "a100-80gb", 4),
        ("cpu", &[], "cpu", 4),
        ("slow network", &[], "a10-24gb", 3),
        ("fixed tensor", &[("layout", "{tensor: 2, pipeline: auto}")], "a100-80gb", 4),
        ("tight", &[tight("{pipeline: auto, memory: 90MiB}")], "a100-80gb", 4),
        ("tighter", &[tight("{pipeline: auto, memory: 60MiB}")], "a100-80gb", 4),
        (
            "encoder-decoder",
            &[("model.architecture", "encoder-decoder"), ("model.layers", "2")],
            "a100-80gb",
            2,
        ),
        ("three", &[("train.global_micro_batches", "5")], "h100-80gb", 3),
    ];
    let mut print = String::new();
    for (name, sets, device, workers) in rows {
        let (job, cluster) = (read(JOB, sets), machines(device, workers));
        let found = ask(&job, &cluster);
        let least = enumerated(&job, &cluster);
        match (found, least) {
            (Ok(choice), Some(least)) => {
                let step = choice.best.prediction.step;
                assert!(step <= least * (1.0 + 1e-9), "{name}: {step} is above {least}");
                let [shapes, weighed] = choice.shapes;
                writeln!(print, "{name:<16} {weighed} of {shapes}: {}", choice.best.settings.words())
                    .unwrap();
            }
            (Err(error), None) => writeln!(print, "{name:<16} {error}").unwrap(),
            (found, least) => panic!("{name}: {found:?} {least:?}"),
        }
    }
    expect![[r#"
        four             17 of 25: pipeline 1 x tensor 1 x data 4, ZeRO-1
        cpu              16 of 25: pipeline 1 x tensor 2 x data 2, sequence parallel, ZeRO-1
        slow network     10 of 10: pipeline 3 x tensor 1 x data 1, ZB-H1
        fixed tensor     10 of 10: pipeline 1 x tensor 2 x data 2, sequence parallel, ZeRO-1
        tight            25 of 25: pipeline 2 x tensor 2 x data 1, interleaved 1F1B, 2 stages a rank, sequence parallel
        tighter          no layout fits into 60.0 MiB; the nearest is pipeline 1 x tensor 4 x data 1, sequence parallel, recompute all layers: 5.2 MiB short on pipeline rank 0; what would help: pipeline 2 (8 workers)
        encoder-decoder  7 of 7: pipeline 1 x tensor 1 x data 2, ZeRO-1
        three            10 of 10: pipeline 1 x tensor 1 x data 3, ZeRO-1
    "#]].assert_eq(&print);
}

#[test]
fn a_bound_is_below_what_a_shape_takes() {
    let cluster = machines("a100-80gb", 4);
    for sets in [&[][..], &[("train.recompute", "full")], &[("train.global_micro_batches", "12")]] {
        let job = read(JOB, sets);
        let question = LayoutQuestion { spec: &job.spec, open: job.open, cluster: &cluster, workers: 4 };
        let mut bounds = ShapeBounds::new(&question);
        for shape in all(&question) {
            let bound = bounds.seconds(&shape);
            if let weigh::ShapeVerdict::Fits(weighed) = weigh::shape(&question, &shape).unwrap() {
                let step = weighed.prediction.step;
                assert!(bound <= step, "{shape:?}: {bound} {step}");
                assert!(bound > 0.2 * step, "{shape:?}: {bound} is far below {step}");
            }
        }
    }
}

#[test]
fn a_choice_is_a_job_that_can_be_planned() {
    for (sets, workers) in [
        (&[("train.precision", "bf16")][..], 8),
        (
            &[
                ("train.batch_size", "32"),
                ("train.global_micro_batches", "null"),
                ("train.micro_batch_size", "null"),
            ],
            6,
        ),
        (&[("train.optimizer", "muon"), ("layout", "{tensor: auto, max_tensor: 2, zero: 0}")], 4),
        (&[("layout", "{data: auto, keep_exact: fast}")], 3),
    ] {
        let cluster = machines("h100-80gb", workers);
        let job = read(JOB, sets);
        let choice = ask(&job, &cluster).unwrap();
        let mut sets: Vec<_> =
            sets.iter().map(|(path, value)| (path.to_string(), value.to_string())).collect();
        sets.extend(choice.sets(&job.open));
        let text = JobText { source: "job.yaml", text: JOB, sets: &sets, base: Path::new("/") };
        let spec = crate::spec::parse(&text).unwrap();
        assert_eq!(spec, choice.spec);
        let plan = crate::plan::sketch(&spec, spec.layout.world()).unwrap();
        let step = plan.predict(&cluster).unwrap().step;
        assert!((step - choice.best.prediction.step).abs() < 1e-12, "{step} {:?}", choice.best.prediction);
        let most = |memory: &[Memory]| memory.iter().map(Memory::tensor_bytes).max();
        // Tensor ranks differ by what does not divide.
        let (all, told) = (most(&plan.memory()).unwrap(), most(&choice.best.memory).unwrap());
        assert!(told <= all && all - told <= all / 1000, "{all} {told}");
    }
}

#[test]
fn what_does_not_fit_says_what_would() {
    let told = |sets: &[(&str, &str)], device: &str, workers: u32| {
        ask(&read(JOB, sets), &machines(device, workers)).unwrap_err().to_string()
    };
    expect!["no layout fits into 60.0 MiB; the nearest is pipeline 1 x tensor 1 x data 2, ZeRO-1: 162.6 MiB short on pipeline rank 0"].assert_eq(&told(
        &[("layout", "{data: auto, pipeline: 1, tensor: 1, memory: 60MiB}"), ("train.recompute", "none")],
        "a100-80gb",
        2,
    ));
    expect!["no layout of this job takes 3 workers or fewer: layout.pipeline is 4, layout.tensor is 1, the model has 4 layers and 8 heads, a step 4 micro-batches"].assert_eq(&told(&[("layout", "{data: auto, pipeline: 4, tensor: 1}")], "a100-80gb", 3));
    expect!["no layout fits into 1.0 MiB; the nearest is pipeline 2 x tensor 4 x data 1, 1F1B, sequence parallel, recompute all layers: 34.6 MiB short on pipeline rank 0"].assert_eq(&told(&[("layout", "{data: auto, memory: 1MiB}")], "a100-80gb", 8));
}

#[test]
fn a_run_that_goes_on_keeps_its_numbers() {
    for (sets, first, later) in [
        (&[][..], 8, 3),
        (&[("layout", "{pipeline: auto, keep_exact: fast}")], 4, 2),
        (&[("layout", "{data: auto, max_tensor: 1}")], 4, 2),
    ] {
        let job = read(JOB, sets);
        let was = ask(&job, &machines("a100-80gb", first)).unwrap().spec.train;
        let kept = job.open.kept(&was);
        let mut all = sets.to_vec();
        all.extend(kept.iter().map(|(key, value)| (*key, value.as_str())));
        let mut again = read(JOB, &all);
        again.open = again.open.of_run(&was);
        let is = ask(&again, &machines("cpu", later)).unwrap().spec.train;
        let numbers = |train: &TrainSpec| {
            // With the fast reduction there is one group for each data rank.
            let groups = (train.reduction == Reduction::Canonical).then_some(train.gradient_groups);
            (train.micro_batch_size, train.global_micro_batches, train.reduction, groups, train.tensor_shards)
        };
        assert_eq!(numbers(&is), numbers(&was), "{kept:?}");
    }
}

#[test]
fn a_sequence_that_is_split_divides_among_the_ranks_that_are_tried() {
    let job = read(JOB, &[("train.sequence", "100"), ("layout", "{sequence_parallel: true, tensor: auto}")]);
    let cluster = machines("a100-80gb", 8);
    let question = LayoutQuestion { spec: &job.spec, open: job.open, cluster: &cluster, workers: 8 };
    let mut tensor: Vec<_> = all(&question).iter().map(|shape| shape.tensor).collect();
    tensor.sort();
    tensor.dedup();
    assert_eq!(tensor, [1, 2, 4]);
}
