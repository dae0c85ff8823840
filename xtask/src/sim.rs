//! `sim`: whole clusters in simulated time, by the thousand; or bugs planted in a copy of the core, each of
//! which the simulation has to catch.

use anyhow::Result;

use crate::repo::Repo;
use crate::run::{cargo, run};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask sim --seeds 100000    many seeds, on all cores
  cargo xtask sim --seed 17         the story of one seed
  cargo xtask sim --mutations       planted bugs, and which rule catches each")]
pub(crate) struct Args {
    /// Passed on; `cargo xtask sim -- --help` lists all.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "--seeds N, --seed S, ...")]
    rest: Vec<String>,
}

pub(crate) fn sim(repo: &Repo, args: &Args) -> Result<()> {
    let mut command = cargo();
    command.current_dir(repo.root()).args(["run", "--quiet", "--release", "--package", "coxswain-sim", "--"]);
    run(command.args(&args.rest))
}
