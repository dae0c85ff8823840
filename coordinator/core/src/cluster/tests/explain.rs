//! What people are told of a run that is slow, hangs or was interrupted.

use expect_test::expect;

use super::story::tell_to;
use crate::cluster::{Cluster, JobEvent};

const AT_WORK: &str = "
    0 submit demo wait pp=2 steps=9
    0 prepared demo-1
    0 w0 idle
    0 w1 idle
    100 w0 g1 running step=1 reports=1..1
    100 w1 g1 running step=1
";

#[test]
fn a_hang_is_told_once_and_explained_in_the_cause() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    let print = tell_to(
        &mut cluster,
        "1000 w1 g1 running step=1 doing=1B2 for=10 last=1F3
         1100 w0 g1 running step=1 doing=0B2 for=900 waits=1 last=0F3
         2100 w0 g1 running step=1 doing=0B2 for=1900 waits=1 last=0F3
         3300 w0 g1 running step=1 doing=0B2 for=3100 waits=1 last=0F3
         4300 w0 g1 running step=1 doing=0B2 for=4100 waits=1 last=0F3
         4300 explain demo-1
         5300 w0 g1 running step=1 doing=0B2 for=5100 waits=1 last=0F3
         6000 tick
         6000 explain demo-1",
    )
    .0;
    expect![[r#"
        1000 w1 g1 running step=1 doing=1B2 for=10 last=1F3
        1100 w0 g1 running step=1 doing=0B2 for=900 waits=1 last=0F3
        2100 w0 g1 running step=1 doing=0B2 for=1900 waits=1 last=0F3
        3300 w0 g1 running step=1 doing=0B2 for=3100 waits=1 last=0F3
            record noted hang
            warn: the run hangs: worker w0 (stage 0) waits for the backward of micro-batch 2 from worker w1 (stage 1), silent for 2.3 s, which last did F 3
        4300 w0 g1 running step=1 doing=0B2 for=4100 waits=1 last=0F3
        4300 explain demo-1
            demo-1 is running: on 2 workers, generation 1
            step 1 of 9, priority 0; there is no checkpoint yet, in /runs/0
            loss 4.0000, 640 tokens/s, 1 s left

            rank 0  stage 0  worker w0 (pid 100 on alpha)  step 1  at 0B2 for 4.1 s, waiting for rank 1
            rank 1  stage 1  worker w1 (pid 101 on alpha)  step 1  at 1B2 for 3.3 s; silent for 3.3 s
            worker w0 (stage 0) waits for the backward of micro-batch 2 from worker w1 (stage 1), silent for 3.3 s, which last did F 3
        5300 w0 g1 running step=1 doing=0B2 for=5100 waits=1 last=0F3
        6000 tick
            record noted gone
            info: worker w1 is gone: no sign of life for 5 s
            record interrupted demo-1 g1: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: no sign of life for 5 s (worker w0 (stage 0) waits for the backward of micro-batch 2 from worker w1 (stage 1), silent for 5.0 s, which last did F 3)
            warn: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: no sign of life for 5 s (worker w0 (stage 0) waits for the backward of micro-batch 2 from worker w1 (stage 1), silent for 5.0 s, which last did F 3); workers are gathered to go on
            refuse w1/1: it counts as lost: no sign of life for 5 s
            prepare demo-1
            wake w0
            wake w1
        6000 explain demo-1
            demo-1 is preparing: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: no sign of life for 5 s (worker w0 (stage 0) waits for the backward of micro-batch 2 from worker w1 (stage 1), silent for 5.0 s, which last did F 3)
            step 1 of 9, priority 0; there is no checkpoint yet, in /runs/0
            loss 4.0000, 640 tokens/s

            interruptions, the newest last:
              generation 1, step 1: worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: no sign of life for 5 s (worker w0 (stage 0) waits for the backward of micro-batch 2 from worker w1 (stage 1), silent for 5.0 s, which last did F 3)
    "#]].assert_eq(&print);
}

#[test]
fn a_straggler_is_named_and_withdrawn() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    let mut print = String::new();
    for step in 2..14 {
        let busy = if step < 8 { 2100 } else { 1000 };
        let story = format!(
            "{step}000 w0 g1 running step={step} busy=1000\n {step}000 w1 g1 running step={step} busy={busy}"
        );
        print.push_str(&tell_to(&mut cluster, &story).0);
        if step == 7 {
            print.push_str(&tell_to(&mut cluster, "7000 explain demo-1").0);
        }
    }
    let told = print.lines().filter(|line| line.is_empty() || line.starts_with("    "));
    let told: Vec<_> = told.map(str::trim_start).collect();
    expect![[r#"
        record noted straggler
        warn: worker w1 (rank 1, stage 1, pid 101 on alpha) is a straggler: it computes 1.9 times as long as its peers
        demo-1 is running: on 2 workers, generation 1
        step 1 of 9, priority 0; there is no checkpoint yet, in /runs/0
        loss 4.0000, 640 tokens/s, 1 s left

        rank 0  stage 0  worker w0 (pid 100 on alpha)  step 7  runs
        rank 1  stage 1  worker w1 (pid 101 on alpha)  step 7  runs
        worker w1 (rank 1, stage 1, pid 101 on alpha) is a straggler: it computes 1.9 times as long as its peers
        record noted recovered
        info: worker w1 (rank 1, stage 1, pid 101 on alpha) keeps up with its peers again"#]].assert_eq(&told.join("\n"));
}

#[test]
fn where_a_generation_goes_on_is_told_once_it_is_known() {
    for (begun, told, again) in [
        ("step=1 begun=memory", "goes on from memory after step 1; no step is taken again", 0),
        ("step=0 begun=initial", "goes on from the start; 1 step is taken again", 1),
    ] {
        let mut cluster = Cluster::default();
        tell_to(&mut cluster, AT_WORK);
        let lost = "200 lost w1 its connection closed\n 200 w0 idle\n 210 prepared demo-1\n 220 w1' idle";
        let print = tell_to(&mut cluster, lost).0;
        assert!(print.contains("info: runs on w0, w1 with 1 thread each (as before)"), "{print}");
        let (print, journal) = tell_to(
            &mut cluster,
            &format!("300 w1' g2 running {begun}\n 310 w0 g2 running {begun}\n 320 w0 g2 running {begun}"),
        );
        assert_eq!(print.matches(told).count(), 1, "{print}");
        let event = serde_json::to_value(JobEvent::from(&journal[0])).unwrap();
        assert_eq!((event["kind"].as_str(), event["again"].as_u64()), (Some("begun"), Some(again)));
        assert!(tell_to(&mut cluster, "330 explain demo-1").0.contains(told));
    }
}

#[test]
fn one_overcommitted_machine_has_no_stragglers() {
    let mut cluster = Cluster::default();
    // Both on a machine of two cores, with two threads each.
    tell_to(&mut cluster, &AT_WORK.replace("steps=9", "steps=9 threads=2"));
    let mut print = String::new();
    for step in 2..20 {
        let story = format!(
            "{step}000 w0 g1 running step={step} busy=1000\n {step}000 w1 g1 running step={step} busy=9000"
        );
        print.push_str(&tell_to(&mut cluster, &story).0);
    }
    assert!(!print.contains("straggler"), "{print}");
}

#[test]
fn a_rank_that_is_slow_now_and_then_is_told_of_once_a_minute() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    let mut print = String::new();
    // Ten seconds slow, ten seconds not.
    for step in 2..152 {
        let busy = if step / 10 % 2 == 0 { 3000 } else { 1000 };
        let story = format!(
            "{step}000 w0 g1 running step={step} busy=1000\n {step}000 w1 g1 running step={step} busy={busy}"
        );
        print.push_str(&tell_to(&mut cluster, &story).0);
    }
    let told = |what| print.matches(what).count();
    assert_eq!((told("warn: "), told("keeps up")), (3, 3), "{print}");
}

#[test]
fn the_journal_is_told_as_events() {
    let mut cluster = Cluster::default();
    let (_, mut journal) = tell_to(&mut cluster, AT_WORK);
    let more = "200 lost w1 its connection closed\n 200 w0 idle\n 210 prepared demo-1\n 220 w1' idle
                230 drain w1 a new disk\n 240 cancel-now demo-1 enough";
    journal.extend(tell_to(&mut cluster, more).1);
    let lines: Vec<_> =
        journal.iter().map(|entry| serde_json::to_string(&JobEvent::from(entry)).unwrap()).collect();
    expect![[r#"
        {"kind":"started","text":"the coordinator started, for time 1 on this journal"}
        {"kind":"submitted","job":"demo-1","text":"to run in /runs/0","directory":"/runs/0"}
        {"kind":"preparing","job":"demo-1","text":"its data is made ready","tries":1}
        {"kind":"prepared","job":"demo-1","text":"its data is ready"}
        {"kind":"joined","worker":"w0","text":"worker w0 is here (pid 100 on alpha, cpu)"}
        {"kind":"joined","worker":"w1","text":"worker w1 is here (pid 101 on alpha, cpu)"}
        {"kind":"formed","job":"demo-1","generation":1,"text":"runs on w0, w1","ranks":[{"host":"alpha","pid":100,"stage":0,"worker":"w0"},{"host":"alpha","pid":101,"stage":1,"worker":"w1"}],"step":0}
        {"kind":"gone","worker":"w1","text":"worker w1 is gone: its connection closed"}
        {"kind":"interrupted","job":"demo-1","generation":1,"text":"worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed"}
        {"kind":"joined","worker":"w1","text":"worker w1 is here (pid 101 on alpha, cpu)"}
        {"kind":"formed","job":"demo-1","generation":2,"text":"runs on w0, w1","ranks":[{"host":"alpha","pid":100,"stage":0,"worker":"w0"},{"host":"alpha","pid":101,"stage":1,"worker":"w1"}],"step":0}
        {"kind":"drained","worker":"w1","text":"a new disk"}
        {"kind":"ended","job":"demo-1","text":"cancelled: enough; 1 step lost: there is no checkpoint","ending":"cancelled"}"#]].assert_eq(&lines.join("\n"));
}

/// What both ranks say every second, who wait for each other; `still` says for how long no tensor has moved at w1.
fn both_wait(seconds: std::ops::RangeInclusive<u64>, still: impl Fn(u64) -> u64) -> String {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    let told = seconds.map(|second| {
        let (ms, still) = (second * 1000, still(second * 1000));
        let story = format!(
            "{ms} w0 g1 running step=1 doing=0B2 for={ms} waits=1 still={ms}
             {ms} w1 g1 running step=1 doing=1F3 for={ms} waits=0 still={still}"
        );
        tell_to(&mut cluster, &story).0
    });
    let told: String = told.collect();
    told.lines().filter(|line| line.contains("warn:")).map(|line| format!("{}\n", line.trim())).collect()
}

#[test]
fn ranks_that_wait_for_each_other_are_interrupted_once_no_tensor_moves() {
    expect![[r#"
        warn: the run hangs: worker w0 (stage 0) waits for the backward of micro-batch 2 from worker w1 (stage 1), which waits for the forward of micro-batch 3 from worker w0 (stage 0): they wait for each other
        warn: every rank waits and no tensor moves: worker w0 (stage 0) waits for the backward of micro-batch 2 from worker w1 (stage 1), which waits for the forward of micro-batch 3 from worker w0 (stage 0): they wait for each other; workers are gathered to go on
    "#]].assert_eq(&both_wait(1..=30, |ms| ms));
    // A large tensor on a slow network; it moves.
    expect![[r#"
        warn: the run hangs: worker w0 (stage 0) waits for the backward of micro-batch 2 from worker w1 (stage 1), which waits for the forward of micro-batch 3 from worker w0 (stage 0): they wait for each other
    "#]].assert_eq(&both_wait(1..=60, |_| 900));
}
