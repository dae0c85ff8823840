//! Workers that reach the coordinator and not each other.

use expect_test::expect;

use super::tell_to;
use crate::cluster::Cluster;

/// Both workers are well, and what is between them is not: another takes the place of one of them.
#[test]
fn workers_that_do_not_reach_each_other_are_kept_apart_while_another_is_there() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, PARTED);
    let (print, _) = tell_to(
        &mut cluster,
        "3080 w2 idle
        3100 w0 idle
        3100 w1 idle
        3100 prepared demo-1",
    );
    expect![[r#"
        3080 w2 idle
            record noted joined
            info: worker w2 is here (pid 102 on alpha, cpu)
            wake w2
        3100 w0 idle
        3100 w1 idle
        3100 prepared demo-1
            record formed demo-1 g2 [w0 w2] threads 1 from 0
            info: runs on w0, w2 with 1 thread each (as before)
            wake w0
            wake w2
    "#]]
    .assert_eq(&print);
}

/// With no other worker they are tried again after a while, and the wait says so.
#[test]
fn workers_that_do_not_reach_each_other_are_tried_again() {
    let mut cluster = Cluster::default();
    let (print, _) = tell_to(&mut cluster, PARTED);
    assert!(
        print.contains("interrupted demo-1 g1: worker w0 (rank 0, stage 0, pid 100 on alpha) failed: rank 1")
    );
    let (print, _) = tell_to(
        &mut cluster,
        "3100 w0 idle
        3100 w1 idle
        3100 prepared demo-1
        3100 jobs
        11000 w0 idle
        11000 w1 idle
        12900 w0 idle
        12900 w1 idle
        13200 tick",
    );
    expect![[r#"
        3100 w0 idle
        3100 w1 idle
        3100 prepared demo-1
        3100 jobs
            demo-1 Gathering step 0: waiting for 2 workers that reach each other: the network between w0 and w1 does not answer, and they are tried again in 10 s, since worker w0 (rank 0, stage 0, pid 100 on alpha) failed: rank 1 does not answer
        11000 w0 idle
        11000 w1 idle
        12900 w0 idle
        12900 w1 idle
        13200 tick
            record formed demo-1 g2 [w0 w1] threads 1 from 0
            info: runs on w0, w1 with 1 thread each (as before)
            wake w0
            wake w1
    "#]].assert_eq(&print);
}

/// Two workers of a job that waits when it loses one, and no answer between them.
const PARTED: &str = "0 submit demo wait pp=2 steps=4
    0 prepared demo-1
    0 w0 idle
    0 w1 idle
    100 w0 g1 running
    100 w1 g1 running
    1000 w0 g1 from=1 parted: rank 1 does not answer
    1000 w1 g1 from=0 parted: rank 0 does not answer
    3000 tick";
