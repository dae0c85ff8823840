//! `cargo xtask`: set-up, demo, tests and measurements, one tool in the language of the house.
//!
//! Table of contents:
//! - [`libtorch`]: `setup`, libtorch 2.11.0 from pinned wheels into target/libtorch;
//! - [`demo`]: `demo`, from nothing to a trained model and a passage generated from it;
//! - [`test`]: `test`, everything that must hold before a change lands;
//! - [`tidy`]: `tidy`, rules of the tree that no compiler checks;
//! - [`bench`]: `bench`, our training step beside PyTorch's own;
//! - [`chaos`]: `chaos`, runs whose workers are killed at random;
//! - [`fuzz`]: `fuzz`, what reads formats of others, under libfuzzer;
//! - [`sim`]: `sim`, whole clusters in simulated time;
//! - [`gpu`]: `kernels`, the library of GPU kernels, `gpu-kit`, what a machine with a GPU runs, and the emulated GPU of
//!   the tests;
//! - [`deploy`]: `deploy`, the kustomize overlays of the Helm chart, and checks of both;
//! - [`dist`]: `dist`, an archive with both programs and libtorch;
//! - [`parity`]: `parity`, our models beside the reference implementations.
//!
//! These lean on [`debian`] (programs that tests drive), [`texts`] (the demo's English), [`pip`] (pinned downloads),
//! [`tools`] (programs that checks need), [`repo`] (where things
//! lie) and [`run`] (commands whose failures explain themselves).

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a tool for developers, which may end with its terminal"
)]

mod bench;
mod chaos;
mod debian;
mod demo;
mod deploy;
mod dist;
mod fuzz;
mod gpu;
mod libtorch;
mod parity;
mod pip;
mod repo;
mod run;
mod sim;
mod test;
mod texts;
mod tidy;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use repo::Repo;

/// Set-up, demo, tests and measurements of Coxswain.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct XtaskCli {
    /// The repository's root; for trying this tool on a copy.
    #[arg(long, global = true, hide = true)]
    root: Option<PathBuf>,
    #[command(subcommand)]
    command: XtaskCommand,
}

#[derive(Subcommand)]
enum XtaskCommand {
    /// Fetch libtorch and the test runner, pinned and checked; at once when they are already there.
    Setup(libtorch::LibtorchChoice),
    /// Train a small transformer on four workers, compare it with gzip, and let it write.
    Demo(demo::DemoArgs),
    /// Run every check and every test.
    Test(test::TestArgs),
    /// Check the rules of the tree that no compiler checks.
    Tidy,
    /// Measure our training step beside PyTorch's own.
    Bench(bench::BenchArgs),
    /// Kill workers at random, measure the way back, and compare bits with a calm run.
    Chaos(chaos::ChaosArgs),
    /// Simulate whole clusters with faults, by the thousand.
    Sim(sim::Args),
    /// Try inputs of every format that others write, and keep those that reach new code.
    Fuzz(fuzz::FuzzArgs),
    /// Make the kustomize overlays in deploy/kubernetes of the Helm chart.
    Deploy(deploy::DeployArgs),
    /// Pack target/dist: an archive with both programs, libtorch, licences, checksums and a bill of materials.
    Dist(dist::DistArgs),
    /// Compile the GPU kernels that --device cuda needs; fetches nvcc (104 MB), needs no GPU.
    Kernels,
    /// Pack target/gpu-kit: checks and measurements of this tree for a machine with a GPU and PyTorch, without Rust.
    GpuKit,
    /// Compare models with the reference implementations, or a real one with its published behaviour.
    Parity(parity::ParityArgs),
}

fn main() -> ExitCode {
    let cli = XtaskCli::parse();
    match Repo::find(cli.root).and_then(|repo| dispatch(cli.command, &repo)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: XtaskCommand, repo: &Repo) -> Result<()> {
    match command {
        XtaskCommand::Setup(args) => {
            // A missing cargo-nextest is said, and hinders nothing.
            test::TestRunner::find(repo);
            libtorch::setup(repo, &args).map(drop)
        }
        XtaskCommand::Demo(args) => demo::demo(repo, &args),
        XtaskCommand::Test(args) => test::test(repo, &args),
        XtaskCommand::Tidy => tidy::tidy(repo),
        XtaskCommand::Bench(args) => bench::bench(repo, &args),
        XtaskCommand::Chaos(args) => chaos::chaos(repo, &args),
        XtaskCommand::Sim(args) => sim::sim(repo, &args),
        XtaskCommand::Fuzz(args) => fuzz::fuzz(repo, &args),
        XtaskCommand::Deploy(args) => deploy::deploy(repo, &args),
        XtaskCommand::Dist(args) => dist::dist(repo, &args),
        XtaskCommand::Kernels => gpu::kernels(repo),
        XtaskCommand::GpuKit => gpu::kit(repo),
        XtaskCommand::Parity(args) => parity::parity(repo, &args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::XtaskCli::command().debug_assert();
    }
}
