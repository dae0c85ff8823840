//! A run's checkpoints in a store whose operations fail: whatever fails and whenever, a reader finds the old or the new
//! checkpoint whole, and what a published manifest names is there.

use std::collections::BTreeSet;
use std::sync::Arc;

use coxswain_types::status::SavedFile;
use coxswain_types::{Generation, Rank};

use super::*;
use crate::error::CheckpointError;
use crate::folders::{Sound, model_file, newest_sound, prune, set_aside, step_folder};
use crate::manifest::Manifest;
use crate::store::StoreFolder;
use crate::store::memory::{FaultyStore, Objects, StoreFault};

/// How many checkpoints a run keeps.
const KEEP: u32 = 2;

fn run_of(store: &FaultyStore) -> StoreFolder {
    StoreFolder::new(Arc::new(store.clone()))
}

/// The halves of the tensor of a step, each of which says which step it is of.
fn halves(step: u64) -> [(ShardTensor, Vec<u8>); 2] {
    [0, 2].map(|offset| {
        let (tensor, _) = slab("w", &[4, 2], 0, offset, 2);
        (tensor, (0..4).flat_map(|at| ((step * 100 + offset * 2 + at) as f32).to_le_bytes()).collect())
    })
}

/// Writes the files of a step as the ranks of a generation do.
fn write_files(run: &StoreFolder, step: u64, generation: u64) -> Result<Vec<SavedFile>, CheckpointError> {
    let folder = step_folder(run, step);
    let write_one = |(rank, (tensor, bytes)): (u32, (ShardTensor, Vec<u8>))| {
        let write = |_, slab: &mut SlabWriter<'_>| slab.write(&bytes);
        write_shard(&folder, &model_file(Generation(generation), Rank(rank)), &[tensor], write)
    };
    (0..).zip(halves(step)).map(write_one).collect()
}

/// Saves the checkpoint of a step as ranks and the coordinator do, and lets old ones go.
fn save(run: &StoreFolder, step: u64, generation: u64, keep: u32) -> Result<(), CheckpointError> {
    let files = write_files(run, step, generation)?;
    publish(&step_folder(run, step), &files, header(step))?;
    prune(run, step, keep).map(drop)
}

/// As a coordinator looks for the checkpoint to go on from, and ranks read its values.
fn look(run: &StoreFolder) -> Result<Sound<Vec<u8>>, CheckpointError> {
    newest_sound(run, |folder| {
        let checkpoint = Checkpoint::open(folder, None)?;
        checkpoint.verify()?;
        let values = checkpoint.read_slice("w", 0, 0, 4)?;
        Ok((checkpoint.manifest().clone(), values))
    })
}

/// The step whose checkpoint a reader finds, whole.
fn found(run: &StoreFolder, context: &str) -> u64 {
    let sound = look(run).unwrap_or_else(|error| panic!("{context}: {error}"));
    let (step, values) = sound.found.unwrap_or_else(|| panic!("{context}: there is no checkpoint"));
    assert!(values == halves(step).map(|(_, bytes)| bytes).concat(), "{context}: {step} is a mixture");
    step
}

/// What every published manifest names is there, as it was written.
fn all_is_there(objects: &Objects) {
    let memory = FaultyStore::with(objects.clone());
    let run = run_of(&memory);
    for manifest in objects.keys().filter_map(|key| key.strip_suffix(&format!("/{MANIFEST}"))) {
        let folder = run.below(manifest);
        // A torn manifest is not published.
        let Ok(manifest) = Manifest::read(&folder, None) else { continue };
        for file in manifest.files {
            let found = folder.digest(&file.name);
            assert_eq!(found.ok(), Some(file.digest), "{} of step {}", file.name, manifest.step);
        }
    }
}

/// A store with the checkpoints of steps 10 and 20.
fn begun() -> FaultyStore {
    let store = FaultyStore::default();
    for step in [10, 20] {
        save(&run_of(&store), step, 1, KEEP).unwrap();
    }
    FaultyStore::with(store.objects())
}

/// The operations of `work` on a store as [`begun`] makes it.
fn operations(work: impl Fn(&StoreFolder)) -> Vec<String> {
    let store = begun();
    work(&run_of(&store));
    store.operations()
}

/// The faults that leave a writer without an answer.
const FAULTS: [fn() -> StoreFault; 3] =
    [|| StoreFault::Refused, || StoreFault::Torn, || StoreFault::AnswerLost];

#[test]
fn a_writer_that_fails_anywhere_leaves_the_old_or_the_new_checkpoint_whole() {
    let operations = operations(|run| save(run, 30, 1, KEEP).unwrap());
    let kinds: BTreeSet<&str> = operations.iter().filter_map(|it| it.split(' ').next()).collect();
    assert_eq!(
        kinds,
        BTreeSet::from(["clear", "create", "delete", "list", "open", "put", "read", "stamp", "write"])
    );
    for fault in FAULTS {
        let (mut old, mut new) = (0, 0);
        for (at, operation) in operations.iter().enumerate() {
            let store = begun();
            let run = run_of(&store);
            store.watch(all_is_there);
            store.fail(at, fault());
            let context = format!("{:?} {operation}", fault());
            save(&run, 30, 1, KEEP).err().unwrap_or_else(|| panic!("{context}: goes unseen"));
            match found(&run, &context) {
                20 => old += 1,
                30 => new += 1,
                step => panic!("{context}: found {step}"),
            }
            // What the reader found damaged is set aside, and another generation does it all again.
            for (step, _) in look(&run).unwrap().damaged {
                set_aside(&run, step).unwrap();
            }
            save(&run, 30, 2, KEEP).unwrap_or_else(|error| panic!("{context}: {error}"));
            let steps: BTreeSet<String> =
                store.objects().into_keys().map(|key| key.split('/').nth(1).unwrap().to_owned()).collect();
            assert_eq!((found(&run, &context), steps.len()), (30, 2), "{context}: {steps:?}");
        }
        assert!(old > 0 && new > 0, "{old} times the old one, {new} times the new one");
    }
}

