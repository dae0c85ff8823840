//! Five thousand histories, and no rule is broken in any.

use coxswain_sim::shrink::{shrink, story};
use coxswain_sim::swarm::SimCase;
use coxswain_sim::sweep::sweep;

/// How many seeds; on two cores they take about a minute.
const SEEDS: u64 = 5000;

/// The least median of events: a shorter history has no room for a fault on a fault.
const MEDIAN_EVENTS: u64 = 2000;

#[test]
fn no_seed_breaks_a_rule() {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let sweep = sweep(1, SEEDS, threads, false, |_| {});
    println!("{}", sweep.report());
    if let Some((seed, violation)) = sweep.failures.first() {
        panic!("seed {seed}:\n{}", story(&shrink(&SimCase::of(*seed), violation.rule)));
    }
    assert_eq!(sweep.seeds, SEEDS);
    assert_eq!(sweep.twice, SEEDS / 100, "one in a hundred runs twice");
    assert!(sweep.median_events() >= MEDIAN_EVENTS, "the median seed has {} events", sweep.median_events());
    assert_eq!(sweep.silent(), [], "families that never happened");
}
