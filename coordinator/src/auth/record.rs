//! The file of what the coordinator remembers of those who may call: `access` in its folder, its owner's
//! alone.
//!
//! A line holds some changes, and is framed as those of the journal are. An answer goes out once its line is
//! synced. What a crash tore off at the end had no answer and is cut off; damage anywhere else is refused. A
//! file that has grown is written anew, shorter. So is one of which a failed write or sync has left unknown
//! what the disk holds: the register in memory has all that was answered.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use coxswain_transport::tls::credentials::{FileError, Replacement};

use super::register::{Change, Register};
use crate::journal::line::{frame, framed};

/// The file's name in the coordinator's folder.
pub(crate) const NAME: &str = "access";

/// The first line: the format. A later program that writes another one changes the number.
const HEADER: &str = "coxswain access 1\n";

/// How large the file may become before it is written anew. The names of a large cluster's workers take that
/// much.
const LEAST_BYTES: u64 = 8 << 20;

/// What can be wrong with the file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path}: {cause}", path = path.display())]
    Io { path: PathBuf, cause: io::Error },
    #[error("{path} is not a file of tokens and certificates that this version can read", path = path.display())]
    Foreign { path: PathBuf },
    #[error(
        "{path} is damaged at line {line}: {what}. Move it away: then join tokens are void, workers have to \
         join again, and names that were revoked are let in again until you revoke them again. An older copy \
         of the file brings tokens and revocations back, but a worker that has renewed its certificate since \
         looks like a thief, and has to join again",
        path = path.display()
    )]
    Damaged { path: PathBuf, line: usize, what: String },
}

/// Whether a line has to survive a power loss before anything else is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sync {
    Now,
    /// A crash of this process does not lose it.
    Later,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct AuthRecord {
    path: PathBuf,
    file: File,
    bytes: u64,
    /// How large it was when it was written anew.
    short_bytes: u64,
    /// A write or sync failed, so what the disk holds is not known.
    broken: bool,
}

impl AuthRecord {
    /// Opens the file in `folder`, and makes it if there is none.
    ///
    /// # Errors
    /// It cannot be read or written, or is damaged.
    pub(crate) fn open(folder: &Path, now_s: u64) -> Result<(AuthRecord, Register), RecordError> {
        let path = folder.join(NAME);
        let register = read(&path, now_s)?;
        let text = text(&path, &register, now_s)?;
        let file = Replacement::write(&path, &text)?.commit()?;
        let bytes = text.len() as u64;
        Ok((AuthRecord { path, file, bytes, short_bytes: bytes, broken: false }, register))
    }

    /// Writes changes of the `register` down, all or none of them, before they are applied to it. After a
    /// failure that has left unknown what the disk holds, the file is written anew first.
    ///
    /// # Errors
    /// The disk fails.
    pub(crate) fn append(
        &mut self,
        changes: &[Change],
        sync: Sync,
        register: &Register,
        now_s: u64,
    ) -> Result<(), RecordError> {
        if self.broken {
            self.write_anew(register, now_s)?;
            tracing::info!("{} was written anew after a failure", self.path.display());
        }
        let line = serde_json::to_vec(changes).map_err(io::Error::from).and_then(|json| frame(&json));
        let line = line.map_err(|cause| self.io(cause))?;
        if let Err(cause) = self.file.write_all(&line) {
            // A part of the line may be there. Without it the file is as it was: a full disk may have room
            // later.
            self.broken = self.file.set_len(self.bytes).is_err();
            return Err(self.io(cause));
        }
        if sync == Sync::Now
            && let Err(cause) = self.file.sync_data()
        {
            // The system may show bytes that the disk never got, of this line and of earlier ones. No answer
            // went out, and the next start shall not know of the line.
            self.broken = true;
            let _ = self.file.set_len(self.bytes);
            return Err(self.io(cause));
        }
        self.bytes += line.len() as u64;
        Ok(())
    }

