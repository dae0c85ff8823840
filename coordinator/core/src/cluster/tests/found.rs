//! Stories that the simulation told first: each was a fault of the core.

use expect_test::expect;

use super::at_work;
use super::story::tell;

#[test]
fn a_directive_is_sent_after_all_that_it_follows_from_is_on_disk() {
    let print = tell(
        "0 submit demo pp=1 steps=4
         0 prepared demo-1
         5 w0 idle",
    );
    expect![[r#"
        0 submit demo pp=1 steps=4
            record started 1
            record submitted demo-1
            info: job demo-1 is accepted
            record preparing demo-1 try 1
            prepare demo-1
        0 prepared demo-1
            record prepared demo-1
        5 w0 idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
            record formed demo-1 g1 [w0] threads 2 from 0
            info: runs from the start on w0 with 2 threads each (the cores of each machine over its workers)
            wake w0
    "#]]
    .assert_eq(&print);
}

#[test]
fn an_older_process_does_not_come_back_when_the_newer_is_gone() {
    let print = tell(
        "0 w0' idle
         10 lost w0' its connection closed
         20 w0 idle
         30 w0' idle",
    );
    expect![[r#"
        0 w0' idle
            record started 1
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        10 lost w0' its connection closed
            info: worker w0 is gone: its connection closed
        20 w0 idle
            warn: refused worker w0 (pid 100 on alpha): a newer process went by the name w0; start this one again, or give it a name of its own
            refuse w0/1: a newer process went by the name w0; start this one again, or give it a name of its own
        30 w0' idle
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
    "#]]
    .assert_eq(&print);
}

#[test]
fn a_worker_that_has_not_heard_is_told_again_once_a_second() {
    let print = at_work(
        "200 w0 g1 running step=2 reports=1..2 saved=2
         210 w1 g1 running step=2 saved=2
         300 w1 g1 running step=2 saved=2
         1300 w1 g1 running step=2 saved=2
         1400 w1 g1 running step=2 saved=2
         1500 w0 g1 running step=2
         2400 w1 g1 running step=2",
    );
    expect![[r#"
        200 w0 g1 running step=2 reports=1..2 saved=2
            report demo-1 step 1
            report demo-1 step 2
            wake w0
        210 w1 g1 running step=2 saved=2
            sync demo-1 to step 2
            record committed demo-1 step 2 [w0-2 w1-2]
            wake w0
            wake w1
        300 w1 g1 running step=2 saved=2
        1300 w1 g1 running step=2 saved=2
            wake w1
        1400 w1 g1 running step=2 saved=2
        1500 w0 g1 running step=2
            wake w0
        2400 w1 g1 running step=2
    "#]]
    .assert_eq(&print);
}

#[test]
fn a_drained_process_that_was_lost_gets_no_work_when_it_is_back() {
    let print = tell(
        "0 w0 idle
         5 drain w0 maintenance
         10 lost w0 its connection closed
         15 submit demo pp=1 steps=4
         15 prepared demo-1
         20 w0 idle
         20 jobs
         30 w0' idle",
    );
    expect![[r#"
        0 w0 idle
            record started 1
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        5 drain w0 maintenance
            record drained w0/1: maintenance
            info: worker w0 is drained: maintenance
            wake w0
        10 lost w0 its connection closed
            info: worker w0 is gone: its connection closed
        15 submit demo pp=1 steps=4
            record submitted demo-1
            info: job demo-1 is accepted
            record preparing demo-1 try 1
            prepare demo-1
        15 prepared demo-1
            record prepared demo-1
        20 w0 idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
            wake w0
        20 jobs
            demo-1 Gathering step 0: waiting for 1 of 1 worker (here: 1 leaving)
        30 w0' idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
            record formed demo-1 g1 [w0] threads 2 from 0
            info: runs from the start on w0 with 2 threads each (the cores of each machine over its workers)
            wake w0
    "#]]
    .assert_eq(&print);
}

#[test]
fn ranks_are_told_again_of_a_stop_until_they_stop() {
    let print = at_work(
        "200 drain w1 maintenance
         1300 w1 g1 running step=1
         1400 w1 g1 running step=1
         2400 w1 g1 running step=1
         2500 w1 g1 done step=2",
    );
    expect![[r#"
        200 drain w1 maintenance
            record drained w1/1: maintenance
            info: worker w1 is drained: maintenance
            record stopping demo-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) is drained: maintenance
            info: worker w1 (rank 1, stage 1, pid 101 on alpha) is drained: maintenance; the run saves after a step and goes on in another formation
            wake w1
            wake w0
            wake w1
        1300 w1 g1 running step=1
            wake w1
        1400 w1 g1 running step=1
        2400 w1 g1 running step=1
            wake w1
        2500 w1 g1 done step=2
    "#]].assert_eq(&print);
}
