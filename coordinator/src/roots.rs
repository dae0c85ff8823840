//! The folders below which jobs read and write, where `serve` was given some. A job acts with the coordinator's rights,
//! so without them it reads and writes whatever the coordinator's user can.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use coxswain_types::JobSpec;

/// `--data-root` and `--runs-root`.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct RootArgs {
    /// A folder with what jobs may read: texts, and models to start from. Relative paths of a job start at the first
    /// (repeatable). With certificates there has to be one; `/` is everything.
    #[arg(long, value_name = "DIR", requires = "runs_root")]
    data_root: Vec<PathBuf>,
    /// A folder below which the folders of runs have to lie. A relative folder of a run starts at the first
    /// (repeatable).
    #[arg(long, value_name = "DIR", requires = "data_root")]
    runs_root: Vec<PathBuf>,
}

impl RootArgs {
    /// The folders; `None` where none are given.
    pub(crate) fn roots(&self) -> Result<Option<Roots>, RootError> {
        let open = |option: &'static str, folders: &[PathBuf]| -> Result<Vec<Root>, RootError> {
            folders.iter().map(|folder| Root::open(option, folder)).collect()
        };
        let (data, runs) = (open("--data-root", &self.data_root)?, open("--runs-root", &self.runs_root)?);
        Ok((!data.is_empty() && !runs.is_empty()).then_some(Roots { data, runs }))
    }
}

/// Why a path is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    /// The folder of an option cannot be used.
    #[error("{option} {path}: {cause}", path = path.display())]
    Folder { option: &'static str, path: PathBuf, cause: io::Error },
    /// It lies elsewhere, or a link leads elsewhere.
    #[error(
        "{what}: {path} does not lie below {allowed}; jobs of this coordinator {verb} there only, and relative paths \
         start there",
        path = path.display(), allowed = list(allowed)
    )]
    Outside { what: &'static str, path: PathBuf, allowed: Vec<PathBuf>, verb: &'static str },
    /// The path cannot be followed.
    #[error("{what}: {path}: {cause}", path = path.display())]
    Path { what: &'static str, path: PathBuf, cause: io::Error },
}

fn list(folders: &[PathBuf]) -> String {
    let names: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    names.join(" or ")
}

#[derive(Clone, Debug)]
struct Root {
    /// As it was given, absolute: workers see it under this path.
    path: PathBuf,
    /// Without links.
    real: PathBuf,
}

