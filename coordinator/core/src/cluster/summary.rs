//! What people are shown: jobs and workers as they are now.

use coxswain_types::ids::{Generation, Step, WorkerId};
use coxswain_types::status::{Phase, Published, StepReport, WorkerInfo};
use serde::{Deserialize, Serialize};

/// How a job can end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobEnding {
    /// All steps are taken and the last checkpoint can be read.
    Done,
    /// It could not go on.
    Failed,
    /// A user wanted it no more.
    Cancelled,
}

/// Where a job is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobState {
    /// It waits for its turn.
    Queued,
    /// Its tokens are being made ready.
    Preparing,
    /// It waits for workers.
    Gathering,
    /// A generation works on it.
    Running,
    /// It is over.
    Ended(JobEnding),
}

impl JobState {
    /// Whether the job is over.
    pub fn is_over(self) -> bool {
        matches!(self, JobState::Ended(_))
    }
}

/// A job as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct JobSummary {
    /// Its id.
    pub job: String,
    /// Its name in the job file.
    pub name: String,
    /// The higher, the sooner it has its turn.
    pub priority: i32,
    /// Where it is in its life.
    pub state: JobState,
    /// Why it is there.
    pub reason: String,
    /// The workers that the reason is about, once the job is over and as far as this coordinator saw it.
    pub about: Vec<WorkerId>,
    /// Whether a user cancelled it and it ends after the step at hand.
    pub cancelling: bool,
    /// The newest generation that worked on it; 0 before the first.
    pub generation: Generation,
    /// The last step that is recorded.
    pub step: Step,
    /// Steps in all.
    pub steps: u64,
    /// The run's folder.
    pub directory: String,
    /// Workers that its layout needs.
    pub workers: u32,
    /// The newest checkpoint that readers can see.
    pub checkpoint: Option<Published>,
    /// What its speed is counted in, such as `token`.
    pub unit: &'static str,
    /// Numbers of its newest steps, once this coordinator has heard of one.
    pub numbers: Option<Numbers>,
}

impl JobSummary {
    /// How many seconds are left, if it goes on as it did.
    pub fn left_seconds(&self) -> Option<f64> {
        let left = self.steps.saturating_sub(self.step.0) as f64;
        self.numbers.filter(|_| self.state == JobState::Running).map(|numbers| left * numbers.step_seconds)
    }
}

/// Numbers of a run, for people.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Numbers {
    /// The loss of the newest step.
    pub loss: f64,
    /// The newest validation loss.
    pub validation: Option<f64>,
    /// Tokens a second, smoothed.
    pub tokens_per_second: f64,
    /// Seconds a step, smoothed.
    pub step_seconds: f64,
}

/// How much of an older step's speed counts: about the last ten steps are seen.
const KEPT: f64 = 0.9;

impl Numbers {
    /// After one more step.
    pub fn after(before: Option<Numbers>, report: &StepReport) -> Numbers {
        let smooth = |old: f64, new: f64| KEPT * old + (1.0 - KEPT) * new;
        let (tokens, seconds) = (report.tokens_per_second, report.step_seconds);
        Numbers {
            loss: report.loss,
            validation: report
                .validation
                .map(|validation| validation.loss)
                .or(before.and_then(|old| old.validation)),
            tokens_per_second: before.map_or(tokens, |old| smooth(old.tokens_per_second, tokens)),
            step_seconds: before.map_or(seconds, |old| smooth(old.step_seconds, seconds)),
        }
    }
}

/// A time as people say it.
pub fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn times_are_told_as_people_say_them() {
        let rows = [
            (0.4, "0 s"),
            (59.4, "59 s"),
            (59.6, "1 min 00 s"),
            (3599.0, "59 min 59 s"),
            (7260.0, "2 h 01 min"),
            (200_000.0, "2 d 07 h"),
        ];
        for (seconds, text) in rows {
            assert_eq!(duration(seconds), text);
        }
    }
}

/// A worker as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerSummary {
    /// What it is.
    pub info: WorkerInfo,
    /// How far it has come.
    pub phase: Phase,
    /// The job it works for.
    pub job: Option<String>,
    /// The generation it belongs to.
    pub generation: Generation,
    /// Steps that it has applied.
    pub step: Step,
    /// The most bytes that its tensors took at once.
    pub peak_tensor_bytes: u64,
    /// Why it shall end once nothing needs it, if it shall.
    pub leaving: Option<String>,
}
