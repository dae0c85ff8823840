//! Real text, long enough to learn something: low precision learns as fp32 does.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use coxswain_console::say;
use coxswain_tests::Run;

/// Half of Alice's Adventures in Wonderland (Lewis Carroll, 1865), which is in the public domain.
const TEXT: &str = "texts/alice.txt";

/// How far the validation loss in bf16 may be from that in fp32, relative: the band between two seeds
/// of the same job is wider than this.
const BAND: f64 = 0.01;

#[test]
fn bf16_learns_real_text_as_fp32_does() -> Result<()> {
    let guard = tempfile::tempdir().context("a folder for the runs")?;
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join(TEXT).display().to_string();
    let job = format!(
        "name: words\n\
         model: {{layers: 4, dim: 96, heads: 4, kv_heads: 2, ffn: 256, vocab: 512}}\n\
         data: {{text: {text:?}, validation: 0.1}}\n\
         train: {{steps: 150, sequence: 64, micro_batch_size: 4, global_micro_batches: 4, learning_rate: 0.004, threads: 2}}\n"
    );
    let path = guard.path().join("job.yaml");
    std::fs::write(&path, job)?;
    let validation = |precision: &str| -> Result<f64> {
        let run = Run::new(&path, guard.path().join(precision));
        let summary = run.set(&format!("train.precision={precision}")).summary()?;
        let (first, last) = (summary.losses[&1], summary.validation.context("a validation loss")?);
        say(&format!("{precision}: validation loss {last:.4} after a first loss of {first:.4}"));
        ensure!(last < 0.75 * first, "{precision} learnt nothing: {first} to {last}");
        Ok(last)
    };
    let (full, low) = (validation("fp32")?, validation("bf16")?);
    ensure!(full.to_bits() != low.to_bits(), "bf16 has the bits of fp32");
    ensure!((low / full - 1.0).abs() < BAND, "bf16 ends at {low}, fp32 at {full}");
    Ok(())
}
