//! Where checkpoints lie in a run's folder, which is the newest, and which are let go.
//!
//! `DIR/checkpoints/step-00000100/` holds the shard files of a step and its manifest.

use std::cmp::Reverse;
use std::path::Path;
use std::thread;
use std::time::Duration;

use coxswain_types::{Generation, Rank};

use crate::error::CheckpointError;
use crate::manifest::{MANIFEST, Manifest};
use crate::store::{StoreEntry, StoreFolder};

/// The folder of all checkpoints, below the run's folder.
pub const CHECKPOINTS: &str = "checkpoints";

/// The name that the manifest of a checkpoint gets which turned out to be damaged.
const DAMAGED: &str = "manifest.json.damaged";

/// How long to wait before a second look at a checkpoint that the device failed to read.
const LOOK_AGAIN: Duration = Duration::from_millis(if cfg!(test) { 1 } else { 500 });

/// How often the checkpoints are listed again because one was let go while it was looked at. A run that saves so often
/// while its checkpoints are read keeps too few of them.
const LISTINGS: u32 = 8;

/// The folder of a step's checkpoint below the run's folder, as text for messages.
pub fn step_path(step: u64) -> String {
    format!("{CHECKPOINTS}/{}", step_name(step))
}

/// The folder of a step's checkpoint.
pub fn step_folder(run: &StoreFolder, step: u64) -> StoreFolder {
    run.below(&step_path(step))
}

/// The name of the file with a rank's parameters. The generation is part of it, so that a later
/// generation that comes to the same step never overwrites what an earlier one has published.
pub fn model_file(generation: Generation, rank: Rank) -> String {
    format!("model-g{generation}-r{:03}.safetensors", rank.0)
}

/// The name of the file with a rank's optimizer state; see [`model_file`].
pub fn optimizer_file(generation: Generation, rank: Rank) -> String {
    format!("optimizer-g{generation}-r{:03}.safetensors", rank.0)
}

/// The newest checkpoint of a run: the step and folder of the last one that has a manifest.
/// Folders without one hold what was never published and are passed over.
///
/// # Errors
/// [`CheckpointError`] where the newest manifest cannot be read. A manifest appears whole or not at
/// all, so a broken one is damage: which older one to read instead is for the user to say. A run that goes
/// on has [`newest_sound`]: it takes the lost steps again.
pub fn latest(run: &StoreFolder) -> Result<Option<(u64, StoreFolder)>, CheckpointError> {
    let look = |folder: &StoreFolder| Ok((Manifest::read(folder, None)?, folder.clone()));
    newest(run, look, |_, error| Err(error))
}

/// The newest checkpoint of a run that is sound, and the newer ones that are not.
#[derive(Debug)]
pub struct Sound<T> {
    /// Its step and what was found there.
    pub found: Option<(u64, T)>,
    /// Steps of newer checkpoints, the newest first, and what is wrong with each.
    pub damaged: Vec<(u64, CheckpointError)>,
}

/// The newest checkpoint that `look` finds sound in its folder. Damaged ones are passed over; one that the device
/// fails to read gets a second look.
///
/// # Errors
/// What is wrong with the newest where there is none that is sound, since to start over is for the user to
/// say; and what hides whether one is sound.
pub fn newest_sound<T>(
    run: &StoreFolder,
    look: impl Fn(&StoreFolder) -> Result<(Manifest, T), CheckpointError>,
) -> Result<Sound<T>, CheckpointError> {
    let mut damaged: Vec<(u64, CheckpointError)> = Vec::new();
    let found = newest(run, look, |step, error| {
        if !error.is_damage() {
            return Err(error);
        }
        damaged.retain(|(known, _)| *known != step);
        damaged.push((step, error));
        Ok(())
    })?;
    damaged.sort_by_key(|(step, _)| Reverse(*step));
    if found.is_none() && !damaged.is_empty() {
        return Err(damaged.swap_remove(0).1);
    }
    Ok(Sound { found, damaged })
}

/// The newest checkpoint that `look` accepts. What it does not accept goes to `refused`, which may pass it over.
///
/// A checkpoint that was let go while it was looked at is neither: a newer one was published, so all are listed again.
fn newest<T>(
    run: &StoreFolder,
    look: impl Fn(&StoreFolder) -> Result<(Manifest, T), CheckpointError>,
    mut refused: impl FnMut(u64, CheckpointError) -> Result<(), CheckpointError>,
) -> Result<Option<(u64, T)>, CheckpointError> {
    let mut listings = LISTINGS;
    'listed: loop {
        let listed = twice(|| steps(run))?;
        for &step in listed.iter().rev() {
            let folder = step_folder(run, step);
            let looked = twice(|| match published(&folder)? {
                false => Ok(None),
                true => {
                    let (manifest, found) = look(&folder)?;
                    of_step(&folder, &manifest, step).map(|()| Some(found))
                }
            });
            match looked {
                Ok(None) => {}
                Ok(Some(found)) => return Ok(Some((step, found))),
                Err(_) if listings > 0 && matches!(published(&folder), Ok(false)) => {
                    listings -= 1;
                    continue 'listed;
                }
                Err(error) => refused(step, error)?,
            }
        }
        // All that was listed may have been let go meanwhile.
        if listings == 0 || twice(|| steps(run))? == listed {
            return Ok(None);
        }
        listings -= 1;
    }
}

