//! A run's numbers over its steps, in as many points as a picture can show. The file is read in one pass and in
//! bounded memory: whenever there are twice as many points as asked for, neighbours are merged.

use std::io;
use std::path::Path;

use coxswain_types::status::StepReport;
use serde::{Deserialize, Serialize};

use crate::metrics;

/// The most points of a series: about as many as the widest screens have pixels.
pub(crate) const MAX_POINTS: usize = 2000;

/// Numbers over steps, a column each.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Series {
    /// How many steps a point stands for.
    pub(crate) width: u64,
    pub(crate) step: Vec<u64>,
    pub(crate) loss: Vec<Option<f64>>,
    pub(crate) validation_loss: Vec<Option<f64>>,
    pub(crate) learning_rate: Vec<Option<f64>>,
    pub(crate) grad_norm: Vec<Option<f64>>,
    pub(crate) tokens_per_second: Vec<Option<f64>>,
    /// Seconds of training until then, since the first step.
    pub(crate) seconds: Vec<f64>,
    /// Tokens until then.
    pub(crate) tokens: Vec<u64>,
    /// Steps that changed no weight.
    pub(crate) skipped: u64,
}

/// A mean of the numbers that there are.
#[derive(Clone, Copy, Debug, Default)]
struct RunningMean {
    sum: f64,
    count: u32,
}

impl RunningMean {
    fn of(number: f64) -> RunningMean {
        if number.is_finite() { RunningMean { sum: number, count: 1 } } else { RunningMean::default() }
    }

    fn with(self, other: RunningMean) -> RunningMean {
        RunningMean { sum: self.sum + other.sum, count: self.count + other.count }
    }

    fn value(self) -> Option<f64> {
        (self.count > 0).then(|| self.sum / f64::from(self.count))
    }
}

/// Some steps in a row.
#[derive(Clone, Copy, Debug)]
struct SeriesPoint {
    step: u64,
    loss: RunningMean,
    validation_loss: Option<f64>,
    learning_rate: f64,
    grad_norm: RunningMean,
    tokens_per_second: RunningMean,
    seconds: f64,
    tokens: u64,
    steps: u64,
}

impl SeriesPoint {
    fn then(self, later: SeriesPoint) -> SeriesPoint {
        SeriesPoint {
            loss: self.loss.with(later.loss),
            validation_loss: later.validation_loss.or(self.validation_loss),
            grad_norm: self.grad_norm.with(later.grad_norm),
            tokens_per_second: self.tokens_per_second.with(later.tokens_per_second),
            steps: self.steps + later.steps,
            ..later
        }
    }
}

/// A series while it is made.
#[derive(Debug)]
pub(crate) struct SeriesMaker {
    most: usize,
    width: u64,
    points: Vec<SeriesPoint>,
    seconds: f64,
    tokens: u64,
    skipped: u64,
}

impl SeriesMaker {
    pub(crate) fn new(most: usize) -> SeriesMaker {
        SeriesMaker { most: most.max(1), width: 1, points: Vec::new(), seconds: 0.0, tokens: 0, skipped: 0 }
    }

    /// Takes in the next step.
    pub(crate) fn add(&mut self, report: &StepReport) {
        self.seconds += if report.step_seconds.is_finite() { report.step_seconds.max(0.0) } else { 0.0 };
        self.tokens += report.tokens;
        self.skipped += u64::from(report.skipped);
        let point = SeriesPoint {
            step: report.step,
            loss: RunningMean::of(report.loss),
            validation_loss: report
                .validation
                .map(|validation| validation.loss)
                .filter(|loss| loss.is_finite()),
            learning_rate: report.learning_rate,
            grad_norm: RunningMean::of(report.grad_norm),
            tokens_per_second: RunningMean::of(report.tokens_per_second),
            seconds: self.seconds,
            tokens: self.tokens,
            steps: 1,
        };
        match self.points.last_mut() {
            Some(last) if last.steps < self.width => *last = last.then(point),
            _ => self.points.push(point),
        }
        if self.points.len() > 2 * self.most {
            self.width *= 2;
            self.points = self.points.chunks(2).filter_map(merged).collect();
        }
    }

    /// The series.
    pub(crate) fn end(mut self) -> Series {
        if self.points.len() > self.most {
            self.width *= 2;
            self.points = self.points.chunks(2).filter_map(merged).collect();
        }
        let points = &self.points;
        let column = |value: fn(&SeriesPoint) -> Option<f64>| points.iter().map(value).collect::<Vec<_>>();
        Series {
            width: self.width,
            step: points.iter().map(|point| point.step).collect(),
            loss: column(|point| point.loss.value()),
            validation_loss: column(|point| point.validation_loss),
            learning_rate: column(|point| Some(point.learning_rate).filter(|rate| rate.is_finite())),
            grad_norm: column(|point| point.grad_norm.value()),
            tokens_per_second: column(|point| point.tokens_per_second.value()),
            seconds: points.iter().map(|point| point.seconds).collect(),
            tokens: points.iter().map(|point| point.tokens).collect(),
            skipped: self.skipped,
        }
    }
}

fn merged(pair: &[SeriesPoint]) -> Option<SeriesPoint> {
    pair.iter().copied().reduce(SeriesPoint::then)
}

/// The series of the run in `directory`; without points where nothing was noted yet.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn read(directory: &Path, most: usize) -> io::Result<Series> {
    let mut maker = SeriesMaker::new(most);
    let mut last = 0;
    metrics::each_report(&directory.into(), |report| {
        // A line that was written twice counts once.
        if report.step > last {
            last = report.step;
            maker.add(&report);
        }
    })?;
    Ok(maker.end())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn report(step: u64) -> StepReport {
        StepReport {
            step,
            loss: if step == 3 { f64::NAN } else { step as f64 },
            grad_norm: 1.0,
            learning_rate: 0.1,
            tokens: 64,
            tokens_per_second: 640.0,
            step_seconds: 0.5,
            skipped: step == 3,
            loss_scale: None,
            parameter_norms: BTreeMap::new(),
            validation: None,
        }
    }

    fn series(steps: u64, most: usize) -> Series {
        let mut maker = SeriesMaker::new(most);
        (1..=steps).for_each(|step| maker.add(&report(step)));
        maker.end()
    }

    #[test]
    fn few_steps_are_a_point_each() {
        let found = series(4, 10);
        assert_eq!((found.width, found.skipped), (1, 1));
        assert_eq!(found.step, [1, 2, 3, 4]);
        assert_eq!(found.loss, [Some(1.0), Some(2.0), None, Some(4.0)]);
        assert_eq!(
            (&found.seconds[..], &found.tokens[..]),
            (&[0.5, 1.0, 1.5, 2.0][..], &[64, 128, 192, 256][..])
        );
    }

    #[test]
    fn many_steps_are_means_and_end_with_the_last() {
        for steps in [11, 99, 100, 1000, 12_345] {
            let found = series(steps, 10);
            assert!((5..=10).contains(&found.step.len()), "{steps}: {}", found.step.len());
            assert_eq!(found.step.last(), Some(&steps));
            assert_eq!(found.tokens.last(), Some(&(64 * steps)));
            let rises = found.loss.windows(2).all(|pair| pair[0] < pair[1]);
            assert!(rises && found.step.windows(2).all(|pair| pair[0] < pair[1]), "{found:?}");
        }
    }
}
