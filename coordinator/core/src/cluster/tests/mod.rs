//! What a cluster does, told as stories.

mod apart;
mod cancel;
mod compact;
mod compute;
mod drain;
mod explain;
mod found;
mod many;
mod planning;
mod queue;
mod rebalance;
mod recovery;
mod saving;
mod shrink;
mod story;

use coxswain_types::ids::{Generation, WorkerId};
use coxswain_types::status::{WorkerInfo, WorkerStatus};
use expect_test::expect;
use story::{tell, tell_to};

use super::{Cluster, Effect, Event};

/// Two workers at work on a job of two stages and four steps.
const AT_WORK: &str = "
    0 submit demo pp=2 steps=4
    0 prepared demo-1
    0 w0 idle
    0 w1 idle
    100 w0 g1 running
    100 w1 g1 running
";

fn worker(name: &str) -> WorkerId {
    WorkerId(name.to_owned())
}

/// What follows after [`AT_WORK`].
fn at_work(story: &str) -> String {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    tell_to(&mut cluster, story).0
}

#[test]
fn a_job_runs_saves_and_is_done() {
    let print = tell(
        "0 submit demo pp=2 steps=2
         5 prepared demo-1
         5 jobs
         10 w0 idle
         10 jobs
         20 w1 idle
         20 desired w0
         20 desired w1
         100 w0 g1 preparing
         100 w1 g1 preparing
         100 desired w0
         200 w0 g1 running step=2 reports=1..2
         200 desired w0
         200 desired w1
         210 w0 g1 running step=2 reports=1..2
         300 w1 g1 running step=2 saved=2
         300 w1 g1 done step=2 saved=2
         310 w0 g1 running step=2 saved=2
         310 desired w0
         310 desired w1
         400 w0 g1 done step=2 saved=2 published=2
         400 desired w0
         400 jobs",
    );
    expect![[r#"
        0 submit demo pp=2 steps=2
            record started 1
            record submitted demo-1
            info: job demo-1 is accepted
            record preparing demo-1 try 1
            prepare demo-1
        5 prepared demo-1
            record prepared demo-1
        5 jobs
            demo-1 Gathering step 0: waiting for 2 of 2 workers
        10 w0 idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        10 jobs
            demo-1 Gathering step 0: waiting for 1 of 2 workers
        20 w1 idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
            record formed demo-1 g1 [w0 w1] threads 1 from 0
            info: runs from the start on w0, w1 with 1 thread each (the cores of each machine over its workers)
            wake w0
            wake w1
        20 desired w0
            g1 assignment run_to 2 acknowledged 0
        20 desired w1
            g1 assignment run_to 2 acknowledged 0
        100 w0 g1 preparing
        100 w1 g1 preparing
        100 desired w0
            g1 named run_to 2 acknowledged 0
        200 w0 g1 running step=2 reports=1..2
            report demo-1 step 1
            report demo-1 step 2
            wake w0
        200 desired w0
            g1 named run_to 2 acknowledged 2
        200 desired w1
            g1 named run_to 2 acknowledged 0
        210 w0 g1 running step=2 reports=1..2
        300 w1 g1 running step=2 saved=2
        300 w1 g1 done step=2 saved=2
        310 w0 g1 running step=2 saved=2
            sync demo-1 to step 2
            record committed demo-1 step 2 [w0-2 w1-2]
            wake w0
            wake w1
        310 desired w0
            g1 named run_to 2 acknowledged 2 publish 2
        310 desired w1
            g1 named run_to 2 acknowledged 0
        400 w0 g1 done step=2 saved=2 published=2
            record published demo-1 step 2 m2
            info: the checkpoint of step 2 can be read
            prune demo-1 to 2 up to 2
            record ended demo-1 Done
            info: job demo-1 is done: step 2 is taken and its checkpoint can be read
            wake w0
            wake w0
            wake w1
        400 desired w0
            g1 idle run_to 0 acknowledged 0
        400 jobs
            demo-1 Ended(Done) step 2: step 2 is taken and its checkpoint can be read
    "#]].assert_eq(&print);
}

#[test]
fn a_lost_worker_ends_the_run() {
    let print = at_work(
        "200 lost w1 its connection closed
         200 desired w0
         200 w0 idle
         200 jobs",
    );
    expect![[r#"
        200 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
            record ended demo-1 Failed
            warn: job demo-1 failed: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
            wake w0
            wake w1
        200 desired w0
            g1 idle run_to 0 acknowledged 0
        200 w0 idle
        200 jobs
            demo-1 Ended(Failed) step 0: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
    "#]].assert_eq(&print);
}

#[test]
fn the_lost_worker_is_named_though_its_peer_complained_first() {
    let print = at_work(
        "200 w0 g1 failed: the peer closed the connection
         200 deadline
         350 lost w1 its connection closed",
    );
    expect![[r#"
        200 w0 g1 failed: the peer closed the connection
        200 deadline
            Some(5100)
        350 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
            record ended demo-1 Failed
            warn: job demo-1 failed: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
            wake w0
            wake w1
    "#]].assert_eq(&print);
}

#[test]
fn a_complaint_is_believed_when_no_rank_is_lost() {
    let print = at_work(
        "200 w0 g1 failed: no space left on device
         300 w1 g1 failed: the peer closed the connection
         400 lost w0 its connection closed
         400 deadline
         1699 tick
         1700 tick",
    );
    expect![[r#"
        200 w0 g1 failed: no space left on device
        300 w1 g1 failed: the peer closed the connection
        400 lost w0 its connection closed
            record noted gone
            info: worker w0 is gone: its connection closed
        400 deadline
            Some(1700)
        1699 tick
        1700 tick
            record ended demo-1 Failed
            warn: job demo-1 failed: worker w0 (rank 0, stage 0, pid 100 on alpha) failed: no space left on device
            wake w0
            wake w1
    "#]].assert_eq(&print);
}

#[test]
fn a_silent_worker_is_given_its_lease_before_a_complaint_is_believed() {
    let print = at_work(
        "4000 w0 g1 failed: no answer from rank 1
         4000 deadline
         5099 w0 g1 failed: no answer from rank 1
         5100 tick",
    );
    expect![[r#"
        4000 w0 g1 failed: no answer from rank 1
        4000 deadline
            Some(5100)
        5099 w0 g1 failed: no answer from rank 1
        5100 tick
            record noted gone
            info: worker w1 is gone: no sign of life for 5 s
            record ended demo-1 Failed
            warn: job demo-1 failed: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: no sign of life for 5 s
            refuse w1/1: it counts as lost: no sign of life for 5 s
            wake w0
            wake w1
    "#]].assert_eq(&print);
}

#[test]
fn a_lease_that_runs_out_ends_the_run() {
    let print = at_work(
        "3000 w0 g1 running step=1 reports=1..1
         5099 tick
         5100 tick
         5100 w1 g1 running",
    );
    expect![[r#"
        3000 w0 g1 running step=1 reports=1..1
            report demo-1 step 1
            wake w0
        5099 tick
        5100 tick
            record noted gone
            info: worker w1 is gone: no sign of life for 5 s
            record ended demo-1 Failed
            warn: job demo-1 failed: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: no sign of life for 5 s
            refuse w1/1: it counts as lost: no sign of life for 5 s
            wake w0
            wake w1
        5100 w1 g1 running
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
    "#]].assert_eq(&print);
}

#[test]
fn a_cancelled_job_makes_room_for_the_next() {
    let print = at_work(
        "100 submit next steps=1
         100 jobs
         200 cancel-now demo-1 the user pressed Ctrl-C
         200 desired w0
         210 w0 g1 idle
         220 prepared next-2
         220 w1 g2 running
         230 w1 idle
         240 cancel next-2 enough
         240 cancel next-2 enough
         240 jobs",
    );
    expect![[r#"
        100 submit next steps=1
            record submitted next-2
            info: job next-2 is accepted
            record preparing next-2 try 1
            prepare next-2
        100 jobs
            demo-1 Running step 0: on 2 workers, generation 1
            next-2 Preparing step 0: its tokens are being made ready
        200 cancel-now demo-1 the user pressed Ctrl-C
            record ended demo-1 Cancelled
            info: job demo-1 was cancelled: the user pressed Ctrl-C
            wake w0
            wake w1
        200 desired w0
            g1 idle run_to 0 acknowledged 0
        210 w0 g1 idle
        220 prepared next-2
            record prepared next-2
            record formed next-2 g2 [w0] threads 2 from 0
            info: runs from the start on w0 with 2 threads each (the cores of each machine over its workers)
            wake w0
        220 w1 g2 running
        230 w1 idle
        240 cancel next-2 enough
            record ended next-2 Cancelled
            info: job next-2 was cancelled: enough
            wake w0
        240 cancel next-2 enough
        240 jobs
            demo-1 Ended(Cancelled) step 0: the user pressed Ctrl-C
            next-2 Ended(Cancelled) step 0: enough
    "#]]
    .assert_eq(&print);
}

#[test]
fn what_the_shell_cannot_do_ends_the_run() {
    let print = at_work(
        "200 broken demo-1 metrics.jsonl: no space left on device
         200 broken demo-1 again",
    );
    expect![[r#"
        200 broken demo-1 metrics.jsonl: no space left on device
            record ended demo-1 Failed
            warn: job demo-1 failed: metrics.jsonl: no space left on device
            wake w0
            wake w1
        200 broken demo-1 again
    "#]]
    .assert_eq(&print);
}

#[test]
fn older_generations_and_processes_are_refused() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    let (print, _) = tell_to(
        &mut cluster,
        "200 cancel-now demo-1 enough
         200 w0 g1 idle
         200 w1' idle
         300 submit again pp=2 steps=4
         300 prepared again-2
         310 w0 g1 running step=4 reports=1..4 saved=4
         311 w0 g1 running step=4 reports=1..4 saved=4
         320 w1 g2 failed: an older process
         330 w1' g2 running
         340 lost w1 its connection closed
         340 w2 g9 running
         340 jobs",
    );
    expect![[r#"
        200 cancel-now demo-1 enough
            record ended demo-1 Cancelled
            info: job demo-1 was cancelled: enough
            wake w0
            wake w1
        200 w0 g1 idle
        200 w1' idle
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
        300 submit again pp=2 steps=4
            record submitted again-2
            info: job again-2 is accepted
            record preparing again-2 try 1
            prepare again-2
        300 prepared again-2
            record prepared again-2
            record formed again-2 g2 [w0 w1] threads 1 from 0
            info: runs from the start on w0, w1 with 1 thread each (the cores of each machine over its workers)
            wake w0
            wake w1
        310 w0 g1 running step=4 reports=1..4 saved=4
            warn: worker w0 speaks of generation 1, but 2 is at work: ignored
            wake w0
        311 w0 g1 running step=4 reports=1..4 saved=4
            wake w0
        320 w1 g2 failed: an older process
            warn: refused worker w1 (pid 101 on alpha): a newer process goes by the name w1 (pid 101 on alpha); give each worker a name of its own
            refuse w1/1: a newer process goes by the name w1 (pid 101 on alpha); give each worker a name of its own
        330 w1' g2 running
        340 lost w1 its connection closed
        340 w2 g9 running
            record noted joined
            warn: worker w2 is here (pid 102 on alpha, cpu); it speaks of generation 9, which this coordinator never formed, so that is ignored
            wake w2
        340 jobs
            demo-1 Ended(Cancelled) step 0: enough
            again-2 Running step 0: on 2 workers, generation 2
    "#]].assert_eq(&print);
}

#[test]
fn a_process_that_is_started_again_ends_the_run_of_the_older_one() {
    expect![[r#"
        200 w1' idle
            record ended demo-1 Failed
            warn: job demo-1 failed: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: a newer process took its name
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w0
            wake w1
            wake w1
    "#]].assert_eq(&at_work("200 w1' idle"));
}

#[test]
fn workers_of_different_runtimes_are_not_mixed() {
    let print = tell(
        "0 submit demo pp=2 steps=4
         0 prepared demo-1
         0 w0 idle
         0 w1* idle
         0 jobs
         0 w2 idle
         0 desired w1",
    );
    expect![[r#"
        0 submit demo pp=2 steps=4
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
        0 w1* idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
        0 jobs
            demo-1 Gathering step 0: waiting for 2 workers that compute alike: idle are 1 with cpu, libtorch 2.11; 1 with cpu, libtorch 2.12; ranks of one generation must have the same kind of device and the same libtorch
        0 w2 idle
            record noted joined
            info: worker w2 is here (pid 102 on alpha, cpu)
            wake w2
            record formed demo-1 g1 [w0 w2] threads 1 from 0
            info: runs from the start on w0, w2 with 1 thread each (the cores of each machine over its workers)
            wake w0
            wake w2
        0 desired w1
            g1 idle run_to 0 acknowledged 0
    "#]].assert_eq(&print);
}

#[test]
fn a_run_continues_from_its_checkpoint() {
    let print = tell(
        "0 submit demo steps=4
         0 w0 idle
         0 prepared demo-1 resume=2
         0 desired w0
         10 w0 g1 running step=4 reports=3..4 saved=4
         20 w0 g1 done step=4 saved=4 published=4
         30 submit more steps=4
         30 prepared more-2 resume=4
         40 submit none steps=4
         40 unprepared none-3 data.files: nothing/there.txt is not there",
    );
    expect![[r#"
        0 submit demo steps=4
            record started 1
            record submitted demo-1
            info: job demo-1 is accepted
            record preparing demo-1 try 1
            prepare demo-1
        0 w0 idle
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        0 prepared demo-1 resume=2
            record prepared demo-1
            record formed demo-1 g1 [w0] threads 3 from 2
            info: runs from the checkpoint of step 2 on w0 with 3 threads each (as in the checkpoint)
            wake w0
        0 desired w0
            g1 assignment run_to 4 acknowledged 2
        10 w0 g1 running step=4 reports=3..4 saved=4
            report demo-1 step 3
            report demo-1 step 4
            sync demo-1 to step 4
            wake w0
            record committed demo-1 step 4 [w0-4]
            wake w0
        20 w0 g1 done step=4 saved=4 published=4
            record published demo-1 step 4 m4
            info: the checkpoint of step 4 can be read
            prune demo-1 to 2 up to 4
            record ended demo-1 Done
            info: job demo-1 is done: step 4 is taken and its checkpoint can be read
            wake w0
            wake w0
        30 submit more steps=4
            record submitted more-2
            info: job more-2 is accepted
            record preparing more-2 try 1
            prepare more-2
        30 prepared more-2 resume=4
            record prepared more-2
            record ended more-2 Done
            info: job more-2 is done: all of its 4 steps are taken; raise train.steps to go on
        40 submit none steps=4
            record submitted none-3
            info: job none-3 is accepted
            record preparing none-3 try 1
            prepare none-3
        40 unprepared none-3 data.files: nothing/there.txt is not there
            record ended none-3 Failed
            warn: job none-3 failed: data.files: nothing/there.txt is not there
    "#]]
    .assert_eq(&print);
}

#[test]
fn leaving_is_wanted_of_all_and_nothing_starts_any_more() {
    let print = at_work(
        "200 submit next steps=1
         200 cancel-now demo-1 enough
         200 dismiss the run is over
         200 desired w0
         210 w0 idle
         210 prepared next-2
         210 desired w0",
    );
    expect![[r#"
        200 submit next steps=1
            record submitted next-2
            info: job next-2 is accepted
            record preparing next-2 try 1
            prepare next-2
        200 cancel-now demo-1 enough
            record ended demo-1 Cancelled
            info: job demo-1 was cancelled: enough
            wake w0
            wake w1
        200 dismiss the run is over
            wake w0
            wake w1
        200 desired w0
            g1 idle run_to 0 acknowledged 0 leave: the run is over
        210 w0 idle
        210 prepared next-2
            record prepared next-2
        210 desired w0
            g1 idle run_to 0 acknowledged 0 leave: the run is over
    "#]]
    .assert_eq(&print);
}

#[test]
fn two_jobs_do_not_share_a_folder() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    expect![
        "job demo-1 writes to /runs/0 and is not over; wait for its end, cancel it, or give another folder"
    ]
    .assert_eq(&cluster.next_job("other", "/runs/0").unwrap_err().to_string());
    tell_to(&mut cluster, "0 cancel-now demo-1 enough");
    assert_eq!(cluster.next_job("other", "/runs/0").unwrap(), "other-2");
}

#[test]
fn processes_are_numbered_by_their_coordinator_over_its_starts() {
    let mut first = Cluster::default();
    assert_eq!(first.register(), None, "an earlier start could have given the same");
    let (_, entries) = tell_to(&mut first, "0 tick");
    let numbers = [first.register().unwrap(), first.register().unwrap()];
    let mut second = Cluster::replay(entries);
    second.handle(0, Event::Tick);
    let later = second.register().unwrap();
    assert!(numbers[0] < numbers[1] && numbers[1] < later, "{numbers:?} {later}");

    // A process of another coordinator, which numbered more of them.
    let mut seen = |incarnation| {
        let info = WorkerInfo { incarnation, ..story::info("w0") };
        let status = WorkerStatus::idle(info, Generation(0));
        let effects = second.handle(1, Event::Seen { status });
        effects.iter().any(|effect| matches!(effect, Effect::Refuse { .. }))
    };
    assert!(seen(0) && seen(later + 1) && seen(u64::MAX));
    assert!(!seen(later));
}
