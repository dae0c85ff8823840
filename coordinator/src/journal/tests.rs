use std::fs;
use std::os::fd::OwnedFd;
use std::time::Instant;

use coxswain_core::cluster::{Cluster, Compute, FormedRank, JobEnding, Submission};
use coxswain_core::spec::{JobText, parse};
use coxswain_files::hash::draw_below;
use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::status::{Published, SavedFile};

use super::*;

fn entry(n: usize) -> Entry {
    Entry::Ended { job: format!("demo-{n}"), ending: JobEnding::Done, reason: "all\nis well".to_owned() }
}

/// A journal of three entries.
fn written() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, replayed) = Journal::open(folder.path()).unwrap();
    assert!(replayed.entries.is_empty());
    for n in 0..3 {
        journal.append(&entry(n), 7).unwrap();
    }
    let path = folder.path().join(NAME);
    (folder, path)
}

#[test]
fn what_is_written_is_read_and_goes_on() {
    let (folder, _) = written();
    let (mut journal, replayed) = Journal::open(folder.path()).unwrap();
    assert_eq!(
        (replayed.entries, replayed.cut_bytes),
        (vec![(7, entry(0)), (7, entry(1)), (7, entry(2))], 0)
    );
    journal.append(&entry(3), 8).unwrap();
    drop(journal);
    assert_eq!(Journal::open(folder.path()).unwrap().1.entries.len(), 4);
    let mut read = Vec::new();
    each(folder.path(), |at_ms, entry| read.push((at_ms, entry.clone()))).unwrap();
    assert_eq!(read, [(7, entry(0)), (7, entry(1)), (7, entry(2)), (8, entry(3))]);
}

#[test]
fn wherever_the_tail_is_torn_the_rest_is_kept() {
    let (folder, path) = written();
    let whole = fs::read(&path).unwrap();
    let ends: Vec<_> = (0..whole.len()).filter(|&i| whole[i] == b'\n').map(|i| i + 1).collect();
    for cut in 0..=whole.len() {
        fs::write(&path, &whole[..cut]).unwrap();
        let (mut journal, replayed) = Journal::open(folder.path()).unwrap();
        let complete = ends.iter().filter(|end| **end <= cut).count();
        assert_eq!(replayed.entries.len(), complete.saturating_sub(1), "cut at {cut}");
        journal.append(&entry(9), 9).unwrap();
        drop(journal);
        let again = Journal::open(folder.path()).unwrap().1;
        assert_eq!((again.entries.last(), again.cut_bytes), (Some(&(9, entry(9))), 0), "cut at {cut}");
    }
    let mut zeros = whole.clone();
    zeros.extend([0; 100]);
    zeros.push(b'\n');
    fs::write(&path, &zeros).unwrap();
    let replayed = Journal::open(folder.path()).unwrap().1;
    assert_eq!((replayed.entries.len(), replayed.cut_bytes), (3, 101));
}

#[test]
fn damage_is_refused_wherever_it_is() {
    let (folder, path) = written();
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1;
        fs::write(&path, &damaged).unwrap();
        // A damaged last newline looks like a torn tail; all else is seen.
        if at + 1 < whole.len() {
            let error = Journal::open(folder.path()).unwrap_err();
            let seen = matches!(error, JournalError::Damaged { offset, .. } if offset as usize <= at)
                || matches!(error, JournalError::Foreign { .. } if at < HEADER.len());
            assert!(seen, "byte {at}: {error}");
        }
    }
}

#[test]
fn a_damaged_middle_is_named_with_its_place() {
    let (folder, path) = written();
    let mut bytes = fs::read(&path).unwrap();
    let second = HEADER.len() + encode(&entry(0), 7).unwrap().len();
    bytes[second + 30] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = Journal::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("damaged at byte {second}: its checksum should be")), "{error}");
}

#[test]
fn zeros_in_the_middle_are_no_torn_tail() {
    let (folder, path) = written();
    let mut bytes = fs::read(&path).unwrap();
    bytes[HEADER.len() + 30] = 0;
    fs::write(&path, &bytes).unwrap();
    assert!(matches!(Journal::open(folder.path()), Err(JournalError::Damaged { .. })));
}

#[test]
fn one_journal_has_one_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let _held = Journal::open(folder.path()).unwrap();
    assert!(matches!(Journal::open(folder.path()), Err(JournalError::InUse { .. })));
}

const JOB: &str = "
name: demo
model: {layers: 4, dim: 32, heads: 4, vocab: 300}
data: {synthetic: {tokens: 4096}}
train: {steps: 1000000, sequence: 16, global_micro_batches: 4}
layout: {pipeline: 2, data: 2}
";

