//! `cargo xtask sim`: seeds on all cores, or one seed as a story.

#[cfg(feature = "mutations")]
mod mutants;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Parser;
use coxswain_sim::run::run;
use coxswain_sim::shrink::{families, shrink, story};
use coxswain_sim::swarm::SimCase;
use coxswain_sim::sweep::sweep;

/// Simulates whole clusters with faults.
#[derive(Parser)]
struct SimArgs {
    /// How many seeds.
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// The first seed; without --seeds, the one whose story is told.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Families of faults that stay away.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
    /// At most so many workers.
    #[arg(long)]
    workers: Option<u64>,
    /// At most so many jobs.
    #[arg(long)]
    jobs: Option<u64>,
    /// Faults end after so many events.
    #[arg(long)]
    events: Option<u64>,
    /// Incidents that do not happen, by number.
    #[arg(long, value_delimiter = ',')]
    skip: Vec<u64>,
    /// Go on after a failure.
    #[arg(long)]
    all: bool,
    /// Say only which rule is broken first, and at which seed.
    #[arg(long)]
    brief: bool,
    /// Plant bugs in the core, one at a time, and see them caught; those whose names contain TEXT.
    #[cfg(feature = "mutations")]
    #[arg(long, value_name = "TEXT", num_args = 0..=1, default_missing_value = "")]
    mutations: Option<String>,
    /// Plant the bug of this name.
    #[cfg(feature = "mutations")]
    #[arg(long, value_name = "NAME")]
    plant: Option<String>,
}

fn main() -> ExitCode {
    match simulate(&SimArgs::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&format!("error: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Writes what was found to stdout. A closed or full one changes no result.
fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

/// Writes how far it is to stderr, likewise.
fn report(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

fn simulate(args: &SimArgs) -> Result<()> {
    #[cfg(feature = "mutations")]
    if let Some(only) = &args.mutations {
        return mutants::mutations(only);
    }
    #[cfg(feature = "mutations")]
    if let Some(name) = &args.plant {
        mutants::plant(name)?;
    }
    if let (Some(seed), None) = (args.seed, args.seeds) {
        return one(args, seed);
    }
    let (first, seeds) = (args.seed.unwrap_or(1), args.seeds.unwrap_or(5000));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let started = Instant::now();
    let every = (seeds / 20).max(1);
    let sweep = sweep(first, seeds, threads, args.all, |done| {
        if done.is_multiple_of(every) && !args.brief {
            let seconds = started.elapsed().as_secs_f64();
            report(&format!("{done} of {seeds} seeds after {seconds:.0} s\n"));
        }
    });
    if args.brief {
        let Some((seed, violation)) = sweep.failures.first() else { return Ok(()) };
        print(&format!("{} at seed {seed}\n", violation.rule));
        std::process::exit(1);
    }
    print(&sweep.report().to_string());
    for (seed, violation) in &sweep.failures {
        print(&format!("seed {seed}: {}: {}\n", violation.rule, violation.text));
    }
    let Some((seed, violation)) = sweep.failures.first() else { return Ok(()) };
    print(&format!("\nthe shortest story of seed {seed}:\n"));
    print(&story(&shrink(&SimCase::of(*seed), violation.rule)));
    bail!("{} seeds broke a rule", sweep.failures.len())
}

fn one(args: &SimArgs, seed: u64) -> Result<()> {
    let without = families(&args.without).map_err(anyhow::Error::msg)?;
    let (workers, jobs, events) = (args.workers, args.jobs, args.events);
    let case = SimCase { seed, without, workers, jobs, events, skip: args.skip.clone() };
    print(&story(&case));
    if run(&case, false).violation.is_some() {
        bail!("a rule was broken");
    }
    Ok(())
}
