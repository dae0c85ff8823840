//! Several jobs share a cluster.

use expect_test::expect;

use super::story::{tell, tell_to};
use crate::cluster::{Cluster, Entry, JobSummary, MAX_TRIES, compact};

#[test]
fn two_jobs_run_side_by_side_on_workers_of_their_own() {
    let print = tell(
        "0 submit a wait pp=2 steps=4
         0 prepared a-1
         0 submit b wait steps=4
         0 w0 idle
         0 w1 idle
         0 prepared b-2
         0 jobs
         0 w2 idle
         100 w0 g1 running step=1 reports=1..1
         100 w2 g2 running step=2 reports=1..2 saved=2
         110 w2 g2 running step=2 published=2
         200 lost w1 its connection closed
         200 prepared a-1
         200 jobs
         300 w2 g2 running step=4 reports=3..4 saved=4
         310 w2 g2 done step=4 published=4
         320 w0 idle
         320 w2 idle
         320 jobs",
    );
    expect![[r#"
        0 submit a wait pp=2 steps=4
            record started 1
            record submitted a-1
            info: job a-1 is accepted
            record preparing a-1 try 1
            prepare a-1
        0 prepared a-1
            record prepared a-1
        0 submit b wait steps=4
            record submitted b-2
            info: job b-2 is accepted
        0 w0 idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        0 w1 idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
            record formed a-1 g1 [w0 w1] threads 1 from 0
            info: runs from the start on w0, w1 with 1 thread each (the cores of each machine over its workers)
            record preparing b-2 try 1
            prepare b-2
            wake w0
            wake w1
        0 prepared b-2
            record prepared b-2
        0 jobs
            a-1 Running step 0: on 2 workers, generation 1
            b-2 Gathering step 0: waiting for 1 of 1 worker (here: 2 at work for a-1)
        0 w2 idle
            record noted joined
            info: worker w2 is here (pid 102 on alpha, cpu)
            wake w2
            record formed b-2 g2 [w2] threads 2 from 0
            info: runs from the start on w2 with 2 threads each (the cores of each machine over its workers)
            wake w2
        100 w0 g1 running step=1 reports=1..1
            report a-1 step 1
            wake w0
        100 w2 g2 running step=2 reports=1..2 saved=2
            report b-2 step 1
            report b-2 step 2
            sync b-2 to step 2
            wake w2
            record committed b-2 step 2 [w2-2]
            wake w2
        110 w2 g2 running step=2 published=2
            record published b-2 step 2 m2
            info: the checkpoint of step 2 can be read
            prune b-2 to 2 up to 2
            wake w2
        200 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
            record interrupted a-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
            warn: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed; workers are gathered to go on
            prepare a-1
            wake w0
            wake w1
        200 prepared a-1
        200 jobs
            a-1 Gathering step 0: waiting for 2 of 2 workers (here: 1 at work for b-2, 1 not idle yet), since worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
            b-2 Running step 2: on 1 worker, generation 2
        300 w2 g2 running step=4 reports=3..4 saved=4
            report b-2 step 3
            report b-2 step 4
            sync b-2 to step 4
            wake w2
            record committed b-2 step 4 [w2-4]
            wake w2
        310 w2 g2 done step=4 published=4
            record published b-2 step 4 m4
            info: the checkpoint of step 4 can be read
            prune b-2 to 2 up to 4
            record ended b-2 Done
            info: job b-2 is done: step 4 is taken and its checkpoint can be read
            wake w2
            wake w2
        320 w0 idle
        320 w2 idle
            record formed a-1 g3 [w0 w2] threads 1 from 0
            info: runs on w0, w2 with 1 thread each (as before)
            wake w0
            wake w2
        320 jobs
            a-1 Running step 0: on 2 workers, generation 3
            b-2 Ended(Done) step 4: step 4 is taken and its checkpoint can be read
    "#]].assert_eq(&print);
}

#[test]
fn a_job_that_waits_keeps_what_there_is_from_those_behind_it() {
    let print = tell(
        "0 submit large pp=3 steps=4
         0 prepared large-1
         0 submit small steps=4
         0 submit urgent priority=5 pp=2 steps=4
         0 w0 idle
         0 jobs
         10 prepared urgent-3
         10 jobs
         20 w1 idle
         20 jobs
         30 w2 idle
         40 w3 idle
         50 jobs
         60 cancel urgent-3 enough
         70 w0 idle
         80 prepared small-2
         90 w1 idle
         90 jobs",
    );
    expect![[r#"
        0 submit large pp=3 steps=4
            record started 1
            record submitted large-1
            info: job large-1 is accepted
            record preparing large-1 try 1
            prepare large-1
        0 prepared large-1
            record prepared large-1
        0 submit small steps=4
            record submitted small-2
            info: job small-2 is accepted
        0 submit urgent priority=5 pp=2 steps=4
            record submitted urgent-3
            info: job urgent-3 is accepted
            record preparing urgent-3 try 1
            prepare urgent-3
        0 w0 idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        0 jobs
            large-1 Gathering step 0: waiting for 3 of 3 workers (here: 1 kept for urgent-3); urgent-3 waits too and is served first
            small-2 Queued step 0: waits behind large-1
            urgent-3 Preparing step 0: its tokens are being made ready
        10 prepared urgent-3
            record prepared urgent-3
        10 jobs
            large-1 Gathering step 0: waiting for 3 of 3 workers (here: 1 kept for urgent-3); urgent-3 waits too and is served first
            small-2 Queued step 0: waits behind urgent-3
            urgent-3 Gathering step 0: waiting for 1 of 2 workers
        20 w1 idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
            record formed urgent-3 g1 [w0 w1] threads 1 from 0
            info: runs from the start on w0, w1 with 1 thread each (the cores of each machine over its workers)
            wake w0
            wake w1
        20 jobs
            large-1 Gathering step 0: waiting for 3 of 3 workers (here: 2 at work for urgent-3)
            small-2 Queued step 0: waits behind large-1
            urgent-3 Running step 0: on 2 workers, generation 1
        30 w2 idle
            record noted joined
            info: worker w2 is here (pid 102 on alpha, cpu)
            wake w2
        40 w3 idle
            record noted joined
            info: worker w3 is here (pid 103 on alpha, cpu)
            wake w3
        50 jobs
            large-1 Gathering step 0: waiting for 1 of 3 workers (here: 2 at work for urgent-3)
            small-2 Queued step 0: waits behind large-1
            urgent-3 Running step 0: on 2 workers, generation 1
        60 cancel urgent-3 enough
            record ended urgent-3 Cancelled
            info: job urgent-3 was cancelled: enough
            wake w0
            wake w1
            record formed large-1 g2 [w0 w1 w2] threads 1 from 0
            info: runs from the start on w0, w1, w2 with 1 thread each (the cores of each machine over its workers)
            record preparing small-2 try 1
            prepare small-2
            wake w0
            wake w1
            wake w2
        70 w0 idle
            wake w0
        80 prepared small-2
            record prepared small-2
            record formed small-2 g3 [w3] threads 2 from 0
            info: runs from the start on w3 with 2 threads each (the cores of each machine over its workers)
            wake w3
        90 w1 idle
            wake w1
        90 jobs
            large-1 Running step 0: on 3 workers, generation 2
            small-2 Running step 0: on 1 worker, generation 3
            urgent-3 Ended(Cancelled) step 0: enough
    "#]].assert_eq(&print);
}

#[test]
fn an_interrupted_job_keeps_its_workers_unless_a_higher_priority_needs_them() {
    let before = "0 submit a wait pp=2 steps=4
         0 prepared a-1
         0 w0 idle
         0 w1 idle
         0 submit b wait pp=2 steps=4
         0 prepared b-2
         0 w2 idle
         0 w3 idle
         100 lost w1 its connection closed
         100 w0 idle
         110 prepared a-1
         120 lost w3 its connection closed
         120 w2 idle
         130 prepared b-2
         130 jobs";
    let after = "140 submit c steps=4
         140 jobs
         150 submit d priority=1 steps=4
         150 prepared d-4
         160 jobs
         170 w4 idle
         170 jobs";
    expect![[r#"
        0 submit a wait pp=2 steps=4
            record started 1
            record submitted a-1
            info: job a-1 is accepted
            record preparing a-1 try 1
            prepare a-1
        0 prepared a-1
            record prepared a-1
        0 w0 idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        0 w1 idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
            record formed a-1 g1 [w0 w1] threads 1 from 0
            info: runs from the start on w0, w1 with 1 thread each (the cores of each machine over its workers)
            wake w0
            wake w1
        0 submit b wait pp=2 steps=4
            record submitted b-2
            info: job b-2 is accepted
            record preparing b-2 try 1
            prepare b-2
        0 prepared b-2
            record prepared b-2
        0 w2 idle
            record noted joined
            info: worker w2 is here (pid 102 on alpha, cpu)
            wake w2
        0 w3 idle
            record noted joined
            info: worker w3 is here (pid 103 on alpha, cpu)
            wake w3
            record formed b-2 g2 [w2 w3] threads 1 from 0
            info: runs from the start on w2, w3 with 1 thread each (the cores of each machine over its workers)
            wake w2
            wake w3
        100 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
            record interrupted a-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
            warn: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed; workers are gathered to go on
            prepare a-1
            wake w0
            wake w1
        100 w0 idle
        110 prepared a-1
        120 lost w3 its connection closed
            record noted gone
            info: worker w3 is gone: its connection closed
            record interrupted b-2 g2: worker w3 (rank 1, stage 1, pid 103 on alpha) was lost: its connection closed
            warn: worker w3 (rank 1, stage 1, pid 103 on alpha) was lost: its connection closed; workers are gathered to go on
            prepare b-2
            wake w2
            wake w3
        120 w2 idle
        130 prepared b-2
        130 jobs
            a-1 Gathering step 0: waiting for 1 of 2 workers (here: 1 kept for b-2), since worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
            b-2 Gathering step 0: waiting for 1 of 2 workers (here: 1 kept for a-1), since worker w3 (rank 1, stage 1, pid 103 on alpha) was lost: its connection closed; a-1 waits too and is served first
        140 submit c steps=4
            record submitted c-3
            info: job c-3 is accepted
        140 jobs
            a-1 Gathering step 0: waiting for 1 of 2 workers (here: 1 kept for b-2), since worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
            b-2 Gathering step 0: waiting for 1 of 2 workers (here: 1 kept for a-1), since worker w3 (rank 1, stage 1, pid 103 on alpha) was lost: its connection closed; a-1 waits too and is served first
            c-3 Queued step 0: waits behind a-1
        150 submit d priority=1 steps=4
            record submitted d-4
            info: job d-4 is accepted
            record preparing d-4 try 1
            prepare d-4
        150 prepared d-4
            record prepared d-4
            record formed d-4 g3 [w0] threads 2 from 0
            info: runs from the start on w0 with 2 threads each (the cores of each machine over its workers)
            wake w0
        160 jobs
            a-1 Gathering step 0: waiting for 2 of 2 workers (here: 1 at work for d-4, 1 kept for b-2), since worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
            b-2 Gathering step 0: waiting for 1 of 2 workers (here: 1 at work for d-4), since worker w3 (rank 1, stage 1, pid 103 on alpha) was lost: its connection closed; a-1 waits too and is served first
            c-3 Queued step 0: waits behind a-1
            d-4 Running step 0: on 1 worker, generation 3
        170 w4 idle
            record noted joined
            info: worker w4 is here (pid 104 on alpha, cpu)
            wake w4
        170 jobs
            a-1 Gathering step 0: waiting for 1 of 2 workers (here: 1 at work for d-4, 1 kept for b-2), since worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
            b-2 Gathering step 0: waiting for 1 of 2 workers (here: 1 at work for d-4, 1 kept for a-1), since worker w3 (rank 1, stage 1, pid 103 on alpha) was lost: its connection closed; a-1 waits too and is served first
            c-3 Queued step 0: waits behind a-1
            d-4 Running step 0: on 1 worker, generation 3
    "#]].assert_eq(&tell(&format!("{before}\n{after}")));
}

#[test]
fn a_worker_that_is_bound_to_jobs_is_given_no_other_and_kept_for_none() {
    let print = tell(
        "0 submit small wait steps=4
         0 prepared small-1
         0 submit large priority=1 steps=4
         0 prepared large-2
         0 w0 idle serves=small-*
         0 jobs
         0 submit third pp=2 steps=4
         10 w1 idle serves=small-1
         20 w2 idle serves=large-2
         30 prepared third-3
         30 w3 idle
         30 jobs",
    );
    expect![[r#"
        0 submit small wait steps=4
            record started 1
            record submitted small-1
            info: job small-1 is accepted
            record preparing small-1 try 1
            prepare small-1
        0 prepared small-1
            record prepared small-1
        0 submit large priority=1 steps=4
            record submitted large-2
            info: job large-2 is accepted
            record preparing large-2 try 1
            prepare large-2
        0 prepared large-2
            record prepared large-2
        0 w0 idle serves=small-*
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
            record formed small-1 g1 [w0] threads 2 from 0
            info: runs from the start on w0 with 2 threads each (the cores of each machine over its workers)
            wake w0
        0 jobs
            small-1 Running step 0: on 1 worker, generation 1
            large-2 Gathering step 0: waiting for 1 of 1 worker (here: 1 at work for small-1)
        0 submit third pp=2 steps=4
            record submitted third-3
            info: job third-3 is accepted
        10 w1 idle serves=small-1
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
        20 w2 idle serves=large-2
            record noted joined
            info: worker w2 is here (pid 102 on alpha, cpu)
            wake w2
            record formed large-2 g2 [w2] threads 2 from 0
            info: runs from the start on w2 with 2 threads each (the cores of each machine over its workers)
            record preparing third-3 try 1
            prepare third-3
            wake w2
        30 prepared third-3
            record prepared third-3
        30 w3 idle
            record noted joined
            info: worker w3 is here (pid 103 on alpha, cpu)
            wake w3
        30 jobs
            small-1 Running step 0: on 1 worker, generation 1
            large-2 Running step 0: on 1 worker, generation 2
            third-3 Gathering step 0: waiting for 1 of 2 workers (here: 1 at work for large-2, 1 at work for small-1, 1 bound to other jobs)
    "#]].assert_eq(&print);
}

/// A few jobs are prepared at once. A slow one holds up the others for a while only.
#[test]
fn a_job_that_is_prepared_for_long_lets_others_go_first() {
    let print = tell(
        "0 submit large steps=2
         0 submit b steps=2
         0 submit c steps=2
         0 submit d steps=2
         0 submit e steps=2
         0 jobs
         5 prepared b-2
         10 w0 idle
         10 jobs
         59999 w0 idle
         59999 deadline
         60000 tick
         60000 jobs
         70000 w0 g1 running step=2 reports=1..2 saved=2
         70001 w0 g1 done step=2 published=2
         70002 prepared large-1
         70003 w0 idle
         70003 jobs",
    );
    expect![[r#"
        0 submit large steps=2
            record started 1
            record submitted large-1
            info: job large-1 is accepted
            record preparing large-1 try 1
            prepare large-1
        0 submit b steps=2
            record submitted b-2
            info: job b-2 is accepted
            record preparing b-2 try 1
            prepare b-2
        0 submit c steps=2
            record submitted c-3
            info: job c-3 is accepted
            record preparing c-3 try 1
            prepare c-3
        0 submit d steps=2
            record submitted d-4
            info: job d-4 is accepted
            record preparing d-4 try 1
            prepare d-4
        0 submit e steps=2
            record submitted e-5
            info: job e-5 is accepted
        0 jobs
            large-1 Preparing step 0: its tokens are being made ready
            b-2 Preparing step 0: its tokens are being made ready
            c-3 Preparing step 0: its tokens are being made ready
            d-4 Preparing step 0: its tokens are being made ready
            e-5 Queued step 0: waits until the tokens of large-1 are ready
        5 prepared b-2
            record prepared b-2
        10 w0 idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        10 jobs
            large-1 Preparing step 0: its tokens are being made ready
            b-2 Gathering step 0: waiting for 1 of 1 worker (here: 1 kept for large-1); large-1 waits too and is served first
            c-3 Preparing step 0: its tokens are being made ready
            d-4 Preparing step 0: its tokens are being made ready
            e-5 Queued step 0: waits behind b-2
        59999 w0 idle
        59999 deadline
            Some(60000)
        60000 tick
            record formed b-2 g1 [w0] threads 2 from 0
            info: runs from the start on w0 with 2 threads each (the cores of each machine over its workers)
            record preparing e-5 try 1
            prepare e-5
            wake w0
        60000 jobs
            large-1 Preparing step 0: its tokens are being made ready
            b-2 Running step 0: on 1 worker, generation 1
            c-3 Preparing step 0: its tokens are being made ready
            d-4 Preparing step 0: its tokens are being made ready
            e-5 Preparing step 0: its tokens are being made ready
        70000 w0 g1 running step=2 reports=1..2 saved=2
            report b-2 step 1
            report b-2 step 2
            sync b-2 to step 2
            wake w0
            record committed b-2 step 2 [w0-2]
            wake w0
        70001 w0 g1 done step=2 published=2
            record published b-2 step 2 m2
            info: the checkpoint of step 2 can be read
            prune b-2 to 2 up to 2
            record ended b-2 Done
            info: job b-2 is done: step 2 is taken and its checkpoint can be read
            wake w0
            wake w0
        70002 prepared large-1
            record prepared large-1
        70003 w0 idle
            record formed large-1 g2 [w0] threads 2 from 0
            info: runs from the start on w0 with 2 threads each (the cores of each machine over its workers)
            wake w0
        70003 jobs
            large-1 Running step 0: on 1 worker, generation 2
            b-2 Ended(Done) step 2: step 2 is taken and its checkpoint can be read
            c-3 Preparing step 0: its tokens are being made ready
            d-4 Preparing step 0: its tokens are being made ready
            e-5 Preparing step 0: its tokens are being made ready
    "#]].assert_eq(&print);
}

/// A job whose preparation crashes the coordinator is given up after a few attempts.
#[test]
fn a_job_that_ends_its_coordinators_is_not_tried_for_ever() {
    let restarted = |journal: &mut Vec<Entry>, story: &str| {
        let (print, more) = tell_to(&mut Cluster::replay(journal.clone()), story);
        journal.extend(more);
        assert_eq!(compacted(journal), Cluster::replay(journal.clone()).jobs());
        print
    };
    let mut journal = Vec::new();
    restarted(&mut journal, "0 submit demo steps=2\n 0 submit other steps=2\n 9 prepared other-2");
    for _ in 1..MAX_TRIES {
        restarted(&mut journal, "0 tick\n 9 prepared other-2");
    }
    let print = restarted(&mut journal, "0 tick\n 9 prepared other-2\n 9 jobs");
    expect![[r#"
        0 tick
            record started 6
            record ended demo-1 Failed
            warn: job demo-1 failed: 5 coordinators in a row ended while they made its tokens ready, so this one does not try; if they ended for another reason, submit it again
            record preparing other-2 try 1
            prepare other-2
        9 prepared other-2
            record prepared other-2
        9 jobs
            demo-1 Ended(Failed) step 0: 5 coordinators in a row ended while they made its tokens ready, so this one does not try; if they ended for another reason, submit it again
            other-2 Gathering step 0: waiting for 1 of 1 worker
    "#]].assert_eq(&print);
}

fn compacted(journal: &[Entry]) -> Vec<JobSummary> {
    let dated: Vec<_> = journal.iter().map(|entry| (0, entry.clone())).collect();
    Cluster::replay(compact(&dated).into_iter().map(|(_, entry)| entry)).jobs()
}
