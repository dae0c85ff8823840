//! A journal in fewer entries is the same journal.

use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::job::Layout;
use coxswain_types::status::{Published, SavedFile};
use expect_test::expect;
use proptest::prelude::*;

use super::many::{history, line};
use super::story::{entry_text, spec};
use crate::cluster::entry::NoteKind;
use crate::cluster::{Cluster, Compute, Effect, Entry, Event, JobEnding, MAX_WORKERS, Submission, compact};

fn submitted(n: u64) -> Entry {
    let layout = Layout::ONE;
    let (job, directory) = (format!("demo-{n}"), format!("/runs/{n}"));
    Entry::Submitted(Box::new(Submission { job, spec: spec("demo", layout, 4), directory, chosen: None }))
}

fn formed(n: u64, generation: u64, from: u64) -> Entry {
    let (job, from) = (format!("demo-{n}"), Step(from));
    let (generation, ranks) = (Generation(generation), Vec::new());
    let compute = Compute { device: "cpu".into(), runtime: format!("libtorch {generation}") };
    Entry::Formed { job, generation, ranks, threads: 1, from, revision: generation.0, layout: None, compute }
}

fn committed(n: u64, generation: u64, step: u64) -> Entry {
    let files = vec![SavedFile { name: "model".into(), bytes: 1, digest: "d".into() }];
    Entry::Committed { job: format!("demo-{n}"), generation: Generation(generation), step: Step(step), files }
}

fn published(n: u64, step: u64) -> Entry {
    Entry::Published {
        job: format!("demo-{n}"),
        checkpoint: Published { step: Step(step), digest: "m".into() },
    }
}

fn ended(n: u64) -> Entry {
    Entry::Ended { job: format!("demo-{n}"), ending: JobEnding::Done, reason: "all is well".into() }
}

fn interrupted(n: u64, generation: u64) -> Entry {
    let (job, reason) = (format!("demo-{n}"), format!("reason {generation}"));
    Entry::Interrupted { job, generation: Generation(generation), reason }
}

fn drained(worker: &str, incarnation: u64) -> Entry {
    Entry::Drained { worker: WorkerId(worker.to_owned()), incarnation, reason: "a new disk".into() }
}

/// Entries with the times at which they were written.
fn dated(entries: &[Entry]) -> Vec<(u64, Entry)> {
    entries.iter().cloned().enumerate().map(|(at, entry)| (at as u64 + 7, entry)).collect()
}

/// All that a restart knows, as text.
fn known(entries: &[(u64, Entry)]) -> String {
    format!("{:#?}", Cluster::replay(entries.iter().map(|(_, entry)| entry.clone())))
}

/// Checks that nothing is lost wherever the journal is cut in two and the first part is compacted.
fn check(entries: &[Entry]) {
    let entries = dated(entries);
    let whole = known(&entries);
    for cut in 0..=entries.len() {
        let (older, newer) = entries.split_at(cut);
        let short = [compact(older), newer.to_vec()].concat();
        assert_eq!(known(&short), whole, "compacted up to {cut}");
        let again = compact(older);
        assert_eq!(compact(&again), again, "compacted twice up to {cut}");
        assert!(again.is_sorted_by_key(|(at_ms, _)| at_ms), "entries keep their times");
    }
}

