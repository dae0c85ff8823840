//! `coxswain-worker`: one process, one device. It does what it is assigned and decides nothing.
//!
//! - [`args`]: what it is told when it starts.
//! - [`agent`]: the Sync loop with the coordinator.
//! - [`identity`]: its certificate, from files or by a join token.
//! - [`state`]: what the loop and the engine's thread share.
//! - [`rank`]: the thread that owns libtorch.
//! - [`store`]: the rendezvous of a generation over the coordinator's gRPC.
//! - [`machine`]: what this machine is.
//! - [`write`]: `generate`, text from a checkpoint.
//! - [`classify`]: `classify`, classes and embeddings of texts.

mod agent;
mod args;
mod classify;
mod identity;
mod machine;
mod rank;
mod state;
mod store;
mod write;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = machine::set_environment() {
        drop(writeln!(std::io::stderr(), "coxswain-worker: {error:#}"));
        return ExitCode::FAILURE;
    }
    args.log.install();
    if let Err(error) = args.parent.follow() {
        tracing::error!("{error}");
        return ExitCode::FAILURE;
    }
    let result = match &args.command {
        Some(Command::Generate(generate)) => write::run(generate),
        Some(Command::Classify(args)) => classify::run(args),
        None => agent::run(&args.work),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match args.command {
                // Of a command a person reads what the program says, as of `coxswain` itself; of a worker, a log.
                Some(_) => drop(writeln!(std::io::stderr(), "error: {error:#}")),
                None => tracing::error!("{error:#}"),
            }
            if error.is::<machine::BadDevice>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