/// Looks a second time where the device failed to read, which may be for a moment.
fn twice<T>(look: impl Fn() -> Result<T, CheckpointError>) -> Result<T, CheckpointError> {
    match look() {
        Err(error) if error.is_device_error() => {
            thread::sleep(LOOK_AGAIN);
            look()
        }
        looked => looked,
    }
}

/// Takes its name from a damaged checkpoint's manifest, so that the checkpoint counts no more. What is
/// left can be looked at, and goes with other leftovers.
///
/// # Errors
/// [`CheckpointError::Io`].
pub fn set_aside(run: &StoreFolder, step: u64) -> Result<(), CheckpointError> {
    let folder = step_folder(run, step);
    folder.set_aside(MANIFEST, DAMAGED).map_err(CheckpointError::io(&folder.place(MANIFEST)))
}

/// A manifest may be a copy from another step.
fn of_step(folder: &StoreFolder, manifest: &Manifest, step: u64) -> Result<(), CheckpointError> {
    let what = || format!("it is the manifest of step {}", manifest.step);
    if manifest.step == step {
        Ok(())
    } else {
        Err(CheckpointError::damaged(&folder.place(MANIFEST), what()))
    }
}

/// The run's folder and a checkpoint's, from a path to either of them; `None` where there is no checkpoint.
///
/// # Errors
/// As [`latest`].
pub fn locate(path: &Path) -> Result<Option<(StoreFolder, StoreFolder)>, CheckpointError> {
    if path.join(MANIFEST).is_file() {
        let full = path.canonicalize().map_err(CheckpointError::io(path))?;
        // A checkpoint lies in the run's folder, in the folder of all its checkpoints.
        return Ok(full.parent().and_then(Path::parent).map(|run| (run.into(), full.as_path().into())));
    }
    let run = StoreFolder::from(path);
    Ok(latest(&run)?.map(|(_, folder)| (run, folder)))
}

/// Now that the checkpoint of step `newest` is published: of those up to it, removes all published ones but the newest
/// `keep` (at least one stays), and what was never published and is older. Returns the steps that it removed.
///
/// Folders of later steps stay. One of them may be a checkpoint that an interrupted generation published late, and the
/// run that repeats its steps is about to publish others before it.
///
/// # Errors
/// [`CheckpointError::Io`]; what was removed until then stays removed, and a next call goes on.
pub fn prune(run: &StoreFolder, newest: u64, keep: u32) -> Result<Vec<u64>, CheckpointError> {
    let steps = steps(run)?.into_iter().filter(|step| *step <= newest);
    let look = |step| Ok((step, published(&step_folder(run, step))?));
    let found: Vec<(u64, bool)> = steps.map(look).collect::<Result<_, CheckpointError>>()?;
    let removed = doomed(&found, keep);
    for &step in &removed {
        remove(&step_folder(run, step))?;
    }
    Ok(removed)
}

/// Which of these steps, in ascending order and each with whether it is published, are to go.
fn doomed(steps: &[(u64, bool)], keep: u32) -> Vec<u64> {
    let published: Vec<u64> =
        steps.iter().filter(|(_, published)| *published).map(|(step, _)| *step).collect();
    let Some(&newest) = published.last() else {
        return Vec::new();
    };
    let kept = &published[published.len().saturating_sub(keep.max(1) as usize)..];
    let goes = |step: u64| step < newest && !kept.contains(&step);
    steps.iter().map(|(step, _)| *step).filter(|&step| goes(step)).collect()
}

/// Removes a checkpoint, its manifest first: if the rest is cut short, only leftovers stay.
fn remove(folder: &StoreFolder) -> Result<(), CheckpointError> {
    folder.delete(MANIFEST).map_err(CheckpointError::io(&folder.place(MANIFEST)))?;
    folder.clear().map_err(CheckpointError::io(&folder.path()))
}

fn step_name(step: u64) -> String {
    format!("step-{step:08}")
}

/// Whether the checkpoint in a folder has a manifest. To whoever removes what has none, not to know is not "no".
fn published(folder: &StoreFolder) -> Result<bool, CheckpointError> {
    folder.has(MANIFEST).map_err(CheckpointError::io(&folder.place(MANIFEST)))
}

