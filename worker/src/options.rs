//! `env`: what a worker that is started here would be told, and by whom; `probe`: what the machine has.

use std::io::Write;

use anyhow::{Context, Result};
use clap::ArgMatches;
use clap::parser::ValueSource;

use crate::args::Env;
use crate::{devices, launch, machine};

/// A variable of the environment that is not empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// How the user has said what an option is; `None` where it has its default.
pub(crate) fn source(matches: &ArgMatches, option: &str) -> Option<&'static str> {
    match matches.value_source(option)? {
        ValueSource::CommandLine => Some("an option"),
        ValueSource::EnvVariable => Some("a COXSWAIN variable"),
        _ => None,
    }
}

/// Prints the options.
pub(crate) fn show(args: &Env, matches: &ArgMatches) -> Result<()> {
    let own = matches.subcommand_matches("env").unwrap_or(matches);
    let hints = launch::hints(&variable, devices::gpus());
    let mut after = args.work.clone();
    hints.apply(&mut after, &|option: &str| source(own, option).is_some());
    let text = launch::explain(&hints, &args.work, &after, &|option: &str| source(own, option));
    let text = if args.explain { text } else { shortened(&text) };
    print(&text)
}

/// Prints what this process computes with, once its device is open.
pub(crate) fn probe() -> Result<()> {
    let info = machine::info(None, "cpu");
    let (runtime, cores, gpus) = (info.runtime, info.cores, devices::gpus());
    print(&format!("{}\n", serde_json::json!({"runtime": runtime, "cores": cores, "gpus": gpus})))
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads may stop reading.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("writing to stdout"),
    }
}

/// The options and their values only, a line each.
fn shortened(text: &str) -> String {
    let lines = text.lines().filter(|line| line.starts_with("--"));
    let words = lines.map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
    words.map(|line| line + "\n").collect()
}
