//! A table of runs: what each must equal, to the bit or closely.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

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

/// Runs that have been compared so far.
#[derive(Debug)]
pub struct Table<'a> {
    folder: &'a Folder,
    site: Option<&'a Site<'a>>,
    done: BTreeMap<String, Summary>,
    failures: Vec<String>,
}

impl<'a> Table<'a> {
    /// No rows yet. Each will run under `coxswain up`.
    pub fn new(folder: &'a Folder) -> Table<'a> {
        Table { folder, site: None, done: BTreeMap::new(), failures: Vec::new() }
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
    pub fn row(&mut self, row: &Row) -> Result<Run> {
        let run = self.job(row);
        self.compare(row.0, &run, row.3)?;
        Ok(run)
    }

    /// Runs `run` and compares it.
    pub fn compare(&mut self, name: &str, run: &Run, equals: &[Equal]) -> Result<()> {
        let summary = self.site.map_or_else(|| run.summary(), |site| site.summary(run));
        let summary = summary.with_context(|| name.to_owned())?;
        for equal in equals {
            let verdict = self.verdict(&summary, *equal)?;
            println!("{name:<32} {}", verdict.as_deref().unwrap_or("holds"));
            self.failures.extend(verdict.map(|why| format!("{name}: {why}")));
        }
        self.add(name, summary);
        Ok(())
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

    /// Fails where a row did.
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
