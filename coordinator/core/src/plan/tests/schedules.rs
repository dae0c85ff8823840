//! Every schedule over every small pipeline, and lists of the user's own.

use coxswain_types::job::{Precision, Schedule};
use coxswain_types::schedule::Action;
use expect_test::expect;

use super::{Plan, PlanError, changed};
use crate::plan::check::peak_in_flight;

fn scheduled(pipeline: u32, micro_batches: u32, schedule: Schedule) -> Plan {
    let plan = changed(pipeline * schedule.chunks(), |spec| {
        (spec.layout.pipeline, spec.layout.schedule) = (pipeline, schedule);
        (spec.train.global_micro_batches, spec.train.gradient_groups) = (micro_batches, 1);
    });
    plan.unwrap()
}

/// A plan exists only if the checker has passed it: complete, in order, without deadlock, within the
/// schedule's bounds. The bounds themselves are reached.
#[test]
fn every_schedule_passes_the_checker_and_never_beats_the_ideal() {
    for p in 1..=6_u32 {
        for m in 1..=12_u32 {
            let interleaved = (2..=4).map(|chunks| Schedule::Interleaved { chunks });
            for schedule in
                [Schedule::GPipe, Schedule::OneFOneB, Schedule::ZbH1].into_iter().chain(interleaved)
            {
                let plan = scheduled(p, m, schedule);
                let name = format!("{schedule:?}, p {p}, m {m}");
                let (makespan, ideal) = (plan.makespan(), f64::from(3 * m));
                assert!(makespan >= ideal - 1e-9, "{name}: {makespan}");
                let busy = (1.0 - plan.bubble()) * makespan;
                assert!((busy - ideal).abs() < 1e-9, "{name}: {busy}");
                for a in &plan.assignments {
                    let r = a.pipeline_index;
                    let most = match schedule {
                        Schedule::GPipe => m,
                        Schedule::OneFOneB => m.min(p - r),
                        Schedule::ZbH1 => m.min(p),
                        Schedule::Interleaved { chunks } | Schedule::Custom { chunks } => {
                            (m * chunks).min(2 * (p - r - 1) + (chunks - 1) * p + 1)
                        }
                    };
                    let found = peak_in_flight(&a.train) as u32;
                    // Smaller last groups hold less.
                    let whole = schedule.chunks() == 1 || m % p == 0;
                    assert!(
                        if whole { found == most } else { found <= most },
                        "{name}, rank {r}: {found} {most}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_smaller_last_group_is_no_slower_than_a_whole_one() {
    for p in 2..=6_u32 {
        for m in 1..=12_u32 {
            let schedule = Schedule::Interleaved { chunks: 2 };
            let whole = scheduled(p, m.next_multiple_of(p), schedule).makespan();
            assert!(scheduled(p, m, schedule).makespan() <= whole, "p {p}, m {m}");
        }
    }
}

#[test]
fn grids_of_every_schedule() {
    let grid = |p, m, schedule| scheduled(p, m, schedule).grid(None);
    expect![[r#"
        GPipe: micro-batches 0..4; makespan 18 units of time, 12 without bubble; bubble 33%; a column is a unit
        pipeline 0  F0 F1 F2 F3 ·  ·  ·  ·  ·  ·  B0─── B1─── B2─── B3───
        pipeline 1  ·  F0 F1 F2 F3 ·  ·  ·  B0─── B1─── B2─── B3─── ·  ·
        pipeline 2  ·  ·  F0 F1 F2 F3 B0─── B1─── B2─── B3─── ·  ·  ·  ·
    "#]].assert_eq(&grid(3, 4, Schedule::GPipe));
    expect![[r#"
        1F1B: micro-batches 0..4; makespan 18 units of time, 12 without bubble; bubble 33%; a column is a unit
        pipeline 0  F0 F1 F2 ·  ·  ·  ·  B0─── F3 B1─── ·  B2─── ·  B3───
        pipeline 1  ·  F0 F1 ·  ·  B0─── F2 B1─── F3 B2─── ·  B3─── ·  ·
        pipeline 2  ·  ·  F0 B0─── F1 B1─── F2 B2─── F3 B3─── ·  ·  ·  ·
    "#]]
    .assert_eq(&grid(3, 4, Schedule::OneFOneB));
    expect![[r#"
        ZB-H1: micro-batches 0..4; makespan 14 units of time, 12 without bubble; bubble 14%; a column is a unit
        pipeline 0  F0 F1 F2 ·  ·  I0 W0 F3 I1 W1 I2 W2 I3 W3
        pipeline 1  ·  F0 F1 ·  I0 F2 I1 W0 F3 I2 W1 I3 W2 W3
        pipeline 2  ·  ·  F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3
    "#]].assert_eq(&grid(3, 4, Schedule::ZbH1));
    expect![[r#"
        interleaved 1F1B, 2 stages a rank: micro-batches 0..4; makespan 13.5 units of time, 12 without bubble; bubble 11%; a column is 1/2 of a unit
        pipeline 0  0F0 0F1 2F0 2F1 0F2 ·   2B0──── 0F3 2B1──── 2F2 0B0──── 2F3 0B1──── ·   2B2──── ·   2B3──── 0B2──── 0B3────
        pipeline 1  ·   1F0 1F1 3F0 3B0──── 3F1 3B1──── 1F2 1B0──── 1F3 1B1──── 3F2 3B2──── 3F3 3B3──── 1B2──── 1B3──── ·   ·
    "#]].assert_eq(&grid(2, 4, Schedule::Interleaved { chunks: 2 }));
    expect![[r#"
        interleaved 1F1B, 2 stages a rank: micro-batches 0..2; makespan 6 units of time, 6 without bubble; bubble 0%; a column is 1/2 of a unit
        pipeline 0  0F0 1F0 1B0──── 0F1 0B0──── 1F1 1B1──── 0B1────
    "#]].assert_eq(&grid(1, 2, Schedule::Interleaved { chunks: 2 }));
}

fn own(lists: &[&str], micro_batches: u32, chunks: u32) -> Result<Plan, PlanError> {
    let parse = |list: &&str| list.split(' ').map(|text| text.parse::<Action>().unwrap()).collect();
    changed(4, |spec| {
        spec.layout.schedule = Schedule::Custom { chunks };
        spec.layout.pipeline = lists.len() as u32;
        spec.actions = lists.iter().map(parse).collect();
        (spec.train.global_micro_batches, spec.train.gradient_groups) = (micro_batches, 1);
    })
}

#[test]
fn own_lists_work_if_the_checker_says_so() {
    // ZB-V's idea for one rank pair: the last stage of both is on the first rank's neighbour, in turn.
    let plan = own(&["0F0 0F1 2F0 2B0 2F1 2B1 0B0 0B1", "1F0 3F0 3I0 1F1 3F1 3I1 1B0 1B1 3W0 3W1"], 2, 2);
    expect![[r#"
        custom, 2 stages a rank: micro-batches 0..2; makespan 8 units of time, 6 without bubble; bubble 25%; a column is 1/2 of a unit
        pipeline 0  0F0 0F1 2F0 ·   ·   2B0──── 2F1 ·   ·   2B1──── 0B0──── 0B1────
        pipeline 1  ·   1F0 ·   3F0 3I0 1F1 ·   ·   3F1 3I1 1B0──── 1B1──── 3W0 3W1
    "#]].assert_eq(&plan.unwrap().grid(None));
    // With sends and receives of their own, and more posted at once than our schedules do.
    let plan = own(
        &[
            "0F0 0SEND_F0 0F1 0SEND_F1 0RECV_B0 0B0 0RECV_B1 0B1",
            "1RECV_F0 1RECV_F1 1F0 1B0 1SEND_B0 1F1 1B1 1SEND_B1",
        ],
        2,
        1,
    );
    assert_eq!(plan.unwrap().makespan(), 9.0);
}

#[test]
fn own_lists_that_do_not_work_are_refused_with_the_reason() {
    let refused = |lists: &[&str]| own(lists, 2, 1).unwrap_err().to_string();
    let told = [
        refused(&["0F0 0F1 0B0"]),
        refused(&["0F0 0F1 0B1 0B0"]),
        refused(&["0F0 0F1 0F2 0B0 0B1"]),
        refused(&["0F0 0B0 0F1 0I1 0W1"]),
        refused(&["0F0 0F1 0B0 0B1", "1F0 1B0"]),
        refused(&["0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1"]),
        refused(&["0F0 0SEND_F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1"]),
        refused(&["0F0 0F0 0F1 0B0 0B1"]),
    ];
    expect![[r#"
        layout.actions: this schedule would not work: rank 0, train: 0B1 is missing; stage s stands on line 1 + s mod layout.pipeline. Each rank does every micro-batch of a data rank on each of its stages: F, then B or I and W, in ascending order of micro-batches. `coxswain plan --schedule 1f1b` prints one that works
        layout.actions: this schedule would not work: rank 0, train: 0B0 must come before 0B1; stage s stands on line 1 + s mod layout.pipeline. Each rank does every micro-batch of a data rank on each of its stages: F, then B or I and W, in ascending order of micro-batches. `coxswain plan --schedule 1f1b` prints one that works
        layout.actions: this schedule would not work: rank 0, train: 0F2 does not belong there; stage s stands on line 1 + s mod layout.pipeline. Each rank does every micro-batch of a data rank on each of its stages: F, then B or I and W, in ascending order of micro-batches. `coxswain plan --schedule 1f1b` prints one that works
        layout.actions: this schedule would not work: rank 0, train: stage 0 has B beside I and W; a stage has either; stage s stands on line 1 + s mod layout.pipeline. Each rank does every micro-batch of a data rank on each of its stages: F, then B or I and W, in ascending order of micro-batches. `coxswain plan --schedule 1f1b` prints one that works
        layout.actions: this schedule would not work: rank 1, train: 1F1 is missing; stage s stands on line 1 + s mod layout.pipeline. Each rank does every micro-batch of a data rank on each of its stages: F, then B or I and W, in ascending order of micro-batches. `coxswain plan --schedule 1f1b` prints one that works
        layout.actions: this schedule would not work: train: no rank can go on; waiting are rank 0 at 0B0, rank 1 at 1F1; stage s stands on line 1 + s mod layout.pipeline. Each rank does every micro-batch of a data rank on each of its stages: F, then B or I and W, in ascending order of micro-batches. `coxswain plan --schedule 1f1b` prints one that works
        layout.actions: this schedule would not work: rank 0, train: 0RECV_B0 is missing; stage s stands on line 1 + s mod layout.pipeline. Each rank does every micro-batch of a data rank on each of its stages: F, then B or I and W, in ascending order of micro-batches. `coxswain plan --schedule 1f1b` prints one that works
        layout.actions: this schedule would not work: rank 0, train: 0F0 is listed twice; stage s stands on line 1 + s mod layout.pipeline. Each rank does every micro-batch of a data rank on each of its stages: F, then B or I and W, in ascending order of micro-batches. `coxswain plan --schedule 1f1b` prints one that works"#]].assert_eq(&told.join("\n"));
}

#[test]
fn the_picture_draws_every_action_and_says_what_it_costs() {
    let plans = [scheduled(2, 3, Schedule::OneFOneB), scheduled(2, 3, Schedule::ZbH1)];
    let svg = crate::plan::svg(&plans.iter().collect::<Vec<_>>());
    assert_eq!(svg.matches("<title>").count(), 2 * 3 * 2 + 2 * 3 * 3);
    for text in
        ["1F1B", "ZB-H1", "makespan 12, 9 without bubble · bubble 25.0%", ">stage 1<", "W weight gradients"]
    {
        assert!(svg.contains(text), "{text}\n{svg}");
    }
    // Every element that opens also closes: a reader of XML takes it.
    assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    let one = crate::plan::svg(&[&plans[0]]);
    assert!(!one.contains("W weight gradients"), "the legend names only what is drawn");
}

#[test]
fn the_head_of_a_print_names_what_is_not_the_default() {
    let plan = changed(4, |spec| {
        spec.train.precision = Precision::Bf16;
        (spec.layout.zero, spec.layout.sequence_parallel) = (true, true);
        (spec.layout.tensor, spec.layout.data) = (2, 2);
    });
    let print = plan.unwrap().to_string();
    assert!(print.lines().next().unwrap().ends_with("bf16 · sequence parallel · ZeRO-1"), "{print}");
}
