use std::fmt::Display;

use coxswain_types::assignment::Recompute;
use coxswain_types::job::Schedule;
use coxswain_types::schedule::{Action, Kind};
use coxswain_types::{Assignment, MicroBatch};

use super::{Violation, check};
use crate::plan::tests::{changed, planned};

/// Three stages on two data ranks, four micro-batches each; ranks 0, 1, 2 are one pipeline.
fn ranks() -> Vec<Assignment> {
    planned(3, 1, 2, 8).assignments
}

fn action(text: &str) -> Action {
    text.parse().unwrap()
}

fn at(list: &[Action], text: &str) -> usize {
    list.iter().position(|a| *a == action(text)).unwrap()
}

fn refused(change: impl FnOnce(&mut Vec<Assignment>)) -> String {
    let mut ranks = ranks();
    check(&ranks).unwrap();
    change(&mut ranks);
    check(&ranks).map_or_else(|violation| violation.to_string(), |()| "nothing".to_owned())
}

fn told(what: impl Display, found: &str) {
    assert_eq!(what.to_string(), found);
}

#[test]
fn each_action_is_missed() {
    let whole = ranks();
    for rank in 0..whole.len() {
        for i in 0..whole[rank].train.len() {
            let action = whole[rank].train[i];
            let found = refused(|ranks| {
                ranks[rank].train.remove(i);
            });
            assert_eq!(found, format!("rank {rank}, train: {action} is missing"));
        }
        for i in 0..whole[rank].evaluate.len() {
            let found = refused(|ranks| {
                ranks[rank].evaluate.remove(i);
            });
            assert!(found.ends_with("is missing") && found.contains("evaluate"), "{found}");
        }
    }
}

#[test]
fn each_action_is_seen_twice() {
    for i in 0..ranks()[1].train.len() {
        let found = refused(|ranks| {
            let action = ranks[1].train[i];
            ranks[1].train.push(action);
        });
        assert!(found.ends_with("is listed twice"), "{found}");
    }
}

#[test]
fn actions_of_others_are_foreign() {
    for (text, rank) in
        [("0F0", 1), ("1F4", 1), ("0RECV_F0", 0), ("0SEND_B0", 0), ("2SEND_F0", 2), ("2RECV_B0", 2)]
    {
        let found = refused(|ranks| ranks[rank].train.push(action(text)));
        assert_eq!(found, format!("rank {rank}, train: {text} does not belong there"));
    }
    told(
        "rank 1, evaluate: 1B0 does not belong there",
        &refused(|ranks| ranks[1].evaluate.push(action("1B0"))),
    );
}

#[test]
fn actions_out_of_order_are_named() {
    for (rank, first, second, found) in [
        (1, "1RECV_F0", "1F0", "rank 1, train: 1RECV_F0 must come before 1F0"),
        (1, "1F0", "1SEND_F0", "rank 1, train: 1F0 must come before 1SEND_F0"),
        (1, "1RECV_B0", "1B0", "rank 1, train: 1RECV_B0 must come before 1B0"),
        (1, "1B0", "1SEND_B0", "rank 1, train: 1B0 must come before 1SEND_B0"),
        (2, "2F0", "2B0", "rank 2, train: 2F0 must come before 2B0"),
        (0, "0F0", "0F1", "rank 0, train: 0F0 must come before 0SEND_F0"),
    ] {
        let swap = |ranks: &mut Vec<Assignment>| {
            let list = &mut ranks[rank].train;
            let (i, j) = (at(list, first), at(list, second));
            list.swap(i, j);
        };
        told(found, &refused(swap));
    }
}

#[test]
fn backwards_in_another_order_would_change_the_sum() {
    let mut ranks = planned(1, 1, 1, 2).assignments;
    ranks[0].train = ["0F0", "0F1", "0B1", "0B0"].map(action).to_vec();
    told("rank 0, train: 0B0 must come before 0B1", &check(&ranks).unwrap_err().to_string());
}

