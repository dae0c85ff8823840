//! What a person sees of a run: one bar with step, loss, speed and time left, or where stderr is no
//! terminal a plain line now and then.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use coxswain_types::status::StepReport;
use indicatif::{ProgressBar, ProgressStyle};

use crate::telemetry::bars;

/// How often a plain line is written at most. A log of hours stays readable.
const PLAIN: Duration = Duration::from_secs(5);

/// How much of an older step's speed counts: about the last ten steps are seen.
const KEPT: f64 = 0.9;

/// The progress of one run.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    steps: u64,
    /// What the loss is a mean over.
    unit: &'static str,
    /// Seconds a step, smoothed.
    pace: Option<f64>,
    told: Option<Instant>,
}

impl Progress {
    /// The progress of a run that has taken `from` of its `steps`.
    pub(crate) fn new(from: u64, steps: u64, unit: &'static str) -> Progress {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = bars().add(ProgressBar::new(steps));
            let template = "{bar:30.cyan/dim} step {pos}/{len}  {msg}";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style.progress_chars("━╸─"));
            }
            bar.set_position(from);
            bar
        });
        Progress { bar, steps, unit, pace: None, told: None }
    }

    /// A step was taken.
    pub(crate) fn step(&mut self, report: &StepReport) {
        let pace =
            self.pace.map_or(report.step_seconds, |pace| KEPT * pace + (1.0 - KEPT) * report.step_seconds);
        self.pace = Some(pace);
        let left = self.steps.saturating_sub(report.step);
        let message = describe(report, left as f64 * pace, self.unit);
        let due = self.told.is_none_or(|told| told.elapsed() >= PLAIN);
        match &self.bar {
            Some(bar) => {
                bar.set_position(report.step);
                bar.set_message(message);
            }
            // A skipped step says what is wrong, and the run stops after a few of them in a row.
            None if due || left == 0 || report.skipped => {
                self.told = Some(Instant::now());
                eprintln!("step {}/{}  {message}", report.step, self.steps);
            }
            None => {}
        }
    }

    /// The run is over: what the bar showed last stays as a line.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.abandon();
        }
    }
}

/// What a person sees while a job's data is prepared: a line that changes, or where stderr is no terminal a line now and
/// then.
pub(crate) struct Preparing {
    bar: Option<ProgressBar>,
    told: Instant,
}

impl Preparing {
    pub(crate) fn new() -> Preparing {
        let bar = io::stderr().is_terminal().then(|| bars().add(ProgressBar::new_spinner()));
        Preparing { bar, told: Instant::now() }
    }

    /// What is being done.
    pub(crate) fn show(&mut self, doing: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(doing.to_owned()),
            None if self.told.elapsed() >= PLAIN => {
                self.told = Instant::now();
                // A run goes on without a reader of its stderr.
                let _ = writeln!(io::stderr(), "{doing}");
            }
            None => {}
        }
    }
}

impl Drop for Preparing {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn describe(report: &StepReport, left_seconds: f64, unit: &str) -> String {
    let held_out = report.held_out.map_or(String::new(), |held_out| {
        let bits = held_out.bits_per_byte;
        let bits = if bits.is_nan() { String::new() } else { format!(", {bits:.3} bits per byte") };
        let quality = match held_out.accuracy {
            Some(accuracy) => format!("accuracy {:.1} %", accuracy * 100.0),
            None => format!("perplexity {:.2}{bits}", held_out.perplexity()),
        };
        format!("  held out {:.3} ({quality})", held_out.loss)
    });
    let loss = match (report.skipped, report.loss_scale) {
        (false, _) => format!("loss {:.4}", report.loss),
        (true, Some(scale)) => format!("skipped: gradients overflow at loss scale {scale}"),
        (true, None) => "skipped: the loss or a gradient is not finite".to_owned(),
    };
    format!("{loss}{held_out}  {:.0} {unit}s/s  {} left", report.tokens_per_second, human(left_seconds))
}

/// A time as people say it.
fn human(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use coxswain_types::status::{HeldOut, StepReport};

    use super::{describe, human};

    #[test]
    fn a_step_says_its_loss_or_why_it_was_skipped() {
        let plain = StepReport {
            step: 3,
            loss: 2.5,
            grad_norm: 1.0,
            learning_rate: 1e-3,
            tokens: 64,
            tokens_per_second: 640.4,
            step_seconds: 0.1,
            skipped: false,
            loss_scale: Some(1024.0),
            parameter_norms: BTreeMap::new(),
            held_out: None,
        };
        let classes = plain.clone();
        let evaluated = StepReport {
            held_out: Some(HeldOut { loss: 2.0, bits_per_byte: 1.25, accuracy: None }),
            ..plain.clone()
        };
        let skipped = StepReport { skipped: true, loss: f64::NAN, ..plain.clone() };
        let unscaled = StepReport { loss_scale: None, ..skipped.clone() };
        let rows = [
            (plain, "loss 2.5000  640 tokens/s  2 s left"),
            (
                evaluated,
                "loss 2.5000  held out 2.000 (perplexity 7.39, 1.250 bits per byte)  640 tokens/s  2 s left",
            ),
            (skipped, "skipped: gradients overflow at loss scale 1024  640 tokens/s  2 s left"),
            (unscaled, "skipped: the loss or a gradient is not finite  640 tokens/s  2 s left"),
        ];
        for (report, expected) in rows {
            assert_eq!(describe(&report, 2.0, "token"), expected);
        }
        let told = HeldOut { loss: 0.5, bits_per_byte: f64::NAN, accuracy: Some(0.9444) };
        assert_eq!(
            describe(&StepReport { held_out: Some(told), ..classes }, 2.0, "line"),
            "loss 2.5000  held out 0.500 (accuracy 94.4 %)  640 lines/s  2 s left"
        );
    }

    #[test]
    fn times_are_told_as_people_say_them() {
        let rows = [
            (0.4, "0 s"),
            (59.4, "59 s"),
            (59.6, "1 min 00 s"),
            (3599.0, "59 min 59 s"),
            (7260.0, "2 h 01 min"),
        ];
        for (seconds, text) in rows {
            assert_eq!(human(seconds), text);
        }
    }
}
