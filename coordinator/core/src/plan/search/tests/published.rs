//! Layouts that others have published, with what they measured: `docs/scaling.md` is made from this.

use std::fmt::Write as _;
use std::path::Path;

use expect_test::expect_file;

use super::{ask, machines};
use crate::plan::Memory;
use crate::plan::print::mebibytes;
use crate::spec::{JobText, open, page_with, presets};

/// A published run.
struct PublishedRun {
    preset: &'static str,
    device: &'static str,
    workers: u32,
    sets: &'static [(&'static str, &'static str)],
    /// Seconds of a step, where they are published.
    seconds: Option<f64>,
    /// The published share of the peak, in percent, by its source's own formula.
    mfu: Option<f64>,
    source: &'static str,
}

const RUNS: [PublishedRun; 6] = [
    PublishedRun {
        preset: "gpt3-22b",
        device: "a100-80gb",
        workers: 8,
        sets: &[
            ("layout", "{tensor: 8, sequence_parallel: true}"),
            ("train", "{steps: 1, precision: bf16, sequence: 2048, micro_batch_size: 4}"),
        ],
        seconds: Some(1.10),
        mfu: Some(41.5),
        source: "arXiv 2205.05198",
    },
    PublishedRun {
        preset: "gpt3-175b",
        device: "a100-80gb",
        workers: 64,
        sets: &[
            ("layout", "{pipeline: 8, tensor: 8, sequence_parallel: true, schedule: interleaved, chunks: 3}"),
            (
                "train",
                "{steps: 1, precision: bf16, sequence: 2048, global_micro_batches: 64, gradient_groups: 1}",
            ),
        ],
        seconds: Some(13.75),
        mfu: Some(51.4),
        source: "arXiv 2205.05198",
    },
    PublishedRun {
        preset: "mt-nlg-530b",
        device: "a100-80gb",
        workers: 280,
        sets: &[
            (
                "layout",
                "{pipeline: 35, tensor: 8, sequence_parallel: true, schedule: interleaved, chunks: 3}",
            ),
            (
                "train",
                "{steps: 1, precision: bf16, sequence: 2048, global_micro_batches: 280, gradient_groups: 1}",
            ),
        ],
        seconds: Some(37.83),
        mfu: Some(56.0),
        source: "arXiv 2205.05198",
    },
    PublishedRun {
        preset: "llama-3-8b",
        device: "h100-80gb",
        workers: 8,
        sets: &[
            ("layout", "auto"),
            ("train", "{steps: 1, precision: bf16, sequence: 8192, global_micro_batches: 128}"),
        ],
        seconds: None,
        mfu: None,
        source: "",
    },
    PublishedRun {
        preset: "llama-3-70b",
        device: "h100-80gb",
        workers: 64,
        sets: &[
            ("layout", "{tensor: 4, pipeline: auto}"),
            ("train", "{steps: 1, precision: bf16, sequence: 8192, global_micro_batches: 128}"),
        ],
        seconds: None,
        mfu: None,
        source: "",
    },
    PublishedRun {
        preset: "llama-3.1-405b",
        device: "h100-80gb",
        workers: 16_384,
        sets: &[
            ("layout", "{pipeline: 16, tensor: 8, data: 128, schedule: auto}"),
            ("train", "{steps: 1, precision: bf16, sequence: 8192, global_micro_batches: 2048}"),
        ],
        seconds: None,
        mfu: Some(41.0),
        source: "arXiv 2407.21783, 400 TFLOP/s of each GPU",
    },
];

impl PublishedRun {
    fn command(&self) -> String {
        let sets: String = self.sets.iter().map(|(path, value)| format!(" --set '{path}={value}'")).collect();
        let PublishedRun { preset, device, workers, .. } = self;
        format!("coxswain plan --preset {preset} --workers {workers} --device {device}{sets}")
    }
}

#[test]
fn the_page_of_published_runs_is_what_the_planner_says() {
    let mut table = String::from(
        "| model | GPUs | layout | memory | step, published | step, predicted | error | MFU, published | MFU, predicted |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    let mut commands = String::from("```\n");
    for run in &RUNS {
        let sets: Vec<_> =
            run.sets.iter().map(|(path, value)| (path.to_string(), value.to_string())).collect();
        let job = JobText { source: "published", text: "", sets: &sets, base: Path::new("/") };
        let text = presets::open_job_text(&job, run.preset).unwrap();
        let job =
            open(&JobText { text: &text, ..job }).unwrap_or_else(|error| panic!("{}: {error}", run.preset));
        let choice = ask(&job, &machines(run.device, run.workers))
            .unwrap_or_else(|error| panic!("{}: {error}", run.preset));
        let predicted = &choice.best.prediction;
        // Where only a share of the peak is published, its step is that of the FLOPs that the planner counts.
        let world = f64::from(choice.spec.layout.world());
        let of_share = |mfu: f64| predicted.step * 100.0 * predicted.mfu / mfu;
        let published = run.seconds.or(run.mfu.map(of_share));
        let error = published.map(|seconds| 100.0 * (predicted.step / seconds - 1.0));
        // By the source's own count of FLOPs.
        let mfu = run
            .mfu
            .zip(published)
            .map_or(100.0 * predicted.mfu, |(mfu, seconds)| mfu * seconds / predicted.step);
        let or_none = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let fullest = choice.best.memory.iter().map(Memory::tensor_bytes).max().unwrap();
        writeln!(
            table,
            "| {} | {world} {} | {} | {} | {} | {:.2} s | {} | {} | {mfu:.1} % |",
            run.preset,
            run.device,
            choice.best.settings.words(),
            mebibytes(fullest),
            or_none(published.map(|seconds| format!("{seconds:.2} s"))),
            predicted.step,
            or_none(error.map(|error| format!("{error:+.0} %"))),
            or_none(run.mfu.map(|mfu| format!("{mfu:.1} % ({})", run.source))),
        )
        .unwrap();
        writeln!(commands, "{}", run.command()).unwrap();
    }
    commands += "```";
    let page = include_str!("../../../../../../docs/scaling.md");
    let parts = [("published", table.trim_end().to_owned()), ("commands", commands)];
    expect_file!["../../../../../../docs/scaling.md"].assert_eq(&page_with(page, &parts));
}
