//! The model and step that are measured, said once and written twice: as a job file for us and as
//! flags for the peer.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// Steps before the clock counts: the first ones fill caches and allocators.
pub(super) const WARM_UP_STEPS: u64 = 2;

/// A row of the table: a layout, and one thing that differs from the plain step.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BenchRow {
    /// One process.
    Single,
    /// Two data ranks.
    Dp2,
    /// Two pipeline stages, 1F1B.
    Pp2,
    /// Two tensor shards.
    Tp2,
    /// One process in bf16; PyTorch by autocast.
    SingleBf16,
    /// One process that computes layers again in the backward pass.
    SingleFull,
    /// Two data ranks with the optimizer's state sharded.
    Dp2Zero,
}

impl BenchRow {
    /// The row's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            BenchRow::Single => "single",
            BenchRow::Dp2 => "dp2",
            BenchRow::Pp2 => "pp2",
            BenchRow::Tp2 => "tp2",
            BenchRow::SingleBf16 => "single-bf16",
            BenchRow::SingleFull => "single-full",
            BenchRow::Dp2Zero => "dp2-zero",
        }
    }

    /// Data, pipeline and tensor ranks.
    fn layout(self) -> [u32; 3] {
        match self {
            BenchRow::Single | BenchRow::SingleBf16 | BenchRow::SingleFull => [1, 1, 1],
            BenchRow::Dp2 | BenchRow::Dp2Zero => [2, 1, 1],
            BenchRow::Pp2 => [1, 2, 1],
            BenchRow::Tp2 => [1, 1, 2],
        }
    }

    /// What the peer calls the layout.
    fn mode(self) -> &'static str {
        match self.layout() {
            [2, _, _] => "dp",
            [_, 2, _] => "pp",
            [_, _, 2] => "tp",
            _ => "single",
        }
    }

    /// How many processes it takes.
    pub(super) fn processes(self) -> usize {
        self.layout().iter().product::<u32>() as usize
    }
}

/// A LLaMA-style decoder and the batch of a step. The defaults are those of the table in
/// docs/performance.md.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct BenchShape {
    /// Transformer layers.
    #[arg(long, default_value_t = 8)]
    layers: u32,
    /// Width of the residual stream.
    #[arg(long, default_value_t = 512)]
    dim: u32,
    /// Query heads.
    #[arg(long, default_value_t = 8)]
    heads: u32,
    /// Key/value heads.
    #[arg(long, default_value_t = 8)]
    kv_heads: u32,
    /// Width of the feed-forward layers.
    #[arg(long, default_value_t = 1408)]
    ffn: u32,
    /// Tokens that the model knows.
    #[arg(long, default_value_t = 8192)]
    vocab: u32,
    /// Tokens in a sample.
    #[arg(long, default_value_t = 256)]
    seq: u32,
    /// Samples in a micro-batch.
    #[arg(long, default_value_t = 2)]
    micro_batch: u32,
    /// Micro-batches in a step, over all data ranks.
    #[arg(long, default_value_t = 8)]
    micro_batches: u32,
    /// Steps that are measured, after two that are not.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    steps: u64,
    /// Compute layers again in the backward pass instead of keeping their intermediate values.
    #[arg(long)]
    checkpoint: bool,
}

impl BenchShape {
    /// Refuses what the peer could not split as we do; the rest is refused by the job file's checks.
    pub(super) fn check(&self, row: BenchRow) -> Result<()> {
        let even = |value: u32| value.is_multiple_of(2);
        let name = row.name();
        match row.mode() {
            "dp" => ensure!(even(self.micro_batches), "{name} needs an even number of --micro-batches"),
            "pp" => ensure!(even(self.layers), "{name} needs an even number of --layers"),
            "tp" => ensure!(
                even(self.heads) && even(self.kv_heads) && even(self.ffn) && even(self.vocab),
                "{name} needs even --heads, --kv-heads, --ffn and --vocab"
            ),
            _ => {}
        }
        Ok(())
    }

    fn recomputes(&self, row: BenchRow) -> bool {
        self.checkpoint || row == BenchRow::SingleFull
    }

    fn all_steps(&self) -> u64 {
        self.steps + WARM_UP_STEPS
    }

    /// The job file. JSON is YAML, so nothing needs quoting by hand.
    pub(super) fn job(&self, row: BenchRow) -> String {
        let [data, pipeline, tensor] = row.layout();
        let samples = u64::from(self.micro_batch) * u64::from(self.micro_batches) * self.all_steps();
        let job = json!({
            "name": format!("bench-{}", row.name()),
            "model": {
                "layers": self.layers,
                "dim": self.dim,
                "heads": self.heads,
                "kv_heads": self.kv_heads,
                "ffn": self.ffn,
                "vocab": self.vocab,
            },
            // Enough that no sample is seen twice; a sample is read with the token that follows it.
            "data": { "synthetic": { "tokens": samples * (u64::from(self.seq) + 1) } },
            "train": {
                "steps": self.all_steps(),
                "sequence": self.seq,
                "micro_batch_size": self.micro_batch,
                "global_micro_batches": self.micro_batches,
                "recompute": if self.recomputes(row) { "full" } else { "none" },
                "precision": if row == BenchRow::SingleBf16 { "bf16" } else { "fp32" },
                // The peer's optimizer: AdamW with its defaults, no warm-up, no clipping.
                "learning_rate": 3e-4,
                "min_learning_rate": 3e-4,
                "warmup_steps": 0,
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "weight_decay": 0.01,
                "clip_norm": 0.0,
            },
            "layout": {
                "data": data,
                "pipeline": pipeline,
                "tensor": tensor,
                "zero": u32::from(row == BenchRow::Dp2Zero),
            },
        });
        format!("{job:#}\n")
    }

