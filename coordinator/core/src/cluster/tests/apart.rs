//! Workers that reach the coordinator and not each other.

use coxswain_types::ids::WorkerId;
use coxswain_types::status::WorkerInfo;
use expect_test::expect;

use super::shrink;
use super::story::{info, tell_to};
use crate::cluster::Cluster;
use crate::cluster::apart::{APART_MS, Apart, Pair};

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

fn pair(one: &str, other: &str) -> Pair {
    Pair::of(WorkerId(one.to_owned()), WorkerId(other.to_owned()))
}

fn names(apart: &Apart, now_ms: u64, all: &[WorkerInfo]) -> Vec<String> {
    apart.together(now_ms, all.iter().collect()).iter().map(|info| info.id.0.clone()).collect()
}

#[test]
fn who_is_apart_from_the_most_others_is_left_out() {
    let all = ["w0", "w1", "w2", "w3"].map(info);
    let mut apart = Apart::default();
    assert_eq!(names(&apart, 0, &all), ["w0", "w1", "w2", "w3"]);
    apart.keep(0, [pair("w3", "w2")]);
    assert_eq!(names(&apart, 0, &all), ["w0", "w1", "w2"], "of two, who is wanted less");
    apart.keep(0, [pair("w1", "w0"), pair("w1", "w2"), pair("w1", "w3")]);
    assert_eq!(names(&apart, 0, &all), ["w0", "w2"]);
    assert_eq!(names(&apart, APART_MS, &all), ["w0", "w1", "w2", "w3"]);
}

#[test]
fn each_time_they_are_kept_apart_for_twice_as_long_until_they_work_together() {
    let mut apart = Apart::default();
    let ends = |apart: &Apart| apart.ends_ms(0).unwrap_or(0) / 1000;
    let mut seen = Vec::new();
    for _ in 0..6 {
        apart.keep(0, [pair("w0", "w1")]);
        seen.push(ends(&apart));
    }
    assert_eq!(seen, [10, 20, 40, 80, 160, 160]);
    apart.met(|worker| worker.0 == "w0");
    assert_eq!(ends(&apart), 160, "w0 alone took a step");
    apart.met(|_| true);
    apart.keep(0, [pair("w0", "w1")]);
    assert_eq!(ends(&apart), 10);
}

/// Two spares that could only join a run that shrank one at a time do not make it form anew.
#[test]
fn spares_that_do_not_reach_each_other_stop_no_run_until_they_are_tried_again() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, shrink::AT_WORK);
    // It is their third time, so they are kept apart for 40 s from 3000 on.
    let job = cluster.job_mut("demo-1").unwrap();
    (0..2).for_each(|_| job.apart.keep(0, [pair("w2", "w3")]));
    tell_to(
        &mut cluster,
        "1000 w2 g1 from=3 parted: rank 3 does not answer
        1000 w3 g1 from=2 parted: rank 2 does not answer
        3000 tick
        3100 w0 idle
        3100 w1 idle
        3100 w2 idle
        3100 w3 idle
        3100 prepared demo-1
        5100 tick",
    );
    let mut until = |first: u64, end: u64| -> String {
        let beat = |now: u64| {
            format!("{now} w0 g2 running\n{now} w1 g2 running\n{now} w2 idle\n{now} w3 idle\n{now} tick")
        };
        let beats: Vec<_> = (first..end).step_by(2000).map(beat).collect();
        tell_to(&mut cluster, &beats.join("\n")).0
    };
    let apart = until(5200, 43_000);
    assert!(!apart.contains("goes on in another formation"), "{apart}");
    let tried = until(43_200, 60_000);
    assert!(
        tried.contains("2 more workers are here, enough for all of its layout; the run saves"),
        "{tried}"
    );
}
