//! Saves that the time asks for.

use expect_test::expect;

use super::story::tell_to;
use crate::cluster::Cluster;

/// A job of two stages that saves each minute, and has taken five steps in that time.
const AT_WORK: &str = "
    0 submit demo wait pp=2 steps=90 minutes=1
    0 prepared demo-1
    0 w0 idle
    0 w1 idle
    100 w0 g1 running
    100 w1 g1 running
    59000 w0 g1 running step=4 reports=1..4
    59000 w1 g1 running step=4
";

#[test]
fn ranks_save_after_one_step_where_the_newest_checkpoint_is_old() {
    let mut cluster = Cluster::default();
    tell_to(&mut cluster, AT_WORK);
    let print = tell_to(
        &mut cluster,
        "59999 w0 g1 running step=4 reports=1..4
         60000 w0 g1 running step=5 reports=5..5
         60000 desired w1
         60100 w1 g1 running step=5
         61200 w1 g1 running step=5
         61300 w0 g1 running step=6 reports=6..6 saved=6
         61300 w1 g1 running step=6 saved=6
         61350 w0 g1 running step=7 reports=7..7
         61400 w0 g1 running step=7 published=6
         61400 desired w1
         121399 w1 g1 running step=9
         121399 w0 g1 running step=9 reports=8..9
         121400 w0 g1 running step=10 reports=10..10",
    )
    .0;
    expect![[r#"
        59999 w0 g1 running step=4 reports=1..4
            wake w0
        60000 w0 g1 running step=5 reports=5..5
            report demo-1 step 5
            record saving demo-1 g1 after step 6
            wake w0
            wake w0
            wake w1
        60000 desired w1
            g1 named run_to 90 acknowledged 0 save after 6
        60100 w1 g1 running step=5
            wake w1
        61200 w1 g1 running step=5
            wake w1
        61300 w0 g1 running step=6 reports=6..6 saved=6
            report demo-1 step 6
            wake w0
        61300 w1 g1 running step=6 saved=6
            record committed demo-1 step 6 [w0-6 w1-6]
            wake w0
            wake w1
        61350 w0 g1 running step=7 reports=7..7
            report demo-1 step 7
            wake w0
        61400 w0 g1 running step=7 published=6
            record published demo-1 step 6 m6
            info: the checkpoint of step 6 can be read
            prune demo-1 to 2
            wake w0
        61400 desired w1
            g1 named run_to 90 acknowledged 0 save after 6
        121399 w1 g1 running step=9
        121399 w0 g1 running step=9 reports=8..9
            report demo-1 step 8
            report demo-1 step 9
            wake w0
        121400 w0 g1 running step=10 reports=10..10
            report demo-1 step 10
            record saving demo-1 g1 after step 11
            wake w0
            wake w0
            wake w1
    "#]]
    .assert_eq(&print);
}

#[test]
fn a_save_outlives_the_coordinator_and_a_stop_goes_before_it() {
    let mut cluster = Cluster::default();
    let (_, mut journal) = tell_to(&mut cluster, AT_WORK);
    journal.extend(tell_to(&mut cluster, "60000 w0 g1 running step=5 reports=5..5").1);
    let mut later = Cluster::replay(journal);
    let print = tell_to(
        &mut later,
        "0 w0 g1 running step=5
         0 w1 g1 running step=5
         0 desired w1
         10 cancel demo-1 enough
         10 desired w1",
    )
    .0;
    expect![[r#"
        0 w0 g1 running step=5
            record started 2
            record noted joined
            info: worker w0 is here (pid 100 on alpha, cpu)
            wake w0
        0 w1 g1 running step=5
            record noted joined
            info: worker w1 is here (pid 101 on alpha, cpu)
            wake w1
        0 desired w1
            g1 named run_to 90 acknowledged 0 save after 6
        10 cancel demo-1 enough
            record cancelling demo-1: enough
            info: job demo-1 is cancelled and ends after the step at hand: enough
            record stopping demo-1 g1: enough
            info: enough; the run saves after a step and ends
            wake w0
            wake w1
        10 desired w1
            g1 named run_to 0 acknowledged 0
    "#]]
    .assert_eq(&print);
}
