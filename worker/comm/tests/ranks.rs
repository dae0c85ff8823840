//! Ranks of one generation as threads of one process, over real sockets on the loopback.
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;
#[path = "../../../tests/src/skip.rs"]
#[allow(dead_code, unreachable_pub, reason = "other tests use more of it")]
mod skip;

use std::io::Write;
use std::time::{Duration, Instant};

use coxswain_comm::{Axis, DataPort, Links, MemoryStore, Op, Pipe, TorchError};
use tch::{Device, Kind, Tensor};

use common::{ranks, ranks_within};

/// Writes a line where the terminal is; a closed one does not fail the test.
fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn filled(value: f64, len: i64) -> Tensor {
    Tensor::full([len], value, (Kind::Float, Device::Cpu))
}

fn values(x: &Tensor) -> Vec<f32> {
    Vec::try_from(x).unwrap()
}

#[test]
fn reductions_give_all_ranks_the_bits_of_the_tree() {
    for world in [1, 2, 3, 4] {
        // Sums of these depend on the order: 1e8 swallows small numbers that come after it.
        let parts = [1e8_f32, 1.0, -1e8, 3.25];
        let part = |rank: usize| filled(f64::from(parts[rank]), 1000);
        let sums = ranks(world, |links| {
            let all: Vec<u32> = (0..world).collect();
            let group = links.group(&all, Axis::Tensor).unwrap();
            let own = part(links.rank() as usize);
            (values(&group.reduce(&own, Op::Sum).unwrap()), values(&group.reduce(&own, Op::Max).unwrap()))
        });
        let tree = match world {
            1 => parts[0],
            2 => parts[0] + parts[1],
            3 => (parts[0] + parts[1]) + parts[2],
            _ => (parts[0] + parts[1]) + (parts[2] + parts[3]),
        };
        for (sum, max) in sums {
            assert_eq!(sum, vec![tree; 1000], "{world} ranks");
            assert_eq!(max, vec![1e8; 1000]);
        }
    }
}

/// `cargo xtask test --long` runs it.
#[test]
fn a_hundred_and_twenty_eight_ranks_meet_and_close_a_step() {
    if skip::unless_long() {
        return;
    }
    // Two ends of a socket for each two ranks.
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let files: u32 = files.split_whitespace().next().unwrap().parse().unwrap_or(u32::MAX);
    for world in [32, 64, 128] {
        let needed = world * (world + 8);
        if needed > files {
            skip::lacking(&format!("{needed} open files for {world} ranks, and {files} are allowed"));
            continue;
        }
        let start = Instant::now();
        let sums = ranks_within(60_000, 60_000, world, |links| {
            let met = start.elapsed();
            let sum = |lists: Vec<Vec<f64>>| vec![lists.iter().map(|list| list[0]).sum()];
            (met, links.close(&[f64::from(links.rank())], sum).unwrap())
        });
        let met = sums.iter().map(|(met, _)| *met).max().unwrap();
        tell(&format!("{world} ranks met within {met:.1?} and closed within {:.1?}", start.elapsed()));
        let sum = f64::from(world * (world - 1) / 2);
        assert!(sums.iter().all(|(_, all)| all == &[sum]));
    }
}

#[test]
fn the_closing_exchange_gives_all_ranks_what_the_lead_made_of_it() {
    // Three ranks are a star around the lead, twenty a tree.
    for (world, sum) in [(1, 0.0), (3, 3.0), (20, 190.0)] {
        let results = ranks(world, |links| {
            let own = f64::from(links.rank());
            let least = |lists: Vec<Vec<f64>>| {
                let sum = lists.iter().map(|list| list[0]).sum();
                vec![sum, lists.iter().map(|list| list[1]).fold(f64::INFINITY, f64::min)]
            };
            links.close(&[own, 100.0 - own], least).unwrap()
        });
        assert_eq!(results, vec![vec![sum, 101.0 - f64::from(world)]; world as usize]);
    }
}

#[test]
fn all_ranks_get_what_each_brings() {
    // Some bring nothing, and a rank alone takes nothing in.
    let text = |rank: u32| format!("{rank} ").repeat(rank as usize % 4).into_bytes();
    for world in [1, 2, 9, 20] {
        let expected: Vec<_> = (0..world).map(text).collect();
        let found = ranks(world, |links| links.share(&text(links.rank())).unwrap());
        assert_eq!(found, vec![expected; world as usize]);
    }
}

