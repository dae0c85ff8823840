//! Stories that the simulation told first: each was a fault of the core.

use expect_test::expect;

use super::story::tell;

#[test]
fn a_wish_is_sent_after_all_that_it_follows_from_is_on_disk() {
    let print = tell(
        "0 submit demo pp=1 steps=4
         0 prepared demo-1
         5 w0 idle",
    );
    expect![[r#"
        0 submit demo pp=1 steps=4
            record submitted demo-1
            info: job demo-1 is accepted
            prepare demo-1
        0 prepared demo-1
        5 w0 idle
            info: worker w0 is here (pid 100 on alpha, cpu)
            record formed demo-1 g1 [w0] threads 2 from 0
            info: runs from the start on w0 with 2 threads each (the cores of each machine over its workers)
            wake w0
            wake w0
    "#]]
    .assert_eq(&print);
}
