//! `DIR/loss.svg`: the loss over the steps, as a picture that needs nothing but a browser.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use coxswain_files::atomic::write_atomic;

use crate::metrics::{self, MetricsLine, ValidationLine};

/// The name of the picture in the run's folder.
const NAME: &str = "loss.svg";

/// The picture, and the frame inside it, in pixels.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = WIDTH - 28.0;
const TOP: f64 = 64.0;
const BOTTOM: f64 = HEIGHT - 62.0;

/// The most points of a line: about as many as the frame has pixels. More cannot be told apart.
const MAX_POINTS: usize = 800;

/// The most marks of validation losses; more would cover each other.
const MAX_MARKS: usize = 100;

const TRAIN: &str = "#1f5fbf";
const VALIDATION: &str = "#d2571a";
const INK: &str = "#24292f";
const FAINT: &str = "#e4e7eb";

/// Draws the losses that are noted in `directory`, each a mean over a `unit`; `None` when there are none.
pub(crate) fn draw(directory: &Path, name: &str, unit: &str) -> Result<Option<PathBuf>> {
    let lines = metrics::read(&directory.into()).unwrap_or_default();
    let Some(svg) = svg(name, unit, &lines) else { return Ok(None) };
    let path = directory.join(NAME);
    write_atomic(&path, svg.as_bytes()).with_context(|| format!("{} cannot be written", path.display()))?;
    Ok(Some(path))
}

/// From values to pixels along one axis.
struct AxisScale {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
    ticks: Vec<f64>,
}

impl AxisScale {
    /// An axis that covers `low..high` between the pixels `from` and `to`, with about `count` ticks
    /// at round numbers.
    fn new(low: f64, high: f64, from: f64, to: f64, count: f64, whole: bool) -> AxisScale {
        let mut step = round_step((high - low).max(f64::MIN_POSITIVE) / count);
        if whole {
            step = step.max(1.0);
        }
        let first = (low / step).ceil() as i64;
        let last = (high / step + 1e-9).floor() as i64;
        let ticks = (first..=last).map(|n| n as f64 * step).collect();
        AxisScale { low, high, from, to, ticks }
    }

    fn at(&self, value: f64) -> f64 {
        let span = (self.high - self.low).max(f64::MIN_POSITIVE);
        self.from + (value - self.low) / span * (self.to - self.from)
    }

    /// Digits after the point that tell the ticks apart.
    fn digits(&self) -> usize {
        let step = self.ticks.windows(2).map(|pair| pair[1] - pair[0]).next().unwrap_or(1.0);
        (0..6)
            .find(|&digits| (step * 10f64.powi(digits)).fract().abs() < 1e-6)
            .map_or(6, |digits| digits as usize)
    }
}

/// The next of 1, 2, 5 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= step * (1.0 - 1e-9));
    factor.unwrap_or(10.0) * power
}

fn svg(name: &str, unit: &str, lines: &[MetricsLine]) -> Option<String> {
    let finite = |loss: Option<f64>| loss.filter(|loss| loss.is_finite());
    let train: Vec<(f64, f64)> =
        lines.iter().filter_map(|line| Some((line.step as f64, finite(line.loss)?))).collect();
    let validation: Vec<(f64, f64, Option<String>)> = lines
        .iter()
        .filter_map(|line| Some((line.step as f64, line.validation?)))
        .filter_map(|(step, validation)| Some((step, finite(validation.loss)?, quality(&validation))))
        .collect();
    let losses = || train.iter().map(|point| point.1).chain(validation.iter().map(|point| point.1));
    let (low, high) = (losses().fold(f64::INFINITY, f64::min), losses().fold(f64::NEG_INFINITY, f64::max));
    if low > high {
        return None;
    }
    let pad = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-6);
    let first = train.first().map_or(0.0, |point| point.0);
    let last = lines.last().map_or(first + 1.0, |line| line.step as f64);
    let x = AxisScale::new((first - 1.0).max(0.0), last.max(first + 1.0), LEFT, RIGHT, 8.0, true);
    let y = AxisScale::new(low - pad, high + pad, BOTTOM, TOP, 6.0, false);
    let mut out = String::new();
    head(&mut out, name, last);
    frame(&mut out, &x, &y, unit);
    line(&mut out, &x, &y, &train);
    points(&mut out, &x, &y, &validation);
    legend(&mut out, train.last().copied(), validation.last());
    out.push_str("</svg>\n");
    Some(out)
}

