//! Interruptions, and what becomes of the job.

use expect_test::expect;

use super::AT_WORK;
use super::story::{tell, tell_to};
use coxswain_types::ids::WorkerId;

use crate::cluster::{Cluster, MAX_FAILED_ATTEMPTS};

#[test]
fn a_job_goes_on_when_a_lost_worker_is_back() {
    let print = tell(
        "0 submit demo wait pp=2 steps=4
         0 prepared demo-1
         0 w0 idle
         0 w1 idle
         100 w0 g1 running step=3 reports=1..3 saved=2
         110 w1 g1 running step=3 saved=2
         120 w0 g1 running step=3 published=2
         200 lost w1 its connection closed
         200 desired w0
         210 w0 g1 cut-off: the peer closed the connection
         220 w0 idle
         230 prepared demo-1 resume=2
         230 jobs
         300 w1' idle
         400 w0 g2 running step=3 reports=3..3
         410 w1' g2 leaving: it was asked to stop (SIGTERM)
         410 jobs",
    );
    expect![[r#"
        0 submit demo wait pp=2 steps=4
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
        0 w1 idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
            record formed demo-1 g1 [w0 w1] threads 1 from 0
            info: runs from the start on w0, w1 with 1 thread each (the cores of each machine over its workers)
            wake w0
            wake w1
        100 w0 g1 running step=3 reports=1..3 saved=2
            report demo-1 step 1
            report demo-1 step 2
            report demo-1 step 3
            wake w0
        110 w1 g1 running step=3 saved=2
            sync demo-1 to step 3
            record committed demo-1 step 2 [w0-2 w1-2]
            wake w0
            wake w1
        120 w0 g1 running step=3 published=2
            record published demo-1 step 2 m2
            info: the checkpoint of step 2 can be read
            prune demo-1 to 2 up to 2
            wake w0
        200 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
            record interrupted demo-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
            warn: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed; workers are gathered to go on
            prepare demo-1
            wake w0
            wake w1
        200 desired w0
            g1 idle run_to 0 acknowledged 0
        210 w0 g1 cut-off: the peer closed the connection
        220 w0 idle
        230 prepared demo-1 resume=2
        230 jobs
            demo-1 Gathering step 2: waiting for 1 of 2 workers, since worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
        300 w1' idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
            record formed demo-1 g2 [w0 w1] threads 1 from 2
            info: runs on w0, w1 with 1 thread each (as before)
            wake w0
            wake w1
        400 w0 g2 running step=3 reports=3..3
            report demo-1 step 3
            wake w0
        410 w1' g2 leaving: it was asked to stop (SIGTERM)
            record interrupted demo-1 g2: worker w1 (rank 1, stage 1, pid 101 on alpha) leaves: it was asked to stop (SIGTERM)
            warn: worker w1 (rank 1, stage 1, pid 101 on alpha) leaves: it was asked to stop (SIGTERM); workers are gathered to go on
            prepare demo-1
            wake w0
            wake w1
        410 jobs
            demo-1 Preparing step 3: worker w1 (rank 1, stage 1, pid 101 on alpha) leaves: it was asked to stop (SIGTERM)
    "#]].assert_eq(&print);
}

#[test]
fn a_complaint_of_a_peer_is_no_end() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, "0 submit demo wait pp=2 steps=4");
    tell_to(&mut cluster, AT_WORK.split_once("steps=4").unwrap().1);
    let print = tell_to(
        &mut cluster,
        "200 w0 g1 cut-off: no answer from rank 1
         250 w1 g1 cut-off: no answer from rank 0
         1700 tick
         1700 w0 idle
         1700 w1 idle
         1710 prepared demo-1
         1800 w0 g2 cut-off: no answer from rank 1
         1900 w1 g2 failed: no space left on device
         3300 tick",
    )
    .0;
    expect![[r#"
        200 w0 g1 cut-off: no answer from rank 1
        250 w1 g1 cut-off: no answer from rank 0
        1700 tick
            record interrupted demo-1 g1: worker w0 (rank 0, stage 0, pid 100 on alpha) failed: no answer from rank 1
            warn: worker w0 (rank 0, stage 0, pid 100 on alpha) failed: no answer from rank 1; workers are gathered to go on
            prepare demo-1
            wake w0
            wake w1
        1700 w0 idle
        1700 w1 idle
        1710 prepared demo-1
            record formed demo-1 g2 [w0 w1] threads 1 from 0
            info: runs on w0, w1 with 1 thread each (as before)
            wake w0
            wake w1
        1800 w0 g2 cut-off: no answer from rank 1
        1900 w1 g2 failed: no space left on device
        3300 tick
            record ended demo-1 Failed
            warn: job demo-1 failed: worker w1 (rank 1, stage 1, pid 101 on alpha) failed: no space left on device
            wake w0
            wake w1
    "#]].assert_eq(&print);
}

#[test]
fn a_job_that_comes_no_further_is_given_up() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, "0 submit demo wait pp=2 steps=4");
    tell_to(&mut cluster, AT_WORK.split_once("steps=4").unwrap().1);
    let mut print = String::new();
    for generation in 1..=MAX_FAILED_ATTEMPTS + 2 {
        let story = format!(
            "200 w0 g{generation} running step=1 reports=1..1
             200 w1 g{generation} leaving: it was asked to stop
             200 w0 idle
             200 w1 idle
             200 prepared demo-1"
        );
        print.push_str(&tell_to(&mut cluster, &story).0);
    }
    let count = |what: &str| print.matches(what).count() as u32;
    assert_eq!(
        (count("record interrupted"), count("record formed")),
        (MAX_FAILED_ATTEMPTS, MAX_FAILED_ATTEMPTS)
    );
    assert_eq!(count("record ended demo-1 Failed"), 1);
    let ends: Vec<_> = print.lines().map(str::trim).filter(|line| line.starts_with("warn: job")).collect();
    expect!["warn: job demo-1 failed: worker w1 (rank 1, stage 1, pid 101 on alpha) leaves: it was asked to stop; 10 tries before this one made no new step either"].assert_eq(&ends.join("\n"));
}

