//! A peer that is gone breaks the network, whichever operation finds it out; what fails for another reason does not.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::sync::Barrier;

use coxswain_comm::{Axis, Group, Op, TorchError};
use coxswain_native::ops::{self, WgradQueue};
use tch::{Device, Kind, Tensor};

use common::ranks;

const SHAPE: [i64; 3] = [1, 4, 2];

fn ones(shape: &[i64]) -> Tensor {
    Tensor::ones(shape, (Kind::Float, Device::Cpu))
}

/// The gradient of `copies`' input, which sums over ranks.
fn copied_and_back(group: &Group) -> Result<(), TorchError> {
    let (x, wgrad_queue) = (ones(&SHAPE).set_requires_grad(true), WgradQueue::new());
    let copies = ops::copy_to_shards(&x, group, &wgrad_queue, 1, false)?;
    ops::grad(&copies[0], &ones(&SHAPE), &x).map(drop)
}

fn loss(group: &Group) -> Result<(), TorchError> {
    let targets = Tensor::from_slice(&[0_i64, 3]);
    ops::cross_entropy(vec![ones(&[2, 2])], &targets, None, &[0], group).map(drop)
}

/// An operation with an exchange inside.
type Collective = (&'static str, fn(&Group) -> Result<(), TorchError>);

const COLLECTIVES: [Collective; 7] = [
    ("a sum", |group| group.reduce(&ones(&[4]), Op::Sum).map(drop)),
    ("a gather", |group| group.gather(&ones(&[4]), 0).map(drop)),
    ("the sum over shards", |group| ops::reduce_from_shards(&[ones(&SHAPE)], group, false).map(drop)),
    ("the same, sequence parallel", |group| ops::reduce_from_shards(&[ones(&SHAPE)], group, true).map(drop)),
    ("copies, sequence parallel", |group| {
        ops::copy_to_shards(&ones(&SHAPE), group, &WgradQueue::new(), 1, true).map(drop)
    }),
    ("the backward pass of copies", copied_and_back),
    ("the loss over a split vocabulary", loss),
];

#[test]
fn whatever_waits_for_a_peer_that_is_gone_finds_the_network_broken() {
    for (name, collective) in COLLECTIVES {
        // A rank that leaves while the other still connects would fail the other's join.
        let joined = Barrier::new(2);
        let found = ranks(2, |links| {
            joined.wait();
            if links.rank() == 1 {
                // Leaves without a word; its sockets close with its group.
                return (String::new(), true);
            }
            let group = links.group(&[0, 1], Axis::Tensor).unwrap();
            (collective(&group).unwrap_err().to_string(), links.is_broken())
        });
        let (error, broken) = &found[0];
        assert!(*broken && error.contains("rank 1 failed"), "{name}: broken: {broken}, {error}");
    }
}

#[test]
fn an_operation_that_fails_by_itself_or_is_aborted_leaves_the_network_whole() {
    for (name, collective) in COLLECTIVES {
        let broken = ranks(2, |links| {
            let group = links.group(&[0, 1], Axis::Tensor).unwrap();
            group.gather(&ones(&[4]), 7).unwrap_err();
            collective(&group).unwrap();
            links.is_broken()
        });
        assert_eq!(broken, [false; 2], "{name}");
        let joined = Barrier::new(2);
        let aborted = ranks(2, |links| {
            joined.wait();
            let group = links.group(&[0, 1], Axis::Tensor).unwrap();
            links.abort();
            let error = collective(&group).unwrap_err().to_string();
            // The other may see this rank go.
            (error.contains("aborted"), links.is_broken())
        });
        assert_eq!(aborted, [(true, false); 2], "{name}, aborted");
    }
}
