//! Child processes that end with their parent.

use std::io;

/// Options of a child process.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ParentArgs {
    /// End when this parent process ends
    #[arg(long, value_name = "PID", global = true, hide = true)]
    pub parent: Option<u32>,
}

/// Arguments that make a child end with this process.
pub fn options() -> [String; 2] {
    ["--parent".to_owned(), std::process::id().to_string()]
}

impl ParentArgs {
    /// On Linux this process gets SIGTERM when the thread that started it ends, so start children from a thread that
    /// lives as long as the process. Elsewhere it outlives a killed parent.
    ///
    /// # Errors
    /// The parent has ended already, or the system refuses.
    pub fn follow(self) -> io::Result<()> {
        let Some(parent) = self.parent else { return Ok(()) };
        #[cfg(target_os = "linux")]
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
        let now = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
        if now != Some(parent) {
            return Err(io::Error::other(format!("the process {parent} that started this one has ended")));
        }
        Ok(())
    }
}