#[test]
fn a_checkpoint_whose_publication_failed_is_published_again_as_it_was() {
    let store = begun();
    let files = write_files(&run_of(&store), 30, 1).unwrap();
    let publish = |store: &FaultyStore| publish(&step_folder(&run_of(store), 30), &files, header(30));
    let written = store.objects();
    let calm = FaultyStore::with(written.clone());
    let (digest, operations) = (publish(&calm).unwrap(), calm.operations());
    for (at, operation) in operations.iter().enumerate() {
        for fault in FAULTS {
            let store = FaultyStore::with(written.clone());
            store.fail(at, fault());
            publish(&store).unwrap_err();
            assert_eq!(publish(&store).unwrap(), digest, "{:?} {operation}", fault());
            assert_eq!(store.objects(), calm.objects(), "{:?} {operation}", fault());
        }
    }
}

#[test]
fn a_reader_between_any_two_operations_of_a_writer_finds_a_whole_checkpoint() {
    let operations = operations(|run| save(run, 30, 1, 1).unwrap());
    let mut last = 20;
    for (at, operation) in operations.iter().enumerate() {
        let store = begun();
        let (run, reader) = (run_of(&store), run_of(&store));
        let (sender, receiver) = std::sync::mpsc::channel();
        let context = operation.clone();
        let read = move || sender.send(found(&reader, &context)).unwrap();
        store.fail(at, StoreFault::Overtaken(Box::new(read)));
        save(&run, 30, 1, 1).unwrap();
        let step = receiver.try_recv().unwrap();
        // Once the new one is there, it stays.
        assert!(step >= last && (step == 20 || step == 30), "{operation}: {step} after {last}");
        last = step;
    }
    assert_eq!(last, 30);
}

#[test]
fn a_reader_that_is_overtaken_at_any_operation_finds_a_whole_checkpoint() {
    let operations = operations(|run| assert_eq!(found(run, ""), 20));
    let (mut old, mut new) = (0, 0);
    for (at, operation) in operations.iter().enumerate() {
        let store = begun();
        let (run, writer) = (run_of(&store), run_of(&store));
        // The listing, for one, is old when it arrives: what it names has been let go.
        let save = move || save(&writer, 30, 1, 1).unwrap();
        store.fail(at, StoreFault::Overtaken(Box::new(save)));
        match found(&run, operation) {
            20 => old += 1,
            30 => new += 1,
            step => panic!("{operation}: found {step}"),
        }
        assert!(look(&run).unwrap().damaged.is_empty(), "{operation}");
    }
    assert!(new > 1, "{old} times the old one, {new} times the new one");
}

#[test]
fn a_device_that_fails_once_costs_a_reader_no_checkpoint() {
    for (at, operation) in operations(|run| drop(look(run).unwrap())).iter().enumerate() {
        let store = begun();
        store.fail(at, StoreFault::Refused);
        let Sound { found, damaged } = look(&run_of(&store)).unwrap();
        assert!(found.is_some_and(|(step, _)| step == 20) && damaged.is_empty(), "{operation}: {damaged:?}");
    }
}

#[test]
fn what_cannot_be_looked_at_is_not_let_go() {
    let operations = operations(|run| drop(prune(run, 20, 1).unwrap()));
    for (at, operation) in operations.iter().enumerate().filter(|(_, it)| it.starts_with("stamp")) {
        let store = begun();
        store.fail(at, StoreFault::Refused);
        let before = store.objects();
        prune(&run_of(&store), 20, 1).unwrap_err();
        assert_eq!(store.objects(), before, "{operation}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// A run of several saves, each tried until it succeeds.
    #[test]
    fn no_history_of_faults_loses_a_checkpoint(
        history in prop::collection::vec(prop::collection::vec((0usize..60, 0usize..3), 0..4), 1..5)
    ) {
        let store = begun();
        let run = run_of(&store);
        store.watch(all_is_there);
        let mut newest = 20;
        for (step, faults) in (3..).map(|n| n * 10).zip(&history) {
            for (&(later, fault), generation) in faults.iter().zip(1..) {
                store.fail(later, FAULTS[fault]());
                // A step that is published is not saved again: those who go on begin from it.
                if save(&run, step, generation, KEEP).is_ok() {
                    newest = step;
                    break;
                }
            }
            // The faults that are still to come stay with the store that failed.
            let calm = FaultyStore::with(store.objects());
            let there = found(&run_of(&calm), "after faults");
            prop_assert!(there == newest || there == step, "found {} after {}", there, newest);
            // A reader that goes on in spite of faults finds a whole one too, or says why not.
            if let Ok(Sound { found: Some((step, values)), .. }) = look(&run) {
                prop_assert_eq!(values, halves(step).map(|(_, bytes)| bytes).concat());
            }
            newest = there;
        }
    }
}