/// The steps that have a folder, in ascending order.
fn steps(run: &StoreFolder) -> Result<Vec<u64>, CheckpointError> {
    let folder = run.below(CHECKPOINTS);
    let step_of = |entry: StoreEntry| {
        let StoreEntry::Folder(name) = entry else { return None };
        let step = name.strip_prefix("step-")?.parse().ok()?;
        (name == step_name(step)).then_some(step)
    };
    let entries = folder.list().map_err(CheckpointError::io(&folder.path()))?;
    let mut steps: Vec<u64> = entries.into_iter().filter_map(step_of).collect();
    steps.sort_unstable();
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::fixture::{header, slab, write};
    use crate::manifest::publish;

    fn save(dir: &Path, step: u64, publishes: bool) {
        let folder = step_folder(&dir.into(), step);
        let file = write(&folder, &model_file(Generation(1), Rank(0)), &[slab("w", &[2], 0, 0, 2)]);
        if publishes {
            publish(&folder, &[file], header(step)).unwrap();
        }
    }

    #[test]
    fn the_newest_published_checkpoint_is_found() {
        let dir = tempfile::tempdir().unwrap();
        assert!(latest(&dir.path().into()).unwrap().is_none());
        save(dir.path(), 100, true);
        save(dir.path(), 20, true);
        save(dir.path(), 123_456_789, false);
        for odd in ["step-7", "step-x", "notes", "step-00000009x"] {
            fs::create_dir(dir.path().join(CHECKPOINTS).join(odd)).unwrap();
        }
        let (step, folder) = latest(&dir.path().into()).unwrap().unwrap();
        assert_eq!((step, folder.path()), (100, dir.path().join("checkpoints/step-00000100")));

        let at = |step| step_folder(&dir.path().into(), step).path();
        // The newest manifest is a copy from another step, or damaged: said, not passed over.
        for text in [fs::read_to_string(at(100).join(MANIFEST)).unwrap(), "{".to_owned()] {
            save(dir.path(), 200, false);
            fs::write(at(200).join(MANIFEST), text).unwrap();
            let error = latest(&dir.path().into()).unwrap_err().to_string();
            assert!(error.contains("step-00000200/manifest.json"), "{error}");
        }
        save(dir.path(), 123_456_789, true);
        assert_eq!(latest(&dir.path().into()).unwrap().map(|(step, _)| step), Some(123_456_789));
    }

    #[test]
    fn what_a_device_cannot_read_is_looked_at_twice_and_then_damaged() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), 1, true);
        save(dir.path(), 2, true);
        let eio = || std::io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
        // How often the newest cannot be read, and which is then the newest sound one.
        for (fails, sound, damaged) in [(0, 2, 0), (1, 2, 0), (2, 1, 1)] {
            let failed = std::cell::Cell::new(0);
            let look = |folder: &StoreFolder| {
                if folder.path() == step_folder(&dir.path().into(), 2).path() && failed.get() < fails {
                    failed.set(failed.get() + 1);
                    return Err(CheckpointError::Io { path: folder.path(), cause: eio() });
                }
                Ok((Manifest::read(folder, None)?, ()))
            };
            let Sound { found, damaged: bad } = newest_sound(&dir.path().into(), look).unwrap();
            assert_eq!((found.map(|(step, ())| step), bad.len()), (Some(sound), damaged), "{fails} failures");
        }
    }

    #[test]
    fn old_checkpoints_and_leftovers_go() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(prune(&dir.path().into(), 9, 1).unwrap(), [0; 0]);
        for (step, publishes) in [(1, true), (2, false), (3, true), (4, true), (5, false)] {
            save(dir.path(), step, publishes);
        }
        // An interrupted generation published that of step 4 late.
        assert_eq!(prune(&dir.path().into(), 3, 2).unwrap(), [2]);
        assert_eq!(prune(&dir.path().into(), 4, 2).unwrap(), [1]);
        assert_eq!(steps(&dir.path().into()).unwrap(), [3, 4, 5]);
        assert_eq!(prune(&dir.path().into(), 4, 0).unwrap(), [3]);
        assert_eq!(latest(&dir.path().into()).unwrap().map(|(step, _)| step), Some(4));
    }

    #[test]
    fn what_goes_and_what_stays() {
        type Row = (&'static [(u64, bool)], u32, &'static [u64]);
        let rows: [Row; 5] = [
            (&[(1, false), (2, false)], 1, &[]),
            (&[(1, false), (2, true), (3, false)], 1, &[1]),
            (&[(1, true), (2, true), (3, true)], 5, &[]),
            (&[(1, true), (2, true), (3, true)], 1, &[1, 2]),
            (&[(1, true), (2, false), (3, true)], 2, &[2]),
        ];
        for (steps, keep, expected) in rows {
            assert_eq!(doomed(steps, keep), expected, "{steps:?} keep {keep}");
        }
    }

    #[test]
    fn names_sort_and_tell_generations_apart() {
        assert_eq!(step_path(100), "checkpoints/step-00000100");
        assert_eq!(model_file(Generation(3), Rank(7)), "model-g3-r007.safetensors");
        assert_eq!(optimizer_file(Generation(12), Rank(1000)), "optimizer-g12-r1000.safetensors");
    }
}
