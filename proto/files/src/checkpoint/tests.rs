//! Whole checkpoints: cut and asked for in every way, and damaged in many.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::atomic::digest_bytes;
use crate::fixture::{header, slab, write};
use crate::hash::draw_below;
use crate::manifest::{MANIFEST, publish, seal};
use crate::shards::{ShardTensor, SlabWriter, write_shard};

mod faults;
mod hostile;

/// Writes tensors cut into `parts` files along given dimensions, and publishes them.
fn checkpoint(folder: &Path, tensors: &[(&str, &[u64], u8)], parts: u64) -> String {
    let folder = &folder.into();
    let mut files = Vec::new();
    for part in 0..parts {
        let slabs: Vec<(ShardTensor, Vec<u8>)> = tensors
            .iter()
            .filter_map(|&(name, shape, dim)| {
                let size = shape[usize::from(dim)];
                let (start, end) = (size * part / parts, size * (part + 1) / parts);
                (start < end).then(|| slab(name, shape, dim, start, end - start))
            })
            .collect();
        files.push(write(folder, &format!("model-g1-r{part:03}.safetensors"), &slabs));
    }
    publish(folder, &files, header(1)).unwrap()
}

const TENSORS: [(&str, &[u64], u8); 4] =
    [("embed", &[7, 4], 0), ("exp_avg/embed", &[7, 4], 1), ("norm", &[5], 0), ("deep", &[2, 3, 4], 2)];

#[test]
fn every_slab_is_read_back_however_the_files_are_cut() {
    for parts in 1..=4 {
        let dir = tempfile::tempdir().unwrap();
        let digest = checkpoint(dir.path(), &TENSORS, parts);
        let open = Checkpoint::open(&dir.path().into(), Some(&digest)).unwrap();
        open.verify().unwrap();
        assert_eq!(open.tensor_names(), ["deep", "embed", "exp_avg/embed", "norm"]);
        for (name, shape, _) in TENSORS {
            assert_eq!(open.shape(name).unwrap(), shape);
            for (dim, &size) in (0u8..).zip(shape) {
                for (offset, len) in (0..size).flat_map(|o| (1..=size - o).map(move |l| (o, l))) {
                    let read = open.read_slice(name, dim, offset, len).unwrap();
                    assert_eq!(read, slab(name, shape, dim, offset, len).1, "{name} {dim} {offset}+{len}");
                }
            }
        }
    }
}

#[test]
fn digests_do_not_depend_on_the_cut() {
    let digests = |parts| {
        let dir = tempfile::tempdir().unwrap();
        checkpoint(dir.path(), &TENSORS, parts);
        Checkpoint::open(&dir.path().into(), None).unwrap().digests().unwrap()
    };
    let whole = digests(1);
    assert_eq!(whole[1], ("embed".into(), digest_bytes(&slab("embed", &[7, 4], 0, 0, 7).1)));
    for parts in 2..=4 {
        assert_eq!(digests(parts), whole);
    }
}

#[test]
fn a_tensor_larger_than_a_chunk_has_the_digest_of_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let shape = [DIGEST_CHUNK_BYTES / 4096 + 3, 1024];
    checkpoint(dir.path(), &[("w", &shape, 1)], 2);
    let open = Checkpoint::open(&dir.path().into(), None).unwrap();
    assert_eq!(open.digest_of("w").unwrap(), digest_bytes(&slab("w", &shape, 0, 0, shape[0]).1));
}

#[test]
fn what_a_checkpoint_does_not_have_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), &TENSORS, 2);
    let open = Checkpoint::open(&dir.path().into(), None).unwrap();
    assert!(matches!(open.read_slice("head", 0, 0, 1), Err(CheckpointError::NoTensor { .. })));
    for (dim, offset, len) in [(0, 7, 1), (0, 0, 8), (1, 0, 0), (2, 0, 1), (0, u64::MAX, 1)] {
        let error = open.read_slice("embed", dim, offset, len).unwrap_err();
        assert!(matches!(error, CheckpointError::Slice { .. }), "{error}");
    }
}

