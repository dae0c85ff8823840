//! A certificate, its key and its CA. All three are PEM texts; in files they lie in one folder, which
//! like the key is its owner's alone. What was written survives a power loss: a join token is used up by then.

use std::convert::Infallible;
use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The file of the CA's certificate.
pub const CA: &str = "ca.pem";
/// The file of the certificate.
pub const CHAIN: &str = "cert.pem";
/// The file of its key.
pub const KEY: &str = "key.pem";

/// A secret text, printed as `[secret]`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps a text from being shown.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Secret, Infallible> {
        Ok(Secret::new(text))
    }
}

/// Who a process is, and whom it trusts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The CA that the other side's certificate has to be signed by.
    pub ca: String,
    /// The certificate.
    pub chain: String,
    /// Its key.
    pub key: Secret,
}

/// A file of credentials that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub cause: io::Error,
}

impl Credentials {
    /// Reads them from a folder.
    pub fn read(folder: &Path) -> Result<Credentials, FileError> {
        Credentials::read_files(&folder.join(CA), &folder.join(CHAIN), &folder.join(KEY))
    }

    /// Reads them from three files.
    pub fn read_files(ca: &Path, chain: &Path, key: &Path) -> Result<Credentials, FileError> {
        let read = |path: &Path| fs::read_to_string(path).map_err(at(path));
        Ok(Credentials { ca: read(ca)?, chain: read(chain)?, key: Secret::new(read(key)?) })
    }

    /// Writes them to a folder, which is made if it is not there. Files that are there are refused.
    pub fn write_new(&self, folder: &Path) -> Result<(), FileError> {
        private_folder(folder)?;
        write_new(&folder.join(KEY), self.key.expose())?;
        write_new(&folder.join(CHAIN), &self.chain)?;
        write_new(&folder.join(CA), &self.ca)
    }
}

/// The text of a CA's file.
pub(super) fn read_ca(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(at(path))
}

/// Makes a folder that only its owner can enter; one that is there stays as it is.
pub fn private_folder(folder: &Path) -> Result<(), FileError> {
    let missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing: Vec<_> = folder.ancestors().take_while(missing).collect();
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at(folder))?;
    missing.into_iter().try_for_each(sync_name)
}

/// Writes a file that only its owner can read, and none over another.
pub fn write_new(path: &Path, text: &str) -> Result<(), FileError> {
    write_private(path, text)?;
    sync_name(path)
}

fn write_private(path: &Path, text: &str) -> Result<File, FileError> {
    let file = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        Ok(file)
    });
    written.map_err(at(path))
}

/// Syncs the directory entry of a file or folder.
fn sync_name(path: &Path) -> Result<(), FileError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    File::open(parent).and_then(|folder| folder.sync_all()).map_err(at(parent))
}

/// Writes a file that only its owner can read, in place of the one that is there.
pub fn replace(path: &Path, text: &str) -> Result<(), FileError> {
    Replacement::write(path, text)?.commit().map(drop)
}

/// A file that is written and synced beside the one whose place it takes.
#[derive(Debug)]
pub struct Replacement {
    file: File,
    beside: PathBuf,
    path: PathBuf,
}

impl Replacement {
    /// Writes the file that is to take the place of `path`. Only its owner can read it.
    ///
    /// # Errors
    /// Those of writing and syncing. What is under `path` stays as it is.
    pub fn write(path: &Path, text: &str) -> Result<Replacement, FileError> {
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        // A leftover from a crash; safe to replace.
        let _ = fs::remove_file(&beside);
        let file = write_private(&beside, text)?;
        Ok(Replacement { file, beside, path: path.to_owned() })
    }

    /// Puts it in its place, and returns it open for appending.
    ///
    /// # Errors
    /// Those of renaming and syncing the name. After an error either file may be the one that a restart
    /// finds.
    pub fn commit(self) -> Result<File, FileError> {
        fs::rename(&self.beside, &self.path).map_err(at(&self.path))?;
        sync_name(&self.path)?;
        Ok(self.file)
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    |cause| FileError { path, cause }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_written_is_its_owners_alone_and_no_secret_is_printed() {
        let folder = std::env::temp_dir().join(format!("coxswain-credentials-{}", std::process::id()));
        let credentials =
            Credentials { ca: "ca".to_owned(), chain: "chain".to_owned(), key: Secret::new("hush") };
        credentials.write_new(&folder).unwrap();
        assert_eq!(Credentials::read(&folder).unwrap(), credentials);
        let refused = credentials.write_new(&folder).unwrap_err().to_string();
        assert!(refused.contains("key.pem") && refused.contains("exists"), "{refused}");
        let newer = Credentials { key: Secret::new("newer"), ..credentials.clone() };
        replace(&folder.join(KEY), newer.key.expose()).unwrap();
        assert_eq!(Credentials::read(&folder).unwrap(), newer);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&folder), mode(&folder.join(KEY)), mode(&folder.join(CA))), (0o700, 0o600, 0o600));
        fs::remove_dir_all(&folder).unwrap();
        let shown = format!("{credentials:?}");
        assert!(shown.contains("[secret]") && !shown.contains("hush"), "{shown}");
    }
}