#[test]
fn only_the_newest_of_each_is_kept() {
    let mut entries = vec![submitted(1), submitted(2), formed(1, 1, 0)];
    for step in 1..50 {
        entries.extend([committed(1, 1, step), published(1, step)]);
    }
    entries.extend([ended(1), formed(2, 2, 0), committed(2, 2, 2)]);
    let short = compact(&dated(&entries));
    let short: Vec<_> = short.iter().map(|(at_ms, entry)| format!("{at_ms} {}", entry_text(entry))).collect();
    expect![[r#"
        7 compacted 97
        7 submitted demo-1
        8 submitted demo-2
        9 formed demo-1 g1 [] threads 1 from 0
        107 published demo-1 step 49 m
        108 ended demo-1 Done
        109 formed demo-2 g2 [] threads 1 from 0
        110 committed demo-2 step 2 [model]
    "#]]
    .assert_eq(&(short.join("\n") + "\n"));
    check(&entries);
}

#[test]
fn jobs_that_are_forgotten_stay_so_and_their_numbers_are_not_used_again() {
    let mut entries: Vec<_> = (1..=2500).flat_map(|n| [submitted(n), formed(n, n, 0), ended(n)]).collect();
    entries.push(submitted(2501));
    let entries = dated(&entries);
    let short = compact(&entries);
    assert_eq!(known(&short), known(&entries));
    assert!(short.len() < 3100, "{}", short.len());
    let cluster = Cluster::replay(short.into_iter().map(|(_, entry)| entry));
    assert_eq!(cluster.next_job("demo", "/runs/new").unwrap(), "demo-2502");
}

#[test]
fn the_newest_interruptions_are_told_with_their_generations_and_steps() {
    let mut entries = vec![submitted(1)];
    for generation in 1..30 {
        entries.extend([formed(1, generation, generation), committed(1, generation, generation + 1)]);
        entries.extend([published(1, generation + 1), interrupted(1, generation)]);
    }
    let explain = |entries: Vec<(u64, Entry)>| {
        Cluster::replay(entries.into_iter().map(|(_, entry)| entry)).explain("demo-1", None).unwrap()
    };
    let (whole, short) = (explain(dated(&entries)), explain(compact(&dated(&entries))));
    assert!(whole.contains("generation 10, step 11: reason 10"), "{whole}");
    assert!(!whole.contains("generation 9,"), "{whole}");
    assert_eq!(whole, short);
    check(&entries);
}

#[test]
fn a_start_that_is_compacted_away_still_counts() {
    let entries = dated(&[Entry::Started { epoch: 1 }, submitted(1), Entry::Started { epoch: 2 }, ended(1)]);
    let short = compact(&entries);
    assert!(!short.iter().any(|(_, entry)| matches!(entry, Entry::Started { .. })), "{short:?}");
    let mut cluster = Cluster::replay(short.into_iter().map(|(_, entry)| entry));
    let effects = cluster.handle(0, Event::Tick);
    assert_eq!(effects.first(), Some(&Effect::Record(Entry::Started { epoch: 3 })));
}

#[test]
fn no_more_drains_are_kept_than_a_restart_remembers() {
    let worker = |n: usize| format!("w{n:06}");
    let mut entries: Vec<_> = (0..MAX_WORKERS + 10).map(|n| drained(&worker(n), 1)).collect();
    entries.extend([drained(&worker(MAX_WORKERS), 2), drained(&worker(0), 2)]);
    let entries = dated(&entries);
    let short = compact(&entries);
    assert_eq!(short.len(), MAX_WORKERS + 1);
    assert_eq!(known(&short), known(&entries));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn whatever_happened_a_restart_knows_the_same(lines in prop::collection::vec((0u64..900, line()), 0..80)) {
        check(&history(&lines).1);
    }

    /// Entries that no history has, in any order.
    #[test]
    fn whatever_stands_there_a_restart_knows_the_same(
        picks in prop::collection::vec((0u8..15, 1u64..4, 0u64..9), 0..60)
    ) {
        let mut entries = vec![submitted(1), submitted(2)];
        entries.extend(picks.into_iter().map(|(kind, n, number)| {
            let (job, generation, reason) =
                (format!("demo-{n}"), Generation(number), format!("reason {number}"));
            match kind {
                0 => formed(n, number, number),
                1 => committed(n, number, number),
                2 => published(n, number),
                3 => interrupted(n, number),
                4 => Entry::Compacted { entries: number, submitted: number, generation, epoch: number, newest: Default::default() },
                5 => Entry::Stopping { job, generation, revision: number, reason },
                6 => Entry::Regrouped { job, generation, step: Step(number), reason },
                7 => Entry::Started { epoch: number },
                8 => drained(&job, number),
                9 => {
                    let kind = NoteKind::Hang;
                    Entry::Noted { kind, job: Some(job), generation: None, worker: None, text: reason }
                }
                10 => Entry::Cancelling { job, reason },
                11 => Entry::Saving { job, generation, revision: number, after: Step(number) },
                12 => Entry::Preparing { job, tries: 1 + number as u32 },
                13 => Entry::Prepared { job },
                _ => ended(n),
            }
        }));
        check(&entries);
    }
}
