//! Checkpoints that were damaged or made by someone who means harm: a run passes them over, and no name
//! leads out of their folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{TENSORS, damage};
use crate::atomic::digest_bytes;
use crate::checkpoint::Checkpoint;
use crate::error::CheckpointError;
use crate::fixture::{header, slab, write};
use crate::folders::{Sound, latest, newest_sound, set_aside, step_folder};
use crate::hash::draw_below;
use crate::manifest::{MANIFEST, Manifest, publish, seal};
use crate::store::StoreFolder;

const SHARDS: [&str; 2] = ["model-g1-r000.safetensors", "model-g1-r001.safetensors"];

/// A run's folder with checkpoints of steps 10 and 20, whose files have the same names and sizes.
fn run() -> tempfile::TempDir {
    let run = tempfile::tempdir().unwrap();
    for step in [10, 20] {
        let folder = step_folder(&run.path().into(), step);
        let files = SHARDS.iter().zip(0..).map(|(name, part)| {
            let slabs: Vec<_> = TENSORS
                .iter()
                .map(|&(name, shape, dim)| {
                    let half = shape[usize::from(dim)] / 2;
                    let (offset, len) =
                        if part == 0 { (0, half) } else { (half, shape[usize::from(dim)] - half) };
                    let (tensor, mut bytes) = slab(name, shape, dim, offset, len);
                    bytes[0] ^= step as u8;
                    (tensor, bytes)
                })
                .collect();
            write(&folder, name, &slabs)
        });
        let files: Vec<_> = files.collect();
        publish(&folder, &files, header(step)).unwrap();
    }
    run
}

/// As a coordinator looks at the checkpoints of a run before it goes on.
fn look(folder: &StoreFolder) -> Result<(Manifest, ()), CheckpointError> {
    let checkpoint = Checkpoint::open(folder, None)?;
    checkpoint.verify()?;
    Ok((checkpoint.manifest().clone(), ()))
}

/// The path of a step's checkpoint.
fn step_at(run: &tempfile::TempDir, step: u64) -> PathBuf {
    step_folder(&run.path().into(), step).path()
}

/// Damages the checkpoint in `newer`, with the one in `older` at hand. `false` where nothing changed.
fn mutate(newer: &Path, older: &Path, seed: u64) -> bool {
    let shard = SHARDS[draw_below(seed, 10, 2) as usize];
    let (path, other) = (newer.join(shard), older.join(shard));
    match seed % 8 {
        // A file of this checkpoint from the one of another step.
        0 => {
            fs::copy(&other, &path).unwrap();
        }
        // The manifest of another step.
        1 => {
            fs::copy(older.join(MANIFEST), newer.join(MANIFEST)).unwrap();
        }
        2 => fs::remove_file(&path).unwrap(),
        // Two files have each other's names.
        3 => {
            let bytes = SHARDS.map(|name| fs::read(newer.join(name)).unwrap());
            fs::write(newer.join(SHARDS[0]), &bytes[1]).unwrap();
            fs::write(newer.join(SHARDS[1]), &bytes[0]).unwrap();
        }
        // A link in place of a file, even to the same bytes.
        4 => {
            let outside = newer.parent().unwrap().join("outside");
            fs::rename(&path, &outside).unwrap();
            symlink(if draw_below(seed, 11, 2) == 0 { &outside } else { &other }, &path).unwrap();
        }
        _ => {
            let path = newer.join([MANIFEST, SHARDS[0], SHARDS[1]][draw_below(seed, 12, 3) as usize]);
            let good = fs::read(&path).unwrap();
            let bad = damage(&good, seed);
            fs::write(&path, &bad).unwrap();
            return bad != good;
        }
    }
    true
}

#[test]
fn of_a_thousand_damaged_checkpoints_none_is_gone_on_from() {
    let run = run();
    let (older, newer) = (step_at(&run, 10), step_at(&run, 20));
    let good: Vec<(PathBuf, Vec<u8>)> = [MANIFEST, SHARDS[0], SHARDS[1]]
        .iter()
        .map(|name| (newer.join(name), fs::read(newer.join(name)).unwrap()))
        .collect();
    let newest = |run: &Path| newest_sound(&run.into(), look).unwrap();
    assert!(matches!(newest(run.path()), Sound { found: Some((20, ())), .. }));
    let mut seen = 0;
    for seed in 0..1050 {
        if mutate(&newer, &older, seed) {
            let Sound { found, damaged } = newest(run.path());
            assert_eq!(found.map(|(step, ())| step), Some(10), "mutation {seed} was not seen");
            assert!(matches!(damaged.as_slice(), [(20, error)] if error.is_damage()), "{seed}: {damaged:?}");
            seen += 1;
        }
        for (path, bytes) in &good {
            let _ = fs::remove_file(path);
            fs::write(path, bytes).unwrap();
        }
    }
    assert!(seen >= 1000, "{seen}");
}

