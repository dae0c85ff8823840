use coxswain_types::job::{JobSpec, Precision, Schedule};
use expect_test::expect;

use super::*;
use crate::hardware::devices;
use crate::plan::tests::changed;
use crate::plan::{Plan, pipeline};

fn cluster(name: &str, workers: u32) -> Machines {
    Machines::of(devices::find(name).unwrap(), workers)
}

/// A model that is large enough for its products to weigh more than its messages.
fn large(change: impl FnOnce(&mut JobSpec)) -> Plan {
    changed(16, |spec| {
        (spec.model.dim, spec.model.heads, spec.model.kv_heads) = (2048, 16, 16);
        (spec.model.head_dim, spec.model.ffn, spec.model.vocab) = (128, 8192, 32_000);
        (spec.train.sequence, spec.train.precision) = (2048, Precision::Bf16);
        (spec.train.global_micro_batches, spec.train.gradient_groups) = (16, 16);
        (spec.model.embedding.dim, spec.train.micro_batch_size) = (2048, 1);
        change(spec);
    })
    .unwrap()
}

fn step(name: &str, change: impl FnOnce(&mut JobSpec)) -> Prediction {
    let plan = large(change);
    plan.predict(&cluster(name, plan.assignments.len() as u32)).unwrap()
}

type LargeChange<'a> = &'a dyn Fn(&mut JobSpec);

