//! What happens while a plan is being made.

use expect_test::expect;

use super::story::tell;

#[test]
fn a_plan_whose_worker_is_lost_is_made_anew() {
    let print = tell(
        "0 submit slow pp=2 steps=4
         0 prepared slow-1
         0 w0 idle
         0 w1 idle
         10 lost w1 its connection closed
         20 w2 idle
         20 jobs
         30 planned
         40 w3 idle
         40 planned
         50 desired w2",
    );
    expect![[r#""#]].assert_eq(&print);
}

#[test]
fn the_plan_of_a_job_that_is_over_is_dropped() {
    let print = tell(
        "0 submit slow steps=4
         0 prepared slow-1
         0 submit next steps=4
         0 prepared next-2
         0 w0 idle
         0 jobs
         10 cancel-now slow-1 enough
         10 jobs
         20 planned
         20 jobs",
    );
    expect![[r#""#]].assert_eq(&print);
}

#[test]
fn other_jobs_go_on_and_wait_for_the_planner_only() {
    let print = tell(
        "0 submit first steps=4
         0 prepared first-1
         0 w0 idle
         0 submit slow pp=2 steps=4
         0 prepared slow-2
         0 w1 idle
         0 w2 idle
         10 w0 g1 running step=1 reports=1..1
         10 submit above priority=1 steps=4
         10 prepared above-3
         10 jobs
         20 planned
         20 jobs
         30 w3 idle",
    );
    expect![[r#""#]].assert_eq(&print);
}