/// An evaluation's accuracy or bits per byte.
fn quality(validation: &ValidationLine) -> Option<String> {
    let bits = validation.bits_per_byte.map(|bits| format!("{bits:.3} bits per byte"));
    validation.accuracy.map(|accuracy| format!("accuracy {:.1} %", accuracy * 100.0)).or(bits)
}

// Writing to a String cannot fail, so its results are dropped below.

fn head(out: &mut String, name: &str, last: f64) {
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect();
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" role=\"img\" font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, \
         'Helvetica Neue', Arial, sans-serif\" fill=\"{INK}\">\n<title>Loss of {name} over {last} steps</title>\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n\
         <text x=\"{LEFT}\" y=\"30\" font-size=\"18\" font-weight=\"600\">{name}</text>\n"
    );
}

fn frame(out: &mut String, x: &AxisScale, y: &AxisScale, unit: &str) {
    let digits = y.digits();
    for &tick in &y.ticks {
        let at = y.at(tick);
        let _ = write!(
            out,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{RIGHT}\" y2=\"{at:.1}\" stroke=\"{FAINT}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"12\" text-anchor=\"end\">{tick:.digits$}</text>\n",
            LEFT - 10.0,
            at + 4.0,
        );
    }
    for &tick in &x.ticks {
        let at = x.at(tick);
        let _ = write!(
            out,
            "<line x1=\"{at:.1}\" y1=\"{BOTTOM}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"{INK}\"/>\n\
             <text x=\"{at:.1}\" y=\"{:.1}\" font-size=\"12\" text-anchor=\"middle\">{tick:.0}</text>\n",
            BOTTOM + 5.0,
            BOTTOM + 20.0,
        );
    }
    let (middle_x, middle_y) = ((LEFT + RIGHT) / 2.0, (TOP + BOTTOM) / 2.0);
    let _ = write!(
        out,
        "<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"{INK}\"/>\n\
         <text x=\"{middle_x:.1}\" y=\"{:.1}\" font-size=\"13\" text-anchor=\"middle\">step</text>\n\
         <text x=\"22\" y=\"{middle_y:.1}\" font-size=\"13\" text-anchor=\"middle\" \
         transform=\"rotate(-90 22 {middle_y:.1})\">loss (nats per {unit})</text>\n",
        HEIGHT - 18.0,
    );
}

fn line(out: &mut String, x: &AxisScale, y: &AxisScale, train: &[(f64, f64)]) {
    if let [(step, loss)] = train {
        let _ = writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{TRAIN}\"/>",
            x.at(*step),
            y.at(*loss)
        );
        return;
    }
    let mut path = String::new();
    for (n, (step, loss)) in thin(train).into_iter().enumerate() {
        let _ = write!(path, "{}{:.1} {:.1}", if n == 0 { 'M' } else { 'L' }, x.at(step), y.at(loss));
    }
    let _ = writeln!(
        out,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{TRAIN}\" stroke-width=\"1.8\" stroke-linejoin=\"round\" \
         stroke-linecap=\"round\"/>"
    );
}

/// The mean of each of at most [`MAX_POINTS`] runs of steps.
fn thin(train: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = train.len().div_ceil(MAX_POINTS).max(1);
    let mean = |points: &[(f64, f64)]| {
        let count = points.len() as f64;
        (points.iter().map(|p| p.0).sum::<f64>() / count, points.iter().map(|p| p.1).sum::<f64>() / count)
    };
    train.chunks(size).map(mean).collect()
}

fn points(out: &mut String, x: &AxisScale, y: &AxisScale, validation: &[(f64, f64, Option<String>)]) {
    let every = validation.len().div_ceil(MAX_MARKS).max(1);
    // From the last backwards, since the last is the one that counts.
    for (step, loss, quality) in validation.iter().rev().step_by(every) {
        let quality = quality.as_ref().map_or(String::new(), |quality| format!(", {quality}"));
        let _ = writeln!(
            out,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4.5\" fill=\"{VALIDATION}\" stroke=\"#ffffff\" stroke-width=\"1.5\">\
             <title>step {step}: {loss:.4}{quality}</title></circle>",
            x.at(*step),
            y.at(*loss),
        );
    }
}

