//! Logs to stderr, without tearing the progress bar apart.

use std::io::{self, Write};
use std::sync::OnceLock;

use indicatif::MultiProgress;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::cli::LogFormat;

/// What is logged unless RUST_LOG says otherwise.
const DEFAULT: &str = "info";

static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// The progress bars of this process. They are hidden where stderr is no terminal.
pub(crate) fn bars() -> &'static MultiProgress {
    BARS.get_or_init(MultiProgress::new)
}

/// Starts logging.
pub(crate) fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(BesideBars).with_target(false);
    // It would tell of a log line that it cannot write on that same stderr, and panic.
    let builder = builder.log_internal_errors(false);
    // An error means that logging was started before, as in tests.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Stderr, with the bars out of the way while a line is written.
struct BesideBars;

struct Line(Vec<u8>);

impl<'a> MakeWriter<'a> for BesideBars {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::new())
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let line = std::mem::take(&mut self.0);
        if line.is_empty() {
            return Ok(());
        }
        bars().suspend(|| io::stderr().write_all(&line))
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Nobody can be told that stderr is gone.
        let _ = self.flush();
    }
}
