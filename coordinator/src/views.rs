//! Jobs and workers as they are shown: to the wire, from the wire, and as tables for people.

use coxswain_console::printable;
use coxswain_core::cluster::{JobEnding, JobState, JobSummary, WorkerSummary, duration};
use coxswain_core::columns::aligned;
use coxswain_proto::convert::phase_to_wire;
use coxswain_proto::wire;

use crate::handle::{JobNews, Times};

pub(crate) fn job_to_wire(summary: JobSummary, times: Times) -> wire::JobSummary {
    let (numbers, left_s) = (summary.numbers, summary.left_seconds());
    let state = match summary.state {
        JobState::Queued => wire::JobState::Queued,
        JobState::Preparing => wire::JobState::Preparing,
        JobState::Gathering => wire::JobState::Gathering,
        JobState::Running => wire::JobState::Running,
        JobState::Ended(JobEnding::Done) => wire::JobState::Done,
        JobState::Ended(JobEnding::Failed) => wire::JobState::Failed,
        JobState::Ended(JobEnding::Cancelled) => wire::JobState::Cancelled,
    };
    wire::JobSummary {
        job: summary.job,
        name: summary.name,
        state: state.into(),
        reason: summary.reason,
        generation: summary.generation.0,
        step: summary.step.0,
        steps: summary.steps,
        directory: summary.directory,
        workers: summary.workers,
        checkpoint: summary.checkpoint.map(Into::into),
        priority: summary.priority,
        loss: numbers.map(|numbers| numbers.loss),
        validation_loss: numbers.and_then(|numbers| numbers.validation),
        tokens_per_second: numbers.map(|numbers| numbers.tokens_per_second),
        left_s,
        elapsed_s: times.elapsed_s,
        over_s: times.over_s,
        unit: summary.unit.to_owned(),
    }
}

pub(crate) fn worker_to_wire(summary: WorkerSummary) -> wire::WorkerSummary {
    let (phase, _) = phase_to_wire(summary.phase);
    wire::WorkerSummary {
        info: Some(summary.info.into()),
        phase: phase.into(),
        job: summary.job.unwrap_or_default(),
        generation: summary.generation.0,
        step: summary.step.0,
        peak_tensor_bytes: summary.peak_tensor_bytes,
    }
}

pub(crate) fn news_to_wire(news: JobNews) -> wire::JobUpdate {
    use wire::job_update::Event;
    let event = match news {
        JobNews::Summary(summary) => Event::Summary(job_to_wire(summary, Times::default())),
        JobNews::Report(report) => Event::Report(report.into()),
        JobNews::Checkpoint(published) => Event::Checkpoint(published.into()),
    };
    wire::JobUpdate { event: Some(event) }
}

/// Whether a job in this state is over; `Some(true)` when it is done.
pub(crate) fn outcome(state: wire::JobState) -> Option<bool> {
    match state {
        wire::JobState::Done => Some(true),
        wire::JobState::Failed | wire::JobState::Cancelled => Some(false),
        _ => None,
    }
}

/// A state in one word.
pub(crate) fn state_word(state: wire::JobState) -> &'static str {
    match state {
        wire::JobState::Unspecified => "unknown",
        wire::JobState::Queued => "queued",
        wire::JobState::Preparing => "preparing",
        wire::JobState::Gathering => "gathering",
        wire::JobState::Running => "running",
        wire::JobState::Done => "done",
        wire::JobState::Failed => "failed",
        wire::JobState::Cancelled => "cancelled",
    }
}

/// A phase in one word.
pub(crate) fn phase_word(phase: wire::Phase) -> &'static str {
    match phase {
        wire::Phase::Unspecified => "unknown",
        wire::Phase::Idle => "idle",
        wire::Phase::Preparing => "preparing",
        wire::Phase::Running => "running",
        wire::Phase::Done => "done",
        wire::Phase::Failed => "failed",
    }
}

/// How long after its end a job is listed unless all are asked for, in seconds.
const LISTED_S: u64 = 3600;

