use expect_test::{Expect, expect};

use super::*;

fn layout(pipeline: u32, schedule: Schedule) -> Layout {
    Layout { pipeline, tensor: 1, data: 1, schedule, sequence_parallel: false, zero: false }
}

fn text(actions: &[Action]) -> String {
    actions.iter().map(Action::to_string).collect::<Vec<_>>().join(" ")
}

/// The compute actions of every rank, a line each.
fn computes(pipeline: u32, schedule: Schedule, micro_batches: Range<u32>, expected: &Expect) {
    let compute = |rank| {
        let list = train(&layout(pipeline, schedule), &[], rank, micro_batches.clone());
        let compute = |a: &Action| {
            matches!(a.kind, Kind::Forward | Kind::Backward | Kind::Input | Kind::Weight).then_some(*a)
        };
        text(&list.iter().filter_map(compute).collect::<Vec<_>>())
    };
    expected.assert_eq(&(0..pipeline).map(compute).collect::<Vec<_>>().join("\n"));
}

#[test]
fn lists_read_as_expected() {
    let of = |pipeline, rank, micro_batches| {
        text(&train(&layout(pipeline, Schedule::OneFOneB), &[], rank, micro_batches))
    };
    assert_eq!(of(1, 0, 4..6), "0F4 0B4 0F5 0B5");
    assert_eq!(
        of(2, 0, 0..3),
        "0F0 0SEND_F0 0RECV_B0 0F1 0SEND_F1 0B0 0RECV_B1 0F2 0SEND_F2 0RECV_B2 0B1 0B2"
    );
    assert_eq!(
        of(2, 1, 0..3),
        "1RECV_F0 1F0 1RECV_F1 1B0 1SEND_B0 1F1 1RECV_F2 1B1 1SEND_B1 1F2 1B2 1SEND_B2"
    );
    let evaluated = evaluate(&layout(3, Schedule::OneFOneB), 1, 2..4);
    assert_eq!(text(&evaluated), "1RECV_F2 1RECV_F3 1F2 1SEND_F2 1F3 1SEND_F3");
}

#[test]
fn the_order_of_each_schedule() {
    computes(
        2,
        Schedule::GPipe,
        3..6,
        &expect![[r#"
        0F3 0F4 0F5 0B3 0B4 0B5
        1F3 1F4 1F5 1B3 1B4 1B5"#]],
    );
    computes(
        2,
        Schedule::Interleaved { chunks: 2 },
        0..4,
        &expect![[r#"
        0F0 0F1 2F0 2F1 0F2 2B0 0F3 2B1 2F2 0B0 2F3 0B1 2B2 2B3 0B2 0B3
        1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1F3 1B1 3F2 3B2 3F3 3B3 1B2 1B3"#]],
    );
    computes(
        3,
        Schedule::ZbH1,
        0..4,
        &expect![[r#"
        0F0 0F1 0F2 0I0 0W0 0F3 0I1 0W1 0I2 0W2 0I3 0W3
        1F0 1F1 1I0 1F2 1I1 1W0 1F3 1I2 1W1 1I3 1W2 1W3
        2F0 2I0 2F1 2I1 2F2 2I2 2W0 2F3 2I3 2W1 2W2 2W3"#]],
    );
}

#[test]
fn a_smaller_last_group_leaves_out_what_does_not_exist() {
    computes(
        2,
        Schedule::Interleaved { chunks: 2 },
        0..3,
        &expect![[r#"
        0F0 0F1 2F0 2F1 0F2 2B0 2B1 2F2 0B0 0B1 2B2 0B2
        1F0 1F1 3F0 3B0 3F1 3B1 1F2 1B0 1B1 3F2 3B2 1B2"#]],
    );
}

#[test]
fn stages_of_one_rank_hand_over_without_messages() {
    let list = train(&layout(1, Schedule::Interleaved { chunks: 3 }), &[], 0, 0..2);
    assert_eq!(text(&list), "0F0 1F0 2F0 2B0 0F1 1B0 1F1 0B0 2F1 2B1 1B1 0B1");
}

#[test]
fn an_evaluation_takes_a_group_through_one_stage_after_the_other() {
    let list = evaluate(&layout(2, Schedule::Interleaved { chunks: 2 }), 0, 0..3);
    let forwards: Vec<_> = list.into_iter().filter(|a| a.kind == Kind::Forward).collect();
    assert_eq!(text(&forwards), "0F0 0F1 2F0 2F1 0F2 2F2");
}

#[test]
fn own_lists_get_messages_unless_they_have_some_and_move_to_the_data_rank() {
    let list = |text: &str| -> Vec<Action> { text.split(' ').map(|a| a.parse().unwrap()).collect() };
    let custom = layout(2, Schedule::Custom { chunks: 1 });
    let bare = [list("0F0 0F1 0B0 0B1"), list("1F0 1I0 1W0 1F1 1I1 1W1")];
    assert_eq!(
        text(&train(&custom, &bare, 1, 2..4)),
        "1RECV_F2 1F2 1I2 1SEND_B2 1RECV_F3 1W2 1F3 1I3 1SEND_B3 1W3"
    );
    let whole = [list("0F0 0SEND_F0 0RECV_B0 0B0"), list("1RECV_F0 1F0 1B0 1SEND_B0")];
    assert_eq!(text(&train(&custom, &whole, 0, 2..3)), "0F2 0SEND_F2 0RECV_B2 0B2");
    assert!(train(&custom, &whole[..1], 1, 0..1).is_empty());
}
