//! The certificate that a layout does not change the numbers: what is compared, what it is held to,
//! and how the outcome reads. Pure; starting the runs and reading what they left is the shell's.
//!
//! - `name`: `tp2xpp2+zero` becomes changes to the job.
//! - `runs`: what is changed for the sake of the comparison, threads, and which run is the reference.
//! - `record`: what a run left, and what two of them differ in.
//! - `bound`: bits or a tolerance, and whether it is kept.
//! - `print`: the certificate as people keep it; as JSON it is its fields.

mod bound;
mod name;
mod print;
mod record;
mod runs;
#[cfg(test)]
mod tests;

use coxswain_types::JobSpec;
use serde::Serialize;

pub use bound::{Bound, bound};
pub use name::{JOB, LayoutName, ONE};
pub use record::{Deviation, Differences, RunRecord, differences};
pub use runs::{Candidate, ThreadCount, choose_reference, run_sets, threads};

/// The version of the JSON form.
pub const FORMAT: u32 = 1;

/// Why there is nothing to certify.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// A layout's name is invalid.
    #[error("--layouts: layout `{name}`: {problem}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it and what is allowed.
        problem: String,
    },
    /// No layout fits into memory.
    #[error(
        "neither one process nor any of the given layouts fits into the memory of this machine: the smallest is \
         {layout}, whose workers need about {needed} together, and {available} are available; give a smaller model \
         or train.micro_batch_size, or name the layout to compare with by --reference"
    )]
    NothingFits {
        /// The layout that needs the least.
        layout: String,
        /// What it needs, for people.
        needed: String,
        /// What there is, for people.
        available: String,
    },
}

/// The job, the machine and the runs of a certificate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CertificateHead {
    /// The job's name.
    pub job: String,
    /// The job file as it was given.
    pub file: String,
    /// The changes to it that were given.
    pub sets: Vec<String>,
    /// The model's parameters.
    pub parameters: u64,
    /// `fp32`, `bf16` or `fp16`.
    pub precision: String,
    /// The libtorch and what the processor offers it.
    pub runtime: String,
    /// `cpu`, or as it was given.
    pub device: String,
    /// Threads of each worker, the same in every run.
    pub threads: ThreadCount,
    /// Steps of each run.
    pub steps: u64,
    /// Tokens of a step.
    pub step_tokens: u64,
    /// What the layouts are compared with.
    pub reference: String,
    /// Why it is that one, where it is not one process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_reason: Option<String>,
    /// Whether every layout was held to bits.
    pub strict: bool,
}

/// One layout of a certificate.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CertificateRow {
    /// The layout's name.
    pub layout: String,
    /// Its workers.
    pub workers: u32,
    /// What it and the reference differ in.
    #[serde(flatten)]
    pub differences: Differences,
    /// Whether all is the same to the bit.
    pub bitwise: bool,
    /// What it is held to.
    pub bound: Bound,
    /// The earlier layout whose bits it must have, since it adds in the same order though not in that
    /// of the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub twin: Option<String>,
    /// What breaks the bound; `None` where it holds.
    pub broken: Option<String>,
}

/// What was found out about a job's layouts.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Certificate {
    /// [`FORMAT`].
    pub format: u32,
    /// The job, the machine and the runs.
    #[serde(flatten)]
    pub head: CertificateHead,
    /// One for each layout, in the order in which they were given.
    pub layouts: Vec<CertificateRow>,
    /// Whether every bound holds.
    pub holds: bool,
}

/// A layout that has been run.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    /// The layout's name.
    pub name: String,
    /// The job in that layout.
    pub spec: JobSpec,
    /// What the run left.
    pub record: RunRecord,
}

/// Compares the runs with `reference`. A layout that is not held to its bits must have those of an
/// earlier one that adds in the same order, if there is one.
pub fn certify(head: CertificateHead, reference: &Done, runs: &[Done]) -> Certificate {
    let rows = runs.iter().enumerate().map(|(i, run)| row(&head, reference, &runs[..i], run));
    let layouts: Vec<CertificateRow> = rows.collect();
    let holds = layouts.iter().all(|row| row.broken.is_none());
    Certificate { format: FORMAT, head, layouts, holds }
}

fn row(head: &CertificateHead, reference: &Done, earlier: &[Done], run: &Done) -> CertificateRow {
    let bound = bound(&reference.spec, &run.spec, head.strict);
    let differences = differences(&run.record, &reference.record);
    let twin = match bound {
        Bound::Bits => None,
        Bound::Close { .. } => earlier.iter().find(|twin| bound::reason(&twin.spec, &run.spec).is_none()),
    };
    let broken = bound.broken(&differences).or_else(|| {
        let twin = twin?;
        let broken = Bound::Bits.broken(&record::differences(&run.record, &twin.record))?;
        Some(format!("compared with {}: {broken}", twin.name))
    });
    CertificateRow {
        layout: run.name.clone(),
        workers: run.spec.layout.world(),
        bitwise: differences.bitwise(),
        differences,
        bound,
        twin: twin.map(|twin| twin.name.clone()),
        broken,
    }
}