    /// Writes the file anew if that is worth it.
    ///
    /// # Errors
    /// The disk fails. The file stays as long as it is, or is written anew before the next change.
    pub(crate) fn shorten(&mut self, register: &Register, now_s: u64) -> Result<(), RecordError> {
        if self.broken || self.bytes < LEAST_BYTES.max(2 * self.short_bytes) {
            return Ok(());
        }
        // If this fails, it is tried again after as many bytes more.
        self.short_bytes = self.bytes;
        self.write_anew(register, now_s)
    }

    fn write_anew(&mut self, register: &Register, now_s: u64) -> Result<(), RecordError> {
        let text = text(&self.path, register, now_s)?;
        let newer = Replacement::write(&self.path, &text)?;
        // From the renaming on, the file that is open may no longer be the one under the name.
        self.broken = true;
        self.file = newer.commit()?;
        self.broken = false;
        self.bytes = text.len() as u64;
        self.short_bytes = self.bytes;
        Ok(())
    }

    fn io(&self, cause: io::Error) -> RecordError {
        RecordError::Io { path: self.path.clone(), cause }
    }
}

/// The whole file of what is remembered now.
fn text(path: &Path, register: &Register, now_s: u64) -> Result<String, RecordError> {
    let io = |cause| RecordError::Io { path: path.to_owned(), cause };
    let mut text = HEADER.to_owned();
    for change in register.snapshot(now_s) {
        let line = serde_json::to_vec(&[change]).map_err(io::Error::from).and_then(|json| frame(&json));
        text.push_str(&String::from_utf8_lossy(&line.map_err(io)?));
    }
    Ok(text)
}