#[test]
fn a_wait_may_take_longer_than_the_rendezvous() {
    // Connecting is given two seconds, a peer that computes is given more.
    let values = ranks(2, |links| {
        if links.rank() == 1 {
            std::thread::sleep(Duration::from_millis(3_400));
            links.send(&filled(7.0, 4), 0, Axis::World).unwrap().wait().unwrap();
            return vec![7.0; 4];
        }
        let x = filled(0.0, 4);
        links.recv(&x, 1, Axis::World).unwrap().wait().unwrap();
        values(&x)
    });
    assert_eq!(values, vec![vec![7.0; 4]; 2]);
}

#[test]
fn a_send_does_not_wait_for_a_slow_receiver() {
    // More than the sockets buffer.
    const LEN: i64 = 4 << 20;
    const DELAY: Duration = Duration::from_millis(400);
    let times = ranks(2, |links| {
        let start = Instant::now();
        if links.rank() == 1 {
            std::thread::sleep(DELAY);
            let x = filled(0.0, LEN);
            links.recv(&x, 0, Axis::Edge { stage: 0, backward: false }).unwrap().wait().unwrap();
            assert_eq!(x.mean(Kind::Float).double_value(&[]), 7.0);
            return start.elapsed();
        }
        let pipe = Pipe::new().unwrap();
        pipe.push(links.send(&filled(7.0, LEN), 1, Axis::Edge { stage: 0, backward: false }).unwrap())
            .unwrap();
        let sent = start.elapsed();
        pipe.drain().unwrap();
        assert!(start.elapsed() >= DELAY / 2, "the drain waits for the receiver");
        sent
    });
    assert!(times[0] < DELAY / 2, "the send took {:?}", times[0]);
}

#[test]
fn a_rank_that_waits_for_a_receiver_waits() {
    const DELAY: Duration = Duration::from_millis(400);
    let waited = ranks(2, |links| {
        let before_us = links.waited_us();
        // More than the sockets buffer.
        let x = filled(7.0, 4 << 20);
        if links.rank() == 1 {
            std::thread::sleep(DELAY);
            links.recv(&x, 0, Axis::World).unwrap().wait().unwrap();
        } else {
            links.send(&x, 1, Axis::World).unwrap().wait().unwrap();
        }
        Duration::from_micros(links.waited_us() - before_us)
    });
    assert!(waited[0] > DELAY / 2 && waited[1] < DELAY / 2, "{waited:?}");
}

#[test]
fn waits_end_when_aborted_and_when_a_peer_goes() {
    let errors: Vec<TorchError> = ranks(2, |links| {
        if links.rank() == 1 {
            // Leaves without a word; its sockets close with its group.
            return TorchError("left".to_owned());
        }
        let x = filled(0.0, 4);
        links.recv(&x, 1, Axis::World).unwrap().wait().unwrap_err()
    });
    assert!(errors[0].0.contains("receiving from rank 1"), "{}", errors[0]);
}

#[test]
fn every_wait_ends_at_once_when_it_is_aborted() {
    const WAITS: i64 = 40;
    // The bound is of waits; a machine that is busy with other tests may hold up one try.
    let slowest = || {
        let took = ranks(2, |links| {
            if links.rank() == 1 {
                // It has a place for nothing, and sends nothing.
                std::thread::sleep(Duration::from_millis(300));
                return Duration::ZERO;
            }
            let aborter = links.clone();
            std::thread::scope(|scope| {
                let waiter = |number: i64| {
                    let links = links.clone();
                    scope.spawn(move || {
                        let (x, axis) =
                            (filled(0.0, number), Axis::Data { bucket: number as u32, gather: false });
                        let transfer =
                            if number % 2 == 0 { links.recv(&x, 1, axis) } else { links.send(&x, 1, axis) };
                        let error = transfer.unwrap().wait().unwrap_err();
                        assert!(error.0.contains("aborted"), "{error}");
                        Instant::now()
                    })
                };
                let waits: Vec<_> = (0..WAITS).map(waiter).collect();
                std::thread::sleep(Duration::from_millis(100));
                let start = Instant::now();
                aborter.abort();
                let ends = waits.into_iter().map(|wait| wait.join().unwrap());
                ends.map(|end| end.saturating_duration_since(start)).max().unwrap()
            })
        });
        took[0]
    };
    let took: Vec<_> = (0..3).map(|_| slowest()).collect();
    assert!(took.iter().any(|took| *took < Duration::from_millis(50)), "{took:?}");
}

#[test]
fn ranks_that_never_meet_say_which_key_is_missing() {
    let store = MemoryStore::default();
    let error = Links::join(store, 0, 2, &DataPort::local().unwrap(), 500, 500).unwrap_err();
    assert!(error.0.contains("it was never set"), "{error}");
}