/// Reads all that can be read.
fn read_all(folder: &Path, digest: Option<&str>, verify: bool) -> Result<(), CheckpointError> {
    let open = Checkpoint::open(&folder.into(), digest)?;
    if verify {
        open.verify()?;
    }
    open.digests().map(|_| ())
}

/// One of many ways to damage a file: a flipped bit, a cut, an addition, or zeros.
fn damage(bytes: &[u8], seed: u64) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    let at = draw_below(seed, 0, bytes.len() as u32) as usize;
    match draw_below(seed, 1, 8) {
        0 => damaged.truncate(at),
        1 => damaged.push(0),
        2 => damaged[at..].fill(0),
        3 => damaged[at] = damaged[at].wrapping_add(1),
        _ => damaged[at] ^= 1 << draw_below(seed, 2, 8),
    }
    damaged
}

#[test]
fn no_damage_goes_unseen_and_none_panics() {
    let dir = tempfile::tempdir().unwrap();
    let digest = checkpoint(dir.path(), &TENSORS, 2);
    read_all(dir.path(), Some(&digest), true).unwrap();
    let names = [MANIFEST, "model-g1-r000.safetensors", "model-g1-r001.safetensors"];
    let mut seen = 0;
    for seed in 0..600u64 {
        let path = dir.path().join(names[seed as usize % 3]);
        let good = std::fs::read(&path).unwrap();
        let bad = damage(&good, seed);
        if bad == good {
            continue;
        }
        std::fs::write(&path, &bad).unwrap();
        assert!(read_all(dir.path(), Some(&digest), true).is_err(), "damage {seed} was not seen");
        // Without digests damage may go unseen, but it must neither panic nor allocate wildly.
        let _ = read_all(dir.path(), None, false);
        std::fs::write(&path, &good).unwrap();
        seen += 1;
    }
    assert!(seen > 500, "{seen}");
    read_all(dir.path(), Some(&digest), true).unwrap();
}

#[test]
fn a_missing_or_exchanged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), &TENSORS, 2);
    let (one, other) = ("model-g1-r000.safetensors", "model-g1-r001.safetensors");
    std::fs::rename(dir.path().join(one), dir.path().join("x")).unwrap();
    let error = Checkpoint::open(&dir.path().into(), None).unwrap_err().to_string();
    assert!(error.contains(one), "{error}");
    std::fs::rename(dir.path().join("x"), dir.path().join(one)).unwrap();

    // A shard of the right size but of another cut is found when it is read.
    let wrong = slab("w", &[4], 0, 0, 2);
    let dir = tempfile::tempdir().unwrap();
    let low = write(&dir.path().into(), one, std::slice::from_ref(&wrong));
    let high = write(&dir.path().into(), other, &[slab("w", &[4], 0, 2, 2)]);
    publish(&dir.path().into(), &[low, high], header(1)).unwrap();
    std::fs::copy(dir.path().join(one), dir.path().join(other)).unwrap();
    let error = read_all(dir.path(), None, false).unwrap_err().to_string();
    assert!(error.contains(other) && error.contains("does not hold the slab of `w`"), "{error}");
}