/// A long run of four ranks: it is interrupted every thousand checkpoints.
fn long_run(count: usize) -> Vec<Entry> {
    let job = "demo-1".to_owned();
    let spec = parse(&JobText { source: "job", text: JOB, sets: &[], base: Path::new("/") }).unwrap();
    let submission = Submission { job: job.clone(), spec, directory: "/runs/demo".to_owned(), chosen: None };
    let rank = |rank: u32| FormedRank {
        worker: WorkerId(format!("worker-{rank}")),
        incarnation: 1,
        digest: "d".repeat(64),
        stage: rank / 2,
        host: "alpha".to_owned(),
        pid: 1000 + rank,
        cores: 2,
        slow_percent: 100,
    };
    let mut entries = vec![Entry::Submitted(Box::new(submission))];
    for step in (1..).map(|n| Step(n * 10)) {
        let generation = Generation(step.0 / 10_000 + 1);
        if step.0 % 10_000 == 10 {
            if generation.0 > 1 {
                let (generation, reason) = (Generation(generation.0 - 1), "worker-1 was lost".to_owned());
                entries.push(Entry::Interrupted { job: job.clone(), generation, reason });
            }
            let ranks = (0..4).map(rank).collect();
            let from = Step(step.0 - 10);
            let (job, revision) = (job.clone(), generation.0);
            let compute = Compute { device: "cpu".to_owned(), runtime: "libtorch".to_owned() };
            let formed =
                Entry::Formed { job, generation, ranks, threads: 1, from, revision, layout: None, compute };
            entries.push(formed);
        }
        let file = |n: u32| SavedFile {
            name: format!(
                "{}-g{generation}-r{:03}.safetensors",
                ["model", "optimizer"][n as usize % 2],
                n / 2
            ),
            bytes: 1_000_000,
            digest: "d".repeat(64),
        };
        let files = (0..8).map(file).collect();
        entries.push(Entry::Committed { job: job.clone(), generation, step, files });
        let checkpoint = Published { step, digest: "m".repeat(64) };
        entries.push(Entry::Published { job: job.clone(), checkpoint });
        if entries.len() >= count {
            entries.truncate(count);
            return entries;
        }
    }
    entries
}

/// The bytes of a journal of these entries.
fn bytes_of(entries: &[Entry]) -> Vec<u8> {
    let lines = entries.iter().flat_map(|entry| encode(entry, 7).unwrap());
    HEADER.iter().copied().chain(lines).collect()
}

fn known(entries: &[Entry]) -> String {
    format!("{:?}", Cluster::replay(entries.to_vec()))
}

#[test]
fn a_hundred_thousand_entries_are_read_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let entries = long_run(100_000);
    let bytes = bytes_of(&entries);
    fs::write(folder.path().join(NAME), &bytes).unwrap();
    let mut took = Vec::new();
    // The first opening writes the journal shorter, the second reads what is left.
    for _ in 0..2 {
        let start = Instant::now();
        let (journal, replayed) = Journal::open(folder.path()).unwrap();
        let count = replayed.starts.len();
        let cluster = Cluster::replay(replayed.entries.into_iter().map(|(_, entry)| entry));
        took.push((start.elapsed(), count, journal.end));
        assert_eq!(format!("{cluster:?}"), known(&entries));
    }
    println!(
        "a journal of {} bytes, then what is left of it (time, entries in memory, bytes): {took:?}",
        bytes.len()
    );
    assert!(took[0].0.as_millis() < 3000, "{took:?}");
    assert!(took[1].1 < 20_000 && took[1].2 < KEPT_BYTES * 11 / 10, "{took:?}");
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn wherever_a_compaction_is_cut_off_one_good_journal_is_left() {
    const KEPT: u64 = 2000;
    let entries = long_run(60);
    let long = bytes_of(&entries);
    let folder = tempfile::tempdir().unwrap();
    let (path, new) = (folder.path().join(NAME), folder.path().join(NEW));
    fs::write(&path, &long).unwrap();
    drop(Journal::open_keeping(folder.path(), KEPT).unwrap());
    let short = fs::read(&path).unwrap();
    assert!(short.len() * 2 < long.len() && long.ends_with(&short[short.len() - KEPT as usize..]));
    assert_eq!(names(folder.path()), [NAME]);
    let last = || entry(9);
    let open_and_go_on = |what: &str, step: usize| {
        let (mut journal, replayed) = Journal::open_keeping(folder.path(), KEPT).unwrap();
        let replayed: Vec<_> = replayed.entries.into_iter().map(|(_, entry)| entry).collect();
        assert_eq!(known(&replayed), known(&entries), "{what} {step}");
        journal.append(&last(), 9).unwrap();
        drop(journal);
        let again = Journal::open_keeping(folder.path(), KEPT).unwrap().1.entries;
        assert_eq!(again.last(), Some(&(9, last())), "{what} {step}");
        assert_eq!(names(folder.path()), [NAME], "{what} {step}");
    };
    // Before the new one has its name: any part of it may be there.
    for cut in (0..=short.len()).step_by(7).chain([short.len()]) {
        fs::write(&path, &long).unwrap();
        fs::write(&new, &short[..cut]).unwrap();
        open_and_go_on("written up to", cut);
    }
    // After: it is whole.
    fs::write(&path, &short).unwrap();
    open_and_go_on("renamed", 0);
}

