//! The checkpoints in a run's folder that readers can see.

use std::fs;
use std::io;
use std::path::Path;

use coxswain_files::folders::{CHECKPOINTS, step_path};
use coxswain_files::manifest::MANIFEST;
use serde::{Deserialize, Serialize};

/// The most checkpoints that are looked at. A run keeps a few.
const MAX_CHECKPOINTS: usize = 100;

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedCheckpoint {
    pub(crate) step: u64,
    /// Its folder.
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

/// The checkpoints of the run in `directory`, the newest first.
///
/// # Errors
/// A folder cannot be read.
pub(crate) fn checkpoints(directory: &Path) -> io::Result<Vec<SavedCheckpoint>> {
    let entries = match fs::read_dir(directory.join(CHECKPOINTS)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut steps = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok());
        steps.extend(step);
    }
    steps.sort_unstable();
    let saved = |step: u64| {
        let folder = directory.join(step_path(step));
        // One without a manifest is being written, or was given up.
        folder.join(MANIFEST).is_file().then(|| {
            let (bytes, files) = size(&folder);
            SavedCheckpoint { step, path: folder.to_string_lossy().into_owned(), bytes, files }
        })
    };
    Ok(steps.into_iter().rev().filter_map(saved).take(MAX_CHECKPOINTS).collect())
}

/// The bytes and the number of a folder's files; those that go meanwhile do not count.
fn size(folder: &Path) -> (u64, u64) {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = entries.filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file);
    sizes.fold((0, 0), |(bytes, files), data| (bytes + data.len(), files + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_counts_once_it_has_a_manifest() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(checkpoints(folder.path()).unwrap(), []);
        for (step, manifest) in [(5, true), (20, true), (30, false)] {
            let path = folder.path().join(step_path(step));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("model.safetensors"), [0; 10]).unwrap();
            if manifest {
                fs::write(path.join(MANIFEST), [0; 3]).unwrap();
            }
        }
        let found = checkpoints(folder.path()).unwrap();
        let told: Vec<_> = found.iter().map(|saved| (saved.step, saved.bytes, saved.files)).collect();
        assert_eq!(told, [(20, 13, 2), (5, 13, 2)]);
    }
}
