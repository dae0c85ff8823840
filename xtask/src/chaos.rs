//! `chaos`: workers are killed at random, and the run has to end with the bits of a calm one.

use anyhow::Result;

use crate::libtorch;
use crate::repo::Repo;
use crate::run::{cargo, run};

#[derive(clap::Args)]
pub(crate) struct ChaosArgs {
    /// How many workers are killed in each layout.
    #[arg(long, value_name = "N", default_value_t = 20)]
    kills: u32,
    /// Which workers, and when.
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    libtorch: libtorch::LibtorchChoice,
}

pub(crate) fn chaos(repo: &Repo, args: &ChaosArgs) -> Result<()> {
    let libtorch = libtorch::setup(repo, &args.libtorch)?;
    let workspace = |words: &[&str]| {
        let mut command = cargo();
        libtorch.apply(command.current_dir(repo.root()).args(words));
        command.env("COXSWAIN_CHAOS_KILLS", args.kills.to_string());
        command.env("COXSWAIN_CHAOS_SEED", args.seed.to_string());
        run(&mut command)
    };
    // Tests of whole clusters start the programs, which `cargo test` alone would not build.
    workspace(&["build", "--release", "--workspace"])?;
    let test = ["test", "--quiet", "--release", "--package", "coxswain-tests", "--test", "recovery"];
    workspace(&[test.as_slice(), &["--", "--nocapture", "--exact", "chaos"]].concat())
}
