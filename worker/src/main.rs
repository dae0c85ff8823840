//! `coxswain-worker`: one process, one device. It does what it is assigned and decides nothing.
//!
//! - [`args`]: what it is told when it starts.
//! - [`agent`]: the loop that feeds the agent's state machine (`coxswain-agent`) and does what that decides.
//! - [`conversation`]: the stream with the coordinator.
//! - [`engine_handle`]: the thread that owns libtorch.
//! - [`rank`]: one assignment on that thread.
//! - [`signals`]: what asks this process to stop.
//! - [`identity`]: its certificate, from files or by a join token.
//! - [`store`]: the rendezvous of a generation over the coordinator's gRPC.
//! - [`machine`]: what this machine is.
//! - [`device`]: the GPU, where it computes on one.
//! - [`launch`]: what launchers say in the environment, as options; [`options`]: `env`, which shows it.
//! - [`devices`], [`supervise`]: `--devices`, a worker for each of several devices.
//! - [`write`]: `generate`, text from a checkpoint.
//! - [`classify`]: `classify`, classes and embeddings of texts.

mod agent;
mod args;
mod classify;
mod conversation;
mod device;
mod devices;
mod engine_handle;
mod identity;
mod launch;
mod machine;
mod options;
mod rank;
mod signals;
mod store;
mod supervise;
mod write;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches};
use coxswain_agent::Departure;
use coxswain_console::{logs, say};
use coxswain_proto::device::DeviceName;

use crate::args::{Args, BadArgument, Command};
use crate::options::variable;

fn main() -> ExitCode {
    let matches = Args::command().get_matches();
    let mut args = match Args::from_arg_matches(&matches) {
        Ok(args) => args,
        Err(error) => error.exit(),
    };
    if args.command.is_none() {
        let said = |option: &str| options::source(&matches, option).is_some();
        launch::hints(&variable, devices::gpus()).apply(&mut args.work, &said);
    }
    let device = match &args.command {
        Some(Command::Probe(probe)) => &probe.device,
        _ => &args.work.device,
    };
    let device = DeviceName::parse(device).unwrap_or(DeviceName::Cpu);
    if let Err(error) = machine::set_environment(device) {
        say(&format!("error: {error:#}"));
        return ExitCode::FAILURE;
    }
    logs::start(args.log.log_format, logs::Fields::Shown);
    // Before any other thread starts, for threads inherit it.
    if args.work.shares_cores && !coxswain_native::memory::share_cores() {
        tracing::debug!("the system does not schedule this worker as a batch");
    }
    if let Err(error) = args.parent.follow() {
        tracing::error!("{error}");
        return ExitCode::FAILURE;
    }
    // `up` has set the umask of its workers.
    if args.command.is_none() && !args.work.tied {
        args.work.file_mode.apply();
    }
    let one = |args: &Args| device::open(device).and_then(|()| agent::run(&args.work)).map(Departure::code);
    let several =
        |args: &Args| supervise::run(&args.work, args.log.log_format, std::env::args_os().skip(1).collect());
    let result = match &args.command {
        Some(Command::Generate(generate)) => write::run(generate).map(|()| 0),
        Some(Command::Classify(args)) => classify::run(args).map(|()| 0),
        Some(Command::Env(args)) => options::show(args, &matches).map(|()| 0),
        Some(Command::Probe(_)) => device::open(device).and_then(|()| options::probe()).map(|()| 0),
        None if args.work.devices.is_some() => several(&args),
        None => one(&args),
    };
    let error = match result {
        Ok(code) => return ExitCode::from(code),
        Err(error) => error,
    };
    let bad_argument = error.is::<BadArgument>();
    if args.command.is_some() || bad_argument {
        say(&format!("error: {error:#}"));
    } else {
        tracing::error!("{error:#}");
    }
    if bad_argument { ExitCode::from(2) } else { ExitCode::FAILURE }
}
