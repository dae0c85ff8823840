//! Stragglers get less work, or a spare takes their place, where the job allows it.

use std::fmt::Write as _;

use expect_test::expect;

use super::story::tell_to;
use crate::cluster::{Cluster, Entry};

const AT_WORK: &str = "
    0 submit demo wait rebalance dp=2 steps=900
    0 prepared demo-1
    0 w0 idle
    0 w1 idle
    100 w0 g1 running
    100 w1 g1 running
";

/// What is told while w0 and w1 take these steps of a generation, each so long, a step every 100 ms.
fn steps(cluster: &mut Cluster, generation: u32, steps: std::ops::Range<u64>, busy: [u64; 2]) -> String {
    let mut print = String::new();
    for step in steps {
        let at = step * 100;
        let worker =
            |rank: usize| format!("{at} w{rank} g{generation} running step={step} busy={}", busy[rank]);
        print.push_str(&tell_to(cluster, &worker(0)).0);
        print.push_str(&tell_to(cluster, &worker(1)).0);
        if cluster.next_deadline_ms().is_some_and(|due_ms| due_ms <= at) {
            print.push_str(&tell_to(cluster, &format!("{at} tick")).0);
        }
    }
    let told = print.lines().filter(|line| line.starts_with("    "));
    told.fold(String::new(), |mut told, line| {
        writeln!(told, "{line}").unwrap();
        told
    })
}

/// Both ranks stop after a step and save; the generation that follows is formed.
fn regroup(cluster: &mut Cluster, generation: u32, step: u64, more: &str) -> (String, Vec<Entry>) {
    let at = step * 100;
    let story = format!(
        "{at} w0 g{generation} done step={step} reports=1..{step} saved={step}
         {at} w1 g{generation} done step={step} saved={step}
         {at} w0 g{generation} done step={step} published={step}
         {at} w0 idle
         {at} w1 idle
         {at} prepared demo-1 resume={step}{more}"
    );
    let (print, journal) = tell_to(cluster, &story);
    let formed = |line: &&str| line.contains("regrouped") || line.contains("info: runs ");
    (print.lines().filter(formed).fold(String::new(), |told, line| told + line.trim() + "\n"), journal)
}

fn slow_percents(journal: &[Entry]) -> Vec<u32> {
    let formed = journal.iter().find_map(|entry| match entry {
        Entry::Formed { ranks, .. } => Some(ranks),
        _ => None,
    });
    formed.unwrap().iter().map(|rank| rank.slow_percent).collect()
}

