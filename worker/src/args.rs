//! What a worker is told when it starts.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand};
use coxswain_console::file_mode::FileModeArgs;
use coxswain_console::logs::LogFormat;
use coxswain_console::parent::ParentArgs;
use coxswain_transport::tls::{Secret, TlsArgs};

use crate::devices::DeviceList;

/// A worker of a Coxswain cluster: one process, one device.
///
/// It connects to the coordinator, does what it is assigned, and ends when the coordinator stays away.
#[derive(Debug, Parser)]
#[command(
    name = "coxswain-worker",
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  coxswain-worker --coordinator http://10.0.0.1:7070\n  \
                  coxswain-worker --coordinator https://10.0.0.1:7070 --join-file token --devices all\n  \
                  coxswain-worker generate --checkpoint out/demo --prompt 'Once upon a time'\n\n\
                  Exit codes:\n  \
                  0    drained, or its coordinator's work is over: start no other in its place\n  \
                  1    failed, or without its coordinator for longer than --coordinator-timeout-s\n  \
                  2    bad arguments\n  \
                  3    refused by the coordinator, for example since a newer process has its name\n  \
                  130  asked to stop by SIGINT\n  \
                  143  asked to stop by SIGTERM"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) work: Work,
    #[command(flatten)]
    pub(crate) log: Log,
    #[command(flatten)]
    pub(crate) parent: ParentArgs,
}

/// An argument that cannot be used: exit code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadArgument(pub(crate) String);

/// How to work for a coordinator.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Work {
    /// The coordinator, as HOST:PORT
    #[arg(long, env = "COXSWAIN_COORDINATOR", default_value = "127.0.0.1:7070")]
    pub(crate) coordinator: String,
    /// A join token, exchanged for a certificate; others on this machine can read it here, so rather give
    /// it by the variable or --join-file
    #[arg(long, env = "COXSWAIN_JOIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub(crate) join: Option<Secret>,
    /// A file with the join token, or with the token of a pod's service account, which needs --tls-ca beside
    /// it; - for the first line of stdin
    #[arg(long, value_name = "FILE", conflicts_with = "join")]
    pub(crate) join_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) tls: TlsArgs,
    /// Where other workers connect for tensors, as ADDRESS:PORT; by default the address from which this worker
    /// reaches the coordinator, and a port that the system chooses
    #[arg(long, value_name = "ADDRESS:PORT", env = "COXSWAIN_DATA_LISTEN")]
    pub(crate) data_listen: Option<SocketAddr>,
    /// Exchange tensors with other machines in plain text though there is a certificate: something else, such as
    /// WireGuard, keeps them from strangers. All workers of a job have to say so, or none
    #[arg(long)]
    pub(crate) trust_network: bool,
    /// The device to compute on: cpu, or cuda:N for GPU N; plain cuda is cuda:0
    #[arg(long, default_value = "cpu", value_parser = coxswain_proto::device::device)]
    pub(crate) device: String,
    /// Start a worker for each of these devices, and keep them running: all, cpu:N for N workers on the processor, cuda
    /// for every GPU, or cuda:N for GPU N, with commas between several. Their names are --name with -0, -1 and so on, and
    /// their ports for tensors those from --data-listen on
    #[arg(long, value_name = "LIST", conflicts_with = "device")]
    pub(crate) devices: Option<DeviceList>,
    /// This worker's name, unique in the cluster; default HOST-PID
    #[arg(long, env = "COXSWAIN_WORKER_NAME")]
    pub(crate) name: Option<String>,
    /// How long to try to reach the coordinator at the start, in seconds
    #[arg(long, default_value_t = 60)]
    pub(crate) connect_timeout_s: u32,
    /// How long to go on without the coordinator, in seconds; 0 ends with it
    #[arg(long, default_value_t = 900)]
    pub(crate) coordinator_timeout_s: u32,
    /// How long to wait for the end of a step when asked to stop (SIGTERM, SIGINT), in seconds
    #[arg(long, default_value_t = 20)]
    pub(crate) grace_s: u32,
    /// End when stdin is closed: whoever started this worker holds its other end
    #[arg(long, hide = true)]
    pub(crate) tied: bool,
    /// Give way to other workers on the same cores
    #[arg(long, hide = true)]
    pub(crate) shares_cores: bool,
    #[command(flatten)]
    pub(crate) file_mode: FileModeArgs,
}