#[test]
fn a_journal_that_cannot_be_compacted_is_gone_on_with() {
    let folder = tempfile::tempdir().unwrap();
    let (path, entries) = (folder.path().join(NAME), long_run(60));
    let long = bytes_of(&entries);
    fs::write(&path, &long).unwrap();
    // As where there is no room, the new one cannot be written.
    fs::create_dir(folder.path().join(NEW)).unwrap();
    let (mut journal, replayed) = Journal::open_keeping(folder.path(), 2000).unwrap();
    assert_eq!(replayed.entries.len(), entries.len());
    journal.append(&entry(9), 9).unwrap();
    drop(journal);
    assert!(fs::read(&path).unwrap().starts_with(&long));
    fs::remove_dir(folder.path().join(NEW)).unwrap();
    let (_, replayed) = Journal::open_keeping(folder.path(), 2000).unwrap();
    assert_eq!(replayed.entries.last(), Some(&(9, entry(9))));
    assert!(fs::metadata(&path).unwrap().len() < long.len() as u64);
}

#[test]
fn a_journal_is_made_shorter_while_it_is_written() {
    let entries = long_run(400);
    let long = bytes_of(&entries).len() as u64;
    let kept = long / 40;
    for roomless in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        if roomless {
            fs::create_dir(folder.path().join(NEW)).unwrap();
        }
        let (mut journal, _) = Journal::open_keeping(folder.path(), kept).unwrap();
        let mut most = 0;
        for (at_ms, entry) in (0..).zip(&entries) {
            journal.append(entry, at_ms).unwrap();
            most = most.max(fs::metadata(folder.path().join(NAME)).unwrap().len());
        }
        drop(journal);
        assert_eq!(most > long / 4, roomless, "{most} of {long} bytes");
        let (_, replayed) = Journal::open_keeping(folder.path(), long).unwrap();
        let replayed: Vec<_> = replayed.entries.into_iter().map(|(_, entry)| entry).collect();
        assert_eq!(known(&replayed), known(&entries), "{roomless}");
    }
}

#[test]
fn a_journal_that_cannot_be_much_shorter_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    let entries = long_run(60);
    let long = bytes_of(&entries);
    fs::write(&path, &long).unwrap();
    drop(Journal::open_keeping(folder.path(), long.len() as u64 * 2 / 3).unwrap());
    assert_eq!(fs::read(&path).unwrap(), long);
}

#[test]
fn a_compaction_keeps_others_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    fs::write(&path, bytes_of(&long_run(60))).unwrap();
    // Another one has the old file open when the new one gets its name.
    let stale = OpenOptions::new().read(true).append(true).open(&path).unwrap();
    let held = Journal::open_keeping(folder.path(), 2000).unwrap();
    stale.try_lock().unwrap();
    assert!(matches!(Journal::open(folder.path()), Err(JournalError::InUse { .. })));
    drop(held);
    Journal::open(folder.path()).unwrap();
}

#[test]
fn nothing_follows_a_write_or_sync_that_failed() {
    // A pipe takes bytes and cannot be synced; this device is always full.
    let (_reader, pipe) = io::pipe().unwrap();
    let full = OpenOptions::new().append(true).open("/dev/full").unwrap();
    for file in [File::from(OwnedFd::from(pipe)), full] {
        let mut journal =
            Journal { path: NAME.into(), file, end: 0, broken: false, kept_bytes: 0, shorten_at: u64::MAX };
        journal.append(&entry(0), 7).unwrap_err();
        let again = journal.append(&entry(1), 7).unwrap_err().to_string();
        assert!(again.contains("an earlier write failed"), "{again}");
    }
}

#[test]
fn no_bytes_make_opening_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(NAME);
    let good = bytes_of(&long_run(8));
    let mut opened = 0;
    for seed in 0..1500 {
        let draw = |counter, bound: usize| draw_below(seed, counter, bound as u32) as usize;
        let mut bytes = if seed % 3 == 0 { HEADER.to_vec() } else { good.clone() };
        for change in 0..1 + draw(0, 3) as u64 {
            let at = draw(10 + change, bytes.len());
            match draw(20 + change, 6) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes[at] ^= 1 << draw(30 + change, 8),
                2 => bytes.extend((0..at as u64).map(|n| draw(100 + n, 256) as u8)),
                3 => bytes.extend(b"9999999999999999999 00000000 {}\n"),
                4 => bytes.extend_from_within(at..),
                _ => bytes[at..].fill(0),
            }
        }
        fs::write(&path, &bytes).unwrap();
        match Journal::open(folder.path()) {
            Ok((_, replayed)) => {
                drop(Cluster::replay(replayed.entries.into_iter().map(|(_, entry)| entry)));
                opened += 1;
            }
            Err(JournalError::Damaged { offset, .. }) => assert!(offset <= bytes.len() as u64),
            Err(JournalError::Foreign { .. }) => {}
            Err(error) => panic!("{seed}: {error}"),
        }
    }
    assert!((100..1400).contains(&opened), "{opened}");
}