/// Jobs, each with a line for its folder and the reason of its state, and workers. `all`, or those jobs that are not
/// long over.
pub(crate) fn tables(list: &wire::ListReply, all: bool) -> String {
    let listed = |job: &&wire::JobSummary| all || job.over_s.is_none_or(|over_s| over_s < LISTED_S);
    let shown: Vec<_> = list.jobs.iter().filter(listed).collect();
    let or_dash = |text: Option<String>| text.unwrap_or("-".to_owned());
    let rows = shown.iter().map(|job| {
        [
            job.job.clone(),
            state_word(job.state()).to_owned(),
            format!("{}/{}", job.step, job.steps),
            or_dash(job.loss.map(|loss| format!("{loss:.4}"))),
            or_dash(job.tokens_per_second.map(|tokens| format!("{tokens:.0} {}s/s", job.unit))),
            or_dash(job.elapsed_s.map(|seconds| duration(seconds as f64))),
            or_dash(job.left_s.map(duration)),
            or_dash(job.checkpoint.as_ref().map(|checkpoint| checkpoint.step.to_string())),
            job.workers.to_string(),
            job.priority.to_string(),
        ]
    });
    let head =
        ["JOB", "STATE", "STEP", "LOSS", "SPEED", "ELAPSED", "LEFT", "CHECKPOINT", "WORKERS", "PRIORITY"];
    let mut jobs = String::new();
    for (row, line) in table(head, rows, "no jobs").lines().enumerate() {
        jobs.push_str(&format!("{line}\n"));
        // The first line is the head.
        if let Some(job) = row.checked_sub(1).and_then(|row| shown.get(row)) {
            jobs.push_str(&format!(
                "  in {}: {}\n",
                job.directory,
                printable(&job.reason).replace('\n', " ")
            ));
        }
    }
    let hidden = list.jobs.len() - shown.len();
    if hidden > 0 {
        jobs.push_str(&format!("{hidden} more ended over an hour ago; --all lists them\n"));
    }
    let workers = list.workers.iter().map(|worker| {
        let info = worker.info.clone().unwrap_or_default();
        let job = if worker.job.is_empty() { "-".to_owned() } else { worker.job.clone() };
        [
            info.id,
            phase_word(worker.phase()).to_owned(),
            job,
            worker.step.to_string(),
            format!("{} MiB", worker.peak_tensor_bytes >> 20),
            format!("pid {} on {}, {}", info.pid, info.host, info.device),
        ]
    });
    let workers = table(["WORKER", "PHASE", "JOB", "STEP", "TENSORS", "WHERE"], workers, "no workers");
    format!("{jobs}\n{workers}")
}

fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>, none: &str) -> String {
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return format!("{none}\n");
    }
    let all: Vec<_> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    aligned(&all, |_| false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned() {
        let job = |job: &str, state: wire::JobState, reason: &str| wire::JobSummary {
            job: job.into(),
            state: state.into(),
            step: 3,
            steps: 100,
            workers: 4,
            reason: reason.into(),
            directory: "/runs/demo".into(),
            ..Default::default()
        };
        let list = wire::ListReply {
            jobs: vec![
                wire::JobSummary {
                    loss: Some(2.5),
                    tokens_per_second: Some(640.4),
                    unit: "token".into(),
                    elapsed_s: Some(75),
                    left_s: Some(12.3),
                    ..job("demo-1", wire::JobState::Running, "on 4 workers, generation 1")
                },
                wire::JobSummary {
                    priority: 5,
                    ..job("a-longer-name-2", wire::JobState::Queued, "waits for its turn")
                },
                wire::JobSummary {
                    over_s: Some(3600),
                    ..job("old-3", wire::JobState::Done, "step 100 is taken")
                },
            ],
            workers: vec![],
            more: false,
        };
        let expected = "\
JOB              STATE    STEP   LOSS    SPEED         ELAPSED     LEFT  CHECKPOINT  WORKERS  PRIORITY
demo-1           running  3/100  2.5000  640 tokens/s  1 min 15 s  12 s  -           4        0
  in /runs/demo: on 4 workers, generation 1
a-longer-name-2  queued   3/100  -       -             -           -     -           4        5
  in /runs/demo: waits for its turn
1 more ended over an hour ago; --all lists them

no workers
";
        assert_eq!(tables(&list, false), expected);
        let all = tables(&list, true);
        assert!(all.contains("old-3            done") && !all.contains("--all"), "{all}");
    }
}
