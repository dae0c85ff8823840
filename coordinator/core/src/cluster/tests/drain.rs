//! Workers are taken out at a step's boundary.

use expect_test::expect;

use super::story::{tell, tell_to};
use crate::cluster::Cluster;

/// A job of two stages at work on w0 and w1.
const AT_WORK: &str = "
    0 submit demo wait pp=2 steps=9
    0 prepared demo-1
    0 w0 idle
    0 w1 idle
    100 w0 g1 running
    100 w1 g1 running
";

#[test]
fn a_drained_worker_is_replaced_at_a_steps_boundary() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    let print = tell_to(
        &mut cluster,
        "200 w2 idle
         300 drain w1 maintenance
         300 desired w0
         300 drain w1 again
         400 w0 g1 running step=3 reports=1..3
         500 w0 g1 running step=3 saved=3
         500 w1 g1 done step=3 saved=3
         510 desired w0
         600 w0 g1 done step=3 published=3
         600 desired w1
         600 jobs
         610 w0 idle
         620 prepared demo-1 resume=3
         630 w1 idle
         640 lost w1 its connection closed
         650 desired w0",
    )
    .0;
    expect![[r#"
        200 w2 idle
            record noted joined
            info: worker w2 is here (pid 102 on alpha, cpu)
            wake w2
        300 drain w1 maintenance
            record drained w1/1: maintenance
            info: worker w1 is drained: maintenance
            record stopping demo-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) is drained: maintenance
            info: worker w1 (rank 1, stage 1, pid 101 on alpha) is drained: maintenance; the run saves after a step and goes on in another formation
            wake w1
            wake w0
            wake w1
        300 desired w0
            g1 named run_to 0 acknowledged 0
        300 drain w1 again
        400 w0 g1 running step=3 reports=1..3
            report demo-1 step 1
            report demo-1 step 2
            report demo-1 step 3
            wake w0
        500 w0 g1 running step=3 saved=3
        500 w1 g1 done step=3 saved=3
            sync demo-1 to step 3
            record committed demo-1 step 3 [w0-3 w1-3]
            wake w0
            wake w1
        510 desired w0
            g1 named run_to 0 acknowledged 3 publish 3
        600 w0 g1 done step=3 published=3
            record published demo-1 step 3 m3
            info: the checkpoint of step 3 can be read
            prune demo-1 to 2 up to 3
            record regrouped demo-1 g1 after step 3: worker w1 (rank 1, stage 1, pid 101 on alpha) is drained: maintenance
            info: stopped after step 3 and saved; workers are gathered anew
            prepare demo-1
            wake w0
            wake w0
            wake w1
        600 desired w1
            g1 idle run_to 0 acknowledged 0 leave: it is drained: maintenance
        600 jobs
            demo-1 Preparing step 3: worker w1 (rank 1, stage 1, pid 101 on alpha) is drained: maintenance
        610 w0 idle
        620 prepared demo-1 resume=3
            record formed demo-1 g2 [w0 w2] threads 1 from 3
            info: runs on w0, w2 with 1 thread each (as before)
            wake w0
            wake w2
        630 w1 idle
            wake w1
        640 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
        650 desired w0
            g2 assignment run_to 9 acknowledged 3
    "#]].assert_eq(&print);
}

#[test]
fn a_worker_that_was_asked_to_stop_works_until_its_place_can_be_taken() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    let print = tell_to(
        &mut cluster,
        "300 w1 g1 running leaves=SIGTERM
         400 w0 g1 running step=3 reports=1..3 saved=3
         500 w1 g1 done step=3 saved=3 leaves=SIGTERM
         600 w0 g1 done step=3 published=3
         600 desired w1
         610 w0 idle
         620 prepared demo-1 resume=3
         630 w1 idle leaves=SIGTERM
         640 lost w1 its connection closed
         650 jobs
         700 w1' idle
         700 jobs",
    )
    .0;
    expect![[r#"
        300 w1 g1 running leaves=SIGTERM
            record stopping demo-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) leaves: SIGTERM
            info: worker w1 (rank 1, stage 1, pid 101 on alpha) leaves: SIGTERM; the run saves after a step and goes on in another formation
            wake w0
            wake w1
        400 w0 g1 running step=3 reports=1..3 saved=3
            report demo-1 step 1
            report demo-1 step 2
            report demo-1 step 3
            wake w0
        500 w1 g1 done step=3 saved=3 leaves=SIGTERM
            sync demo-1 to step 3
            record committed demo-1 step 3 [w0-3 w1-3]
            wake w0
            wake w1
        600 w0 g1 done step=3 published=3
            record published demo-1 step 3 m3
            info: the checkpoint of step 3 can be read
            prune demo-1 to 2 up to 3
            record regrouped demo-1 g1 after step 3: worker w1 (rank 1, stage 1, pid 101 on alpha) leaves: SIGTERM
            info: stopped after step 3 and saved; workers are gathered anew
            prepare demo-1
            wake w0
            wake w0
            wake w1
        600 desired w1
            g1 idle run_to 0 acknowledged 0 leave: it leaves: SIGTERM
        610 w0 idle
        620 prepared demo-1 resume=3
        630 w1 idle leaves=SIGTERM
            wake w1
        640 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
        650 jobs
            demo-1 Gathering step 3: waiting for 1 of 2 workers, since worker w1 (rank 1, stage 1, pid 101 on alpha) leaves: SIGTERM
        700 w1' idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
            record formed demo-1 g2 [w0 w1] threads 1 from 3
            info: runs on w0, w1 with 1 thread each (as before)
            wake w0
            wake w1
        700 jobs
            demo-1 Running step 3: on 2 workers, generation 2
    "#]].assert_eq(&print);
}

