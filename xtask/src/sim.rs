//! `sim`: whole clusters in simulated time, by the thousand; or bugs planted in the core, each of which the simulation
//! has to catch. Those are compiled in for that alone.

use anyhow::Result;

use crate::repo::Repo;
use crate::run::{cargo, run};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask sim --seeds 100000    many seeds, on all cores
  cargo xtask sim --seed 17         the story of one seed
  cargo xtask sim --mutations       planted bugs, and which rule catches each
  cargo xtask sim --plant lease-too-short --seed 3    the story of one seed with a planted bug")]
pub(crate) struct Args {
    /// Passed on; `cargo xtask sim -- --help` lists all.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "--seeds N, --seed S, ...")]
    rest: Vec<String>,
}

pub(crate) fn sim(repo: &Repo, args: &Args) -> Result<()> {
    let mut command = cargo();
    command.current_dir(repo.root()).args(["run", "--quiet", "--release", "--package", "coxswain-sim"]);
    let plants = |arg: &String| arg.starts_with("--mutations") || arg.starts_with("--plant");
    if args.rest.iter().any(plants) {
        command.args(["--features", "mutations"]);
    }
    run(command.arg("--").args(&args.rest))
}