#[test]
fn a_straggler_gets_less_and_its_share_back_when_it_keeps_up() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    // It is named after three seconds, and its work is divided anew ten seconds after the formation.
    let mut print = steps(&mut cluster, 1, 2..99, [3000, 1000]);
    print.push_str("--\n");
    print.push_str(&steps(&mut cluster, 1, 99..103, [3000, 1000]));
    let (told, journal) = regroup(&mut cluster, 1, 103, "");
    assert_eq!(slow_percents(&journal), [300, 100]);
    print.push_str(&format!("{told}--\n"));
    // One micro-batch of four: it takes as long as its peer, and nothing is to be told or done.
    let still = "10400 w0 g2 running\n 10400 w1 g2 running";
    tell_to(&mut cluster, still);
    assert_eq!(steps(&mut cluster, 2, 104..250, [1500, 1500]), "");
    // It keeps up again: its share comes back, later than the first time.
    print.push_str(&steps(&mut cluster, 2, 250..303, [500, 1500]));
    print.push_str("--\n");
    print.push_str(&steps(&mut cluster, 2, 303..310, [500, 1500]));
    let (told, journal) = regroup(&mut cluster, 2, 310, "");
    assert_eq!(slow_percents(&journal), [100, 100]);
    print.push_str(&told);
    expect![[r#"
            record noted straggler
            warn: worker w0 (rank 0, stage 0, pid 100 on alpha) is a straggler: it computes 3.0 times as long as its peers
        --
            record stopping demo-1 g1: worker w0 (rank 0, stage 0, pid 100 on alpha) is a straggler: it computes 3.0 times as long as its peers; the slowest rank would be done 2.0 times as fast
            info: worker w0 (rank 0, stage 0, pid 100 on alpha) is a straggler: it computes 3.0 times as long as its peers; the slowest rank would be done 2.0 times as fast; the run saves after a step and goes on in another formation
            wake w0
            wake w1
            wake w0
            wake w1
        record regrouped demo-1 g1 after step 103: worker w0 (rank 0, stage 0, pid 100 on alpha) is a straggler: it computes 3.0 times as long as its peers; the slowest rank would be done 2.0 times as fast
        info: runs on w0, w1 with 1 thread each (as before); work is divided as w0 takes 3.0 times as long
        --
            record noted recovered
            info: worker w0 (rank 0, stage 0, pid 100 on alpha) keeps up with its peers again
        --
            record stopping demo-1 g2: worker w0 (rank 0, stage 0, pid 100 on alpha) keeps up with its peers again; the slowest rank would be done 1.5 times as fast
            info: worker w0 (rank 0, stage 0, pid 100 on alpha) keeps up with its peers again; the slowest rank would be done 1.5 times as fast; the run saves after a step and goes on in another formation
            wake w0
            wake w1
            wake w0
            wake w1
        record regrouped demo-1 g2 after step 310: worker w0 (rank 0, stage 0, pid 100 on alpha) keeps up with its peers again; the slowest rank would be done 1.5 times as fast
        info: runs on w0, w1 with 1 thread each (as before)
    "#]].assert_eq(&print);
}

#[test]
fn a_spare_takes_the_place_of_a_straggler() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    tell_to(&mut cluster, "6400 w2 idle");
    let mut print = steps(&mut cluster, 1, 65..105, [3000, 1000]);
    let (told, journal) = regroup(&mut cluster, 1, 105, "\n 10500 w2 idle");
    print.push_str(&told);
    assert_eq!(slow_percents(&journal), [100, 100]);
    // No other worker is better than the straggler: when w1 is lost, it is taken again and has less to do.
    let more =
        "10600 w1 g2 running\n 10600 w2 g2 running\n 10700 w0 idle\n 10700 lost w1 its connection closed
                10700 w2 idle\n 10700 prepared demo-1 resume=105";
    let (_, journal) = tell_to(&mut cluster, more);
    assert_eq!(slow_percents(&journal), [100, 300]);
    expect![[r#"
            record noted straggler
            warn: worker w0 (rank 0, stage 0, pid 100 on alpha) is a straggler: it computes 3.0 times as long as its peers
            record stopping demo-1 g1: worker w0 (rank 0, stage 0, pid 100 on alpha) is a straggler: it computes 3.0 times as long as its peers, and w2 waits and can take its place; the slowest rank would be done 3.0 times as fast
            info: worker w0 (rank 0, stage 0, pid 100 on alpha) is a straggler: it computes 3.0 times as long as its peers, and w2 waits and can take its place; the slowest rank would be done 3.0 times as fast; the run saves after a step and goes on in another formation
            wake w0
            wake w1
            wake w0
            wake w1
        record regrouped demo-1 g1 after step 105: worker w0 (rank 0, stage 0, pid 100 on alpha) is a straggler: it computes 3.0 times as long as its peers, and w2 waits and can take its place; the slowest rank would be done 3.0 times as fast
        info: runs on w2, w1 with 1 thread each (as before)
    "#]].assert_eq(&print);
}

#[test]
fn a_spare_that_broke_takes_no_place() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    tell_to(
        &mut cluster,
        "150 w0 g1 running step=1 reports=1..1
         200 w2 idle
         300 w2 idle
         310 w0 g1 broken: CUDA error
         320 lost w0 its connection closed
         330 w1 idle
         330 prepared demo-1
         400 w2 g2 running
         400 w1 g2 running
         500 w0' idle",
    );
    let mut told = String::new();
    for step in 100..140 {
        let at = step * 100;
        let story = format!(
            "{at} w0' idle\n {at} w2 g2 running step={step} busy=3000\n {at} w1 g2 running step={step} busy=1000\n {at} tick"
        );
        told.push_str(&tell_to(&mut cluster, &story).0);
    }
    assert!(told.contains("record stopping demo-1 g2") && !told.contains("is gone"), "{told}");
    assert!(!told.contains("can take its place"), "{told}");
}

#[test]
fn a_job_that_does_not_ask_for_it_keeps_its_division() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, &AT_WORK.replace(" rebalance", ""));
    let told = steps(&mut cluster, 1, 2..200, [3000, 1000]);
    assert!(told.contains("is a straggler") && !told.contains("stopping"), "{told}");
}

#[test]
fn a_restart_knows_how_work_was_divided() {
    let mut cluster = Cluster::default();
    let (_, mut journal) = tell_to(&mut cluster, AT_WORK);
    steps(&mut cluster, 1, 65..105, [3000, 1000]);
    journal.extend(regroup(&mut cluster, 1, 105, "").1);
    let mut again = Cluster::replay(journal);
    tell_to(&mut again, "0 w0 g2 running step=105\n 0 w1 g2 running step=105");
    assert_eq!(steps(&mut again, 2, 106..300, [1500, 1500]), "", "it is slow, as before, and has less to do");
    assert!(steps(&mut again, 2, 300..340, [500, 1500]).contains("keeps up with its peers again"));
}
