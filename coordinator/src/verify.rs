//! `coxswain verify`: runs a few steps of a job in several layouts and says whether the numbers are the
//! same. Names, bounds, comparison and print belong to `coxswain_core::certificate`.
//!
//! - `cases`: the job in each layout, checked before anything starts.
//! - `child`: one run, as a process of this same program.
//! - `record`: what a run left.

mod cases;
mod child;
mod record;

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::pin;

use anyhow::Context;
use clap::Args;
use coxswain_console::say;
use coxswain_core::certificate::{Certificate, CertificateHead, Done, ONE, RunRecord, certify};
use coxswain_files::atomic::{create_folder, write_atomic};

use crate::args::JobFile;
use crate::failure::{FAILED, Failure};
use crate::output;
use crate::serve::stop_signal;
pub(crate) use cases::available_memory;
use cases::{Case, Cases};

/// The folder of the reference's run; no layout's name looks like it.
const REFERENCE: &str = "reference";

#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    job: JobFile,
    /// The layouts, such as pp2,dp2,tp2xpp2+zero.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', required = true)]
    layouts: Vec<String>,
    /// Steps of each run.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// The layout to compare with [default: one process, or the smallest given layout that fits into memory].
    #[arg(long, value_name = "NAME")]
    reference: Option<String>,
    /// Hold every layout to the same bits, also where they are not promised.
    #[arg(long)]
    strict: bool,
    /// Keep the runs here, in a new folder each [default: a temporary folder, kept where something fails].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the certificate as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The device of each worker: cpu, cuda:N (all on GPU N), or cuda (worker i on GPU i).
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = coxswain_proto::device::device)]
    device: String,
}

pub(crate) async fn verify(args: Verify) -> Result<(), Failure> {
    let cases = Cases::prepare(&args)?;
    let out = Out::make(args.out.as_deref(), &cases)?;
    let result = compare(&args, &cases, &out.path).await;
    let holds = matches!(&result, Ok(certificate) if certificate.holds);
    if out.temporary && holds {
        // What cannot be removed costs room and nothing else.
        let _ = fs::remove_dir_all(&out.path);
    } else {
        say(&format!("the runs are in {}", out.path.display()));
    }
    let certificate = result?;
    if let Some(path) = &args.json {
        let mut json = serde_json::to_vec_pretty(&certificate).context("the certificate as JSON")?;
        json.push(b'\n');
        write_atomic(path, &json).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    output::write(&certificate.to_string())?;
    for row in &certificate.layouts {
        if let Some(broken) = &row.broken {
            say(&format!("error: layout {}: {broken}", row.layout));
        }
    }
    if holds { Ok(()) } else { Err(Failure::Said(FAILED)) }
}

/// Runs everything and compares it.
async fn compare(args: &Verify, cases: &Cases, out: &Path) -> Result<Certificate, Failure> {
    // One for all runs: a signal between two of them counts, too.
    let mut stop = pin!(stop_signal()?);
    let folder = out.join(REFERENCE);
    child::run(args, &cases.reference, &folder, None, stop.as_mut()).await?;
    let (record, fingerprint) = record::read(&folder)?;
    let reference = done(&cases.reference, record);
    let mut runs = Vec::new();
    for case in &cases.layouts {
        let own = out.join(&case.name);
        child::run(args, case, &own, Some(&folder), stop.as_mut()).await?;
        let (record, other) = record::read(&own)?;
        if other.runtime != fingerprint.runtime {
            // The program was exchanged in between.
            return Err(anyhow::anyhow!(
                "layout {}: it ran on {}, and the reference on {}; start again",
                case.name,
                other.runtime,
                fingerprint.runtime
            )
            .into());
        }
        runs.push(done(case, record));
    }
    let train = &cases.reference.spec.train;
    let step_tokens =
        u64::from(train.global_micro_batches) * u64::from(train.micro_batch_size) * u64::from(train.sequence);
    let head = CertificateHead {
        job: cases.reference.spec.name.clone(),
        file: args.job.job.display().to_string(),
        sets: args.job.sets.clone(),
        parameters: cases.reference.parameters,
        precision: train.precision.name().to_owned(),
        runtime: fingerprint.runtime,
        device: args.device.clone(),
        threads: cases.threads.clone(),
        steps: args.steps,
        step_tokens,
        reference: cases.reference.name.clone(),
        reference_reason: cases.reference_reason.clone(),
        strict: args.strict,
    };
    Ok(certify(head, &reference, &runs))
}

fn done(case: &Case, record: RunRecord) -> Done {
    Done { name: case.name.clone(), spec: case.spec.clone(), record }
}

/// How a layout is called in messages.
fn called(name: &str) -> String {
    if name == ONE { "one process".to_owned() } else { format!("layout {name}") }
}

/// The folder of the runs.
struct Out {
    path: PathBuf,
    temporary: bool,
}

impl Out {
    /// Nothing that is there is touched: a run in a folder with a checkpoint would continue from it.
    fn make(given: Option<&Path>, cases: &Cases) -> Result<Out, Failure> {
        let Some(given) = given else {
            let path = std::env::temp_dir().join(format!("coxswain-verify-{}", std::process::id()));
            // For this user only: the folder lies where others may look, and holds the job's text.
            let made = DirBuilder::new().mode(0o700).create(&path);
            made.with_context(|| format!("{} cannot be made; give another folder by --out", path.display()))?;
            return Ok(Out { path, temporary: true });
        };
        let path = std::path::absolute(given).context("the current folder cannot be told")?;
        let names = cases.layouts.iter().map(|case| case.name.as_str());
        if let Some(name) = names.chain([REFERENCE]).find(|name| path.join(name).exists()) {
            return Err(Failure::Input(format!(
                "--out {}: {name} is there already, and a certificate takes fresh runs; give another folder, or \
                 remove that one",
                given.display()
            )));
        }
        create_folder(&path).with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Out { path, temporary: false })
    }
}
