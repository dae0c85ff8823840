//! A process that ends with the one that started it, however that ends.

use std::io;

/// A process that does its work for another one and ends with it.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ParentArgs {
    /// End when this process, which has started this one, ends
    #[arg(long, value_name = "PID", global = true, hide = true)]
    pub parent: Option<u32>,
}

/// The options by which a process that this one starts ends with it.
pub fn options() -> [String; 2] {
    ["--parent".to_owned(), std::process::id().to_string()]
}

impl ParentArgs {
    /// From now on this process gets SIGTERM when its parent ends. On Linux; elsewhere it outlives a parent that is
    /// killed.
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