#[test]
fn a_damaged_checkpoint_is_set_aside_and_one_that_is_not_understood_stops_the_run() {
    let run = run();
    let newer = step_at(&run, 20);
    fs::remove_file(newer.join(SHARDS[0])).unwrap();
    set_aside(&run.path().into(), 20).unwrap();
    assert_eq!(latest(&run.path().into()).unwrap().map(|(step, _)| step), Some(10));
    assert!(newer.join("manifest.json.damaged").is_file());

    // The last one is damaged: to start over is for the user to say.
    fs::write(step_at(&run, 10).join(SHARDS[0]), b"x").unwrap();
    assert!(matches!(newest_sound(&run.path().into(), look), Err(CheckpointError::Size { .. })));

    // A newer program's checkpoint is not damaged.
    let other = self::run();
    let path = step_at(&other, 20).join(MANIFEST);
    let text = fs::read_to_string(&path).unwrap().replace("\"format\": 4", "\"format\": 5");
    fs::write(&path, text).unwrap();
    assert!(matches!(
        newest_sound(&other.path().into(), look),
        Err(CheckpointError::Format { found: 5, .. })
    ));
}

/// Names that someone may hope to reach `secret` by, which lies beside the checkpoint's folder.
fn hostile_names(folder: &Path) -> Vec<String> {
    let outside = folder.parent().unwrap().join("secret").to_string_lossy().into_owned();
    let mut names: Vec<String> =
        ["", ".", "..", "/", "link", "./secret", "secret/", "a\0b", MANIFEST, "../secret\0"]
            .map(str::to_owned)
            .into();
    names.push(outside.clone());
    names.push(format!("/{outside}"));
    names.push("x".repeat(5000));
    // Every way to walk there of up to four parts, with what some systems take for a separator.
    let parts = ["..", ".", "link", "folder", "\u{2025}", "%2e%2e", "..\u{200b}", ".. "];
    let separators = ["/", "//", "\\", "\u{2215}", "/./", "\0/"];
    for seed in 0..250 {
        let separator = separators[draw_below(seed, 0, 6) as usize];
        let count = 1 + draw_below(seed, 1, 3);
        let walk: Vec<&str> =
            (0..count).map(|n| parts[draw_below(seed, 2 + u64::from(n), 8) as usize]).collect();
        names.push(walk.join(separator) + separator + "secret");
    }
    names.sort();
    names.dedup();
    names
}

#[test]
fn no_name_leads_out_of_the_folder() {
    let run = tempfile::tempdir().unwrap();
    let folder = run.path().join("checkpoint");
    let own = write(&folder.as_path().into(), "own", &[slab("w", &[2], 0, 0, 2)]);
    write(&run.path().into(), "secret", &[slab("w", &[2], 0, 0, 2)]);
    fs::create_dir(folder.join("folder")).unwrap();
    symlink(run.path().join("secret"), folder.join("link")).unwrap();
    symlink(run.path(), folder.join("up")).unwrap();
    publish(&folder.as_path().into(), std::slice::from_ref(&own), header(1)).unwrap();
    let good = fs::read_to_string(folder.join(MANIFEST)).unwrap();
    let json: String = good.split_inclusive('\n').filter(|line| !line.contains("checksum")).collect();
    let names = hostile_names(&folder);
    assert!(names.len() >= 200, "{}", names.len());
    for name in &names {
        let file = coxswain_types::status::SavedFile { name: name.clone(), ..own.clone() };
        let published = publish(&folder.as_path().into(), &[file], header(1));
        assert!(published.is_err(), "published {name:?}");
        // The same in a manifest that was made by hand.
        let quoted = serde_json::to_string(name).unwrap();
        let forged = json.replace("\"own\"", &quoted);
        fs::write(folder.join(MANIFEST), seal(forged.trim_end()).unwrap()).unwrap();
        assert!(Checkpoint::open(&folder.as_path().into(), None).is_err(), "opened {name:?}");
    }
    // And what is in the folder is still read.
    fs::write(folder.join(MANIFEST), &good).unwrap();
    Checkpoint::open(&folder.as_path().into(), Some(&digest_bytes(good.as_bytes())))
        .unwrap()
        .verify()
        .unwrap();
}