#[test]
fn manifests_that_ask_for_too_much_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), &[("w", &[4, 2], 0)], 1);
    let path = dir.path().join(MANIFEST);
    let sealed = std::fs::read_to_string(&path).unwrap();
    let good: String = sealed.split_inclusive('\n').filter(|line| !line.contains("checksum")).collect();
    let grown = |good: &str| good.replace("        2\n", "        1152921504606846975\n");
    let rows = [
        (sealed.replace("\"format\": 4", "\"format\": 3"), "has format 3, and this program reads 4"),
        (sealed.replace("\"step\": 1", "\"step\": 7"), "it is damaged or another file"),
        (sealed.replace("checksum", "chequesum"), "does not begin with its format and checksum"),
        (grown(&good), "tensor `w`: shape"),
        (good.replace("        2\n", "        2000000000\n"), "bytes of tensors cannot lie in"),
        (good.replace("\"file\": \"model-g1", "\"file\": \"model-g2"), "which it does not list"),
        (good.replace("\"name\": \"model-g1-r000", "\"name\": \"../model-g1-r000"), "can be no shard file"),
    ];
    for (text, expected) in rows {
        assert!(text != good && text != sealed, "{expected}");
        let sealed_again = || seal(text.trim_end()).unwrap();
        let bytes = if text.contains("sum\": \"") { text.clone().into_bytes() } else { sealed_again() };
        std::fs::write(&path, bytes).unwrap();
        let error = Checkpoint::open(&dir.path().into(), None).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn files_are_shared_out_by_their_size() {
    let rows: [(&[u64], u32, &[u32]); 6] = [
        (&[], 3, &[]),
        (&[5, 5, 5], 1, &[0, 0, 0]),
        (&[9, 9, 9], 3, &[0, 1, 2]),
        // What a rank wrote in the same layout falls to that rank.
        (&[4, 4, 8, 8], 2, &[0, 1, 0, 1]),
        (&[1, 9, 1, 1], 2, &[1, 0, 1, 1]),
        (&[7], 0, &[0]),
    ];
    for (bytes, shares, falls_to) in rows {
        assert_eq!(shared_out(bytes, shares), falls_to, "{bytes:?} to {shares}");
    }
}

#[test]
fn damage_is_found_by_the_one_that_it_falls_to() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), &[("w", &[4, 3], 0)], 4);
    let open = || Checkpoint::open(&dir.path().into(), None).unwrap();
    let files: Vec<String> = open().manifest().files.iter().map(|file| file.name.clone()).collect();
    let found = |shares: u32| -> Vec<u32> {
        let verify = |share: &u32| open().verify_share(*share, shares, || Ok::<_, CheckpointError>(()));
        (0..shares).filter(|share| verify(share).is_err_and(|error| error.is_damage())).collect()
    };
    for (at, name) in files.iter().enumerate() {
        let good = std::fs::read(dir.path().join(name)).unwrap();
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        std::fs::write(dir.path().join(name), bad).unwrap();
        assert_eq!((found(1), found(4)), (vec![0], vec![at as u32]), "{name}");
        std::fs::write(dir.path().join(name), good).unwrap();
    }
    assert_eq!(found(3), [0; 0]);
    // `go_on` stops it between two chunks.
    let stopped = open().verify_share(0, 1, || Err(CheckpointError::damaged(dir.path(), "stopped")));
    assert!(stopped.unwrap_err().to_string().contains("stopped"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn any_resplit_gives_the_same_elements(
        shape in prop::collection::vec(1u64..7, 1..4), parts in 1u64..5, written: u8, read: u8, ranks in 1u64..5
    ) {
        let (written, read) = (written % shape.len() as u8, read % shape.len() as u8);
        let dir = tempfile::tempdir().unwrap();
        checkpoint(dir.path(), &[("w", &shape, written)], parts);
        let open = Checkpoint::open(&dir.path().into(), None).unwrap();
        let size = shape[usize::from(read)];
        for rank in 0..ranks {
            let (start, end) = (size * rank / ranks, size * (rank + 1) / ranks);
            if start < end {
                let bytes = open.read_slice("w", read, start, end - start).unwrap();
                prop_assert_eq!(bytes, slab("w", &shape, read, start, end - start).1);
            }
        }
    }
}

/// Names and shapes.
type Tensors = Vec<(String, Vec<u64>)>;

#[test]
fn a_model_is_made_only_of_what_its_checkpoint_holds() {
    let table = parameter_table(&header(1).spec.model);
    let written = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors: Tensors = table.iter().map(|row| (row.name.clone(), row.shape.clone())).collect();
        change(&mut tensors);
        let dir = tempfile::tempdir().unwrap();
        let tensors: Vec<_> = tensors.iter().map(|(name, shape)| (name.as_str(), &shape[..], 0)).collect();
        checkpoint(dir.path(), &tensors, 1);
        Checkpoint::open(&dir.path().into(), None).unwrap().expect_model().map_err(|error| error.to_string())
    };
    assert_eq!(written(&|_| {}), Ok(()));
    let error = written(&|tensors| drop(tensors.pop())).unwrap_err();
    assert!(error.contains("has no tensor"), "{error}");
    let error = written(&|tensors| tensors[0].1 = vec![2, 2]).unwrap_err();
    assert!(error.contains("has the shape [2, 2], and the model of its job has [300, 8]"), "{error}");
}
