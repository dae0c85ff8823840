//! Opens files whose names come from users, and files in folders that others may write to. Opening a pipe may block
//! and reading a device may never end, so only regular files are opened, without blocking.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

/// A kind of file that is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NonRegular {
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

impl NonRegular {
    /// The kind of a file; `None` for a regular file.
    pub fn of(metadata: &Metadata) -> Option<NonRegular> {
        let kind = metadata.file_type();
        match () {
            () if kind.is_file() => None,
            () if kind.is_dir() => Some(NonRegular::Folder),
            () if kind.is_symlink() => Some(NonRegular::Link),
            () if kind.is_fifo() => Some(NonRegular::Pipe),
            () if kind.is_char_device() || kind.is_block_device() => Some(NonRegular::Device),
            () if kind.is_socket() => Some(NonRegular::Socket),
            () => Some(NonRegular::Unknown),
        }
    }

    /// Its name, with an article.
    pub fn name(self) -> &'static str {
        match self {
            NonRegular::Folder => "a folder",
            NonRegular::Link => "a symbolic link",
            NonRegular::Pipe => "a named pipe",
            NonRegular::Device => "a device",
            NonRegular::Socket => "a socket",
            NonRegular::Unknown => "a special file",
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

/// The bytes of a regular file of at most `most_bytes`, through symbolic links.
///
/// # Errors
/// Those of [`open`] and of reading; `FileTooLarge` if it has more bytes, of which none are kept.
pub fn read(path: &Path, most_bytes: u64) -> io::Result<Vec<u8>> {
    let (file, metadata) = open(path)?;
    if metadata.len() > most_bytes {
        return Err(too_large(metadata.len(), most_bytes));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    // It may have grown since; a byte more shows it.
    file.take(most_bytes.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most_bytes {
        return Err(too_large(bytes.len() as u64, most_bytes));
    }
    Ok(bytes)
}

/// That something has more bytes than it may.
pub(crate) fn too_large(found: u64, most_bytes: u64) -> io::Error {
    let text = format!("it has {found} bytes, and may have {most_bytes} at most");
    io::Error::new(io::ErrorKind::FileTooLarge, text)
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
            expect_regular(&file.metadata()?)?;
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
    expect_regular(&named)?;
    let file = options.custom_flags(no_wait() | flags).open(path)?;
    // The file may have been replaced since.
    let metadata = file.metadata()?;
    expect_regular(&metadata)?;
    Ok((file, metadata))
}

fn no_wait() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits().cast_signed()
}

fn no_link() -> i32 {
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

/// Refuses what is not a regular file.
pub(crate) fn expect_regular(metadata: &Metadata) -> io::Result<()> {
    let Some(other) = NonRegular::of(metadata) else { return Ok(()) };
    let text = format!("it is {}, and has to be a regular file", other.name());
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use coxswain_types::assignment::PreparedData;
    use coxswain_types::job::DataSpec;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::folders::step_folder;
    use crate::prepare::{PREPARED, TOKENIZER, VALIDATION_TEXT};
    use crate::{Checkpoint, Digests, OpenTokenFile, OpenTokens, StoreFolder, Tokenizer, fixture, publish};

    /// To read small files; a pipe would keep a reader for ever.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn make_pipe(path: &Path) {
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    }

    /// What `work` gives, in time.
    fn in_time<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(work()));
        receiver.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{name} keeps its reader"))
    }

    /// What is found wrong by those who read a run's files.
    fn faults(dir: &Path, data: &PreparedData) -> String {
        let run = &StoreFolder::from(dir);
        let text = run.digest(VALIDATION_TEXT);
        let found = [
            Tokenizer::load(run, TOKENIZER).err().map(|error| error.to_string()),
            OpenTokens::open(run, &data.train).err().map(|error| error.to_string()),
            OpenTokenFile::open(run, data.validation.as_ref().unwrap()).err().map(|error| error.to_string()),
            text.err().map(|error| format!("validation.txt: {error}")),
            Checkpoint::open(&step_folder(run, 7), None).err().map(|error| error.to_string()),
        ];
        found.into_iter().flatten().collect()
    }

    #[test]
    fn a_pipe_in_place_of_any_file_of_a_run_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path().to_owned();
        let text = dir.join("book.txt");
        fs::write(&text, "the boat goes on\n".repeat(200)).unwrap();
        let files = vec![text.to_str().unwrap().to_owned()];
        let spec = fixture::spec(DataSpec::Text { files, validation: 0.2 });
        let prepare = move |dir: &Path| {
            crate::prepare(&dir.into(), &spec, None, &Digests::default(), &|_| Ok(()))
                .map_err(|error| error.to_string())
        };
        let data = prepare(&dir).unwrap();
        let step = step_folder(&dir.as_path().into(), 7);
        let shard = fixture::write(&step, "a", &[fixture::slab("w", &[4, 2], 0, 0, 4)]);
        publish(&step, &[shard], fixture::header(7)).unwrap();
        assert_eq!(faults(&dir, &data), "");
        let names =
            |of: &Path| fs::read_dir(of).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
        let paths = [names(&dir.join("data")), names(&step.path())].concat();
        assert_eq!(paths.len(), 9, "{paths:?}");
        for path in paths {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            fs::rename(&path, dir.join("kept")).unwrap();
            make_pipe(&path);
            let (run, of) = (dir.clone(), data.clone());
            let found = in_time(&name, move || faults(&run, &of));
            let named = found.contains(&name) && found.contains("it is a named pipe");
            assert!(named || path.ends_with(PREPARED), "{name}: {found}");
            // What is prepared is made anew.
            let (run, prepare) = (dir.clone(), prepare.clone());
            assert_eq!(in_time(&name, move || prepare(&run)).unwrap(), data, "{name}");
            fs::rename(dir.join("kept"), &path).unwrap();
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        make_pipe(&at("pipe"));
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
        assert_eq!(read(&at("link"), 1).unwrap(), b"x");
        assert_eq!(read(&at("text"), 0).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        read(&at("pipe"), 1).unwrap_err();
        assert_eq!(read(&at("zero"), 9).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        open_own(&at("new"), &mut append).unwrap();
        open_own(&at("text"), &mut append).unwrap();
    }
}
