//! `DIR/metrics.jsonl`: one line a step. Numbers are written so that they read back to the same
//! bits.

use std::io::{self, BufRead, BufReader, Read, Write};

use coxswain_files::StoreFolder;
use coxswain_files::store::AppendLog;
use coxswain_types::Step;
use coxswain_types::status::StepReport;
use serde::Deserialize;

/// The name of the file in the run's folder.
pub(crate) const METRICS: &str = "metrics.jsonl";

/// No valid line is longer; norms of the parameters are its largest part.
const MAX_LINE_BYTES: u64 = 16 << 20;

/// A step as it is read back. Numbers that are none (a loss that is not a number) are written as null.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub(crate) struct MetricsLine {
    pub(crate) step: u64,
    pub(crate) loss: Option<f64>,
    #[serde(default)]
    pub(crate) validation: Option<ValidationLine>,
}

/// The validation loss of a step.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub(crate) struct ValidationLine {
    pub(crate) loss: Option<f64>,
    pub(crate) bits_per_byte: Option<f64>,
    #[serde(default)]
    pub(crate) accuracy: Option<f64>,
}

/// Why metrics got another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// They are of an earlier run, whose steps are taken anew.
    Anew,
    /// Parts of the file are not text.
    NoText,
}

/// Metrics that got another name.
#[derive(Debug)]
pub(crate) struct Moved {
    pub(crate) why: Why,
    /// How many steps they are of.
    pub(crate) steps: usize,
    /// Their name in the run's folder.
    pub(crate) to: String,
}

/// The metrics of a run that is at work.
#[derive(Debug)]
pub(crate) struct Metrics {
    log: Box<dyn AppendLog>,
    /// The last step that is noted.
    last: u64,
}

impl Metrics {
    /// Opens the metrics of a run, which goes on after step `from`: what an earlier
    /// run noted of later steps is cut off, since those steps are taken again. Where it begins anew, what is there
    /// gets another name; where a disk has damaged it, a copy does, and the lines that are whole stay. Either is told.
    pub(crate) fn open(run: &StoreFolder, from: Step) -> io::Result<(Metrics, Option<Moved>)> {
        let found = MetricsScan::look(run, from)?;
        let why = match found.steps {
            1.. if from == Step(0) => Some(Why::Anew),
            _ if found.damaged => Some(Why::NoText),
            _ => None,
        };
        let moved = match why {
            Some(why) => Some(Moved { why, steps: found.steps, to: set_aside(why, run)? }),
            None => None,
        };
        let anew = why == Some(Why::Anew);
        if !anew && !found.whole {
            rewrite(run, from)?;
        }
        let mut log = run.log(METRICS)?;
        if !anew && found.whole && found.kept_bytes < found.bytes {
            log.truncate(found.kept_bytes)?;
        }
        log.sync()?;
        Ok((Metrics { log, last: if anew { 0 } else { found.last } }, moved))
    }

    /// The last step that is noted; 0 where none is.
    pub(crate) fn last(&self) -> Step {
        Step(self.last)
    }

    /// Writes the reports, except those that were written before a restart.
    pub(crate) fn append(&mut self, reports: &[StepReport]) -> io::Result<()> {
        let mut lines = Vec::new();
        for report in reports {
            if report.step > self.last {
                self.last = report.step;
                serde_json::to_writer(&mut lines, report)?;
                lines.push(b'\n');
            }
        }
        self.log.append(&lines)
    }

    /// Makes what was noted survive a crash of the machine.
    pub(crate) fn sync(&self) -> io::Result<()> {
        self.log.sync()
    }
}

/// What a file of metrics contains.
#[derive(Debug, Default)]
struct MetricsScan {
    bytes: u64,
    /// Bytes of the lines that are kept.
    kept_bytes: u64,
    /// Whether these lines are contiguous from the start of the file.
    whole: bool,
    /// Steps that are noted.
    steps: usize,
    /// Whether parts are not valid UTF-8.
    damaged: bool,
    /// The last step of the lines that are kept.
    last: u64,
}

