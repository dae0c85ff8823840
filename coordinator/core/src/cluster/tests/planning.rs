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
    expect![[r#"
        0 submit slow pp=2 steps=4
            record started 1
            record submitted slow-1
            info: job slow-1 is accepted
            record preparing slow-1 try 1
            prepare slow-1
        0 prepared slow-1
            record prepared slow-1
        0 w0 idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        0 w1 idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            plan slow-1
            wake w1
        10 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
        20 w2 idle
            record noted joined
            info: worker w2 is here (pid 102 on alpha, cpu)
            wake w2
        20 jobs
            slow-1 Gathering step 0: its work is divided among 2 workers
        30 planned
            plan slow-1
        40 w3 idle
            record noted joined
            info: worker w3 is here (pid 103 on alpha, cpu)
            wake w3
        40 planned
            record formed slow-1 g1 [w0 w2] threads 1 from 0
            info: runs from the start on w0, w2 with 1 thread each (the cores of each machine over its workers)
            wake w0
            wake w2
        50 desired w2
            g1 assignment run_to 4 acknowledged 0
    "#]].assert_eq(&print);
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
    expect![[r#"
        0 submit slow steps=4
            record started 1
            record submitted slow-1
            info: job slow-1 is accepted
            record preparing slow-1 try 1
            prepare slow-1
        0 prepared slow-1
            record prepared slow-1
        0 submit next steps=4
            record submitted next-2
            info: job next-2 is accepted
        0 prepared next-2
        0 w0 idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            plan slow-1
            wake w0
        0 jobs
            slow-1 Gathering step 0: its work is divided among 1 worker
            next-2 Queued step 0: waits behind slow-1
        10 cancel-now slow-1 enough
            record ended slow-1 Cancelled
            info: job slow-1 was cancelled: enough
            record preparing next-2 try 1
            prepare next-2
        10 jobs
            slow-1 Ended(Cancelled) step 0: enough
            next-2 Preparing step 0: its tokens are being made ready
        20 planned
        20 jobs
            slow-1 Ended(Cancelled) step 0: enough
            next-2 Preparing step 0: its tokens are being made ready
    "#]]
    .assert_eq(&print);
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
    expect![[r#"
        0 submit first steps=4
            record started 1
            record submitted first-1
            info: job first-1 is accepted
            record preparing first-1 try 1
            prepare first-1
        0 prepared first-1
            record prepared first-1
        0 w0 idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
            record formed first-1 g1 [w0] threads 2 from 0
            info: runs from the start on w0 with 2 threads each (the cores of each machine over its workers)
            wake w0
        0 submit slow pp=2 steps=4
            record submitted slow-2
            info: job slow-2 is accepted
            record preparing slow-2 try 1
            prepare slow-2
        0 prepared slow-2
            record prepared slow-2
        0 w1 idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
        0 w2 idle
            record noted joined
            info: worker w2 is here (pid 102 on alpha, cpu)
            plan slow-2
            wake w2
        10 w0 g1 running step=1 reports=1..1
            report first-1 step 1
            wake w0
        10 submit above priority=1 steps=4
            record submitted above-3
            info: job above-3 is accepted
            record preparing above-3 try 1
            prepare above-3
        10 prepared above-3
            record prepared above-3
        10 jobs
            first-1 Running step 1: on 1 worker, generation 1
            slow-2 Gathering step 0: its work is divided among 2 workers
            above-3 Gathering step 0: waits until the work of slow-2 is divided
        20 planned
            record formed slow-2 g2 [w1 w2] threads 1 from 0
            info: runs from the start on w1, w2 with 1 thread each (the cores of each machine over its workers)
            wake w1
            wake w2
        20 jobs
            first-1 Running step 1: on 1 worker, generation 1
            slow-2 Running step 0: on 2 workers, generation 2
            above-3 Gathering step 0: waiting for 1 of 1 worker (here: 1 at work for first-1, 2 at work for slow-2)
        30 w3 idle
            record noted joined
            info: worker w3 is here (pid 103 on alpha, cpu)
            wake w3
            record formed above-3 g3 [w3] threads 2 from 0
            info: runs from the start on w3 with 2 threads each (the cores of each machine over its workers)
            wake w3
    "#]].assert_eq(&print);
}