#[test]
fn steps_of_a_model_of_a_billion_parameters() {
    let mut print = String::new();
    let rows: [(&str, LargeChange<'_>); 8] = [
        ("one", &|_| ()),
        ("pp4", &|spec| spec.layout.pipeline = 4),
        ("pp4 zb-h1", &|spec| (spec.layout.pipeline, spec.layout.schedule) = (4, Schedule::ZbH1)),
        ("pp4 interleaved", &|spec| {
            (spec.layout.pipeline, spec.layout.schedule) = (4, Schedule::Interleaved { chunks: 2 })
        }),
        ("tp4", &|spec| spec.layout.tensor = 4),
        ("tp4 sp", &|spec| (spec.layout.tensor, spec.layout.sequence_parallel) = (4, true)),
        ("dp4", &|spec| spec.layout.data = 4),
        ("dp4 zero", &|spec| (spec.layout.data, spec.layout.zero) = (4, true)),
    ];
    for (name, change) in rows {
        let Prediction { step, compute, reduction, closing, update, idle, mfu, path, .. } =
            step("a100-80gb", change);
        let first = &path[0];
        print += &format!(
            "{name:<16} {:6.1} ms = {:6.1} + {:4.1} + {:4.2} + {:4.1}  idle {:4.1} %  mfu {:4.1} %  {} {:.1}\n",
            1e3 * step,
            1e3 * compute,
            1e3 * reduction,
            1e3 * closing,
            1e3 * update,
            100.0 * idle,
            100.0 * mfu,
            first.what,
            1e3 * first.seconds,
        );
    }
    expect![[r#"
        one              1264.3 ms = 1240.7 +  0.0 + 0.00 + 23.6  idle  0.0 %  mfu 60.1 %  stage 0 1240.7
        pp4               421.8 ms =  415.2 +  0.0 + 0.02 +  6.6  idle 25.1 %  mfu 45.1 %  stage 3 360.0
        pp4 zb-h1         382.9 ms =  376.3 +  0.0 + 0.02 +  6.6  idle 17.5 %  mfu 49.6 %  stage 3 360.0
        pp4 interleaved   394.5 ms =  388.0 +  0.0 + 0.02 +  6.6  idle 19.9 %  mfu 48.2 %  stage 7 213.3
        tp4               373.9 ms =  368.0 +  0.0 + 0.02 +  5.9  idle  0.0 %  mfu 50.8 %  stage 0 368.0
        tp4 sp            345.3 ms =  339.4 +  0.0 + 0.02 +  5.9  idle  0.0 %  mfu 55.0 %  stage 0 339.4
        dp4               346.6 ms =  310.2 +  0.8 + 0.02 + 35.7  idle  3.7 %  mfu 54.8 %  stage 0 310.2
        dp4 zero          330.0 ms =  310.2 +  0.8 + 0.02 + 19.0  idle  3.9 %  mfu 57.6 %  stage 0 310.2
    "#]]
    .assert_eq(&print);
}

#[test]
fn the_critical_path_is_the_whole_step() {
    for (p, schedule) in [
        (1, Schedule::OneFOneB),
        (4, Schedule::GPipe),
        (4, Schedule::OneFOneB),
        (4, Schedule::ZbH1),
        (2, Schedule::Interleaved { chunks: 4 }),
    ] {
        for data in [1, 2] {
            let found = step("h100-80gb", |spec| {
                (spec.layout.pipeline, spec.layout.schedule, spec.layout.data) = (p, schedule, data);
            });
            let sum: f64 = found.path.iter().map(|share| share.seconds).sum();
            assert!((sum - found.step).abs() < 1e-6 * found.step, "{schedule:?} {p}: {sum} {}", found.step);
            assert!(found.path.iter().all(|share| share.seconds > 0.0));
        }
    }
}

#[test]
fn one_pipeline_stands_for_all_ranks() {
    for (p, t, d, m) in [(1, 1, 1, 4), (4, 2, 2, 16), (2, 1, 3, 16), (2, 4, 1, 8)] {
        let plan = large(|spec| {
            (spec.layout.pipeline, spec.layout.tensor, spec.layout.data) = (p, t, d);
            (spec.train.global_micro_batches, spec.train.gradient_groups) = (m, m.min(8));
        });
        let spec = &plan.assignments[0].spec;
        let alone = pipeline::slowest(spec).unwrap();
        let machines = cluster("a100-80gb", p * t * d);
        let found = predict(&alone.iter().collect::<Vec<_>>(), &machines);
        assert_eq!(
            found.map(|found| found.step),
            plan.predict(&machines).map(|found| found.step),
            "{p} {t} {d} {m}"
        );
    }
}

#[test]
fn more_of_what_is_scarce_makes_a_step_faster() {
    let base = cluster("a100-80gb", 8);
    let with = |change: &dyn Fn(&mut Machines), layout: [u32; 3]| {
        let plan = large(|spec| [spec.layout.pipeline, spec.layout.tensor, spec.layout.data] = layout);
        let mut machines = base.clone();
        change(&mut machines);
        plan.predict(&machines).unwrap().step
    };
    for layout in [[1, 1, 1], [8, 1, 1], [1, 8, 1], [1, 1, 8], [2, 2, 2]] {
        let plain = with(&|_| (), layout);
        assert!(with(&|c| c.hosts[0].device.peak.bf16 *= 2.0, layout) < 0.8 * plain, "{layout:?} peak");
        assert!(with(&|c| c.hosts[0].device.bandwidth *= 2.0, layout) < plain, "{layout:?} bandwidth");
        let slower = with(&|c| c.hosts[0].inside.bandwidth /= 10.0, layout);
        assert_eq!(slower > plain, layout != [1, 1, 1], "{layout:?} link");
        let split = with(&|c| (c.hosts[0].count, c.hosts[0].devices) = (8, 1), layout);
        assert_eq!(split > plain, layout != [1, 1, 1], "{layout:?} on one host each");
    }
}

#[test]
fn a_tensor_group_of_any_data_rank_may_lie_across_hosts() {
    // Three ranks each: of eight devices the third group takes the last two, and one of the next host.
    let crosses = |data: u32| {
        let plan = large(|spec| {
            (spec.layout.tensor, spec.layout.data) = (3, data);
            (spec.model.heads, spec.model.kv_heads, spec.model.dim) = (12, 12, 1536);
            spec.model.embedding.dim = 1536;
            spec.model.ffn = 6144;
        });
        let spec = &plan.assignments[0].spec;
        network::LayoutNetwork::new(spec, &cluster("a100-80gb", 3 * data)).tensor_crosses()
    };
    assert_eq!([2, 3].map(crosses), [false, true]);
}
