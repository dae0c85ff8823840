//! Data on stdout. Whoever reads may stop reading: that is no failure.

use std::io::{self, ErrorKind, Write};

use crate::cli::Failure;

/// Writes `text`; `false` where nobody reads any more.
pub(crate) fn write(text: &str) -> Result<bool, Failure> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(anyhow::Error::new(error).context("writing to stdout").into()),
    }
}
