//! Runs over a network that is late, stalls, and breaks connections.

use std::collections::BTreeMap;

use super::fake::{Faults, Given, Worker};
use super::proxy::{Proxy, Trouble};
use super::{JOB, Site};
use crate::metrics;
use coxswain_proto::wire;
use tokio::task::JoinSet;

const STEPS: u64 = 40;

/// Seeds that run beside each other.
const AT_ONCE: u64 = 24;

/// A run of two workers behind a network of this seed, with a spare: what must hold, and how many
/// generations it took.
async fn run(seed: u64) -> (Trouble, u64) {
    let trouble = Trouble::of(seed);
    let mut site = Site::start().await;
    let to = site.url.trim_start_matches("http://").parse().unwrap();
    let job = site.submit(JOB, &[&format!("train.steps={STEPS}"), "checkpoint.every=10"]).await.unwrap();
    let proxies = [Proxy::start(to, trouble, seed).await, Proxy::start(to, trouble, !seed).await];
    let given = Given::default();
    let mut workers = JoinSet::new();
    let urls = [&proxies[0].url, &proxies[1].url, &site.url];
    for (n, url) in urls.into_iter().enumerate() {
        let (worker, url) = (Worker::new(&format!("w{n}"), 1, Faults::default(), given.clone()), url.clone());
        workers.spawn(async move { worker.work(&url).await });
    }
    let (_, last) = tokio::select! {
        followed = site.follow(&job) => followed,
        ended = workers.join_next() => panic!("seed {seed}, {trouble:?}: a worker ended: {ended:?}"),
    };
    assert_eq!(
        (last.state(), last.step),
        (wire::JobState::Done, STEPS),
        "seed {seed}, {trouble:?}: {last:?}"
    );
    let noted: Vec<_> =
        metrics::read(&site.run_folder().as_path().into()).unwrap().iter().map(|line| line.step).collect();
    assert_eq!(noted, (1..=STEPS).collect::<Vec<_>>(), "seed {seed}, {trouble:?}: each step once");
    if trouble.is_harmless() {
        assert_eq!(last.generation, 1, "seed {seed}, {trouble:?}: interrupted for nothing");
    }
    (trouble, last.generation)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_run_is_lost_to_a_bad_network_and_every_call_ends() {
    let seeds = if std::env::var_os("COXSWAIN_LONG_TESTS").is_some() { 20 * AT_ONCE } else { AT_ONCE };
    let mut generations: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for first in (0..seeds).step_by(AT_ONCE as usize) {
        let mut runs = JoinSet::new();
        for seed in first..first + AT_ONCE {
            runs.spawn(run(seed));
        }
        while let Some(ended) = runs.join_next().await {
            let (trouble, generation) = ended.unwrap();
            let kind = format!("{trouble:?}").split(' ').next().unwrap_or_default().to_owned();
            generations.entry(kind).or_default().push(generation);
        }
    }
    println!("generations that the runs took: {generations:?}");
    let broken: u64 = generations.values().flatten().sum();
    assert!(
        broken > generations.values().flatten().count() as u64,
        "nothing was ever broken: {generations:?}"
    );
}
