//! Cancelled jobs end after a step that is saved, or at once.

use expect_test::expect;

use super::story::tell_to;
use crate::cluster::Cluster;

/// A job of two stages at work on w0 and w1, which has taken three steps and saved two.
const AT_WORK: &str = "
    0 submit demo wait pp=2 steps=9
    0 prepared demo-1
    0 w0 idle
    0 w1 idle
    100 w0 g1 running
    100 w1 g1 running
    200 w0 g1 running step=2 reports=1..2 saved=2
    200 w1 g1 running step=2 saved=2
    210 w0 g1 running step=3 reports=3..3 published=2
";

fn at_work(story: &str) -> String {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    tell_to(&mut cluster, story).0
}

#[test]
fn a_job_at_work_ends_after_a_step_that_is_saved() {
    let print = at_work(
        "300 cancel demo-1 Ctrl-C
         300 desired w1
         300 jobs
         310 cancel demo-1 again
         400 w0 g1 done step=4 reports=4..4 saved=4
         410 w1 g1 done step=4 saved=4
         420 jobs
         430 w0 g1 done step=4 published=4
         430 desired w1
         430 deadline
         430 jobs",
    );
    expect![[r#"
        300 cancel demo-1 Ctrl-C
            record cancelling demo-1: Ctrl-C
            info: job demo-1 is cancelled and ends after the step at hand: Ctrl-C
            record stopping demo-1 g1: Ctrl-C
            info: Ctrl-C; the run saves after a step and ends
            wake w0
            wake w1
        300 desired w1
            g1 named run_to 0 acknowledged 0
        300 jobs
            demo-1 Running step 3: ends after the step at hand, which is saved: Ctrl-C
        310 cancel demo-1 again
        400 w0 g1 done step=4 reports=4..4 saved=4
            report demo-1 step 4
            wake w0
        410 w1 g1 done step=4 saved=4
            sync demo-1 to step 4
            record committed demo-1 step 4 [w0-4 w1-4]
            wake w0
            wake w1
        420 jobs
            demo-1 Running step 4: ends after the step at hand, which is saved: Ctrl-C
        430 w0 g1 done step=4 published=4
            record published demo-1 step 4 m4
            info: the checkpoint of step 4 can be read
            prune demo-1 to 2 up to 4
            record ended demo-1 Cancelled
            info: job demo-1 was cancelled: Ctrl-C; stopped after step 4, which is saved
            wake w0
            wake w0
            wake w1
        430 desired w1
            g1 idle run_to 0 acknowledged 0
        430 deadline
            Some(5410)
        430 jobs
            demo-1 Ended(Cancelled) step 4: Ctrl-C; stopped after step 4, which is saved
    "#]]
    .assert_eq(&print);
}

#[test]
fn a_job_that_has_nothing_to_save_ends_at_once() {
    let mut cluster = Cluster::default();
    let begin = AT_WORK.split_once("    100 w0").unwrap().0;
    tell_to(&mut cluster, begin);
    let print = tell_to(
        &mut cluster,
        "100 w0 g1 preparing
         110 cancel demo-1 enough
         120 submit demo steps=4
         130 cancel demo-2 while it is prepared
         140 prepared demo-2
         150 submit demo pp=3 steps=4
         150 prepared demo-3
         160 cancel demo-3 while it gathers
         160 jobs",
    )
    .0;
    expect![[r#"
        100 w0 g1 preparing
        110 cancel demo-1 enough
            record ended demo-1 Cancelled
            info: job demo-1 was cancelled: enough
            wake w0
            wake w1
        120 submit demo steps=4
            record submitted demo-2
            info: job demo-2 is accepted
            record preparing demo-2 try 1
            prepare demo-2
        130 cancel demo-2 while it is prepared
            record ended demo-2 Cancelled
            info: job demo-2 was cancelled: while it is prepared
        140 prepared demo-2
        150 submit demo pp=3 steps=4
            record submitted demo-3
            info: job demo-3 is accepted
            record preparing demo-3 try 1
            prepare demo-3
        150 prepared demo-3
            record prepared demo-3
        160 cancel demo-3 while it gathers
            record ended demo-3 Cancelled
            info: job demo-3 was cancelled: while it gathers
        160 jobs
            demo-1 Ended(Cancelled) step 0: enough
            demo-2 Ended(Cancelled) step 0: while it is prepared
            demo-3 Ended(Cancelled) step 0: while it gathers
    "#]]
    .assert_eq(&print);
}

#[test]
fn a_second_cancel_ends_it_at_once_and_says_what_is_lost() {
    let print = at_work(
        "300 cancel demo-1 Ctrl-C
         310 cancel-now demo-1 Ctrl-C twice
         310 desired w0
         320 cancel-now demo-1 a third time
         330 w0 g1 running step=4 reports=4..4",
    );
    expect![[r#"
        300 cancel demo-1 Ctrl-C
            record cancelling demo-1: Ctrl-C
            info: job demo-1 is cancelled and ends after the step at hand: Ctrl-C
            record stopping demo-1 g1: Ctrl-C
            info: Ctrl-C; the run saves after a step and ends
            wake w0
            wake w1
        310 cancel-now demo-1 Ctrl-C twice
            record ended demo-1 Cancelled
            info: job demo-1 was cancelled: Ctrl-C twice; 1 step since the checkpoint of step 2 lost
            wake w0
            wake w1
        310 desired w0
            g1 idle run_to 0 acknowledged 0
        320 cancel-now demo-1 a third time
        330 w0 g1 running step=4 reports=4..4
    "#]]
    .assert_eq(&print);
}

#[test]
fn a_job_whose_ranks_never_stop_ends_all_the_same() {
    let print = at_work(
        "300 cancel demo-1 enough
         300 deadline
         300000 w0 g1 running step=3
         300000 w1 g1 running step=3
         303000 w0 g1 running step=3
         303000 w1 g1 running step=3
         303299 tick
         303300 tick
         303300 jobs",
    );
    expect![[r#"
        300 cancel demo-1 enough
            record cancelling demo-1: enough
            info: job demo-1 is cancelled and ends after the step at hand: enough
            record stopping demo-1 g1: enough
            info: enough; the run saves after a step and ends
            wake w0
            wake w1
        300 deadline
            Some(5200)
        300000 w0 g1 running step=3
            wake w0
        300000 w1 g1 running step=3
            wake w1
        303000 w0 g1 running step=3
            wake w0
        303000 w1 g1 running step=3
            wake w1
        303299 tick
        303300 tick
            record ended demo-1 Cancelled
            info: job demo-1 was cancelled: enough; its ranks did not stop in time; 1 step since the checkpoint of step 2 lost
            wake w0
            wake w1
        303300 jobs
            demo-1 Ended(Cancelled) step 3: enough; its ranks did not stop in time; 1 step since the checkpoint of step 2 lost
    "#]].assert_eq(&print);
}

#[test]
fn a_cancelled_job_that_loses_a_worker_is_not_gathered_again() {
    let print = at_work(
        "300 cancel demo-1 enough
         310 lost w1 its connection closed
         310 jobs",
    );
    expect![[r#"
        300 cancel demo-1 enough
            record cancelling demo-1: enough
            info: job demo-1 is cancelled and ends after the step at hand: enough
            record stopping demo-1 g1: enough
            info: enough; the run saves after a step and ends
            wake w0
            wake w1
        310 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
            record ended demo-1 Cancelled
            info: job demo-1 was cancelled: enough; worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed; 1 step since the checkpoint of step 2 lost
            wake w0
            wake w1
        310 jobs
            demo-1 Ended(Cancelled) step 3: enough; worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed; 1 step since the checkpoint of step 2 lost
    "#]].assert_eq(&print);
}

#[test]
fn a_cancel_waits_until_all_ranks_have_their_assignment() {
    let mut cluster = Cluster::default();
    let begin = AT_WORK.split_once("    100 w1").unwrap().0;
    tell_to(&mut cluster, begin);
    let print = tell_to(
        &mut cluster,
        "200 cancel demo-1 enough
         200 desired w0
         300 w1 g1 preparing
         300 desired w0",
    )
    .0;
    expect![[r#"
        200 cancel demo-1 enough
            record cancelling demo-1: enough
            info: job demo-1 is cancelled and ends after the step at hand: enough
        200 desired w0
            g1 named run_to 9 acknowledged 0
        300 w1 g1 preparing
            record stopping demo-1 g1: enough
            info: enough; the run saves after a step and ends
            wake w0
            wake w1
        300 desired w0
            g1 named run_to 0 acknowledged 0
    "#]]
    .assert_eq(&print);
}

#[test]
fn a_cancel_outlives_the_coordinator() {
    let mut cluster = Cluster::default();
    let (_, mut journal) = tell_to(&mut cluster, AT_WORK);
    journal.extend(tell_to(&mut cluster, "300 cancel demo-1 enough").1);
    let mut later = Cluster::replay(journal);
    let print = tell_to(
        &mut later,
        "0 w0 g1 running step=3
         0 w1 g1 running step=3
         10 desired w0
         20 w0 g1 done step=4 reports=3..4 saved=4
         20 w1 g1 done step=4 saved=4
         30 w0 g1 done step=4 published=4
         30 jobs",
    )
    .0;
    expect![[r#"
        0 w0 g1 running step=3
            record started 2
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        0 w1 g1 running step=3
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
        10 desired w0
            g1 named run_to 0 acknowledged 3
        20 w0 g1 done step=4 reports=3..4 saved=4
            report demo-1 step 4
            wake w0
        20 w1 g1 done step=4 saved=4
            sync demo-1 to step 4
            record committed demo-1 step 4 [w0-4 w1-4]
            wake w0
            wake w1
        30 w0 g1 done step=4 published=4
            record published demo-1 step 4 m4
            info: the checkpoint of step 4 can be read
            prune demo-1 to 2 up to 4
            record ended demo-1 Cancelled
            info: job demo-1 was cancelled: enough; stopped after step 4, which is saved
            wake w0
            wake w0
            wake w1
        30 jobs
            demo-1 Ended(Cancelled) step 4: enough; stopped after step 4, which is saved
    "#]]
    .assert_eq(&print);
}
