//! Opens files whose names come from users. Opening a pipe may block and reading a device may never end, so only
//! regular files are opened, without blocking.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// A kind of file that is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// A named pipe.
    Pipe,
    /// A device.
    Device,
    /// A socket.
    Socket,
    /// A kind that this system adds.
    Unknown,
}

impl Other {
    /// The kind of a file; `None` for a regular file.
    pub fn of(metadata: &Metadata) -> Option<Other> {
        let kind = metadata.file_type();
        match () {
            () if kind.is_file() => None,
            () if kind.is_dir() => Some(Other::Folder),
            () if kind.is_symlink() => Some(Other::Link),
            () if kind.is_fifo() => Some(Other::Pipe),
            () if kind.is_char_device() || kind.is_block_device() => Some(Other::Device),
            () if kind.is_socket() => Some(Other::Socket),
            () => Some(Other::Unknown),
        }
    }

    /// Its name, with an article.
    pub fn name(self) -> &'static str {
        match self {
            Other::Folder => "a folder",
            Other::Link => "a symbolic link",
            Other::Pipe => "a named pipe",
            Other::Device => "a device",
            Other::Socket => "a socket",
            Other::Unknown => "a special file",
        }
    }
}

/// Opens a regular file for reading, through symbolic links.
///
/// # Errors
/// Those of opening it; `InvalidInput` if it is not a regular file.
pub fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let named = fs::metadata(path)?;
    opened(named, path, OpenOptions::new().read(true), 0)
}

/// Opens a file of this program with these `options`. A symbolic link is refused, because it may lead to a file of
/// another owner.
///
/// # Errors
/// Those of opening it; `InvalidInput` if it is not a regular file.
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
    // The file may have been replaced since.
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
    let Some(other) = Other::of(metadata) else { return Ok(()) };
    let text = format!("it is {}, and has to be a regular file", other.name());
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
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
