//! `bench`: our training step beside PyTorch's own, in turn, in one run, on one machine.
//!
//! - [`shape`]: the model and step that are measured, as a job file and as the peer's flags;
//! - [`ours`]: a run of `coxswain up` and what it leaves behind;
//! - [`peer`]: xtask/peers/torch_peer.py in a virtual environment of its own;
//! - [`table`]: what is printed.
//!
//! Each measured process has the machine for itself: nothing runs beside it that this tool started.

use anyhow::{Context, Result};

use crate::libtorch;
use crate::repo::Repo;
use crate::run::{cargo, run, say};

mod ours;
mod peer;
mod shape;
mod table;

use shape::{BenchRow, BenchShape};
use table::{BenchMeasured, Measurement};

/// What to measure.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  cargo xtask bench                                   all rows with the defaults
  cargo xtask bench --rows single,tp2 --steps 4       two rows, shorter
  cargo xtask bench --layers 4 --dim 256 --heads 4 --kv-heads 4 --ffn 704 --json")]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    shape: BenchShape,
    /// Which rows, separated by commas.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "single,dp2,pp2,tp2,single-bf16,single-full,dp2-zero"
    )]
    rows: Vec<BenchRow>,
    /// How often each row is measured, ours and PyTorch in turn; the medians are shown.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    libtorch: libtorch::LibtorchChoice,
}

/// Measures each row and prints the table to stdout.
///
/// # Errors
/// When a row cannot be measured; no partial table is printed then.
pub(crate) fn bench(repo: &Repo, args: &BenchArgs) -> Result<()> {
    for row in &args.rows {
        args.shape.check(*row)?;
    }
    let libtorch = libtorch::setup(repo, &args.libtorch)?;
    let mut build = cargo();
    build.current_dir(repo.root()).args(["build", "--release", "-p", "coxswain", "-p", "coxswain-worker"]);
    run(libtorch.apply(&mut build))?;
    let python = peer::environment(repo)?;

    let mut rows = Vec::new();
    for row in &args.rows {
        let (mut ours, mut peers) = (Vec::new(), Vec::new());
        for round in 1..=args.rounds {
            let name = row.name();
            say(&format!("{name}, round {round} of {}: ours", args.rounds));
            ours.push(measured(ours::measure(repo, &args.shape, *row), &format!("{name}: ours"))?);
            say(&format!("{name}, round {round} of {}: PyTorch", args.rounds));
            peers.push(measured(
                peer::measure(repo, &python, &args.shape, *row),
                &format!("{name}: PyTorch"),
            )?);
        }
        rows.push(BenchMeasured {
            row: row.name(),
            ours: table::median_of(ours),
            peer: table::median_of(peers),
        });
    }
    if args.json {
        println!("{}", table::json(&args.shape, &rows));
    } else {
        print!("{}", table::text(&rows));
    }
    Ok(())
}

fn measured(result: Result<Measurement>, what: &str) -> Result<Measurement> {
    let measurement = result.with_context(|| what.to_owned())?;
    say(&format!(
        "{what}: {:.1} tokens/s, peak {:?} MiB",
        measurement.tokens_per_second, measurement.peak_mib
    ));
    Ok(measurement)
}

/// The middle of the values, or the mean of the two in the middle; `None` for none.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let (upper, lower) = (values.len() / 2, values.len().checked_sub(1)? / 2);
    Some((values[lower] + values[upper]) / 2.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_median_is_the_middle() {
        for (values, median) in [
            (vec![], None),
            (vec![3.0], Some(3.0)),
            (vec![4.0, 1.0], Some(2.5)),
            (vec![9.0, 1.0, 2.0], Some(2.0)),
            (vec![9.0, 1.0, 2.0, 4.0], Some(3.0)),
        ] {
            assert_eq!(super::median(values), median);
        }
    }
}
