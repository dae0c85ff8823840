//! Data on stdout. Whoever reads may stop reading: that ends the command, which has nothing more to say.

use std::io::{self, ErrorKind, Write};

use crate::failure::{Failure, UNREAD};

/// Writes `text`.
///
/// # Errors
/// Writing fails; [`Failure::Said`] where the reader has closed stdout.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
    written.map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => Failure::Said(UNREAD),
        _ => anyhow::Error::new(error).context("writing to stdout").into(),
    })
}
