//! Options that several commands have.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use coxswain_transport::tls::TlsArgs;

/// Where the coordinator is.
#[derive(Clone, Debug, Args)]
pub(crate) struct CoordinatorArgs {
    /// The coordinator's address.
    #[arg(long, value_name = "URL", env = "COXSWAIN_COORDINATOR", default_value = "127.0.0.1:7070")]
    pub(crate) coordinator: String,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
}

/// A job file and changes to it.
#[derive(Clone, Debug, Args)]
pub(crate) struct JobFile {
    /// The job file (YAML).
    #[arg(value_name = "JOB.yaml")]
    pub(crate) job: PathBuf,
    /// Replace a value of the job, such as train.steps=100 (repeatable).
    #[arg(long = "set", value_name = "PATH=VALUE")]
    pub(crate) sets: Vec<String>,
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListFormat {
    /// Tables for people.
    Text,
    /// One JSON object or array.
    Json,
}

/// The format of a list.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct ListFormatArgs {
    /// How it is printed.
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    format: ListFormat,
    /// The same as --format json.
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

impl ListFormatArgs {
    pub(crate) fn format(self) -> ListFormat {
        if self.json { ListFormat::Json } else { self.format }
    }
}
