//! Files that are either whole and synced or not there.
//!
//! Bytes go to a temporary name in the same folder; the file is synced, renamed, and its folder
//! synced. Readers never see a part of a file, and nothing here modifies a file in place.

use std::convert::Infallible;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::regular;

/// Bytes that are read and hashed at a time: large enough for the disk, small beside tensors.
const CHUNK_BYTES: usize = 1 << 20;

/// Names tried for a temporary file. A name is taken only by a leftover of a dead process with the
/// same id, so more than a few in a row means that something else is wrong.
const NAMES_TRIED: u32 = 64;

/// What temporary names end with; they begin with a dot.
const TEMPORARY: &str = ".tmp";

/// Tells apart the temporary files of this process.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// Bytes of files that this process has read to hash them.
static HASHED_BYTES: AtomicU64 = AtomicU64::new(0);

/// How many bytes of files this process has read to hash them: what a look at files costs, for logs.
pub fn hashed_bytes() -> u64 {
    HASHED_BYTES.load(Ordering::Relaxed)
}

/// Adds to [`hashed_bytes`].
pub(crate) fn count_hashed(bytes: usize) {
    HASHED_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// The blake3 digest of `bytes`, in hex.
pub fn digest_bytes(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The blake3 digest of a regular file, in hex, read in pieces.
///
/// # Errors
/// Those of opening and reading the file; `InvalidInput` if it is not a regular file.
pub fn digest_file(path: &Path) -> io::Result<String> {
    match digest_of::<Infallible>(regular::open(path)?.0, || Ok(())) {
        Ok(digest) => digest,
    }
}

/// The blake3 digest, in hex, of what `bytes` gives until it ends. Calls `go_on` before each chunk and stops at its
/// error.
///
/// # Errors
/// The inner result is that of reading; the outer error is that of `go_on`.
pub(crate) fn digest_of<E>(
    mut bytes: impl Read,
    mut go_on: impl FnMut() -> Result<(), E>,
) -> Result<io::Result<String>, E> {
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        go_on()?;
        match bytes.read(&mut chunk) {
            Ok(0) => return Ok(Ok(hasher.finalize().to_hex().to_string())),
            Ok(n) => {
                count_hashed(n);
                hasher.update(&chunk[..n])
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Ok(Err(error)),
        };
    }
}

/// Writes a file that is either whole, synced and under its name, or not there.
///
/// # Errors
/// Those of writing, syncing and renaming. What was under `path` before is untouched by an error,
/// and no temporary file stays.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
}

/// Makes a folder and those above it, and syncs the names of all that were missing.
///
/// # Errors
/// Those of making and syncing folders.
pub fn create_folder(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let parent = parent_of(path);
    create_folder(parent)?;
    match fs::create_dir(path) {
        Ok(()) => {}
        // Ranks of one generation make the same folder at the same time.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(e) => return Err(e),
    }
    sync_folder(parent)
}

/// Syncs the names in a folder.
///
/// # Errors
/// Those of opening and syncing it.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The folder in which `path` lies.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The file's size.
    pub bytes: u64,
    /// The file's blake3 digest, in hex.
    pub digest: String,
}

/// A file on its way: written under a temporary name, given its own name by [`AtomicFile::commit`],
/// removed when dropped before that.
#[derive(Debug)]
pub struct AtomicFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    committed: bool,
}

impl AtomicFile {
    /// Opens a temporary file beside `path`.
    ///
    /// # Errors
    /// Those of creating the file; `InvalidInput` for a path that names no file.
    pub fn create(path: &Path) -> io::Result<AtomicFile> {
        let (file, temporary) = open_temporary(path)?;
        Ok(AtomicFile { file, temporary, path: path.to_owned(), committed: false })
    }