#[test]
fn an_idle_worker_that_is_drained_leaves_and_a_newer_process_of_its_name_does_not() {
    let print = tell(
        "0 w0 idle
         10 drain w0 enough
         10 desired w0
         20 submit demo steps=4
         20 prepared demo-1
         20 jobs
         30 w0' idle
         30 desired w0
         40 drain w9 unknown",
    );
    expect![[r#"
        0 w0 idle
            record started 1
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        10 drain w0 enough
            record drained w0/1: enough
            info: worker w0 is drained: enough
            wake w0
        10 desired w0
            g0 idle run_to 0 acknowledged 0 leave: it is drained: enough
        20 submit demo steps=4
            record submitted demo-1
            info: job demo-1 is accepted
            record preparing demo-1 try 1
            prepare demo-1
        20 prepared demo-1
            record prepared demo-1
        20 jobs
            demo-1 Gathering step 0: waiting for 1 of 1 worker (here: 1 leaving)
        30 w0' idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
            record formed demo-1 g1 [w0] threads 2 from 0
            info: runs from the start on w0 with 2 threads each (the cores of each machine over its workers)
            wake w0
        30 desired w0
            g1 assignment run_to 4 acknowledged 0
        40 drain w9 unknown
    "#]]
    .assert_eq(&print);
}

#[test]
fn no_rank_is_stopped_that_does_not_know_what_was_wanted_before() {
    let mut cluster = Cluster::default();
    let begin = AT_WORK.split_once("    100 w1").unwrap().0;
    tell_to(&mut cluster, begin);
    let print = tell_to(
        &mut cluster,
        "200 drain w0 enough
         200 desired w0
         300 w1 g1 preparing
         300 desired w1",
    )
    .0;
    expect![[r#"
        200 drain w0 enough
            record drained w0/1: enough
            info: worker w0 is drained: enough
            wake w0
        200 desired w0
            g1 named run_to 9 acknowledged 0
        300 w1 g1 preparing
            record stopping demo-1 g1: worker w0 (rank 0, stage 0, pid 100 on alpha) is drained: enough
            info: worker w0 (rank 0, stage 0, pid 100 on alpha) is drained: enough; the run saves after a step and goes on in another formation
            wake w0
            wake w1
        300 desired w1
            g1 named run_to 0 acknowledged 0
    "#]].assert_eq(&print);
}

#[test]
fn a_stop_outlives_the_coordinator_with_its_number() {
    let mut cluster = Cluster::default();
    let (_, mut journal) = tell_to(&mut cluster, AT_WORK);
    let at_work = cluster.desired(&super::worker("w0"));
    journal.extend(tell_to(&mut cluster, "300 drain w1 maintenance").1);
    let stopping = cluster.desired(&super::worker("w0"));
    assert!(stopping.revision > at_work.revision);
    let mut later = Cluster::replay(journal);
    let print = tell_to(
        &mut later,
        "0 w0 g1 running step=2
         0 w1 g1 running step=2
         10 desired w0
         20 w0 g1 done step=3 reports=3..3 saved=3
         20 w1 g1 done step=3 saved=3
         30 w0 g1 done step=3 published=3
         30 desired w1",
    )
    .0;
    assert!(print.contains("g1 named run_to 0") && print.contains("record regrouped demo-1"), "{print}");
    let mut again = Cluster::default();
    let (_, journal) = tell_to(&mut again, &format!("{AT_WORK}\n300 drain w1 maintenance"));
    let mut later = Cluster::replay(journal);
    tell_to(&mut later, "0 w0 g1 running\n 0 w1 g1 running");
    assert_eq!(later.desired(&super::worker("w0")).revision, stopping.revision);
}

#[test]
fn a_loss_while_a_run_stops_is_an_ordinary_loss() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    let print = tell_to(&mut cluster, "300 drain w1 enough\n 400 lost w1 its connection closed\n 410 jobs").0;
    expect![[r#"
        300 drain w1 enough
            record drained w1/1: enough
            info: worker w1 is drained: enough
            record stopping demo-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) is drained: enough
            info: worker w1 (rank 1, stage 1, pid 101 on alpha) is drained: enough; the run saves after a step and goes on in another formation
            wake w1
            wake w0
            wake w1
        400 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
            record interrupted demo-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
            warn: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed; workers are gathered to go on
            prepare demo-1
            wake w0
            wake w1
        410 jobs
            demo-1 Preparing step 0: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
    "#]].assert_eq(&print);
}
