//! Log lines on stderr.

use std::fmt::{self, Write as _};
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime as FullTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// What is logged unless RUST_LOG says otherwise.
const DEFAULT: &str = "info";

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people
    Text,
    /// One JSON object a line
    Json,
}

/// Which fields of an event a line of text shows beside the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fields {
    /// All: several jobs may be told of.
    Shown,
    /// None: all is about the one job that the user has just started.
    Hidden,
}

/// Starts logging. An earlier start stands.
pub fn start(format: LogFormat, fields: Fields) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let look = crate::look(&io::stderr());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(StderrLines)
        .with_ansi(look.colors)
        // It would say on stderr that stderr is gone, and panic.
        .log_internal_errors(false);
    let _ = match (format, fields) {
        (LogFormat::Json, _) => builder.json().flatten_event(true).with_target(false).try_init(),
        (LogFormat::Text, Fields::Shown) => builder.with_target(false).try_init(),
        (LogFormat::Text, Fields::Hidden) => {
            builder.event_format(MessageFormat { short_time: look.redraws }).try_init()
        }
    };
}

/// Writes log lines to stderr, each by itself.
struct StderrLines;

impl MakeWriter<'_> for StderrLines {
    type Writer = StderrLines;

    fn make_writer(&self) -> StderrLines {
        StderrLines
    }
}

impl io::Write for StderrLines {
    /// A call is a whole event, whose control characters the subscriber has shown.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        crate::above_status(&String::from_utf8_lossy(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A line of time, level and message.
struct MessageFormat {
    /// The time of the day is enough for who is looking on.
    short_time: bool,
}

impl<S, N> FormatEvent<S, N> for MessageFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = EventMessage(String::new());
        event.record(&mut text);
        if self.short_time {
            writer.write_str(&time_of_day(SystemTime::now()))?;
        } else {
            FullTime.format_time(&mut writer)?;
        }
        let level = *event.metadata().level();
        if writer.has_ansi_escapes() {
            write!(writer, " \x1b[{}m{level:>5}\x1b[0m ", color(level))?;
        } else {
            write!(writer, " {level:>5} ")?;
        }
        writeln!(writer, "{}", crate::printable(&text.0))
    }
}

fn color(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        Level::DEBUG => 34,
        Level::TRACE => 35,
    }
}

/// The message of an event.
struct EventMessage(String);

impl Visit for EventMessage {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to a String cannot fail.
            let _ = write!(self.0, "{value:?}");
        }
    }
}

/// `03:58:07Z`
fn time_of_day(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % (24 * 3600);
    format!("{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_time_of_day_is_that_of_utc() {
        let at = UNIX_EPOCH + Duration::from_secs(1_795_755_487);
        assert_eq!(time_of_day(at), "04:58:07Z");
    }
}
