//! Saves that the time asks for.

use expect_test::expect;

use super::story::tell_to;
use crate::cluster::Cluster;

/// A job of two stages that saves each minute, and has taken five steps in that time.
const AT_WORK: &str = "
    0 submit demo wait pp=2 steps=90 minutes=1
    0 prepared demo-1
    0 w0 idle
    0 w1 idle
    100 w0 g1 running
    100 w1 g1 running
    59000 w0 g1 running step=4 reports=1..4
    59000 w1 g1 running step=4
";

#[test]
fn ranks_save_after_one_step_where_the_newest_checkpoint_is_old() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    let print = tell_to(
        &mut cluster,
        "59999 w0 g1 running step=4 reports=1..4
         60000 w0 g1 running step=5 reports=5..5
         60000 desired w1
         60100 w1 g1 running step=5
         61200 w1 g1 running step=5
         61300 w0 g1 running step=6 reports=6..6 saved=6
         61300 w1 g1 running step=6 saved=6
         61350 w0 g1 running step=7 reports=7..7
         61400 w0 g1 running step=7 published=6
         61400 desired w1
         121399 w1 g1 running step=9
         121399 w0 g1 running step=9 reports=8..9
         121400 w0 g1 running step=10 reports=10..10",
    )
    .0;
    expect![[r#"
        59999 w0 g1 running step=4 reports=1..4
            wake w0
        60000 w0 g1 running step=5 reports=5..5
            report demo-1 step 5
            record saving demo-1 g1 after step 6
            wake w0
            wake w1
            wake w0
        60000 desired w1
            g1 named run_to 90 acknowledged 0 save after 6
        60100 w1 g1 running step=5
            wake w1
        61200 w1 g1 running step=5
            wake w1
        61300 w0 g1 running step=6 reports=6..6 saved=6
            report demo-1 step 6
            wake w0
            wake w0
        61300 w1 g1 running step=6 saved=6
            sync demo-1 to step 6
            record committed demo-1 step 6 [w0-6 w1-6]
            wake w0
            wake w1
        61350 w0 g1 running step=7 reports=7..7
            report demo-1 step 7
            wake w0
        61400 w0 g1 running step=7 published=6
            record published demo-1 step 6 m6
            info: the checkpoint of step 6 can be read
            prune demo-1 to 2 up to 6
            wake w0
        61400 desired w1
            g1 named run_to 90 acknowledged 0 save after 6
        121399 w1 g1 running step=9
        121399 w0 g1 running step=9 reports=8..9
            report demo-1 step 8
            report demo-1 step 9
            wake w0
        121400 w0 g1 running step=10 reports=10..10
            report demo-1 step 10
            record saving demo-1 g1 after step 11
            wake w0
            wake w1
            wake w0
    "#]]
    .assert_eq(&print);
}

#[test]
fn a_save_outlives_the_coordinator_and_a_stop_goes_before_it() {
    let mut cluster = Cluster::default();
    let (_, mut journal) = tell_to(&mut cluster, AT_WORK);
    journal.extend(tell_to(&mut cluster, "60000 w0 g1 running step=5 reports=5..5").1);
    let mut later = Cluster::replay(journal);
    let print = tell_to(
        &mut later,
        "0 w0 g1 running step=5
         0 w1 g1 running step=5
         0 desired w1
         10 cancel demo-1 enough
         10 desired w1",
    )
    .0;
    expect![[r#"
        0 w0 g1 running step=5
            record started 2
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        0 w1 g1 running step=5
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
        0 desired w1
            g1 named run_to 90 acknowledged 0 save after 6
        10 cancel demo-1 enough
            record cancelling demo-1: enough
            info: job demo-1 is cancelled and ends after the step at hand: enough
            record stopping demo-1 g1: enough
            info: enough; the run saves after a step and ends
            wake w0
            wake w1
        10 desired w1
            g1 named run_to 0 acknowledged 0
    "#]]
    .assert_eq(&print);
}

/// A job at work whose reports are written later.
const LATE: &str = "
    0 submit late wait steps=4
    5 prepared late-1
    10 w0 idle
    20 w0 g1 running
";

/// What follows after [`LATE`].
fn late(story: &str) -> String {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, LATE);
    tell_to(&mut cluster, story).0
}

/// A checkpoint is committed only once the reports of its steps are on disk, since these steps are never taken again.
#[test]
fn a_checkpoint_waits_until_its_metrics_are_on_disk() {
    let print = late(
        "30 w0 g1 running step=2 reports=1..2 saved=2
         30 desired w0
         40 written late-1 1
         40 desired w0
         50 w0 g1 running step=2 reports=2..2 saved=2
         60 synced late-1 2
         60 desired w0
         70 w0 g1 running step=2 published=2
         80 w0 g1 done step=4 reports=3..4 saved=4
         90 synced late-1 4
         95 w0 g1 done step=4 published=4",
    );
    expect![[r#"
        30 w0 g1 running step=2 reports=1..2 saved=2
            report late-1 step 1
            report late-1 step 2
            sync late-1 to step 2
        30 desired w0
            g1 named run_to 4 acknowledged 0
        40 written late-1 1
            wake w0
        40 desired w0
            g1 named run_to 4 acknowledged 1
        50 w0 g1 running step=2 reports=2..2 saved=2
        60 synced late-1 2
            record committed late-1 step 2 [w0-2]
            wake w0
            wake w0
        60 desired w0
            g1 named run_to 4 acknowledged 2 publish 2
        70 w0 g1 running step=2 published=2
            record published late-1 step 2 m2
            info: the checkpoint of step 2 can be read
            prune late-1 to 2 up to 2
            wake w0
        80 w0 g1 done step=4 reports=3..4 saved=4
            report late-1 step 3
            report late-1 step 4
            sync late-1 to step 4
        90 synced late-1 4
            record committed late-1 step 4 [w0-4]
            wake w0
            wake w0
        95 w0 g1 done step=4 published=4
            record published late-1 step 4 m4
            info: the checkpoint of step 4 can be read
            prune late-1 to 2 up to 4
            record ended late-1 Done
            info: job late-1 is done: step 4 is taken and its checkpoint can be read
            wake w0
            wake w0
    "#]]
    .assert_eq(&print);
}

/// The folder already has reports of steps that a new generation has yet to repeat.
#[test]
fn reports_that_are_written_are_acknowledged_once_their_steps_are_taken_again() {
    let print = late(
        "30 w0 g1 running step=3 reports=1..3
         40 lost w0 its connection closed
         50 prepared late-1
         60 w0' idle
         70 w0' g2 running step=1 reports=1..1
         80 written late-1 3
         80 desired w0",
    );
    expect![[r#"
        30 w0 g1 running step=3 reports=1..3
            report late-1 step 1
            report late-1 step 2
            report late-1 step 3
        40 lost w0 its connection closed
            record noted gone
            info: worker w0 is gone: its connection closed
            record interrupted late-1 g1: worker w0 (rank 0, stage 0, pid 100 on alpha) was lost: its connection closed
            warn: worker w0 (rank 0, stage 0, pid 100 on alpha) was lost: its connection closed; workers are gathered to go on
            prepare late-1
            wake w0
        50 prepared late-1
        60 w0' idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
            record formed late-1 g2 [w0] threads 2 from 0
            info: runs on w0 with 2 threads each (as before)
            wake w0
        70 w0' g2 running step=1 reports=1..1
            report late-1 step 1
        80 written late-1 3
            wake w0
        80 desired w0
            g2 named run_to 4 acknowledged 1
    "#]].assert_eq(&print);
}