    /// The peer's flags.
    pub(super) fn flags(&self, row: BenchRow) -> Vec<String> {
        let mut flags = vec!["--mode".to_owned(), row.mode().to_owned()];
        let mut flag = |name: &str, value: u64| flags.extend([format!("--{name}"), value.to_string()]);
        for (name, value) in [
            ("layers", self.layers),
            ("dim", self.dim),
            ("heads", self.heads),
            ("kv-heads", self.kv_heads),
            ("ffn", self.ffn),
            ("vocab", self.vocab),
            ("seq", self.seq),
            ("micro-batch", self.micro_batch),
            ("micro-batches", self.micro_batches),
        ] {
            flag(name, value.into());
        }
        flag("steps", self.steps);
        flag("warm-up", WARM_UP_STEPS);
        for (name, given) in [
            ("--checkpoint", self.recomputes(row)),
            ("--bf16", row == BenchRow::SingleBf16),
            ("--zero", row == BenchRow::Dp2Zero),
        ] {
            flags.extend(given.then(|| name.to_owned()));
        }
        flags
    }

    /// The shape, for the JSON output.
    pub(super) fn json(&self) -> Value {
        json!({
            "layers": self.layers,
            "dim": self.dim,
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "ffn": self.ffn,
            "vocab": self.vocab,
            "seq": self.seq,
            "micro_batch": self.micro_batch,
            "micro_batches": self.micro_batches,
            "steps": self.steps,
            "checkpoint": self.checkpoint,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::{Parser, ValueEnum};

    use super::*;

    #[derive(Parser)]
    struct BenchLine {
        #[command(flatten)]
        shape: BenchShape,
    }

    fn shape(line: &[&str]) -> BenchShape {
        BenchLine::parse_from([&["bench"], line].concat()).shape
    }

    #[test]
    fn a_row_is_one_job_and_the_same_flags() {
        let shape = shape(&["--kv-heads", "4", "--steps", "3", "--checkpoint"]);
        let job: Value = serde_json::from_str(&shape.job(BenchRow::Pp2)).unwrap();
        assert_eq!(job["layout"], json!({ "data": 1, "pipeline": 2, "tensor": 1, "zero": 0 }));
        assert_eq!(job["train"]["steps"], 5);
        assert_eq!(job["train"]["recompute"], "full");
        assert_eq!(job["model"]["kv_heads"], 4);
        assert_eq!(job["data"]["synthetic"]["tokens"], 2 * 8 * 5 * 257);
        assert_eq!(
            shape.flags(BenchRow::Pp2).join(" "),
            "--mode pp --layers 8 --dim 512 --heads 8 --kv-heads 4 --ffn 1408 --vocab 8192 --seq 256 \
             --micro-batch 2 --micro-batches 8 --steps 3 --warm-up 2 --checkpoint"
        );
    }

    #[test]
    fn a_row_of_another_kind_says_so_on_both_sides() {
        for (row, key, value, flag) in [
            (BenchRow::SingleBf16, "/train/precision", json!("bf16"), "--bf16"),
            (BenchRow::SingleFull, "/train/recompute", json!("full"), "--checkpoint"),
            (BenchRow::Dp2Zero, "/layout/zero", json!(1), "--zero"),
        ] {
            let job: Value = serde_json::from_str(&shape(&[]).job(row)).unwrap();
            assert_eq!(job.pointer(key), Some(&value));
            assert_eq!(shape(&[]).flags(row).last().map(String::as_str), Some(flag));
        }
    }

    #[test]
    fn every_job_passes_the_real_door() {
        for row in BenchRow::value_variants().iter().copied() {
            let text = shape(&["--checkpoint"]).job(row);
            let base = std::path::Path::new("/");
            let job = coxswain_core::spec::JobText { source: "bench.yaml", text: &text, sets: &[], base };
            let job = coxswain_core::spec::parse(&job).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(job.layout.world() as usize, row.processes());
            assert_eq!(job.train.optimizer.beta2, 0.999);
            assert_eq!(job.train.optimizer.warmup_steps, 0);
        }
    }

    #[test]
    fn what_cannot_be_halved_is_refused_for_its_row_only() {
        for (line, refused) in [
            (&["--layers", "3"], BenchRow::Pp2),
            (&["--micro-batches", "5"], BenchRow::Dp2),
            (&["--heads", "3"], BenchRow::Tp2),
            (&["--vocab", "8191"], BenchRow::Tp2),
        ] {
            for row in [BenchRow::Single, BenchRow::Dp2, BenchRow::Pp2, BenchRow::Tp2] {
                assert_eq!(shape(line).check(row).is_err(), row == refused, "{line:?} {row:?}");
            }
        }
    }
}
