//! Input as files.

use std::path::Path;

/// A new folder with these files in it, for as long as `work` takes.
pub(crate) fn with<T>(files: &[(&str, &[u8])], work: impl FnOnce(&Path) -> T) -> T {
    let folder = tempfile::tempdir().expect("a folder for the input");
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).expect("a file of the input");
    }
    work(folder.path())
}