#[test]
fn every_swap_of_two_neighbours_that_matters_is_refused() {
    // What may be swapped: a post or a send with one that goes the other way, or a send with the
    // compute action after it. All else is refused.
    let harmless = |a: Action, b: Action| {
        use Kind::{Backward, Forward, RecvBackward, RecvForward, SendBackward, SendForward};
        let message = |a: Action| !matches!(a.kind, Forward | Backward);
        let post = |a: Action| matches!(a.kind, RecvForward | RecvBackward);
        let send = |a: Action| matches!(a.kind, SendForward | SendBackward);
        (message(a) && message(b) && a.kind != b.kind)
            || (send(a) && !message(b))
            || (!message(a) && post(b))
            || (!message(a) && send(b) && a.micro_batch != b.micro_batch)
    };
    let whole = ranks();
    let (mut refusals, mut passes) = (0, 0);
    for rank in 0..3 {
        for i in 0..whole[rank].train.len() - 1 {
            let (a, b) = (whole[rank].train[i], whole[rank].train[i + 1]);
            let found = refused(|ranks| ranks[rank].train.swap(i, i + 1));
            if found == "nothing" {
                assert!(harmless(a, b), "rank {rank}: {a} {b} passed");
                passes += 1;
            } else {
                refusals += 1;
            }
        }
    }
    assert!(refusals > 20 && passes > 0, "{refusals} refusals, {passes} passes");
}

#[test]
fn a_post_just_before_its_use_is_late() {
    let found = refused(|ranks| {
        let list = &mut ranks[1].train;
        let post = list.remove(at(list, "1RECV_F1"));
        let before_use = at(list, "1F1");
        list.insert(before_use, post);
    });
    told("rank 1, train: 1RECV_F1 is posted too late to travel under a compute action", &found);
}

#[test]
fn all_posts_at_once_hold_too_many_buffers() {
    let found = refused(|ranks| ranks[1].train.sort_by_key(|a| !matches!(a.kind, Kind::RecvForward)));
    told("rank 1, train: 4 posted receives are held at once; at most 2 may be", &found);
}

#[test]
fn all_forwards_first_hold_too_many_activations() {
    let found = refused(|ranks| {
        // The last stage as GPipe would run it.
        let text = "2RECV_F0 2RECV_F1 2F0 2RECV_F2 2F1 2RECV_F3 2F2 2F3 2B0 2SEND_B0 2B1 2SEND_B1 2B2 2SEND_B2 2B3 2SEND_B3";
        ranks[2].train = text.split(' ').map(action).collect();
    });
    told("rank 2, train: 4 micro-batches in flight are held at once; at most 1 may be", &found);
}

#[test]
fn sends_in_another_order_than_the_receives_are_seen() {
    let found = refused(|ranks| {
        let list = &mut ranks[0].train;
        let send = list.remove(at(list, "0SEND_F1"));
        let after = at(list, "0SEND_F2") + 1;
        list.insert(after, send);
    });
    told("train: stage 0 sends [0 2 1 3] to stage 1, which receives [0 1 2 3]", &found);
}

#[test]
fn ranks_that_wait_for_each_other_are_named() {
    let found = refused(|ranks| {
        // The first stage wants a gradient before it hands over the next micro-batch, which the last
        // stage's list wants first.
        let list = &mut ranks[1].train;
        for text in ["1SEND_F1", "1SEND_F0"] {
            let send = list.remove(at(list, text));
            let after = at(list, "1B0") + 1;
            list.insert(after, send);
        }
    });
    told("train: no rank can go on; waiting are rank 0 at 0B0, rank 1 at 1B0, rank 2 at 2F0", &found);
}

#[test]
fn micro_batches_without_an_owner_or_with_two_are_seen() {
    let found = refused(|ranks| {
        for a in ranks.iter_mut().filter(|a| a.data_index == 1) {
            a.owned_runs = 5..8;
        }
    });
    told(Violation::Owners { micro_batch: 4, owners: 0 }, &found);
    let found = refused(|ranks| {
        for a in ranks.iter_mut().filter(|a| a.data_index == 1) {
            a.owned_runs = 3..8;
        }
    });
    told(Violation::Owners { micro_batch: 3, owners: 2 }, &found);
}

