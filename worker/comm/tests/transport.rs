//! What crosses between two ranks arrives as it was sent, encrypted or not, and those who do not belong together say so.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "common/pair.rs"]
mod pair;

use std::sync::Arc;
use std::time::Duration;

use coxswain_comm::{Axis, DataPort, Links, MemoryStore};
use tch::{Device, Kind, Tensor};

use pair::{Authority, both, exchange, port};

#[test]
fn messages_of_all_sizes_arrive_in_the_order_of_their_tags_and_whole() {
    let cluster = Authority::new();
    for seed in 0..6 {
        let tls = |_| (seed % 2 == 1).then(|| cluster.worker());
        both(&[0, 1].map(tls).map(port), |links| exchange(&links, seed, 3 << 20));
    }
}

#[test]
fn what_was_sent_last_arrives_though_the_sender_leaves() {
    let cluster = Authority::new();
    for tls in [false, true] {
        let ports = [0, 1].map(|_| port(tls.then(|| cluster.worker())));
        let found = both(&ports, |links| {
            let x = Tensor::ones([1 << 20], (Kind::Float, Device::Cpu));
            if links.rank() == 0 {
                // A place for something that never comes is on its way to the one that leaves.
                let never = Tensor::zeros([1], (Kind::Float, Device::Cpu));
                let _never = links.recv(&never, 1, Axis::Tensor).unwrap();
                let y = Tensor::zeros([1 << 20], (Kind::Float, Device::Cpu));
                links.recv(&y, 1, Axis::World).unwrap().wait().unwrap();
                return y == x;
            }
            links.send(&x, 0, Axis::World).unwrap().wait().unwrap();
            true
        });
        assert_eq!(found, [true; 2], "encrypted: {tls}");
    }
}

#[test]
fn ranks_that_do_not_belong_together_say_why() {
    let (cluster, another) = (Authority::new(), Authority::new());
    let fails = |ports: [Arc<DataPort>; 2]| {
        both(&ports, |links| {
            let x = Tensor::zeros([1], (Kind::Float, Device::Cpu));
            if links.rank() == 0 {
                return links.recv(&x, 1, Axis::World).unwrap().wait().unwrap_err().to_string();
            }
            // The one that was connected to finds out as well.
            std::thread::sleep(Duration::from_millis(200));
            String::new()
        })
        .remove(0)
    };
    let error = fails([port(Some(cluster.worker())), port(Some(another.worker()))]);
    assert!(error.contains("TLS failed"), "{error}");
    let error = fails([port(None), port(Some(cluster.worker()))]);
    assert!(error.contains("takes encrypted tensors only"), "{error}");
    let error = fails([port(Some(cluster.worker())), port(None)]);
    assert!(error.contains("this worker sends encrypted tensors only"), "{error}");
    // One that waits for less than what is sent to it.
    let errors = both(&[port(None), port(None)], |links| {
        let x = Tensor::zeros([4 + i64::from(links.rank())], (Kind::Float, Device::Cpu));
        match links.rank() {
            0 => links.recv(&x, 1, Axis::World),
            _ => links.send(&x, 0, Axis::World),
        }
        .unwrap()
        .wait()
        .unwrap_err()
        .to_string()
    });
    assert!(errors[1].contains("it waits for 16 bytes where this rank has 20"), "{}", errors[1]);
}

#[test]
fn a_rank_of_an_older_generation_reaches_no_rank() {
    let store = MemoryStore::default();
    let (here, late) = (port(None), port(None));
    let join = |rank, port: &Arc<DataPort>| Links::join(store.clone(), rank, 2, port, 5_000, 5_000);
    let (first, second) = std::thread::scope(|scope| {
        let first = scope.spawn(|| join(0, &here).unwrap());
        let second = scope.spawn(|| join(1, &late).unwrap());
        (first.join().unwrap(), second.join().unwrap())
    });
    // Its generation has ended; its process takes part in the next one.
    drop(first);
    let x = Tensor::zeros([1], (Kind::Float, Device::Cpu));
    let error = second.send(&x, 0, Axis::World).unwrap().wait().unwrap_err();
    assert!(error.0.contains("it takes no part in this generation any more"), "{error}");
}
