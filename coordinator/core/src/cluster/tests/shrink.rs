//! Jobs go on with fewer workers, and grow again.

use expect_test::expect;

use super::story::{tell, tell_to};
use crate::cluster::Cluster;

/// A job of two stages by two data ranks at work on w0 to w3.
pub(super) const AT_WORK: &str = "
    0 submit demo shrink pp=2 dp=2 steps=9
    0 prepared demo-1
    0 w0 idle
    0 w1 idle
    0 w2 idle
    0 w3 idle
    100 w0 g1 running
    100 w1 g1 running
    100 w2 g1 running
    100 w3 g1 running
";

#[test]
fn a_job_shrinks_when_no_worker_comes_back_and_grows_when_one_does() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    let print = tell_to(
        &mut cluster,
        "1000 lost w3 its connection closed
         1000 prepared demo-1 resume=2
         1010 w0 idle
         1010 w1 idle
         1010 deadline
         3000 tick
         3000 jobs
         3100 w2 idle
         3110 w0 g2 running
         3110 w1 g2 running
         3110 jobs
         4000 w3' idle
         4000 jobs
         6000 w0 g2 running step=3 reports=3..3
         6000 w1 g2 running step=3
         6000 w2 idle
         6000 deadline
         10000 w0 g2 running step=3
         10000 w1 g2 running step=3
         10000 w2 idle
         10000 w3' idle
         13099 tick
         13100 tick
         13100 desired w0
         13200 w0 g2 done step=4 reports=4..4 saved=4
         13200 w1 g2 done step=4 saved=4
         13210 w0 g2 done step=4 published=4
         13220 w0 idle
         13220 w1 idle
         13230 prepared demo-1 resume=4
         13230 jobs",
    )
    .0;
    expect![[r#"
        1000 lost w3 its connection closed
            record noted gone
            info: worker w3 is gone: its connection closed
            record interrupted demo-1 g1: worker w3 (rank 3, stage 1, pid 103 on alpha) was lost: its connection closed
            warn: worker w3 (rank 3, stage 1, pid 103 on alpha) was lost: its connection closed; workers are gathered to go on
            prepare demo-1
            wake w0
            wake w1
            wake w2
            wake w3
        1000 prepared demo-1 resume=2
        1010 w0 idle
        1010 w1 idle
        1010 deadline
            Some(3000)
        3000 tick
        3000 jobs
            demo-1 Gathering step 2: waiting for 2 of 4 workers (here: 1 not idle yet), since worker w3 (rank 3, stage 1, pid 103 on alpha) was lost: its connection closed
        3100 w2 idle
            record formed demo-1 g2 [w0 w1] threads 1 from 2
            info: runs on w0, w1 with 1 thread each (as before), as 1 of 2 data ranks: for all of its layout there are too few workers
            wake w0
            wake w1
        3110 w0 g2 running
        3110 w1 g2 running
        3110 jobs
            demo-1 Running step 2: on 2 workers, generation 2 (1 of 2 data ranks, until more workers are here)
        4000 w3' idle
            record noted joined
            info: worker w3 is here (pid 103 on alpha, cpu)
            wake w3
        4000 jobs
            demo-1 Running step 2: on 2 workers, generation 2 (1 of 2 data ranks, until more workers are here)
        6000 w0 g2 running step=3 reports=3..3
            report demo-1 step 3
            wake w0
        6000 w1 g2 running step=3
        6000 w2 idle
        6000 deadline
            Some(9000)
        10000 w0 g2 running step=3
        10000 w1 g2 running step=3
        10000 w2 idle
        10000 w3' idle
        13099 tick
        13100 tick
            record stopping demo-1 g2: 2 more workers are here, enough for all of its layout
            info: 2 more workers are here, enough for all of its layout; the run saves after a step and goes on in another formation
            wake w0
            wake w1
        13100 desired w0
            g2 named run_to 0 acknowledged 3
        13200 w0 g2 done step=4 reports=4..4 saved=4
            report demo-1 step 4
            wake w0
        13200 w1 g2 done step=4 saved=4
            sync demo-1 to step 4
            record committed demo-1 step 4 [w0-4 w1-4]
            wake w0
            wake w1
        13210 w0 g2 done step=4 published=4
            record published demo-1 step 4 m4
            info: the checkpoint of step 4 can be read
            prune demo-1 to 2 up to 4
            record regrouped demo-1 g2 after step 4: 2 more workers are here, enough for all of its layout
            info: stopped after step 4 and saved; workers are gathered anew
            prepare demo-1
            wake w0
            wake w0
            wake w1
        13220 w0 idle
        13220 w1 idle
        13230 prepared demo-1 resume=4
            record formed demo-1 g3 [w0 w1 w2 w3] threads 1 from 4
            info: runs on w0, w1, w2, w3 with 1 thread each (as before)
            wake w0
            wake w1
            wake w2
            wake w3
        13230 jobs
            demo-1 Running step 4: on 4 workers, generation 3
    "#]].assert_eq(&print);
}

#[test]
fn a_drained_worker_without_another_in_its_place_makes_a_job_smaller_at_once() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    let print = tell_to(
        &mut cluster,
        "1000 drain w3 a new disk
         1100 w0 g1 done step=1 reports=1..1 saved=1
         1100 w1 g1 done step=1 saved=1
         1100 w2 g1 done step=1 saved=1
         1100 w3 g1 done step=1 saved=1
         1110 w0 g1 done step=1 published=1
         1120 prepared demo-1 resume=1
         1130 w0 idle
         1130 w1 idle
         1140 jobs
         1150 w2 idle
         1150 jobs",
    )
    .0;
    expect![[r#"
        1000 drain w3 a new disk
            record drained w3/1: a new disk
            info: worker w3 is drained: a new disk
            record stopping demo-1 g1: worker w3 (rank 3, stage 1, pid 103 on alpha) is drained: a new disk
            info: worker w3 (rank 3, stage 1, pid 103 on alpha) is drained: a new disk; the run saves after a step and goes on in another formation
            wake w3
            wake w0
            wake w1
            wake w2
            wake w3
        1100 w0 g1 done step=1 reports=1..1 saved=1
            report demo-1 step 1
            wake w0
        1100 w1 g1 done step=1 saved=1
        1100 w2 g1 done step=1 saved=1
        1100 w3 g1 done step=1 saved=1
            sync demo-1 to step 1
            record committed demo-1 step 1 [w0-1 w1-1 w2-1 w3-1]
            wake w0
            wake w1
            wake w2
            wake w3
        1110 w0 g1 done step=1 published=1
            record published demo-1 step 1 m1
            info: the checkpoint of step 1 can be read
            prune demo-1 to 2 up to 1
            record regrouped demo-1 g1 after step 1: worker w3 (rank 3, stage 1, pid 103 on alpha) is drained: a new disk
            info: stopped after step 1 and saved; workers are gathered anew
            prepare demo-1
            wake w0
            wake w0
            wake w1
            wake w2
            wake w3
        1120 prepared demo-1 resume=1
        1130 w0 idle
        1130 w1 idle
        1140 jobs
            demo-1 Gathering step 1: waiting for 2 of 4 workers (here: 1 leaving, 1 not idle yet), since worker w3 (rank 3, stage 1, pid 103 on alpha) is drained: a new disk
        1150 w2 idle
            record formed demo-1 g2 [w0 w1] threads 1 from 1
            info: runs on w0, w1 with 1 thread each (as before), as 1 of 2 data ranks: for all of its layout there are too few workers
            wake w0
            wake w1
        1150 jobs
            demo-1 Running step 1: on 2 workers, generation 2 (1 of 2 data ranks, until more workers are here)
    "#]].assert_eq(&print);
}

#[test]
fn a_job_starts_with_all_of_its_workers_or_not_at_all() {
    let print = tell(
        "0 submit demo shrink dp=2 steps=4
         0 prepared demo-1
         0 w0 idle
         9000 tick
         9000 jobs",
    );
    expect![[r#"
        0 submit demo shrink dp=2 steps=4
            record started 1
            record submitted demo-1
            info: job demo-1 is accepted
            record preparing demo-1 try 1
            prepare demo-1
        0 prepared demo-1
            record prepared demo-1
        0 w0 idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        9000 tick
            record noted gone
            info: worker w0 is gone: no sign of life for 5 s
            refuse w0/1: it counts as lost: no sign of life for 5 s
        9000 jobs
            demo-1 Gathering step 0: waiting for 2 of 2 workers
    "#]]
    .assert_eq(&print);
}