    /// Its own name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the file, gives it its name, and syncs the folder.
    ///
    /// # Errors
    /// Those of syncing and renaming; the temporary file is then removed.
    pub fn commit(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.temporary, &self.path)?;
        self.committed = true;
        sync_folder(parent_of(&self.path))
    }

    /// As [`AtomicFile::commit`], unless its name is taken.
    ///
    /// # Errors
    /// Also `AlreadyExists`, once the file that has the name is synced.
    pub fn commit_new(mut self) -> io::Result<()> {
        self.file.sync_all()?;
        let named = self.take_free_name();
        self.committed = named.is_ok();
        if let Err(error) = &named
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return named;
        }
        sync_folder(parent_of(&self.path)).and(named)
    }

    fn take_free_name(&self) -> io::Result<()> {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, &self.temporary, CWD, &self.path, RenameFlags::NOREPLACE) {
            // File systems such as NFS do not know the flag.
            Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                match fs::hard_link(&self.temporary, &self.path) {
                    // Some have no links either, such as those over object stores.
                    Err(error)
                        if [io::ErrorKind::PermissionDenied, io::ErrorKind::Unsupported]
                            .contains(&error.kind()) =>
                    {
                        self.take_name_that_looks_free()
                    }
                    done => done.and_then(|()| fs::remove_file(&self.temporary)),
                }
            }
            done => Ok(done?),
        }
    }

    /// Looks first. That is enough where one process alone publishes, as in a run's folder by its lock.
    fn take_name_that_looks_free(&self) -> io::Result<()> {
        match fs::symlink_metadata(&self.path) {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => fs::rename(&self.temporary, &self.path),
            Err(error) => Err(error),
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.committed {
            // The error that led here is the one to report; a leftover is only untidy.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Whether a file with this name is on its way.
pub(crate) fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY)
}

fn open_temporary(path: &Path) -> io::Result<(File, PathBuf)> {
    let name = path.file_name().ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display()))
    })?;
    let mut last = None;
    for _ in 0..NAMES_TRIED {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{}-{serial}{TEMPORARY}", std::process::id()));
        let temporary = parent_of(path).join(temporary);
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((file, temporary)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => last = Some(e),
            Err(e) => return Err(e),
        }
    }
    Err(last.unwrap_or_else(|| io::ErrorKind::AlreadyExists.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_written_file_is_whole_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn a_name_is_taken_once_without_links_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let ways: [fn(&AtomicFile) -> io::Result<()>; 2] =
            [AtomicFile::take_free_name, AtomicFile::take_name_that_looks_free];
        for take in ways {
            let mut file = AtomicFile::create(&path).unwrap();
            file.write_all(b"one").unwrap();
            take(&file).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"one");
            let again = take(&AtomicFile::create(&path).unwrap()).unwrap_err();
            assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_no_temporary_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"old").unwrap();
        let mut half = AtomicFile::create(&path).unwrap();
        half.write_all(b"ne").unwrap();
        assert_eq!(names(dir.path()).len(), 2);
        drop(half);
        assert_eq!(fs::read(&path).unwrap(), b"old");

        // A folder in the way makes the rename fail.
        let blocked = dir.path().join("b");
        fs::create_dir(&blocked).unwrap();
        write_atomic(&blocked, b"x").unwrap_err();
        assert_eq!(names(dir.path()), ["a", "b"]);
        write_atomic(Path::new("/"), b"x").unwrap_err();
    }

    #[test]
    fn a_name_that_is_taken_stays_with_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let put = |bytes: &[u8]| {
            let mut file = AtomicFile::create(&path).unwrap();
            file.write_all(bytes).unwrap();
            file.commit_new()
        };
        put(b"one").unwrap();
        assert_eq!(put(b"two").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn digests_are_those_that_blake3_publishes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/a");
        create_folder(path.parent().unwrap()).unwrap();
        let bytes: Vec<u8> = (0..CHUNK_BYTES * 2 + 17).map(|i| (i % 251) as u8).collect();
        write_atomic(&path, &bytes).unwrap();
        assert_eq!(digest_file(&path).unwrap(), digest_bytes(&bytes));
        assert_eq!(digest_bytes(b""), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
    }
}