impl Root {
    fn open(option: &'static str, folder: &Path) -> Result<Root, RootError> {
        let wrong = |cause| RootError::Folder { option, path: folder.to_owned(), cause };
        let real = folder.canonicalize().map_err(wrong)?;
        if !real.is_dir() {
            return Err(wrong(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Root { path: std::path::absolute(folder).map_err(wrong)?, real })
    }
}

/// Where jobs read and write.
#[derive(Clone, Debug)]
pub(crate) struct Roots {
    data: Vec<Root>,
    runs: Vec<Root>,
}

impl Roots {
    /// Where relative paths of a job start.
    pub(crate) fn base(&self) -> &Path {
        self.data.first().map_or(Path::new("/"), |root| &root.path)
    }

    /// The folder of a run.
    pub(crate) fn run(&self, directory: &str) -> PathBuf {
        self.runs.first().map_or(Path::new("/"), |root| &root.path).join(directory)
    }

    /// Refuses a job that reads or writes elsewhere, also through links. This waits for file systems.
    pub(crate) fn check(&self, spec: &JobSpec, directory: &Path) -> Result<(), RootError> {
        let (key, files) = spec.data.files().unwrap_or(("data", &[]));
        for file in files {
            expect_below(key, Path::new(file), &[&self.data], "read")?;
        }
        if let Some(from) = &spec.train.start_from {
            expect_below("train.start_from", Path::new(from), &[&self.data, &self.runs], "read")?;
        }
        expect_below("the run's folder", directory, &[&self.runs], "write")
    }
}

fn expect_below(
    what: &'static str,
    path: &Path,
    roots: &[&[Root]],
    verb: &'static str,
) -> Result<(), RootError> {
    let every = || roots.iter().copied().flatten();
    match real(path) {
        Ok(real) if every().any(|root| real.starts_with(&root.real)) => return Ok(()),
        // Of what lies elsewhere nothing is told, not even whether it is there.
        Err(cause) if every().any(|root| path.starts_with(&root.path)) => {
            return Err(RootError::Path { what, path: path.to_owned(), cause });
        }
        _ => {}
    }
    let allowed = every().map(|root| root.path.clone()).collect();
    Err(RootError::Outside { what, path: path.to_owned(), allowed, verb })
}

/// The path without links. What does not exist yet may follow the part that does.
fn real(path: &Path) -> io::Result<PathBuf> {
    let (mut here, mut missing): (&Path, Vec<&OsStr>) = (path, Vec::new());
    loop {
        match here.canonicalize() {
            Ok(real) => return Ok(missing.iter().rev().fold(real, |path, name| path.join(name))),
            // A link whose target is missing would be followed by whoever creates the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !here.is_symlink() => {
                let (Some(name), Some(parent)) = (here.file_name(), here.parent()) else { return Err(error) };
                missing.push(name);
                here = parent;
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::job;

    #[test]
    fn jobs_read_and_write_below_the_roots_only() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["data/books", "models", "runs", "elsewhere"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        for name in ["data/a.txt", "elsewhere/secret"] {
            fs::write(at(name), "text").unwrap();
        }
        symlink(at("elsewhere/secret"), at("data/link.txt")).unwrap();
        symlink(at("elsewhere"), at("runs/out")).unwrap();
        symlink(at("elsewhere/later"), at("runs/dangling")).unwrap();
        symlink(at("data"), at("texts")).unwrap();
        let args = RootArgs { data_root: vec![at("texts"), at("models")], runs_root: vec![at("runs")] };
        let roots = args.roots().unwrap().unwrap();
        let job = |text: &str, from: &str| {
            let job = format!(
                "name: p\nmodel: {{layers: 1, dim: 32, heads: 4, vocab: 300}}\ndata: {{text: [{text}]}}\n\
                 train: {{steps: 2, sequence: 16{from}}}\n"
            );
            job::parse(&job, "job.yaml", roots.base(), &[]).unwrap()
        };
        let rows = [
            ("a.txt", "", "one", ""),
            ("books/missing.txt", "", "a/b/c", ""),
            ("a.txt", ", start_from: step-1", "one", ""),
            ("link.txt", "", "one", "data.text: "),
            ("../elsewhere/secret", "", "one", "data.text: "),
            ("/etc/passwd", "", "one", "data.text: "),
            ("books/missing/../../../elsewhere/secret", "", "one", "No such file"),
            ("a.txt", ", start_from: /etc", "one", "train.start_from: "),
            ("a.txt", "", "../elsewhere/run", "the run's folder"),
            ("a.txt", "", "out/run", "the run's folder"),
            ("a.txt", "", "dangling", "No such file"),
            ("a.txt", "", "/tmp/run", "the run's folder"),
        ];
        for (text, from, directory, expected) in rows {
            let checked = roots.check(&job(text, from), &roots.run(directory));
            let said = checked.err().map_or(String::new(), |error| error.to_string());
            assert_eq!(said.is_empty(), expected.is_empty(), "{text} {from} {directory}: {said}");
            assert!(said.contains(expected), "{text} {from} {directory}: {said}");
        }
        let missing = RootArgs { data_root: vec![at("data")], runs_root: vec![at("nowhere")] };
        assert!(missing.roots().unwrap_err().to_string().starts_with("--runs-root"));
        assert!(RootArgs::default().roots().unwrap().is_none());
    }
}
