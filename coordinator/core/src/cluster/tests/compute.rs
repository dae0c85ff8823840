//! A job keeps to workers that compute as it began: others would give other bits.

use expect_test::expect;

use super::story::{tell, tell_to};
use crate::cluster::{Cluster, compact};

/// A job of two ranks with a checkpoint of step 2 loses a worker, and two of another libtorch wait, for which a star
/// stands.
const OUTNUMBERED: &str = "
    0 submit demo wait pp=2 steps=8
    0 prepared demo-1
    0 w0 idle
    0 w1 idle
    0 w2* idle
    0 w3* idle
    100 w0 g1 running step=3 reports=1..3 saved=2
    100 w1 g1 running step=3 saved=2
    110 w0 g1 running step=3 published=2
    200 lost w1 its connection closed
    210 w0 idle
    220 prepared demo-1 resume=2
";

#[test]
fn a_job_waits_for_workers_of_its_kind_though_others_are_more() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, OUTNUMBERED);
    let print = tell_to(
        &mut cluster,
        "300 jobs
         310 submit next pp=2 steps=1
         320 prepared next-2
         330 w4* idle
         340 w1' idle",
    )
    .0;
    expect![[r#"
        300 jobs
            demo-1 Gathering step 2: waiting for 1 of 2 workers with cpu, libtorch 2.11, which it began with (here: 2 idle with cpu, libtorch 2.12), since worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
        310 submit next pp=2 steps=1
            record submitted next-2
            info: job next-2 is accepted
        320 prepared next-2
        330 w4* idle
            record noted joined
            info: worker w4 is here (pid 104 on alpha, cpu)
            wake w4
        340 w1' idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
            record formed demo-1 g2 [w0 w1] threads 1 from 2
            info: runs on w0, w1 with 1 thread each (as before)
            record preparing next-2 try 1
            prepare next-2
            wake w0
            wake w1
    "#]].assert_eq(&print);
}

#[test]
fn a_restart_knows_what_a_job_computes_with() {
    let mut cluster = Cluster::default();
    let (_, journal) = tell_to(&mut cluster, OUTNUMBERED);
    let dated: Vec<_> = journal.iter().cloned().map(|entry| (7, entry)).collect();
    let story = "0 w2* idle
         0 w3* idle
         0 prepared demo-1
         0 jobs";
    let again = |journal| tell_to(&mut Cluster::replay(journal), story).0;
    let print = again(journal);
    expect![[r#"
        0 w2* idle
            record started 2
            record noted joined
            info: worker w2 is here (pid 102 on alpha, cpu)
            prepare demo-1
            wake w2
        0 w3* idle
            record noted joined
            info: worker w3 is here (pid 103 on alpha, cpu)
            wake w3
        0 prepared demo-1
        0 jobs
            demo-1 Gathering step 0: waiting for 2 of 2 workers with cpu, libtorch 2.11, which it began with (here: 2 idle with cpu, libtorch 2.12), since worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
    "#]].assert_eq(&print);
    assert_eq!(again(compact(&dated).into_iter().map(|(_, entry)| entry).collect()), print);
}

#[test]
fn a_checkpoint_says_what_its_job_computes_with() {
    let print = tell(
        "0 submit demo wait pp=2 steps=8
         0 w0 idle
         0 w1 idle
         0 w2* idle
         0 prepared demo-1 resume=2 with=libtorch-2.12
         0 jobs
         0 explain demo-1
         10 w3* idle",
    );
    expect![[r#"
        0 submit demo wait pp=2 steps=8
            record started 1
            record submitted demo-1
            info: job demo-1 is accepted
            record preparing demo-1 try 1
            prepare demo-1
        0 w0 idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        0 w1 idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
        0 w2* idle
            record noted joined
            info: worker w2 is here (pid 102 on alpha, cpu)
            wake w2
        0 prepared demo-1 resume=2 with=libtorch-2.12
            record prepared demo-1
        0 jobs
            demo-1 Gathering step 2: waiting for 1 of 2 workers with libtorch 2.12, which its checkpoint was made with (here: 2 idle with cpu, libtorch 2.11)
        0 explain demo-1
            demo-1 is gathering workers: waiting for 1 of 2 workers with libtorch 2.12, which its checkpoint was made with (here: 2 idle with cpu, libtorch 2.11)
            step 2 of 8, priority 0; the newest checkpoint is of step 2, in /runs/0
        10 w3* idle
            record noted joined
            info: worker w3 is here (pid 103 on alpha, cpu)
            wake w3
            record formed demo-1 g1 [w2 w3] threads 3 from 2
            info: runs from the checkpoint of step 2 on w2, w3 with 3 threads each (as in the checkpoint)
            wake w2
            wake w3
    "#]].assert_eq(&print);
}

#[test]
fn a_job_that_shrank_grows_by_its_kind_alone() {
    let mut cluster = Cluster::default();
    tell_to(
        &mut cluster,
        "0 submit demo shrink dp=2 steps=50
         0 prepared demo-1
         0 w0 idle
         0 w1 idle
         100 w0 g1 running step=3 reports=1..3
         100 w1 g1 running step=3
         200 lost w1 its connection closed
         210 w0 idle
         220 prepared demo-1
         230 w2* idle
         230 w3* idle",
    );
    let print = tell_to(
        &mut cluster,
        "2200 tick
         2300 w0 g2 running
         2300 w2* idle
         20000 w0 g2 running
         20000 w3* idle
         20100 tick
         20200 w4 idle",
    )
    .0;
    expect![[r#"
        2200 tick
            record formed demo-1 g2 [w0] threads 1 from 0
            info: runs on w0 with 1 thread each (as before), as 1 of 2 data ranks: for all of its layout there are too few workers
            wake w0
        2300 w0 g2 running
        2300 w2* idle
        20000 w0 g2 running
        20000 w3* idle
        20100 tick
            record noted gone
            info: worker w2 is gone: no sign of life for 5 s
            refuse w2/1: it counts as lost: no sign of life for 5 s
        20200 w4 idle
            record noted joined
            info: worker w4 is here (pid 104 on alpha, cpu)
            wake w4
            record stopping demo-1 g2: 1 more worker is here, enough for all of its layout
            info: 1 more worker is here, enough for all of its layout; the run saves after a step and goes on in another formation
            wake w0
    "#]].assert_eq(&print);
}
