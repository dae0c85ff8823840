//! What is filed, when it runs, and where it goes.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use coxswain_native::memory;
use coxswain_native::net::Group;
use coxswain_native::ops::{self, Filed, NormUse, Slot, Tape};
use tch::Tensor;

mod support;
use support::{bits, randn, seed, slot_like};

/// Norm, product, shards, product: the gradient of x, and of the three weights in their slots.
struct Net {
    slots: [Slot; 3],
    weights: [Tensor; 3],
    group: Group,
    tape: Tape,
}

impl Net {
    fn new() -> Net {
        seed(5);
        let weights = [randn(&[16]), randn(&[16, 16]), randn(&[16, 16])];
        let group = Group::new(None, &[0], 0, 0).unwrap();
        Net { slots: [Slot::new(), Slot::new(), Slot::new()], weights, group, tape: Tape::new() }
    }

    /// Gives the slots new buffers.
    fn buffers(&self) -> Vec<Tensor> {
        let grads: Vec<_> = self.weights.iter().map(|w| slot_like(w).1).collect();
        self.slots.iter().zip(&grads).for_each(|(slot, grad)| slot.set(grad));
        grads
    }

    fn backward(&self) -> Tensor {
        let [w0, w1, w2] = &self.weights;
        let [s0, s1, s2] = &self.slots;
        let (x, dy) = (randn(&[2, 4, 16]).set_requires_grad(true), randn(&[2, 4, 16]));
        let y =
            ops::rms_norm(&x, w0, 1e-5, &[NormUse { slot: s0, first: 0, tokens: 4 }], &self.tape).unwrap();
        let y = ops::linear(&y, w1, s1, &self.tape).unwrap();
        let shards = ops::copy_to_shards(&y, &self.group, &self.tape, 1, false).unwrap();
        let y = ops::linear(&shards[0], w2, s2, &self.tape).unwrap();
        ops::grad(&y, &dy, &x).unwrap()
    }

    fn fresh(&self) -> [bool; 3] {
        [0, 1, 2].map(|i| self.slots[i].is_fresh())
    }
}

#[test]
fn a_held_tape_run_later_gives_the_bits_of_a_flush() {
    // Two micro-batches, flushed after each.
    let net = Net::new();
    let grads = net.buffers();
    let mut dx = Vec::new();
    for _ in 0..2 {
        dx.push(bits(&net.backward()));
        net.tape.flush().unwrap();
    }
    let want: Vec<_> = grads.iter().map(bits).collect();

    // The same two filed first and run later, in order, into buffers that came after the filing.
    let net = Net::new();
    net.buffers();
    net.tape.hold(true);
    let mut filed: Vec<Filed> = Vec::new();
    for want in &dx {
        assert_eq!(&bits(&net.backward()), want);
        filed.push(net.tape.take());
    }
    let grads = net.buffers();
    net.tape.flush().unwrap();
    assert_eq!(net.fresh(), [true; 3], "what was taken out is not on the tape any more");
    filed.into_iter().for_each(|filed| filed.run().unwrap());
    assert_eq!(grads.iter().map(bits).collect::<Vec<_>>(), want);
}

#[test]
fn backward_computes_what_was_filed_before_a_sum_travels_unless_the_tape_is_held() {
    let net = Net::new();
    for (held, want) in [(false, [true, true, false]), (true, [true; 3]), (false, [true, true, false])] {
        net.buffers();
        net.tape.hold(held);
        drop(net.backward());
        assert_eq!(net.fresh(), want, "held: {held}");
        net.tape.flush().unwrap();
        assert_eq!(net.fresh(), [false; 3]);
    }
}

#[test]
fn a_dropped_list_frees_its_tensors_and_outlives_its_tape() {
    memory::install();
    let tape = Tape::new();
    tape.hold(true);
    let (w, dy) = (randn(&[64, 64]), randn(&[4096, 64]));
    let slot = Slot::new();
    let before = memory::current_bytes();
    let x = randn(&[4096, 64]).set_requires_grad(true);
    drop(ops::grad(&ops::linear(&x, &w, &slot, &tape).unwrap(), &dy, &x).unwrap());
    let filed = tape.take();
    drop((tape, x));
    assert!(memory::current_bytes() - before >= 4096 * 64 * 4, "the list keeps what it needs");
    drop(filed);
    assert!(memory::current_bytes() - before < 4096 * 64, "the list is gone");
}

#[test]
fn an_entry_without_a_buffer_fails_and_is_not_tried_again() {
    let net = Net::new();
    net.tape.hold(true);
    drop(net.backward());
    let error = net.tape.take().run().unwrap_err();
    assert!(error.to_string().contains("fp32 buffer"), "{error}");
    net.tape.flush().unwrap();
}