#[test]
fn neighbours_that_disagree_are_seen() {
    let changes: [fn(&mut Vec<Assignment>); 16] = [
        |ranks| ranks.swap(0, 1),
        |ranks| ranks[0].stages[0].next = Some(4),
        |ranks| ranks[0].stages[0].next = Some(77),
        |ranks| ranks[1].stages[0].previous = None,
        |ranks| ranks[1].stages[0].layers.start += 1,
        |ranks| ranks[2].stages[0].head = false,
        |ranks| ranks[2].stages[0].layers.end -= 1,
        |ranks| ranks[1].stages[0].index = 4,
        |ranks| ranks[1].stages.clear(),
        |ranks| ranks[0].stages[0].recompute.clear(),
        |ranks| ranks[0].optimizer_group = vec![1],
        |ranks| ranks[0].optimizer_group = vec![0, 1],
        |ranks| ranks[4].shards = 1..2,
        |ranks| ranks[0].data_group = vec![3, 0],
        |ranks| ranks[5].owned_runs = 4..9,
        |ranks| drop(ranks.pop()),
    ];
    for (i, change) in changes.into_iter().enumerate() {
        let mut ranks = ranks();
        change(&mut ranks);
        assert!(matches!(check(&ranks), Err(Violation::Mesh { .. })), "change {i}");
    }
}

#[test]
fn a_micro_batch_that_does_not_exist_is_foreign() {
    let found = refused(|ranks| {
        let i = at(&ranks[2].evaluate, "2F0");
        ranks[2].evaluate[i].micro_batch = MicroBatch(9);
    });
    told("rank 2, evaluate: 2F9 does not belong there", &found);
}

#[test]
fn rows_follow_the_stages() {
    let found = refused(|ranks| ranks[1].parameters.retain(|row| !row.name.contains("layers.2.mlp.up")));
    told("rank 1: lacks a row of model.layers.2.mlp.up_proj.weight", &found);
    let found = refused(|ranks| {
        let row = ranks[0].parameters[0].clone();
        ranks[1].parameters.push(row);
    });
    told("rank 1: has a row that no stage uses, of model.embed_tokens.weight", &found);
    let found = refused(|ranks| {
        ranks[0].parameters[0].uses = vec![1, 0];
    });
    told("rank 0: is not the user named by its row of model.embed_tokens.weight", &found);
}

#[test]
fn a_tensor_group_that_does_not_move_together_is_seen() {
    let change = |change: fn(&mut Assignment)| {
        let mut ranks = planned(2, 2, 1, 4).assignments;
        change(&mut ranks[1]);
        check(&ranks).unwrap_err().to_string()
    };
    // What a lone rank could swap without harm, a rank of a group could not.
    let swapped = change(|a| {
        let i = at(&a.train, "0SEND_F0");
        a.train.swap(i, i + 1);
    });
    told("rank 1: has other actions than its tensor group", &swapped);
    let recomputed = change(|a| a.stages[0].recompute[0] = Recompute::Layer);
    told("rank 1: has other layers or recompute modes than its tensor group", &recomputed);
}

/// Two stages of ZB-H1 over two micro-batches.
fn split(change: impl FnOnce(&mut Vec<Assignment>)) -> String {
    let plan = changed(4, |spec| {
        spec.layout.pipeline = 2;
        spec.layout.schedule = Schedule::ZbH1;
        (spec.train.global_micro_batches, spec.train.gradient_groups) = (2, 1);
    });
    let mut ranks = plan.unwrap().assignments;
    change(&mut ranks);
    check(&ranks).map_or_else(|violation| violation.to_string(), |()| "nothing".to_owned())
}

#[test]
fn split_backwards_are_whole_in_order_and_not_mixed() {
    told("nothing", &split(|_| ()));
    told(
        "rank 0, train: 0W1 is missing",
        &split(|ranks| {
            ranks[0].train.pop();
        }),
    );
    told(
        "rank 0, train: 0I0 must come before 0W0",
        &split(|ranks| {
            let list = &mut ranks[0].train;
            let (i, j) = (at(list, "0I0"), at(list, "0W0"));
            list.swap(i, j);
        }),
    );
    told(
        "rank 1, train: 1W0 must come before 1W1",
        &split(|ranks| {
            let list = &mut ranks[1].train;
            let (i, j) = (at(list, "1W0"), at(list, "1W1"));
            list.swap(i, j);
        }),
    );
    told(
        "rank 1, train: stage 1 has B beside I and W; a stage has either",
        &split(|ranks| {
            let list = &mut ranks[1].train;
            let i = at(list, "1I0");
            list[i] = action("1B0");
            list.retain(|a| *a != action("1W0"));
        }),
    );
}
