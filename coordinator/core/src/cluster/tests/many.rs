//! What holds in every story, tried on many random ones.

use std::collections::BTreeMap;

use coxswain_types::ids::{Generation, WorkerId};
use proptest::prelude::*;

use super::story::tell_to;
use crate::cluster::{Cluster, Entry};

/// A line that may come at any time.
pub(super) fn line() -> impl Strategy<Value = String> {
    let worker = prop::sample::select(vec!["w0", "w1", "w1'", "w2", "w3*", "w4", "w5"]);
    let phase = prop::sample::select(vec!["idle", "preparing", "running", "done"]);
    prop_oneof![
        6 => (worker.clone(), 0u64..7, phase, 0u64..5, 0u64..5).prop_map(|(worker, generation, phase, saved, published)| {
            let mut line = format!("{worker} g{generation} {phase} step={saved} reports=1..{saved}");
            if saved > 0 {
                line.push_str(&format!(" saved={saved}"));
            }
            if published > 0 {
                line.push_str(&format!(" published={published}"));
            }
            line
        }),
        1 => (worker.clone(), 0u64..4, prop::sample::select(vec!["failed", "cut-off", "leaving"]))
            .prop_map(|(worker, generation, how)| format!("{worker} g{generation} {how}: broken")),
        1 => worker.clone().prop_map(|worker| format!("lost {worker} gone")),
        1 => worker.clone().prop_map(|worker| format!("drain {worker} enough")),
        1 => (worker, 0u64..4).prop_map(|(worker, generation)| format!("{worker} g{generation} running leaves=asked")),
        1 => (0u64..5).prop_map(|job| format!("cancel demo-{job} enough")),
        1 => (0u64..5).prop_map(|job| format!("cancel-now demo-{job} enough")),
        3 => (0u64..5).prop_map(|job| format!("prepared demo-{job}")),
        2 => Just("tick".to_owned()),
    ]
}

/// A cluster with four jobs, and its journal.
fn opened() -> (Cluster, Vec<Entry>) {
    let mut cluster = Cluster::default();
    let mut journal = Vec::new();
    for policy in ["", "wait", "wait priority=1", "shrink"] {
        journal.extend(tell_to(&mut cluster, &format!("0 submit demo {policy} pp=2 steps=4")).1);
    }
    (cluster, journal)
}

/// A cluster to which these lines happened, each after a pause, and its journal.
pub(super) fn history(lines: &[(u64, String)]) -> (Cluster, Vec<Entry>) {
    let (mut cluster, mut journal) = opened();
    let mut now_ms = 0;
    for (pause_ms, line) in lines {
        now_ms += pause_ms;
        journal.extend(tell_to(&mut cluster, &format!("{now_ms} {line}")).1);
    }
    (cluster, journal)
}

/// What the journal may hold, whatever happened.
fn check(journal: &[Entry]) {
    let mut newest = Generation(0);
    let mut ended: BTreeMap<&str, u32> = BTreeMap::new();
    let mut committed = BTreeMap::new();
    // The workers of each job's generation at work.
    let mut at_work: BTreeMap<&str, (Generation, Vec<&WorkerId>)> = BTreeMap::new();
    for entry in journal {
        match entry {
            Entry::Formed { job, generation, ranks, .. } => {
                assert!(*generation > newest, "generations only grow");
                assert!(!ended.contains_key(job.as_str()), "what is over does not start again");
                newest = *generation;
                assert!(ranks.len() == 2 || job == "demo-4", "all or none");
                let workers: Vec<_> = ranks.iter().map(|rank| &rank.worker).collect();
                let busy =
                    at_work.values().flat_map(|(_, workers)| workers).any(|busy| workers.contains(busy));
                assert!(!busy, "a worker has one place");
                assert_eq!(at_work.insert(job, (*generation, workers)), None);
            }
            Entry::Committed { job, generation, step, files } => {
                assert_eq!(*generation, at_work[job.as_str()].0);
                assert_eq!(
                    files.len(),
                    at_work[job.as_str()].1.len(),
                    "a commit holds the files of all ranks"
                );
                committed.insert(job.as_str(), *step);
            }
            Entry::Published { job, checkpoint } => {
                assert_eq!(committed.get(job.as_str()), Some(&checkpoint.step), "committed before published");
            }
            Entry::Ended { job, .. } => {
                at_work.remove(job.as_str());
                *ended.entry(job).or_default() += 1;
            }
            Entry::Interrupted { job, generation, .. } | Entry::Regrouped { job, generation, .. } => {
                assert_eq!(at_work.remove(job.as_str()).map(|(at_work, _)| at_work), Some(*generation));
            }
            Entry::Cancelling { job, .. } => assert!(at_work.contains_key(job.as_str())),
            Entry::Stopping { job, generation, .. } | Entry::Saving { job, generation, .. } => {
                assert_eq!(at_work[job.as_str()].0, *generation);
            }
            Entry::Compacted { .. } => panic!("only a restart writes this"),
            Entry::Begun { job, generation, .. } => {
                assert_eq!(at_work[job.as_str()].0, *generation);
            }
            Entry::Preparing { job, .. } | Entry::Prepared { job } => {
                assert!(!at_work.contains_key(job.as_str()));
            }
            Entry::Started { .. } | Entry::Noted { .. } | Entry::Submitted(_) | Entry::Drained { .. } => {}
        }
    }
    assert!(ended.values().all(|times| *times == 1), "a job ends once");
}

proptest! {
    #[test]
    fn whatever_happens_the_journal_makes_sense(lines in prop::collection::vec((0u64..900, line()), 0..250)) {
        let (cluster, journal) = history(&lines);
        check(&journal);
        // What a restart knows is what was known: at the least every id, step and ending.
        let known: Vec<_> = cluster.jobs().iter().map(|j| (j.job.clone(), j.generation, j.state.is_over())).collect();
        let replayed = Cluster::replay(journal);
        let again: Vec<_> = replayed.jobs().iter().map(|j| (j.job.clone(), j.generation, j.state.is_over())).collect();
        prop_assert_eq!(known, again);
    }

    /// Whoever waits has been looked at, though not each event makes a look at all.
    #[test]
    fn no_job_waits_for_an_event_that_has_been(lines in prop::collection::vec((0u64..900, line()), 0..120)) {
        let mut cluster = opened().0;
        let mut now_ms = 0;
        for (pause_ms, line) in lines {
            now_ms += pause_ms;
            tell_to(&mut cluster, &format!("{now_ms} {line}"));
            if cluster.next_deadline_ms().is_some_and(|due_ms| due_ms <= now_ms) {
                continue;
            }
            let (before, mut out) = (cluster.jobs(), Vec::new());
            let mut again = cluster.clone();
            again.advance_queue(&mut out);
            prop_assert_eq!((out, again.jobs()), (vec![], before));
        }
    }
}
