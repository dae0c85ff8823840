//! What a person sees of a run: one bar with step, loss, speed and time left, or where stderr is no
//! terminal a plain line now and then.

use std::io;
use std::time::{Duration, Instant};

use coxswain_console as console;
use coxswain_core::cluster::{Numbers, duration};
use coxswain_types::status::StepReport;

/// How often a plain line is written at most. A log of hours stays readable.
const PLAIN: Duration = Duration::from_secs(5);

/// How often the bar is drawn at most.
const DRAWN: Duration = Duration::from_millis(50);

/// The bar's length. It is left out where the words alone fill the line.
const BAR: usize = 30;

/// A terminal that does not know its width.
const WIDTH: usize = 80;

/// The progress of one run.
pub(crate) struct RunProgress {
    look: console::StreamCapabilities,
    steps: u64,
    /// What the loss is a mean over.
    unit: String,
    /// Smoothed.
    numbers: Option<Numbers>,
    told: Option<Instant>,
}

impl RunProgress {
    /// The progress of a run that has taken `from` of its `steps`.
    pub(crate) fn new(from: u64, steps: u64, unit: &str) -> RunProgress {
        let progress = RunProgress {
            look: console::look(&io::stderr()),
            steps,
            unit: unit.to_owned(),
            numbers: None,
            told: None,
        };
        if progress.look.redraws {
            progress.draw(from, "");
        }
        progress
    }

    /// A step was taken.
    pub(crate) fn step(&mut self, report: &StepReport) {
        let numbers = Numbers::after(self.numbers, report);
        self.numbers = Some(numbers);
        let left = self.steps.saturating_sub(report.step);
        let interval = if self.look.redraws { DRAWN } else { PLAIN };
        let due = self.told.is_none_or(|told| told.elapsed() >= interval);
        // A skipped step says what is wrong, and the run stops after a few of them in a row.
        if !due && left > 0 && !report.skipped {
            return;
        }
        self.told = Some(Instant::now());
        let message = describe(report, left as f64 * numbers.step_seconds, &self.unit);
        if self.look.redraws {
            self.draw(report.step, &message);
        } else {
            console::say(&format!("step {}/{}  {message}", report.step, self.steps));
        }
    }

    fn draw(&self, step: u64, message: &str) {
        let width = console::width(&io::stderr()).unwrap_or(WIDTH);
        console::status(line(step, self.steps, message, width, self.look.colors));
    }

    /// The run is over: what the bar showed last stays as a line.
    pub(crate) fn finish(&self) {
        console::keep();
    }
}

/// The bar and the words beside it, in at most `width` characters less one: a terminal may begin a new line
/// after the last.
fn line(step: u64, steps: u64, message: &str, width: usize, colors: bool) -> String {
    let words = format!("step {step}/{steps}  {message}");
    let width = width.saturating_sub(1);
    let cut = |room: usize| words.chars().take(room).collect::<String>();
    if words.chars().count() + BAR + 1 > width {
        return cut(width);
    }
    let share = if steps == 0 { 1.0 } else { (step as f64 / steps as f64).min(1.0) };
    let done = (share * BAR as f64).floor() as usize;
    let (done, left) = ("━".repeat(done), "─".repeat(BAR - done));
    match colors {
        true => format!("\x1b[36m{done}\x1b[0;2m{left}\x1b[0m {words}"),
        false => format!("{done}{left} {words}"),
    }
}

/// What a person sees while a job's data is prepared: a line that changes, or where stderr is not a terminal a line now and
/// then.
pub(crate) struct Preparing {
    redraws: bool,
    told: Instant,
}

impl Preparing {
    pub(crate) fn new() -> Preparing {
        Preparing { redraws: console::look(&io::stderr()).redraws, told: Instant::now() }
    }

    /// What is being done.
    pub(crate) fn show(&mut self, doing: &str) {
        if self.redraws {
            let width = console::width(&io::stderr()).unwrap_or(WIDTH);
            console::status(doing.chars().take(width.saturating_sub(1)).collect());
        } else if self.told.elapsed() >= PLAIN {
            self.told = Instant::now();
            console::say(doing);
        }
    }
}

impl Drop for Preparing {
    fn drop(&mut self) {
        if self.redraws {
            console::clear();
        }
    }
}

fn describe(report: &StepReport, left_seconds: f64, unit: &str) -> String {
    let validation = report.validation.map_or(String::new(), |validation| {
        let bits = validation.bits_per_byte;
        let bits = if bits.is_nan() { String::new() } else { format!(", {bits:.3} bits per byte") };
        let quality = match validation.accuracy {
            Some(accuracy) => format!("accuracy {:.1} %", accuracy * 100.0),
            None => format!("perplexity {:.2}{bits}", validation.perplexity()),
        };
        format!("  validation {:.3} ({quality})", validation.loss)
    });
    let loss = match (report.skipped, report.loss_scale) {
        (false, _) => format!("loss {:.4}", report.loss),
        (true, Some(scale)) => format!("skipped: gradients overflow at loss scale {scale}"),
        (true, None) => "skipped: the loss or a gradient is not finite".to_owned(),
    };
    format!("{loss}{validation}  {:.0} {unit}s/s  {} left", report.tokens_per_second, duration(left_seconds))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use coxswain_types::status::{StepReport, ValidationResult};

    use super::{describe, line};

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
            validation: None,
        };
        let classes = plain.clone();
        let evaluated = StepReport {
            validation: Some(ValidationResult { loss: 2.0, bits_per_byte: 1.25, accuracy: None }),
            ..plain.clone()
        };
        let skipped = StepReport { skipped: true, loss: f64::NAN, ..plain.clone() };
        let unscaled = StepReport { loss_scale: None, ..skipped.clone() };
        let rows = [
            (plain, "loss 2.5000  640 tokens/s  2 s left"),
            (
                evaluated,
                "loss 2.5000  validation 2.000 (perplexity 7.39, 1.250 bits per byte)  640 tokens/s  2 s left",
            ),
            (skipped, "skipped: gradients overflow at loss scale 1024  640 tokens/s  2 s left"),
            (unscaled, "skipped: the loss or a gradient is not finite  640 tokens/s  2 s left"),
        ];
        for (report, expected) in rows {
            assert_eq!(describe(&report, 2.0, "token"), expected);
        }
        let told = ValidationResult { loss: 0.5, bits_per_byte: f64::NAN, accuracy: Some(0.9444) };
        assert_eq!(
            describe(&StepReport { validation: Some(told), ..classes }, 2.0, "line"),
            "loss 2.5000  validation 0.500 (accuracy 94.4 %)  640 lines/s  2 s left"
        );
    }

    #[test]
    fn the_bar_fits_the_terminal() {
        let bar = format!("{}{} step 3/6  loss 1", "━".repeat(15), "─".repeat(15));
        assert_eq!(line(3, 6, "loss 1", 80, false), bar);
        assert_eq!(line(3, 6, "loss 1", 48, false), bar);
        assert_eq!(line(3, 6, "loss 1", 47, false), "step 3/6  loss 1");
        assert_eq!(line(3, 6, "loss 1", 12, false), "step 3/6  l");
        assert_eq!(line(3, 6, "", 0, false), "");
        assert!(line(3, 6, "loss 1", 80, true).ends_with("\x1b[0m step 3/6  loss 1"));
    }
}