/// What a worker does beside working.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write text from a checkpoint
    Generate(Generate),
    /// Tell the class of each line of stdin
    Classify(Classify),
    /// Show what a worker that is started here would be told, and by which variable of a launcher
    #[command(
        after_help = "Understood: MASTER_ADDR, MASTER_PORT, RANK, LOCAL_RANK, TORCHELASTIC_RUN_ID, PET_*, LWS_*, \
                            JOB_COMPLETION_INDEX and SLURM_*. An option, and a COXSWAIN variable, go first."
    )]
    Env(Env),
    /// Say what this machine has for a device, as JSON; `coxswain doctor` starts this
    #[command(hide = true)]
    Probe(DeviceProbe),
}

/// What to look at.
#[derive(Debug, clap::Args)]
pub(crate) struct DeviceProbe {
    /// The device, as for --device of a worker
    #[arg(long, default_value = "cpu", value_parser = coxswain_proto::device::device)]
    pub(crate) device: String,
}

/// What to show.
#[derive(Debug, clap::Args)]
pub(crate) struct Env {
    /// Say why each option has its value
    #[arg(long)]
    pub(crate) explain: bool,
    #[command(flatten)]
    pub(crate) work: Box<Work>,
}

/// What to read.
#[derive(Debug, clap::Args)]
pub(crate) struct Classify {
    /// A run's folder (its newest checkpoint) or one checkpoint's folder
    #[arg(long)]
    pub(crate) checkpoint: PathBuf,
    /// Print the pooled output instead, a JSON list a line
    #[arg(long)]
    pub(crate) embeddings: bool,
}

/// What to write.
#[derive(Debug, clap::Args)]
pub(crate) struct Generate {
    /// A run's folder (its newest checkpoint) or one checkpoint's folder
    #[arg(long)]
    pub(crate) checkpoint: PathBuf,
    /// The text to continue
    #[arg(long, default_value = "")]
    pub(crate) prompt: String,
    /// A file with the text to continue; one newline at its end does not count
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// How many tokens to write at most; default 100, or as many as the model has positions for
    #[arg(long)]
    pub(crate) tokens: Option<u32>,
    /// Divides the logits; 0 always takes the likeliest token
    #[arg(long, default_value_t = 0.8, value_parser = temperature, allow_negative_numbers = true)]
    pub(crate) temperature: f64,
    /// Draw from this many of the likeliest tokens; 0 for all
    #[arg(long, default_value_t = 40)]
    pub(crate) top_k: u32,
    /// The same seed writes the same text
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// A rank's assignment (JSON), where several ranks write together; the first of them prints
    #[arg(long, requires = "meet", hide = true)]
    pub(crate) assignment: Option<PathBuf>,
    /// The folder where ranks find each other
    #[arg(long, requires = "assignment", hide = true)]
    pub(crate) meet: Option<PathBuf>,
}

fn temperature(text: &str) -> Result<f64, String> {
    let must = "must be a number of 0 or more; 0 takes the likeliest token each time";
    text.parse().ok().filter(|x: &f64| x.is_finite() && *x >= 0.0).ok_or_else(|| must.to_owned())
}

/// How to log.
#[derive(Debug, clap::Args)]
pub(crate) struct Log {
    /// Form of the log lines on stderr
    #[arg(long, global = true, value_enum, default_value = "text", env = "COXSWAIN_LOG_FORMAT")]
    pub(crate) log_format: LogFormat,
}

#[cfg(test)]
#[path = "../../tests/src/commands.rs"]
#[allow(unreachable_pub, reason = "tests of other crates use it too")]
mod commands;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;

    use super::commands::refused_commands;
    use super::*;

    #[test]
    fn the_options_are_well_formed() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_in_the_documents_is_one_that_this_program_takes() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let refused = refused_commands::<Args>(root, "coxswain-worker", 6);
        assert!(refused.is_empty(), "{}", refused.join("\n"));
    }
}
