//! Jobs and workers as they are shown: to the wire, from the wire, and as tables for people.

use coxswain_core::cluster::{Ending, JobState, JobSummary, WorkerSummary};
use coxswain_proto::convert::phase_to_wire;
use coxswain_proto::wire;

use crate::handle::JobNews;

pub(crate) fn job_to_wire(summary: JobSummary) -> wire::JobSummary {
    let state = match summary.state {
        JobState::Queued => wire::JobState::Queued,
        JobState::Preparing => wire::JobState::Preparing,
        JobState::Gathering => wire::JobState::Gathering,
        JobState::Running => wire::JobState::Running,
        JobState::Ended(Ending::Done) => wire::JobState::Done,
        JobState::Ended(Ending::Failed) => wire::JobState::Failed,
        JobState::Ended(Ending::Cancelled) => wire::JobState::Cancelled,
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

pub(crate) fn news_to_wire(news: JobNews) -> wire::JobEvent {
    use wire::job_event::Event;
    let event = match news {
        JobNews::Summary(summary) => Event::Summary(job_to_wire(summary)),
        JobNews::Report(report) => Event::Report(report.into()),
        JobNews::Checkpoint(published) => Event::Checkpoint(published.into()),
    };
    wire::JobEvent { event: Some(event) }
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

fn phase_word(phase: wire::Phase) -> &'static str {
    match phase {
        wire::Phase::Unspecified => "unknown",
        wire::Phase::Idle => "idle",
        wire::Phase::Preparing => "preparing",
        wire::Phase::Running => "running",
        wire::Phase::Done => "done",
        wire::Phase::Failed => "failed",
    }
}

/// Jobs and workers as two tables.
pub(crate) fn tables(list: &wire::ListReply) -> String {
    let jobs = list.jobs.iter().map(|job| {
        [
            job.job.clone(),
            state_word(job.state()).to_owned(),
            format!("{}/{}", job.step, job.steps),
            job.checkpoint.as_ref().map_or("-".to_owned(), |checkpoint| checkpoint.step.to_string()),
            job.workers.to_string(),
            job.priority.to_string(),
            job.reason.clone(),
        ]
    });
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
    let jobs = table(["JOB", "STATE", "STEP", "CHECKPOINT", "WORKERS", "PRIORITY", "WHY"], jobs, "no jobs");
    let workers = table(["WORKER", "PHASE", "JOB", "STEP", "TENSORS", "WHERE"], workers, "no workers");
    format!("{jobs}\n{workers}")
}

fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>, none: &str) -> String {
    let rows: Vec<_> = rows.collect();
    if rows.is_empty() {
        return format!("{none}\n");
    }
    let mut all = vec![head.map(str::to_owned)];
    all.extend(rows);
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<_> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    all.iter().map(line).collect()
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
            ..Default::default()
        };
        let list = wire::ListReply {
            jobs: vec![
                job("demo-1", wire::JobState::Running, "generation 1 of 4 workers"),
                wire::JobSummary {
                    priority: 5,
                    ..job("a-longer-name-2", wire::JobState::Queued, "waits for its turn")
                },
            ],
            workers: vec![],
        };
        let expected = "\
JOB              STATE    STEP   CHECKPOINT  WORKERS  PRIORITY  WHY
demo-1           running  3/100  -           4        0         generation 1 of 4 workers
a-longer-name-2  queued   3/100  -           4        5         waits for its turn

no workers
";
        assert_eq!(tables(&list), expected);
    }
}