impl MetricsScan {
    fn look(run: &StoreFolder, from: Step) -> io::Result<MetricsScan> {
        let mut found = MetricsScan { whole: true, ..MetricsScan::default() };
        each_line(run, |bytes| {
            found.bytes += bytes.len() as u64;
            found.damaged |= std::str::from_utf8(bytes).is_err();
            let line = line(bytes);
            found.steps += usize::from(line.is_some());
            if let Some(line) = line.filter(|_| is_kept(bytes, from)) {
                found.last = line.step;
                found.kept_bytes += bytes.len() as u64;
                found.whole &= found.kept_bytes == found.bytes;
            }
            Ok(())
        })?;
        Ok(found)
    }
}

/// Writes the metrics anew, without the lines that are not kept.
fn rewrite(run: &StoreFolder, from: Step) -> io::Result<()> {
    let mut kept = run.create(METRICS)?;
    each_line(run, |bytes| if is_kept(bytes, from) { kept.write_all(bytes) } else { Ok(()) })?;
    kept.commit().map(|_| ())
}

/// Calls `each` with every line of a run's metrics, including its newline. Where there are none there are no lines, and
/// an overlong line is passed in pieces.
fn each_line(run: &StoreFolder, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut file = match run.reader(METRICS) {
        Ok(file) => BufReader::new(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        if file.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        each(&line)?;
    }
}

/// The step that a line is of; `None` where it is invalid.
fn line(bytes: &[u8]) -> Option<MetricsLine> {
    serde_json::from_str(std::str::from_utf8(bytes).ok()?).ok()
}

/// Gives metrics, or a copy of damaged ones, another name, the first that is free.
fn set_aside(why: Why, run: &StoreFolder) -> io::Result<String> {
    for number in 1_u32.. {
        let name = format!("metrics.{number}.jsonl");
        // No other process writes here: the coordinator's folder is locked.
        if !run.has(&name)? {
            match why {
                Why::Anew => run.set_aside(METRICS, &name)?,
                Why::NoText => run.copy(METRICS, &name)?,
            }
            return Ok(name);
        }
    }
    Err(io::Error::other("no name is free for the metrics that are set aside"))
}

fn is_kept(bytes: &[u8], from: Step) -> bool {
    bytes.ends_with(b"\n") && line(bytes).is_some_and(|line| line.step <= from.0)
}

/// The steps that are noted of a run; invalid lines are passed over.
pub(crate) fn read(run: &StoreFolder) -> io::Result<Vec<MetricsLine>> {
    let mut lines = Vec::new();
    each_line(run, |bytes| {
        lines.extend(line(bytes));
        Ok(())
    })?;
    Ok(lines)
}

/// Calls `each` with every step that is noted of a run, with all of its numbers; invalid lines are passed over.
pub(crate) fn each_report(run: &StoreFolder, mut each: impl FnMut(StepReport)) -> io::Result<()> {
    each_line(run, |bytes| {
        if let Ok(report) = serde_json::from_slice(bytes) {
            each(report);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::sync::Arc;

    use coxswain_files::store::memory::{FaultyStore, StoreFault};
    use coxswain_types::status::ValidationResult;

    use super::*;

    fn report(step: u64, loss: f64) -> StepReport {
        StepReport {
            step,
            loss,
            grad_norm: 0.1 + 0.2,
            learning_rate: 1e-3,
            tokens: 64,
            tokens_per_second: 1.0 / 3.0,
            step_seconds: 0.1,
            skipped: false,
            loss_scale: None,
            parameter_norms: BTreeMap::new(),
            validation: None,
        }
    }

    #[test]
    fn numbers_read_back_to_the_same_bits() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(&folder.path().into(), Step(0)).unwrap().0;
        let validation = Some(ValidationResult { loss: 2.5, bits_per_byte: 1.0 / 7.0, accuracy: Some(0.5) });
        let sent = StepReport { validation, ..report(1, 6.123_456_789_012_345) };
        metrics.append(std::slice::from_ref(&sent)).unwrap();
        let text = fs::read_to_string(folder.path().join(METRICS)).unwrap();
        assert_eq!(serde_json::from_str::<StepReport>(&text).unwrap(), sent);
        assert!(
            text.starts_with(r#"{"step":1,"loss":6.123456789012345,"grad_norm":0.30000000000000004,"#),
            "{text}"
        );
    }

    #[test]
    fn an_evaluation_shows_its_perplexity() {
        let validation = Some(ValidationResult { loss: 0.0, bits_per_byte: 1.5, accuracy: None });
        let text = serde_json::to_string(&StepReport { validation, ..report(1, 2.0) }).unwrap();
        let expected = r#""validation":{"loss":0.0,"perplexity":1.0,"bits_per_byte":1.5}}"#;
        assert!(text.ends_with(expected), "{text}");
    }

    #[test]
    fn a_skipped_step_is_noted_and_its_infinities_are_null() {
        let sent = StepReport {
            grad_norm: f64::INFINITY,
            skipped: true,
            loss_scale: Some(65536.0),
            parameter_norms: BTreeMap::from([("a".to_owned(), f64::INFINITY), ("b".to_owned(), 0.5)]),
            ..report(7, f64::NAN)
        };
        let text = serde_json::to_string(&sent).unwrap();
        assert!(text.starts_with(r#"{"step":7,"loss":null,"grad_norm":null,"#), "{text}");
        let end = r#""skipped":true,"loss_scale":65536.0,"parameter_norms":{"a":null,"b":0.5}}"#;
        assert!(text.ends_with(end), "{text}");
        let back: StepReport = serde_json::from_str(&text).unwrap();
        assert!(back.loss.is_nan() && back.grad_norm.is_nan() && back.parameter_norms["a"].is_nan());
        assert_eq!((back.step, back.skipped, back.loss_scale), (7, true, Some(65536.0)));
        // What is in order takes no room.
        let plain = serde_json::to_string(&report(1, 2.0)).unwrap();
        assert!(plain.ends_with(r#""step_seconds":0.1}"#), "{plain}");
    }

    #[test]
    fn a_step_that_is_told_again_after_a_restart_is_noted_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(&folder.path().into(), Step(0)).unwrap().0;
        for step in 1..=3 {
            metrics.append(&[report(step, 2.0)]).unwrap();
        }
        // The run goes on meanwhile, so nothing is cut.
        let mut metrics = Metrics::open(&folder.path().into(), Step(u64::MAX)).unwrap().0;
        for step in 2..=4 {
            metrics.append(&[report(step, 2.0)]).unwrap();
        }
        let steps: Vec<_> = read(&folder.path().into()).unwrap().iter().map(|line| line.step).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
    }

    #[test]
    fn steps_after_the_checkpoint_are_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(&folder.path().into(), Step(0)).unwrap().0;
        for step in 1..=5 {
            metrics.append(&[report(step, if step == 2 { f64::NAN } else { 4.0 })]).unwrap();
        }
        metrics.log.append(br#"{"step":3,"lo"#).unwrap();
        let mut metrics = Metrics::open(&folder.path().into(), Step(3)).unwrap().0;
        metrics.append(&[report(4, 3.5)]).unwrap();
        let lines = read(&folder.path().into()).unwrap();
        let steps: Vec<_> = lines.iter().map(|line| (line.step, line.loss)).collect();
        assert_eq!(steps, [(1, Some(4.0)), (2, None), (3, Some(4.0)), (4, Some(3.5))]);
    }

    #[test]
    fn metrics_that_are_no_text_are_set_aside_and_their_whole_lines_stay() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(&folder.path().into(), Step(0)).unwrap().0;
        for step in 1..4 {
            metrics.append(&[report(step, 4.0)]).unwrap();
        }
        let mut bytes = fs::read(folder.path().join(METRICS)).unwrap();
        // In a name of the second line.
        let second = bytes.iter().position(|byte| *byte == b'\n').unwrap();
        let name = bytes[second..].windows(9).position(|part| part == b"grad_norm").unwrap();
        bytes[second + name] = 0xff;
        fs::write(folder.path().join(METRICS), &bytes).unwrap();
        let (_, moved) = Metrics::open(&folder.path().into(), Step(3)).unwrap();
        let moved = moved.unwrap();
        assert_eq!((moved.why, moved.steps, moved.to.as_str()), (Why::NoText, 2, "metrics.1.jsonl"));
        assert_eq!(fs::read(folder.path().join("metrics.1.jsonl")).unwrap(), bytes);
        let steps: Vec<_> = read(&folder.path().into()).unwrap().iter().map(|line| line.step).collect();
        assert_eq!(steps, [1, 3]);
        assert!(Metrics::open(&folder.path().into(), Step(3)).unwrap().1.is_none());
    }

    /// The metrics of steps 1 to 5, as `damage` leaves them.
    fn noted(damage: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let store = FaultyStore::default();
        let run = StoreFolder::new(Arc::new(store.clone()));
        let mut metrics = Metrics::open(&run, Step(0)).unwrap().0;
        (1..=5).for_each(|step| metrics.append(&[report(step, 4.0)]).unwrap());
        let mut bytes = store.objects()[METRICS].to_vec();
        damage(&mut bytes);
        bytes
    }

    #[test]
    fn metrics_are_opened_again_after_any_failure() {
        let invalid = |bytes: &mut Vec<u8>| {
            let second = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 9;
            bytes[second] = 0xff;
        };
        let torn = |bytes: &mut Vec<u8>| bytes.extend(br#"{"step":3,"lo"#);
        // The step to go on from, the steps that are kept, and whether all that was there is kept under another name.
        let rows: [(Vec<u8>, u64, &[u64], bool); 4] = [
            (noted(|_| {}), 3, &[1, 2, 3], false),
            (noted(torn), 9, &[1, 2, 3, 4, 5], false),
            (noted(|_| {}), 0, &[], true),
            (noted(invalid), 4, &[1, 3, 4], true),
        ];
        for (bytes, from, kept, set_aside) in rows {
            let begun = || FaultyStore::with([(METRICS.to_owned(), Arc::new(bytes.clone()))].into());
            let run_of = |store: &FaultyStore| StoreFolder::new(Arc::new(store.clone()));
            let calm = begun();
            Metrics::open(&run_of(&calm), Step(from)).unwrap();
            for (at, operation) in calm.operations().iter().enumerate() {
                for fault in [|| StoreFault::Refused, || StoreFault::AnswerLost] {
                    let store = begun();
                    let run = run_of(&store);
                    store.fail(at, fault());
                    let context = format!("{:?} {operation}, from {from}", fault());
                    Metrics::open(&run, Step(from)).err().unwrap_or_else(|| panic!("{context}: goes unseen"));
                    Metrics::open(&run, Step(from)).unwrap();
                    let steps: Vec<_> = read(&run).unwrap().iter().map(|line| line.step).collect();
                    assert_eq!(steps, kept, "{context}");
                    let beside = store.objects().into_iter().filter(|(key, _)| key != METRICS);
                    let whole = beside.filter(|(_, found)| **found == bytes).count();
                    assert_eq!(whole > 0, set_aside, "{context}");
                }
            }
        }
    }

    #[test]
    fn metrics_of_an_earlier_run_get_another_name() {
        let folder = tempfile::tempdir().unwrap();
        for earlier in 0..3 {
            let (mut metrics, moved) = Metrics::open(&folder.path().into(), Step(0)).unwrap();
            let moved = moved.map(|moved| (moved.steps, moved.to));
            assert_eq!(moved, (earlier > 0).then(|| (2, format!("metrics.{earlier}.jsonl"))));
            assert_eq!(read(&folder.path().into()).unwrap(), []);
            metrics.append(&[report(1, 4.0)]).unwrap();
            metrics.append(&[report(2, 3.0)]).unwrap();
        }
        let kept = fs::read_to_string(folder.path().join("metrics.1.jsonl")).unwrap();
        assert_eq!(kept.lines().count(), 2);
    }
}
