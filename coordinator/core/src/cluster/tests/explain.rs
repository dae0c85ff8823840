//! What people are told of a run that is slow, hangs or was interrupted.

use expect_test::expect;

use super::story::tell_to;
use crate::cluster::{Cluster, Happening};

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
            demo-1 is running: generation 1 of 2 workers
            step 1 of 9, priority 0; there is no checkpoint yet, in /runs/0
    
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
            "{step}00 w0 g1 running step={step} busy=1000\n {step}00 w1 g1 running step={step} busy={busy}"
        );
        print.push_str(&tell_to(&mut cluster, &story).0);
        if step == 7 {
            print.push_str(&tell_to(&mut cluster, "700 explain demo-1").0);
        }
    }
    let told = print.lines().filter(|line| line.is_empty() || line.starts_with("    "));
    let told: Vec<_> = told.map(str::trim_start).collect();
    expect![[r#"
            record noted straggler
            warn: worker w1 (rank 1, stage 1, pid 101 on alpha) is a straggler: it computes 1.9 times as long as its peers
            demo-1 is running: generation 1 of 2 workers
            step 1 of 9, priority 0; there is no checkpoint yet, in /runs/0
    
            rank 0  stage 0  worker w0 (pid 100 on alpha)  step 7  runs
            rank 1  stage 1  worker w1 (pid 101 on alpha)  step 7  runs
            worker w1 (rank 1, stage 1, pid 101 on alpha) is a straggler: it computes 1.9 times as long as its peers
            record noted recovered
            info: worker w1 (rank 1, stage 1, pid 101 on alpha) keeps up with its peers again"#]].assert_eq(&told.join("\n"));
}

#[test]
fn the_journal_is_told_as_events() {
    let mut cluster = Cluster::default();
    let (_, mut journal) = tell_to(&mut cluster, AT_WORK);
    let more = "200 lost w1 its connection closed\n 200 w0 idle\n 210 prepared demo-1\n 220 w1' idle
                230 drain w1 a new disk\n 240 cancel demo-1 enough";
    journal.extend(tell_to(&mut cluster, more).1);
    let lines: Vec<_> =
        journal.iter().map(|entry| serde_json::to_string(&Happening::from(entry)).unwrap()).collect();
    expect![[r#"
        {"kind":"started","text":"the coordinator started, for time 1 on this journal"}
        {"kind":"submitted","job":"demo-1","text":"to run in /runs/0"}
        {"kind":"joined","worker":"w0","text":"worker w0 is here (pid 100 on alpha, cpu)"}
        {"kind":"joined","worker":"w1","text":"worker w1 is here (pid 101 on alpha, cpu)"}
        {"kind":"formed","job":"demo-1","generation":1,"text":"runs from step 0 on w0, w1"}
        {"kind":"gone","worker":"w1","text":"worker w1 is gone: its connection closed"}
        {"kind":"interrupted","job":"demo-1","generation":1,"text":"worker w1 (rank 1, stage 1, pid 101 on alpha) was lost: its connection closed"}
        {"kind":"joined","worker":"w1","text":"worker w1 is here (pid 101 on alpha, cpu)"}
        {"kind":"formed","job":"demo-1","generation":2,"text":"runs from step 0 on w0, w1"}
        {"kind":"drained","worker":"w1","text":"a new disk"}
        {"kind":"ended","job":"demo-1","text":"cancelled: enough"}"#]].assert_eq(&lines.join("\n"));
}