/// What a coordinator knows that is started after [`AT_WORK`] and this.
fn restarted(job: &str, more: &str) -> Cluster {
    let mut cluster = Cluster::default();
    let story = AT_WORK.replace("submit demo", &format!("submit demo {job}"));
    let (_, mut journal) = tell_to(&mut cluster, &story);
    journal.extend(tell_to(&mut cluster, more).1);
    Cluster::replay(journal)
}

#[test]
fn a_coordinator_that_is_started_again_finds_its_run_at_work() {
    let mut cluster = restarted(
        "wait",
        "200 submit next steps=1
         300 w0 g1 running step=2 reports=1..2 saved=2
         300 w1 g1 running step=2 saved=2",
    );
    let print = tell_to(
        &mut cluster,
        "0 jobs
         0 tick
         0 deadline
         500 w0 g1 running step=3 reports=3..3 saved=2
         500 desired w0
         600 w1 g1 running step=3 saved=2
         700 w0 g1 running step=4 reports=3..4 published=2 saved=4
         800 w1 g1 done step=4 saved=4
         900 w0 g1 done step=4 published=4
         900 jobs",
    )
    .0;
    expect![[r#"
        0 jobs
            demo-1 Running step 0: on 2 workers, generation 1
            next-2 Queued step 0: waits for its turn
        0 tick
            record started 2
            record preparing next-2 try 2
            prepare next-2
        0 deadline
            Some(10000)
        500 w0 g1 running step=3 reports=3..3 saved=2
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            report demo-1 step 3
            wake w0
            wake w0
        500 desired w0
            g1 named run_to 4 acknowledged 3 publish 2
        600 w1 g1 running step=3 saved=2
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
        700 w0 g1 running step=4 reports=3..4 published=2 saved=4
            report demo-1 step 4
            record published demo-1 step 2 m2
            info: the checkpoint of step 2 can be read
            prune demo-1 to 2 up to 2
            wake w0
            wake w0
        800 w1 g1 done step=4 saved=4
            sync demo-1 to step 4
            record committed demo-1 step 4 [w0-4 w1-4]
            wake w0
            wake w1
        900 w0 g1 done step=4 published=4
            record published demo-1 step 4 m4
            info: the checkpoint of step 4 can be read
            prune demo-1 to 2 up to 4
            record ended demo-1 Done
            info: job demo-1 is done: step 4 is taken and its checkpoint can be read
            wake w0
            wake w0
            wake w1
        900 jobs
            demo-1 Ended(Done) step 4: step 4 is taken and its checkpoint can be read
            next-2 Preparing step 0: its tokens are being made ready
    "#]]
    .assert_eq(&print);
}

#[test]
fn a_run_whose_workers_do_not_come_back_is_interrupted() {
    let more = "300 w0 g1 running step=2 reports=1..2 saved=2
                300 w1 g1 running step=2 saved=2
                310 w0 g1 running step=2 saved=2 published=2";
    let mut print = String::new();
    for (job, story) in [
        (
            "wait",
            "100 w0 g1 running step=3 reports=3..3\n 4000 w0 g1 running step=3\n 8000 w0 g1 running step=3\n 10000 tick",
        ),
        ("wait", "100 w0 g1 running step=3 reports=3..3\n 200 w1' idle"),
        ("wait", "100 w0 g1 running step=3 reports=3..3\n 200 w1 idle"),
        ("", "100 w1' idle"),
    ] {
        print.push_str(&tell_to(&mut restarted(job, more), story).0);
    }
    expect![[r#"
        100 w0 g1 running step=3 reports=3..3
            record started 2
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            report demo-1 step 3
            wake w0
            wake w0
        4000 w0 g1 running step=3
        8000 w0 g1 running step=3
        10000 tick
            record interrupted demo-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) did not come back within 10 s after the coordinator was started again
            warn: worker w1 (rank 1, stage 1, pid 101 on alpha) did not come back within 10 s after the coordinator was started again; workers are gathered to go on
            prepare demo-1
            wake w0
            wake w1
        100 w0 g1 running step=3 reports=3..3
            record started 2
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            report demo-1 step 3
            wake w0
            wake w0
        200 w1' idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            record interrupted demo-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) was started again
            warn: worker w1 (rank 1, stage 1, pid 101 on alpha) was started again; workers are gathered to go on
            prepare demo-1
            wake w1
            wake w0
            wake w1
        100 w0 g1 running step=3 reports=3..3
            record started 2
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            report demo-1 step 3
            wake w0
            wake w0
        200 w1 idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            record interrupted demo-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) was started again
            warn: worker w1 (rank 1, stage 1, pid 101 on alpha) was started again; workers are gathered to go on
            prepare demo-1
            wake w1
            wake w0
            wake w1
        100 w1' idle
            record started 2
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            record ended demo-1 Failed
            warn: job demo-1 failed: worker w1 (rank 1, stage 1, pid 101 on alpha) was started again
            wake w1
            wake w0
            wake w1
    "#]].assert_eq(&print);
}

#[test]
fn directives_of_a_later_coordinator_are_above_those_of_an_earlier_one() {
    let mut journal = Vec::new();
    let mut newest = 0;
    for start in 1..=3 {
        let mut cluster = Cluster::replay(journal.clone());
        let story =
            format!("0 w0 idle\n 0 submit demo-{start} steps=4\n 0 cancel demo-{start}-{start} enough");
        let (print, entries) = tell_to(&mut cluster, &story);
        assert!(print.starts_with(&format!("0 w0 idle\n    record started {start}\n")), "{print}");
        let revision = cluster.desired(&WorkerId("w0".to_owned())).revision;
        assert!(revision > newest, "{revision} after {newest}");
        newest = revision;
        journal.extend(entries);
    }
}

#[test]
fn a_broken_device_is_fenced_and_its_worker_taken_last() {
    let mut cluster = Cluster::default();
    tell_to(
        &mut cluster,
        "0 submit demo wait pp=2 steps=9
         0 prepared demo-1
         0 w0 idle
         0 w1 idle
         100 w0 g1 running step=1 reports=1..1
         100 w1 g1 running step=1
         200 w2 idle",
    );
    let print = tell_to(
        &mut cluster,
        "300 w0 g1 cut-off: a peer closed its connection
         310 w1 g1 broken: CUDA error: an illegal memory access was encountered
         320 lost w1 its connection closed
         330 w0 idle
         340 w1' idle
         350 prepared demo-1
         400 w0 g2 running step=1
         400 w2 g2 broken: CUDA error: an illegal memory access was encountered
         410 w0 idle
         410 lost w2 its connection closed
         420 prepared demo-1
         500 w0 g3 running step=2 reports=2..2
         500 w1' g3 running step=2",
    )
    .0;
    expect![[r#"
        300 w0 g1 cut-off: a peer closed its connection
        310 w1 g1 broken: CUDA error: an illegal memory access was encountered
            record interrupted demo-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) broke: CUDA error: an illegal memory access was encountered
            warn: worker w1 (rank 1, stage 1, pid 101 on alpha) broke: CUDA error: an illegal memory access was encountered; workers are gathered to go on
            prepare demo-1
            wake w0
            wake w1
        320 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
        330 w0 idle
        340 w1' idle
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
        350 prepared demo-1
            record formed demo-1 g2 [w0 w2] threads 1 from 0
            info: runs on w0, w2 with 1 thread each (as before)
            wake w0
            wake w2
        400 w0 g2 running step=1
        400 w2 g2 broken: CUDA error: an illegal memory access was encountered
            record interrupted demo-1 g2: worker w2 (rank 1, stage 1, pid 102 on alpha) broke: CUDA error: an illegal memory access was encountered
            warn: worker w2 (rank 1, stage 1, pid 102 on alpha) broke: CUDA error: an illegal memory access was encountered; workers are gathered to go on
            prepare demo-1
            wake w0
            wake w2
        410 w0 idle
        410 lost w2 its connection closed
            record noted gone
            info: worker w2 is gone: its connection closed
        420 prepared demo-1
            record formed demo-1 g3 [w0 w1] threads 1 from 0
            info: runs on w0, w1 with 1 thread each (as before)
            wake w0
            wake w1
        500 w0 g3 running step=2 reports=2..2
            report demo-1 step 2
            wake w0
        500 w1' g3 running step=2
    "#]].assert_eq(&print);
}

#[test]
fn a_device_that_never_worked_ends_the_job() {
    let print = tell(
        "0 submit demo wait steps=9
         0 prepared demo-1
         0 w0 idle
         100 w0 g1 broken: [enforce fail at alloc_cpu.cpp:119] can't allocate memory
         1700 tick",
    );
    assert!(print.contains("failed: worker w0 (rank 0, stage 0, pid 100 on alpha) failed:"), "{print}");
}

#[test]
fn a_damaged_checkpoint_is_looked_at_and_is_no_reason_to_end() {
    // Not even for a job that ends when a worker is lost.
    let print = tell(
        "0 submit demo pp=2 steps=8
         0 w0 idle
         0 w1 idle
         0 prepared demo-1 resume=4
         100 w1 g1 damaged: model-g1-r001.safetensors has another digest
         110 w0 g1 cut-off: the peer closed the connection
         120 w0 idle
         120 w1 idle
         130 prepared demo-1 resume=2
         200 w0 g2 running step=3 reports=3..3
         300 lost w1 its connection closed",
    );
    expect![[r#"
        0 submit demo pp=2 steps=8
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
        0 prepared demo-1 resume=4
            record prepared demo-1
            record formed demo-1 g1 [w0 w1] threads 3 from 4
            info: runs from the checkpoint of step 4 on w0, w1 with 3 threads each (as in the checkpoint)
            wake w0
            wake w1
        100 w1 g1 damaged: model-g1-r001.safetensors has another digest
            record interrupted demo-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) cannot go on: model-g1-r001.safetensors has another digest
            warn: worker w1 (rank 1, stage 1, pid 101 on alpha) cannot go on: model-g1-r001.safetensors has another digest; workers are gathered to go on
            prepare demo-1, looking at every byte
            wake w0
            wake w1
        110 w0 g1 cut-off: the peer closed the connection
        120 w0 idle
        120 w1 idle
        130 prepared demo-1 resume=2
            record formed demo-1 g2 [w0 w1] threads 3 from 2
            info: runs on w0, w1 with 3 threads each (as before)
            wake w0
            wake w1
        200 w0 g2 running step=3 reports=3..3
            report demo-1 step 3
            wake w0
        300 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
            record ended demo-1 Failed
            warn: job demo-1 failed: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
            wake w0
            wake w1
    "#]].assert_eq(&print);
}

#[test]
fn damage_that_only_a_rank_sees_ends_the_job_in_time() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, "0 submit demo wait steps=8\n0 w0 idle\n0 prepared demo-1 resume=4");
    for failed_attempt in 1..=u64::from(MAX_FAILED_ATTEMPTS) {
        let now = 100 * failed_attempt;
        let (print, _) = tell_to(
            &mut cluster,
            &format!(
                "{now} w0 g{failed_attempt} damaged: its memory\n{now} w0 idle\n{now} prepared demo-1 resume=4"
            ),
        );
        assert!(print.contains("prepare demo-1, looking at every byte"), "{print}");
        assert!(print.contains("record formed"), "{print}");
    }
    let (print, _) =
        tell_to(&mut cluster, &format!("9000 w0 g{} damaged: its memory", MAX_FAILED_ATTEMPTS + 1));
    assert!(print.contains("record ended demo-1 Failed"), "{print}");
}

/// Connections that closed during a pause do not count as losses. A worker that does not report back does.
#[test]
fn a_coordinator_that_paused_waits_for_its_workers() {
    let print = super::at_work(
        "12000 paused 11000
         12000 lost w0 its connection closed
         12001 lost w1 its connection closed
         12010 w0 g1 running step=2
         12020 desired w0
         12020 w1 g1 running step=2
         12030 w1 g1 running step=3
         12040 lost w1 its connection closed
         12050 w1 g1 running step=3
         22000 w0 g1 running step=3
         22000 w1 g1 running step=3
         22001 lost w1 its connection closed",
    );
    expect![[r#"
        12000 paused 11000
            warn: the coordinator did not run for 11.0 s, so it waits for its workers to report back
        12000 lost w0 its connection closed
            record noted gone
            info: worker w0 is gone: its connection closed
        12001 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
        12010 w0 g1 running step=2
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        12020 desired w0
            g1 named run_to 4 acknowledged 2
        12020 w1 g1 running step=2
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
        12030 w1 g1 running step=3
        12040 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
        12050 w1 g1 running step=3
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
        22000 w0 g1 running step=3
        22000 w1 g1 running step=3
        22001 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
            record ended demo-1 Failed
            warn: job demo-1 failed: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed
            wake w0
            wake w1
    "#]].assert_eq(&print);
    let print = super::at_work(
        "12000 paused 11000
         12001 lost w1 its connection closed
         12010 w0 g1 running step=2
         16000 w0 g1 running step=2
         20000 w0 g1 running step=2
         22000 tick",
    );
    expect![[r#"
        12000 paused 11000
            warn: the coordinator did not run for 11.0 s, so it waits for its workers to report back
        12001 lost w1 its connection closed
            record noted gone
            info: worker w1 is gone: its connection closed
        12010 w0 g1 running step=2
        16000 w0 g1 running step=2
        20000 w0 g1 running step=2
        22000 tick
            record ended demo-1 Failed
            warn: job demo-1 failed: worker w1 (rank 1, stage 1, pid 101 on alpha) did not come back within 10 s after the coordinator had paused
            wake w0
            wake w1
    "#]].assert_eq(&print);
}
