//! What is deferred, when it runs, and where it goes.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use coxswain_native::memory;
use coxswain_native::net::Group;
use coxswain_native::ops::{self, DeferredWgrads, NormUse, Slot, WgradQueue};
use tch::Tensor;

mod support;
use support::{bits, randn, seed, slot_like};

/// Norm, product, shards, product: the gradient of x, and of the three weights in their slots.
struct Net {
    slots: [Slot; 3],
    weights: [Tensor; 3],
    group: Group,
    wgrad_queue: WgradQueue,
}

impl Net {
    fn new() -> Net {
        seed(5);
        let weights = [randn(&[16]), randn(&[16, 16]), randn(&[16, 16])];
        let group = Group::new(None, &[0], 0, 0).unwrap();
        Net { slots: [Slot::new(), Slot::new(), Slot::new()], weights, group, wgrad_queue: WgradQueue::new() }
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
        let y = ops::rms_norm(&x, w0, 1e-5, &[NormUse { slot: s0, first: 0, tokens: 4 }], &self.wgrad_queue)
            .unwrap();
        let y = ops::linear(&y, w1, s1, &self.wgrad_queue).unwrap();
        let shards = ops::copy_to_shards(&y, &self.group, &self.wgrad_queue, 1, false).unwrap();
        let y = ops::linear(&shards[0], w2, s2, &self.wgrad_queue).unwrap();
        ops::grad(&y, &dy, &x).unwrap()
    }

    fn fresh(&self) -> [bool; 3] {
        [0, 1, 2].map(|i| self.slots[i].is_fresh())
    }
}

#[test]
fn a_held_queue_run_later_gives_the_bits_of_a_flush() {
    // Two micro-batches, flushed after each.
    let net = Net::new();
    let grads = net.buffers();
    let mut dx = Vec::new();
    for _ in 0..2 {
        dx.push(bits(&net.backward()));
        net.wgrad_queue.flush().unwrap();
    }
    let want: Vec<_> = grads.iter().map(bits).collect();

    // The same two deferred first and run later, in order, into buffers that came after they were deferred.
    let net = Net::new();
    net.buffers();
    net.wgrad_queue.hold(true);
    let mut deferred: Vec<DeferredWgrads> = Vec::new();
    for want in &dx {
        assert_eq!(&bits(&net.backward()), want);
        deferred.push(net.wgrad_queue.take());
    }
    let grads = net.buffers();
    net.wgrad_queue.flush().unwrap();
    assert_eq!(net.fresh(), [true; 3], "what was taken out is not in the queue any more");
    deferred.into_iter().for_each(|deferred| deferred.run().unwrap());
    assert_eq!(grads.iter().map(bits).collect::<Vec<_>>(), want);
}

#[test]
fn backward_computes_what_was_deferred_before_a_sum_travels_unless_the_queue_is_held() {
    let net = Net::new();
    for (held, want) in [(false, [true, true, false]), (true, [true; 3]), (false, [true, true, false])] {
        net.buffers();
        net.wgrad_queue.hold(held);
        drop(net.backward());
        assert_eq!(net.fresh(), want, "held: {held}");
        net.wgrad_queue.flush().unwrap();
        assert_eq!(net.fresh(), [false; 3]);
    }
}

#[test]
fn a_dropped_list_frees_its_tensors_and_outlives_its_queue() {
    memory::install();
    let wgrad_queue = WgradQueue::new();
    wgrad_queue.hold(true);
    let (w, dy) = (randn(&[64, 64]), randn(&[4096, 64]));
    let slot = Slot::new();
    let before = memory::current_bytes();
    let x = randn(&[4096, 64]).set_requires_grad(true);
    drop(ops::grad(&ops::linear(&x, &w, &slot, &wgrad_queue).unwrap(), &dy, &x).unwrap());
    let deferred = wgrad_queue.take();
    drop((wgrad_queue, x));
    assert!(memory::current_bytes() - before >= 4096 * 64 * 4, "the list keeps what it needs");
    drop(deferred);
    assert!(memory::current_bytes() - before < 4096 * 64, "the list is gone");
}

#[test]
fn an_entry_without_a_buffer_fails_and_is_not_tried_again() {
    let net = Net::new();
    net.wgrad_queue.hold(true);
    drop(net.backward());
    let error = net.wgrad_queue.take().run().unwrap_err();
    assert!(error.to_string().contains("fp32 buffer"), "{error}");
    net.wgrad_queue.flush().unwrap();
}
