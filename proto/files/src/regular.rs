//! Files under names that a user gave. A name may be that of a pipe, which makes whoever opens it wait, or of a device
//! that never ends: only regular files are opened, and nothing here waits for anyone.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// What a file is that is no regular one; `None` where it is.
pub fn other_kind(metadata: &Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a folder"),
        () if kind.is_symlink() => Some("a symbolic link"),
        () if kind.is_fifo() => Some("a named pipe"),
        () if kind.is_char_device() || kind.is_block_device() => Some("a device"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("no regular file"),
    }
}

/// Opens a regular file for reading, through symbolic links.
///
/// # Errors
/// Those of opening it; `InvalidInput` for what is no regular file.
pub fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let named = fs::metadata(path)?;
    opened(named, path, OpenOptions::new().read(true), 0)
}

/// Opens a file that this program writes, with what `options` say; a symbolic link is refused, for it may point to
/// what is somebody else's.
///
/// # Errors
/// Those of opening it; `InvalidInput` for what is no regular file.
pub fn open_own(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let named = match fs::symlink_metadata(path) {
        Ok(named) => named,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let file = options.custom_flags(no_wait() | no_link()).open(path)?;
            regular(&file.metadata()?)?;
            return Ok(file);
        }
        Err(error) => return Err(error),
    };
    opened(named, path, options, no_link()).map(|(file, _)| file)
}

fn opened(
    named: Metadata,
    path: &Path,
    options: &mut OpenOptions,
    flags: i32,
) -> io::Result<(File, Metadata)> {
    regular(&named)?;
    let file = options.custom_flags(no_wait() | flags).open(path)?;
    // The name may be that of another file by now.
    let metadata = file.metadata()?;
    regular(&metadata)?;
    Ok((file, metadata))
}

fn no_wait() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits().cast_signed()
}

fn no_link() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

fn regular(metadata: &Metadata) -> io::Result<()> {
    let refused = |kind| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("it is {kind}, and has to be a regular file"))
    };
    other_kind(metadata).map_or(Ok(()), |kind| Err(refused(kind)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        fs::write(at("text"), "x").unwrap();
        symlink("/dev/zero", at("zero")).unwrap();
        symlink(at("text"), at("link")).unwrap();
        let mut append = OpenOptions::new();
        append.append(true).create(true);
        for (name, kind) in [("pipe", "a named pipe"), ("zero", "a device"), ("", "a folder")] {
            let error = open(&at(name)).unwrap_err().to_string();
            assert_eq!(error, format!("it is {kind}, and has to be a regular file"));
        }
        for (name, kind) in
            [("pipe", "a named pipe"), ("zero", "a symbolic link"), ("link", "a symbolic link")]
        {
            let error = open_own(&at(name), &mut append).unwrap_err().to_string();
            assert_eq!(error, format!("it is {kind}, and has to be a regular file"));
        }
        assert_eq!(open(&at("link")).unwrap().1.len(), 1);
        open_own(&at("new"), &mut append).unwrap();
        open_own(&at("text"), &mut append).unwrap();
    }
}
