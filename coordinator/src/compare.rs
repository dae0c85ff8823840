//! `coxswain runs`: the runs below a folder beside each other.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args, ValueEnum};
use coxswain_console::printable;
use coxswain_core::cluster::duration;
use coxswain_core::columns::aligned;

use crate::args::{ListFormat, ListFormatArgs};
use crate::failure::Failure;
use crate::output;
use crate::view::runs::{RunRow, below};

#[derive(Debug, Args)]
pub(crate) struct Runs {
    /// The folder in which runs' folders lie, at any of three depths.
    #[arg(value_name = "DIR", default_value = "out")]
    folder: PathBuf,
    /// In which order.
    #[arg(long, value_enum, default_value_t = RunOrder::Name)]
    sort: RunOrder,
    #[command(flatten)]
    format: ListFormatArgs,
}

/// The order of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RunOrder {
    /// By their folders' names.
    Name,
    /// By their last losses, the least first.
    Loss,
    /// By their best validation losses, the least first.
    Validation,
}

/// The longest value of a key that is printed.
const MAX_VALUE: usize = 24;

pub(crate) fn runs(args: &Runs) -> Result<(), Failure> {
    let mut rows =
        below(&args.folder).map_err(|error| Failure::Input(format!("{}: {error}", args.folder.display())))?;
    let last = |loss: Option<f64>| loss.unwrap_or(f64::INFINITY);
    match args.sort {
        RunOrder::Name => {}
        RunOrder::Loss => rows.sort_by(|a, b| last(a.loss).total_cmp(&last(b.loss))),
        RunOrder::Validation => {
            rows.sort_by(|a, b| last(a.best_validation_loss).total_cmp(&last(b.best_validation_loss)));
        }
    }
    match args.format.format() {
        ListFormat::Json => {
            let text = serde_json::to_string_pretty(&rows).context("runs as JSON")?;
            output::write(&format!("{text}\n"))
        }
        ListFormat::Text => output::write(&printable(&table(&rows))),
    }
}

/// A line for each run, with the keys in which their jobs differ.
fn table(rows: &[RunRow]) -> String {
    let Some(first) = rows.first() else { return "no runs\n".to_owned() };
    // A name is no more than the folder says.
    let keys: Vec<&String> = first.differs.keys().filter(|key| *key != "name").collect();
    let heads =
        ["RUN", "STEPS", "TOKENS", "TIME", "TOKENS/S", "LOSS", "VALIDATION", "BEST"].map(str::to_owned);
    let heads: Vec<String> = heads.into_iter().chain(keys.iter().map(|key| (*key).clone())).collect();
    let number =
        |number: Option<f64>, digits: usize| number.map_or("-".to_owned(), |n| format!("{n:.digits$}"));
    let line = |row: &RunRow| -> Vec<String> {
        let numbers = [
            row.run.clone(),
            row.steps.to_string(),
            row.tokens.to_string(),
            duration(row.seconds),
            number(row.tokens_per_second, 0),
            number(row.loss, 4),
            number(row.validation_loss, 4),
            number(row.best_validation_loss, 4),
        ];
        let value = |key: &&String| {
            let value = row.differs.get(*key).cloned().unwrap_or_default();
            if value.chars().count() <= MAX_VALUE {
                return value;
            }
            value.chars().take(MAX_VALUE - 1).chain(['…']).collect()
        };
        numbers.into_iter().chain(keys.iter().map(value)).collect()
    };
    let lines: Vec<Vec<String>> = std::iter::once(heads).chain(rows.iter().map(line)).collect();
    aligned(&lines, |column| (1..8).contains(&column))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn runs_stand_beside_each_other_with_what_differs() {
        let row = |run: &str, steps: u64, rate: &str, validation: Option<f64>| RunRow {
            run: run.to_owned(),
            steps,
            tokens: 64 * steps,
            seconds: 75.0,
            skipped: 0,
            loss: Some(2.5),
            validation_loss: validation,
            best_validation_loss: validation,
            tokens_per_second: Some(853.3),
            differs: BTreeMap::from([
                ("data.text".to_owned(), "[\"a-very-long-name-of-a-text.txt\"]".to_owned()),
                ("name".to_owned(), run.to_owned()),
                ("train.learning_rate".to_owned(), rate.to_owned()),
            ]),
        };
        let expected = "\
RUN     STEPS  TOKENS        TIME  TOKENS/S    LOSS  VALIDATION    BEST  data.text                 train.learning_rate
first    1000   64000  1 min 15 s       853  2.5000      2.7500  2.7500  [\"a-very-long-name-of-a…  0.001
second      5     320  1 min 15 s       853  2.5000           -       -  [\"a-very-long-name-of-a…  0.002
";
        assert_eq!(
            table(&[row("first", 1000, "0.001", Some(2.75)), row("second", 5, "0.002", None)]),
            expected
        );
        assert_eq!(table(&[]), "no runs\n");
    }
}
