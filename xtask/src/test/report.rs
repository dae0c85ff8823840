//! The last lines of `cargo xtask test`: what took how long, and what was skipped.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::run::human;

/// How many of the slowest tests are listed: those are half of the time.
const SLOWEST: usize = 10;

/// How long a test took, or all tests of a binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TestTime {
    /// The binary, and the test where one is known.
    pub(crate) name: String,
    /// From its start to its end.
    pub(crate) took: Duration,
}

/// A line for each of the slowest tests, slowest first.
pub(crate) fn slowest(times: &[TestTime]) -> String {
    let mut times: Vec<_> = times.iter().collect();
    times.sort_by_key(|time| std::cmp::Reverse(time.took));
    let line = |time: &&TestTime| format!("{:>10}  {}\n", human(time.took), time.name);
    times.iter().take(SLOWEST).map(line).collect()
}

/// How long each test of a JUnit report took. What is not a test's element is passed over.
pub(crate) fn junit_times(report: &str) -> Vec<TestTime> {
    report.split("<testcase ").skip(1).filter_map(junit_time).collect()
}

fn junit_time(element: &str) -> Option<TestTime> {
    let attributes = element.split('>').next()?;
    let attribute = |key: &str| {
        // Another key may end with this one's letters, as `classname` does.
        let start = format!(" {attributes}").find(&format!(" {key}=\""))? + key.len() + 2;
        attributes.get(start..)?.split('"').next()
    };
    let (binary, test) = (attribute("classname")?, attribute("name")?);
    let took = Duration::try_from_secs_f64(attribute("time")?.parse().ok()?).ok()?;
    Some(TestTime { name: format!("{binary} {test}"), took })
}

/// What tests have said that they skip, each once, in the order of their names. They append a line to the file.
pub(crate) fn skipped(file: &Path) -> Vec<String> {
    // No file: no test has skipped anything.
    let text = fs::read_to_string(file).unwrap_or_default();
    let mut lines: Vec<_> = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    lines.sort();
    lines.dedup();
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_junit_report_names_each_test_with_its_time() {
        let report = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="3" failures="1" errors="0" time="9.1">
    <testsuite name="coxswain-tests::layouts" tests="2">
        <testcase name="rows::hold" classname="coxswain-tests::layouts" timestamp="2026-11-28T00:00:00" time="7.250">
        </testcase>
        <testcase name="refused" classname="coxswain-tests::layouts" time="0.125">
            <failure message="thread panicked" type="test failure">name="x" time="1"</failure>
        </testcase>
        <testcase name="no time"/>
    </testsuite>
</testsuites>"#;
        let times = junit_times(report);
        let rows: Vec<_> = times.iter().map(|time| (time.name.as_str(), time.took.as_millis())).collect();
        assert_eq!(
            rows,
            [("coxswain-tests::layouts rows::hold", 7_250), ("coxswain-tests::layouts refused", 125)]
        );
    }

    #[test]
    fn the_slowest_come_first_and_no_more_than_ten() {
        let time = |at: u64| TestTime { name: format!("test {at}"), took: Duration::from_secs(at) };
        let table = slowest(&(1..=12).map(time).collect::<Vec<_>>());
        assert!(table.starts_with("      12 s  test 12\n      11 s  test 11\n"), "{table}");
        assert_eq!(table.lines().count(), 10);
        assert_eq!(slowest(&[]), "");
    }

    #[test]
    fn what_was_skipped_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("skipped");
        assert_eq!(skipped(&file), [""; 0]);
        fs::write(&file, "b: no mount\na: minutes\nb: no mount\n").unwrap();
        assert_eq!(skipped(&file), ["a: minutes", "b: no mount"]);
    }
}
