//! Who may use the files that a program makes. The process's umask decides it, in one place for all of them,
//! those of libraries and child processes included.

use clap::ValueEnum;
use rustix::fs::Mode;
use rustix::process::umask;

/// Who may use the files that a program makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileMode {
    /// Their owner only: 0600, and 0700 for folders
    Private,
    /// Whomever the umask of the calling shell lets
    Umask,
}

/// The option of programs that make files for others to read.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct FileModeArgs {
    /// Who may use the files that this makes
    #[arg(long, value_enum, value_name = "WHO", default_value = "private", env = "COXSWAIN_FILE_MODE")]
    pub file_mode: FileMode,
}

impl FileModeArgs {
    /// Makes it so for all files that this process and its children make from now on. Call it before the first one.
    pub fn apply(self) {
        if self.file_mode == FileMode::Private {
            let others = Mode::RWXG | Mode::RWXO;
            // What the umask denies already stays denied.
            umask(umask(others) | others);
        }
    }
}
