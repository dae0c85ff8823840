//! The numbers of the cluster for Prometheus: of jobs that are open or ended within the hour, and of ranks at work. A pure
//! function of what pages show.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use axum::http::StatusCode;
use coxswain_core::cluster::RankState;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::routes::Unserved;
use crate::auth::Caller;
use crate::view::hub::Hub;
use crate::view::{ClusterView, JobDetail, JobView, RankCell};

/// The text format of Prometheus.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How long after its end a job has numbers, in seconds.
const TOLD_S: u64 = 3600;

/// The most ranks of a job that have numbers of their own; each is some ten series.
const MAX_RANKS: usize = 1024;

/// The cluster's numbers, as far as the caller may see it.
pub(super) async fn text(hub: &Arc<Hub>, caller: &Caller) -> Result<String, Unserved> {
    let view = hub.view(caller, "").await?;
    let view = view.ok_or_else(|| Unserved::new(StatusCode::NOT_FOUND, "there is no view"))?;
    let mut details = Vec::new();
    for job in view.jobs.iter().filter(|job| is_told(job)) {
        details.push(hub.detail(&job.job, Path::new(&job.directory)).await?);
    }
    text_of(&view, &details)
        .map_err(|error| Unserved::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn is_told(job: &JobView) -> bool {
    job.over_s.is_none_or(|over_s| over_s < TOLD_S)
}

type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge<f64, AtomicU64>>;
type Counters = Family<Labels, Counter<f64, AtomicU64>>;

/// The numbers while they are collected.
#[derive(Default)]
struct Exposition(Registry);

impl Exposition {
    fn gauges(&mut self, name: &str, help: &str) -> Gauges {
        let family = Gauges::default();
        self.0.register(name, help, family.clone());
        family
    }

    fn counters(&mut self, name: &str, help: &str) -> Counters {
        let family = Counters::default();
        self.0.register(name, help, family.clone());
        family
    }
}

fn set(family: &Gauges, labels: Labels, value: impl Into<Option<f64>>) {
    if let Some(value) = value.into() {
        family.get_or_create(&labels).set(value);
    }
}

fn add(family: &Counters, labels: Labels, value: f64) {
    family.get_or_create(&labels).inc_by(value);
}

fn text_of(view: &ClusterView, details: &[JobDetail]) -> Result<String, fmt::Error> {
    let mut out = Exposition(Registry::default());
    coordinator(&mut out, view);
    jobs(&mut out, view);
    history(&mut out, view, details);
    ranks(&mut out, details);
    let mut text = String::new();
    prometheus_text::encode(&mut text, &out.0)?;
    Ok(in_order(&text))
}

/// The same with each family's numbers in the order of their labels: they come out of tables without an order.
fn in_order(text: &str) -> String {
    let mut families: Vec<(Vec<&str>, Vec<&str>)> = Vec::new();
    for line in text.lines() {
        match (line.starts_with('#'), families.last_mut()) {
            (true, Some((head, numbers))) if numbers.is_empty() => head.push(line),
            (false, Some((_, numbers))) => numbers.push(line),
            _ => families.push((vec![line], Vec::new())),
        }
    }
    let mut text = String::new();
    for (head, mut numbers) in families {
        numbers.sort_unstable();
        head.into_iter().chain(numbers).for_each(|line| text += &format!("{line}\n"));
    }
    text
}

fn coordinator(out: &mut Exposition, view: &ClusterView) {
    let build = out.gauges("coxswain_build_info", "The coordinator's version, as a label");
    set(&build, vec![("version", view.coordinator.version.clone())], 1.0);
    let uptime = out.gauges("coxswain_uptime_seconds", "Time since the coordinator started");
    set(&uptime, Vec::new(), view.coordinator.uptime_s as f64);
    let workers = out.gauges("coxswain_workers", "Workers that are here, by phase");
    for phase in ["idle", "preparing", "running", "done", "failed"] {
        let count = view.workers.iter().filter(|worker| worker.phase == phase).count();
        set(&workers, vec![("phase", phase.to_owned())], count as f64);
    }
    let jobs = out.gauges("coxswain_jobs", "Jobs that are known, by state");
    for state in STATES {
        let count = view.jobs.iter().filter(|job| job.state == *state).count();
        set(&jobs, vec![("state", (*state).to_owned())], count as f64);
    }
}

/// The states of a job.
const STATES: &[&str] = &["queued", "preparing", "gathering", "running", "done", "failed", "cancelled"];

/// A job's number: its name, its help, and the number.
type JobNumber = (&'static str, &'static str, fn(&JobView) -> Option<f64>);

const JOB_NUMBERS: &[JobNumber] = &[
    ("coxswain_job_step", "The last step that is recorded", |job| Some(job.step as f64)),
    ("coxswain_job_steps", "Steps in all", |job| Some(job.steps as f64)),
    ("coxswain_job_generation", "The newest generation", |job| Some(job.generation as f64)),
    ("coxswain_job_loss", "The training loss of the newest step, in nats", |job| job.loss),
    ("coxswain_job_validation_loss", "The newest validation loss, in nats", |job| job.validation_loss),
    ("coxswain_job_tokens_per_second", "Speed over the last ten steps or so", |job| job.tokens_per_second),
    ("coxswain_job_step_duration_seconds", "Duration of a step over the last ten or so", |job| {
        job.step_seconds
    }),
    ("coxswain_job_remaining_seconds", "Time until its end, if it goes on as it did", |job| job.left_s),
    ("coxswain_job_checkpoint_step", "The step of the newest checkpoint", |job| {
        job.checkpoint.map(|s| s as f64)
    }),
    ("coxswain_job_workers", "Workers that its layout needs", |job| Some(f64::from(job.workers))),
];

fn jobs(out: &mut Exposition, view: &ClusterView) {
    let told: Vec<_> = view.jobs.iter().filter(|job| is_told(job)).collect();
    let state = out.gauges("coxswain_job_state", "1 for the state that a job is in, 0 for the others");
    for job in &told {
        for known in STATES {
            let is = f64::from(u8::from(job.state == *known));
            set(&state, vec![("job", job.job.clone()), ("state", (*known).to_owned())], is);
        }
    }
    for (name, help, number) in JOB_NUMBERS {
        let family = out.gauges(name, help);
        told.iter().for_each(|job| set(&family, vec![("job", job.job.clone())], number(job)));
    }
}

fn history(out: &mut Exposition, view: &ClusterView, details: &[JobDetail]) {
    let interruptions =
        out.counters("coxswain_job_interruptions", "Generations that ended before their job did");
    let lost = out.counters("coxswain_job_lost_seconds", "Time in which an interrupted job did not train");
    let again =
        out.counters("coxswain_job_repeated_steps", "Steps that were taken again after an interruption");
    let events =
        out.gauges("coxswain_job_events", "Events of the job that the coordinator remembers, by kind");
    let age =
        out.gauges("coxswain_job_checkpoint_age_seconds", "Time since the newest checkpoint was published");
    for detail in details {
        let of = || ("job", detail.job.clone());
        add(&interruptions, vec![of()], detail.lost.interruptions as f64);
        add(&lost, vec![of()], detail.lost.seconds);
        add(&again, vec![of()], detail.lost.steps as f64);
        for event in &detail.events {
            events.get_or_create(&vec![of(), ("kind", event.kind.clone())]).inc();
        }
        let published = detail.events.iter().find(|event| event.kind == "published");
        let since = published.map(|event| view.at_ms.saturating_sub(event.at_ms) as f64 / 1000.0);
        set(&age, vec![of()], since);
    }
}

/// A rank's number.
type RankNumber = (&'static str, &'static str, fn(&RankCell) -> Option<f64>);

const RANK_NUMBERS: &[RankNumber] = &[
    ("coxswain_rank_busy_ratio", "Share of the newest step in which the rank computed", |rank| rank.busy),
    ("coxswain_rank_peak_tensor_bytes", "The most bytes that its tensors took at once", |rank| {
        rank.shown.peak_tensor_bytes.map(|bytes| bytes as f64)
    }),
    (
        "coxswain_rank_planned_tensor_bytes",
        "The bytes that the plan says its tensors take at their peak",
        |rank| rank.planned.as_ref().map(|planned| planned.tensor_bytes as f64),
    ),
    (
        "coxswain_rank_slowdown_ratio",
        "Times as long as its peers that a straggler computes; 1 for others",
        |rank| Some(rank.shown.slow.unwrap_or(1.0)),
    ),
    ("coxswain_rank_waiting_seconds", "How long the rank has waited for another one", |rank| {
        let waits = rank.shown.state == RankState::Waiting;
        Some(if waits { rank.shown.for_ms as f64 / 1000.0 } else { 0.0 })
    }),
    ("coxswain_rank_up", "1 while its worker is here and says what it does", |rank| {
        let down = matches!(rank.shown.state, RankState::Lost | RankState::Silent | RankState::Failed);
        Some(f64::from(u8::from(!down)))
    }),
];

fn ranks(out: &mut Exposition, details: &[JobDetail]) {
    let grids = details.iter().filter_map(|detail| Some((&detail.job, detail.grid.as_ref()?)));
    let grids: Vec<_> = grids.filter(|(_, grid)| grid.at_work && grid.ranks.len() <= MAX_RANKS).collect();
    for (name, help, number) in RANK_NUMBERS {
        let family = out.gauges(name, help);
        for (job, grid) in &grids {
            for rank in &grid.ranks {
                let labels = vec![
                    ("job", (*job).clone()),
                    ("rank", rank.shown.rank.to_string()),
                    ("worker", rank.shown.worker.clone()),
                ];
                set(&family, labels, number(rank));
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeSet;
    use std::io::Write;
    use std::process::{Command, Stdio};

    use expect_test::expect_file;

    use super::*;
    use crate::tests::skip;
    use crate::view::tests::{sample_detail, sample_view};

    /// All numbers of a cluster that has some of each kind.
    pub(in crate::admin) fn sample() -> String {
        text_of(&sample_view(), &[sample_detail()]).unwrap()
    }

    #[test]
    fn the_numbers_are_written_by_the_conventions() {
        let text = sample();
        expect_file!["tests/metrics.txt"].assert_eq(&text);
        for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
            let (name, kind) = line["# TYPE ".len()..].split_once(' ').unwrap();
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(text.contains(&format!("# HELP {name} ")), "{line}");
        }
    }

    const ALERTS: &str = include_str!("../../../deploy/monitoring/alerts.yaml");
    const DASHBOARDS: [&str; 2] = [
        include_str!("../../../deploy/monitoring/dashboard-cluster.json"),
        include_str!("../../../deploy/monitoring/dashboard-run.json"),
    ];

    /// The names of numbers in a text.
    fn names(text: &str) -> BTreeSet<&str> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        words.filter(|word| word.starts_with("coxswain_")).collect()
    }

    #[test]
    fn dashboards_and_alerts_name_numbers_that_exist() {
        let sample = sample();
        let known = names(&sample);
        for text in DASHBOARDS.iter().chain([&ALERTS]) {
            let named = names(text);
            assert!(named.len() >= 8, "{named:?}");
            let unknown: Vec<_> = named.difference(&known).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
        }
        for text in DASHBOARDS {
            let board: serde_json::Value = serde_json::from_str(text).unwrap();
            assert!(board["panels"].as_array().is_some_and(|panels| panels.len() > 10));
        }
        let used: BTreeSet<_> = DASHBOARDS.iter().chain([&ALERTS]).flat_map(|text| names(text)).collect();
        let unused: Vec<_> = known.difference(&used).collect();
        assert!(unused.is_empty(), "numbers that no dashboard and no alert has: {unused:?}");
    }

    /// `promtool`, where it is installed, reads the numbers and the rules without a complaint.
    #[test]
    fn promtool_finds_no_fault() {
        let promtool = |args: &[&str], input: &str| {
            let mut child = Command::new("promtool")
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .ok()?;
            child.stdin.take()?.write_all(input.as_bytes()).ok()?;
            child.wait_with_output().ok()
        };
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/monitoring/alerts.yaml");
        for (args, input) in
            [(vec!["check", "metrics"], sample()), (vec!["check", "rules", rules], String::new())]
        {
            let Some(output) = promtool(&args, &input) else {
                return skip::lacking("promtool (Debian's package prometheus)");
            };
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{args:?}: {said}");
        }
    }
}
