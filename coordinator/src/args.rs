//! Options that several commands have.

use std::path::PathBuf;

use clap::Args;
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
