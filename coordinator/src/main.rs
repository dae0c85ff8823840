//! The coordinator of a training cluster, and the commands by which people use it. It links no
//! libtorch: what computes is started as `coxswain-worker`.
//!
//! The thin shell around `coxswain-core`, which decides everything:
//! - [`cli`]: the commands; [`serve`], [`up`], [`client`], [`plan`], [`local`], [`verify`]: what each of
//!   them does; [`args`]: options that several have; [`failure`]: how they end.
//! - [`top`], [`compare`], [`worker_logs`]: the cluster in a terminal, runs beside each other, workers' logs.
//! - [`service`]: gRPC in and out; [`scoped`]: answers as their callers may read them; [`actions`]: what callers do to
//!   jobs and workers; [`admin`]: the page.
//! - [`view`]: one model of what people see; [`views`]: jobs and workers on the wire and as tables.
//! - [`auth`]: who calls and what they may do; [`tls`]: certificates and connections; [`access`]: the
//!   service that gives certificates.
//! - [`driver`]: the one task that owns the cluster's state; [`handle`]: the way to it.
//! - [`journal`]: what survives a restart; [`events`]: that, for people and programs, each as an
//!   [`event_line`]; [`store`]: the rendezvous of a generation's ranks.
//! - [`keeper`]: writes into runs' folders, beside the driver; [`claim`]: the lock on such a folder.
//! - [`preparation`]: the child processes that prepare jobs' data; [`texts`]: a job's texts, checked beforehand.
//! - [`refusal`]: why a job is refused, with codes for programs.
//! - [`job`], [`folder`], [`metrics`], [`curve`]: a job's text, and what lies in its folder; [`beginning`]: what
//!   people are told of a run that begins with what lies there.
//! - [`doctor`]: whether a machine is ready.
//! - [`models`]: models from other programs, and back to them.
//! - [`workers`]: the worker processes of `up`; [`ssh`]: those on other machines; [`progress`]: what people see, beside what
//!   `coxswain_console` says; [`output`]: what programs read.

mod access;
mod actions;
mod admin;
mod args;
mod auth;
mod beginning;
mod claim;
mod cli;
mod client;
mod compare;
mod curve;
mod doctor;
mod driver;
mod event_line;
mod events;
mod failure;
mod folder;
mod handle;
mod job;
mod journal;
mod keeper;
mod local;
mod lock;
mod metrics;
mod models;
mod output;
mod page;
mod plan;
mod preparation;
mod progress;
mod refusal;
mod roots;
mod scoped;
mod serve;
mod service;
mod ssh;
mod store;
mod texts;
mod tls;
mod top;
mod up;
mod verify;
mod view;
mod views;
mod worker_logs;
mod workers;

#[cfg(test)]
mod tests;

use std::process::ExitCode;

use clap::Parser;
use coxswain_console::{logs, say};

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    // All that `up` logs is about the one job that it runs.
    let one_job = matches!(cli.command, cli::Command::Up(_));
    logs::start(cli.log_format, if one_job { logs::Fields::Hidden } else { logs::Fields::Shown });
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("error: the asynchronous runtime does not start: {error}"));
            return ExitCode::from(failure::FAILED);
        }
    };
    let code = runtime.block_on(cli::run(cli.command));
    // Tasks that still wait for a disk or a peer must not hold up the end.
    runtime.shutdown_background();
    ExitCode::from(code)
}
