//! A table of runs: what each must equal, to the bit or closely.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use coxswain_console::say;

use crate::{Folder, Run, Site, Summary};

/// Losses of runs whose sums associate differently differ by rounding only.
const TOLERANCE: f64 = 1e-5;
/// So does the gradient norm of the first step; a slice counted twice or not at all shows here.
const NORM_TOLERANCE: f64 = 1e-6;
/// Losses and first norms in low precision, whose rounding is thousands of times coarser.
const LOW_TOLERANCE: f64 = 2e-2;

/// What a row is compared with.
#[derive(Clone, Copy, Debug)]
pub enum Equal {
    /// Bit for bit: losses, norms, validation loss, weights and optimizer state.
    Bits(&'static str),
    /// Losses and the first norm to fp32's rounding.
    Close(&'static str),
    /// Losses and the first norm to the rounding of low precision.
    Near(&'static str),
    /// Not to the bit: the comparison can fail.
    Differs(&'static str),
}

/// Name, (pipeline, tensor, data), changes to the job, what it must equal.
pub type Row = (&'static str, (u32, u32, u32), &'static [&'static str], &'static [Equal]);

/// After so many rows whose runs end badly the rest are left out: each may take as long as a run that hangs.
const BROKEN_MAX: usize = 3;

/// Runs that have been compared so far. A row that fails is noted, and the next one is tried.
#[derive(Debug)]
pub struct Table<'a> {
    folder: &'a Folder,
    site: Option<&'a Site<'a>>,
    done: BTreeMap<String, Summary>,
    failures: Vec<String>,
    broken: usize,
}

impl<'a> Table<'a> {
    /// No rows yet. Each will run under `coxswain up`.
    pub fn new(folder: &'a Folder) -> Table<'a> {
        Table { folder, site: None, done: BTreeMap::new(), failures: Vec::new(), broken: 0 }
    }

    /// No rows yet. One after the other will run on the workers of a site, which saves their starts.
    pub fn on(site: &'a Site<'a>, folder: &'a Folder) -> Table<'a> {
        Table { site: Some(site), ..Table::new(folder) }
    }

    /// Later rows will run under `coxswain up`.
    pub fn under_up(self) -> Table<'a> {
        Table { site: None, ..self }
    }

    /// The run of a row, not started.
    pub fn job(&self, (name, (pipeline, tensor, data), changes, _): &Row) -> Run {
        changes.iter().fold(self.folder.run(name).layout(*pipeline, *tensor, *data), |run, set| run.set(set))
    }

    /// Runs a row and compares it.
    ///
    /// # Errors
    /// As [`Table::compare`].
    pub fn row(&mut self, row: &Row) -> Result<Run> {
        let run = self.job(row);
        self.compare(row.0, &run, row.3)?;
        Ok(run)
    }

    /// Runs `run` and compares it. What does not hold is noted for [`Table::end`].
    ///
    /// # Errors
    /// Where more than a few runs have ended badly.
    pub fn compare(&mut self, name: &str, run: &Run, equals: &[Equal]) -> Result<()> {
        match self.site.map_or_else(|| run.summary(), |site| site.summary(run)) {
            Ok(summary) => {
                for equal in equals {
                    let verdict = self.verdict(&summary, *equal);
                    self.note(name, verdict.unwrap_or_else(|error| Some(format!("{error:#}"))));
                }
                self.add(name, summary);
            }
            Err(error) => {
                self.broken += 1;
                self.note(name, Some(format!("{error:#}")));
            }
        }
        let failures = || self.failures.join("\n");
        anyhow::ensure!(self.broken < BROKEN_MAX, "{BROKEN_MAX} runs ended badly:\n{}", failures());
        Ok(())
    }

    /// Prints how a comparison came out, and keeps it where it did not hold.
    fn note(&mut self, name: &str, why: Option<String>) {
        say(&format!("{name:<32} {}", why.as_deref().unwrap_or("holds")));
        self.failures.extend(why.map(|why| format!("{name}: {why}")));
    }

    /// What later rows are compared with, and ran elsewhere.
    pub fn add(&mut self, name: &str, summary: Summary) {
        self.done.insert(name.to_owned(), summary);
    }

    fn verdict(&self, summary: &Summary, equal: Equal) -> Result<Option<String>> {
        let (Equal::Bits(name) | Equal::Close(name) | Equal::Near(name) | Equal::Differs(name)) = equal;
        let wanted = self.summary(name)?;
        let close = |loss_most: f64, norm_most: f64| {
            let (loss, norm) = (summary.loss_error(wanted), summary.first_norm_error(wanted));
            (!(loss <= loss_most && norm <= norm_most))
                .then(|| format!("losses are {loss:e} from {name}, first gradient norms {norm:e}"))
        };
        Ok(match equal {
            Equal::Bits(_) => summary.bits_differ(wanted).map(|why| format!("not the bits of {name}: {why}")),
            Equal::Close(_) => close(TOLERANCE, NORM_TOLERANCE),
            Equal::Near(_) => close(LOW_TOLERANCE, LOW_TOLERANCE),
            Equal::Differs(_) => {
                summary.bits_differ(wanted).is_none().then(|| format!("has the bits of {name}"))
            }
        })
    }

    /// What a row left.
    pub fn summary(&self, name: &str) -> Result<&Summary> {
        self.done.get(name).with_context(|| format!("the row {name} has not run yet"))
    }

    /// Fails where a row did, and names each that did.
    ///
    /// # Errors
    /// The rows that do not hold, and why.
    pub fn end(self) -> Result<()> {
        let failures = self.failures;
        anyhow::ensure!(
            failures.is_empty(),
            "{} comparisons do not hold:\n{}",
            failures.len(),
            failures.join("\n")
        );
        Ok(())
    }
}

/// Tries all of these, and fails with what each of them says that failed.
///
/// # Errors
/// One or more have failed.
pub fn try_all(tries: impl IntoIterator<Item = Result<()>>) -> Result<()> {
    let failed: Vec<_> = tries.into_iter().filter_map(|tried| Some(format!("{:#}", tried.err()?))).collect();
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_tried_and_each_that_fails_is_named() {
        let mut tried = 0;
        let rows = ["good", "bad", "worse"].into_iter().map(|name| {
            tried += 1;
            if name == "good" { Ok(()) } else { Err(anyhow::anyhow!("it broke").context(name)) }
        });
        let error = try_all(rows).unwrap_err();
        assert_eq!((tried, error.to_string().as_str()), (3, "bad: it broke\nworse: it broke"));
        try_all([Ok(())]).unwrap();
    }
}