fn read(path: &Path, now_s: u64) -> Result<Register, RecordError> {
    let mut register = Register::default();
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(register),
        Err(cause) => return Err(RecordError::Io { path: path.to_owned(), cause }),
    };
    let Some(lines) = bytes.strip_prefix(HEADER.as_bytes()) else {
        return Err(RecordError::Foreign { path: path.to_owned() });
    };
    for (number, line) in lines.split_inclusive(|byte| *byte == b'\n').enumerate() {
        if !line.ends_with(b"\n") {
            tracing::warn!(
                "cut {} bytes off {} that a crash had left incomplete",
                line.len(),
                path.display()
            );
            break;
        }
        let changes = framed(line).and_then(|json| {
            serde_json::from_str::<Vec<Change>>(json)
                .map_err(|error| format!("it is not understood: {error}"))
        });
        // The header is line 1.
        let damaged = |what| RecordError::Damaged { path: path.to_owned(), line: number + 2, what };
        changes.map_err(damaged)?.into_iter().for_each(|change| register.apply(change, now_s));
    }
    Ok(register)
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, SeekFrom};
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

    use super::*;
    use crate::auth::identity::{Principal, Role};

    fn revoke(record: &mut AuthRecord, register: &mut Register, name: &str) {
        let by = Principal::from_uri("coxswain://admin/ann/job/*").unwrap();
        let changes = register.revoke(&[Role::Worker, Role::Viewer], name, &by, 7).unwrap();
        record.append(&changes, Sync::Now, register, 7).unwrap();
        changes.into_iter().for_each(|change| register.apply(change, 7));
    }

    #[test]
    fn what_was_written_is_known_again_and_damage_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let (mut record, mut register) = AuthRecord::open(folder.path(), 7).unwrap();
        revoke(&mut record, &mut register, "w0");
        revoke(&mut record, &mut register, "w1");
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let whole = std::fs::read(&path).unwrap();
        let reopened = || AuthRecord::open(folder.path(), 8).map(|(_, register)| register);
        assert_eq!(reopened().unwrap(), register);
        // Written anew, it says the same.
        assert_eq!(reopened().unwrap(), register);
        // A crash tore off the last line: its two changes are lost together.
        std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        assert_eq!(reopened().unwrap().revoked().count(), 2);
        let mut damaged = whole.clone();
        damaged[HEADER.len() + 30] ^= 1;
        for (bytes, says) in [
            (damaged.as_slice(), "is damaged at line 2: its checksum"),
            (b"{}\n".as_slice(), "is not a file"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = reopened().unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_file_that_has_grown_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (mut record, mut register) = AuthRecord::open(folder.path(), 7).unwrap();
        revoke(&mut record, &mut register, "w0");
        record.bytes = LEAST_BYTES;
        record.shorten(&register, 7).unwrap();
        assert!(record.bytes < 1000 && record.short_bytes == record.bytes);
        revoke(&mut record, &mut register, "w1");
        assert_eq!(AuthRecord::open(folder.path(), 7).unwrap().1, register);
    }

    /// A file that holds `bytes` bytes and takes no more, as on a full disk.
    fn full(bytes: u64) -> File {
        let fd = memfd_create("full", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        let mut file = File::from(fd);
        file.set_len(bytes).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        fcntl_add_seals(&file, SealFlags::GROW).unwrap();
        file
    }

    #[test]
    fn a_disk_that_fails_for_a_while_loses_no_change_that_was_answered() {
        let folder = tempfile::tempdir().unwrap();
        let (mut record, mut register) = AuthRecord::open(folder.path(), 7).unwrap();
        revoke(&mut record, &mut register, "w0");
        let by = Principal::from_uri("coxswain://admin/ann/job/*").unwrap();
        let lost = register.revoke(&[Role::Viewer], "lost", &by, 7).unwrap();
        // The disk is full, and then has room again: the same file goes on.
        let (inode, bytes) = (record.file.metadata().unwrap().ino(), record.bytes);
        let good = std::mem::replace(&mut record.file, full(bytes));
        record.append(&lost, Sync::Now, &register, 7).unwrap_err();
        assert!(!record.broken);
        record.file = good;
        revoke(&mut record, &mut register, "w1");
        assert_eq!(record.file.metadata().unwrap().ino(), inode);
        // The file cannot be cut, or not be synced: it is written anew.
        let (_reader, pipe) = std::io::pipe().unwrap();
        for broken in
            [File::options().write(true).open("/dev/full").unwrap(), File::from(OwnedFd::from(pipe))]
        {
            record.file = broken;
            record.append(&lost, Sync::Now, &register, 7).unwrap_err();
            assert!(record.broken);
            revoke(&mut record, &mut register, "w2");
            assert_eq!(AuthRecord::open(folder.path(), 7).unwrap().1, register);
            record = AuthRecord::open(folder.path(), 7).unwrap().0;
        }
    }

    #[test]
    fn a_failure_behind_the_renaming_writes_the_file_anew_before_the_next_change() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let (mut record, mut register) = AuthRecord::open(folder.path(), 7).unwrap();
        revoke(&mut record, &mut register, "w0");
        // A folder in the way of the new file: the old one goes on.
        let beside = folder.path().join("access.new");
        std::fs::create_dir(&beside).unwrap();
        record.bytes = LEAST_BYTES;
        record.shorten(&register, 7).unwrap_err();
        assert!(!record.broken);
        std::fs::remove_dir(&beside).unwrap();
        // A folder in the way of the renaming.
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        record.bytes = 2 * LEAST_BYTES;
        record.shorten(&register, 7).unwrap_err();
        let changes = register.revoke(
            &[Role::Viewer],
            "w1",
            &Principal::from_uri("coxswain://admin/a/job/*").unwrap(),
            7,
        );
        record.append(&changes.unwrap(), Sync::Now, &register, 7).unwrap_err();
        std::fs::remove_dir(&path).unwrap();
        revoke(&mut record, &mut register, "w1");
        assert_eq!(AuthRecord::open(folder.path(), 7).unwrap().1, register);
    }
}