fn legend(out: &mut String, train: Option<(f64, f64)>, validation: Option<&(f64, f64, Option<String>)>) {
    let mut entries = Vec::new();
    if let Some((_, loss)) = train {
        entries.push((TRAIN, format!("training, {loss:.3} at the last step")));
    }
    if let Some((_, loss, quality)) = validation {
        let quality = quality.as_ref().map_or(String::new(), |quality| format!(" ({quality})"));
        entries.push((VALIDATION, format!("validation, {loss:.3}{quality}")));
    }
    let mut at = LEFT;
    for (colour, text) in entries {
        let _ = write!(
            out,
            "<circle cx=\"{:.1}\" cy=\"48\" r=\"4.5\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"52\" font-size=\"13\">{text}</text>\n",
            at + 5.0,
            at + 16.0,
        );
        // Letters of this size are about seven pixels wide.
        at += 16.0 + 7.0 * text.len() as f64 + 24.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::ValidationLine;

    fn lines(count: u64) -> Vec<MetricsLine> {
        let loss = |step: u64| {
            Some(3.0 + 5.0 * (-(step as f64) / 40.0).exp() + 0.05 * ((step * 7919) % 13) as f64 / 13.0)
        };
        let validation = |step: u64| {
            step.is_multiple_of(50).then(|| ValidationLine {
                loss: loss(step).map(|l| l + 0.1),
                bits_per_byte: Some(3.1),
                accuracy: None,
            })
        };
        (1..=count).map(|step| MetricsLine { step, loss: loss(step), validation: validation(step) }).collect()
    }

    #[test]
    fn ticks_are_round_and_lie_inside() {
        let rows = [
            (0.0, 300.0, 8.0, true, vec![0.0, 50.0, 100.0, 150.0, 200.0, 250.0, 300.0]),
            (2.7, 8.3, 6.0, false, vec![3.0, 4.0, 5.0, 6.0, 7.0, 8.0]),
            (0.0, 2.0, 8.0, true, vec![0.0, 1.0, 2.0]),
            (0.11, 0.19, 4.0, false, vec![0.12, 0.14, 0.16, 0.18]),
        ];
        for (low, high, count, whole, expected) in rows {
            let ticks = AxisScale::new(low, high, 0.0, 1.0, count, whole).ticks;
            assert_eq!(ticks.len(), expected.len(), "{ticks:?}");
            assert!(ticks.iter().zip(&expected).all(|(a, b)| (a - b).abs() < 1e-9), "{ticks:?}");
        }
    }

    #[test]
    fn every_point_lies_in_the_frame() {
        let svg = svg("demo", "token", &lines(300)).unwrap();
        let path = svg.split("<path d=\"").nth(2).unwrap().split('"').next().unwrap();
        let points: Vec<Vec<f64>> = path
            .split(['M', 'L'])
            .filter(|point| !point.is_empty())
            .map(|point| point.split(' ').map(|n| n.parse().unwrap()).collect())
            .collect();
        assert_eq!(points.len(), 300);
        for point in &points {
            assert!((LEFT..=RIGHT).contains(&point[0]) && (TOP..=BOTTOM).contains(&point[1]), "{point:?}");
        }
        assert!(points[0][1] < points[299][1], "a falling loss falls");
        assert_eq!(svg.matches("bits per byte</title>").count(), 6);
    }

    #[test]
    fn few_many_and_no_numbers_are_drawn() {
        assert_eq!(svg("demo", "token", &[]), None);
        let none = MetricsLine { step: 1, loss: None, validation: None };
        assert_eq!(svg("demo", "token", &[none]), None);
        for lines in
            [lines(1), lines(2), vec![none, lines(2)[1]], vec![MetricsLine { loss: Some(4.0), ..none }; 3]]
        {
            let svg = svg("demo", "token", &lines).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
        let many = svg("demo", "token", &lines(100_000)).unwrap();
        assert!(many.len() < 60_000, "{}", many.len());
    }
}
